"""Where the page does not start without a login, and what is said where it does."""

import pytest
from uvicorn import Config

from isengard.errors import InvalidSpec, LoginMissing
from isengard.services.exposure import check_exposure
from isengard.settings import Settings

LOGIN = {"auth": "anna:tower"}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"share": True}, "--share gives this page a public address"),
        ({"runpod_pod_id": "ab12"}, "a RunPod pod has a public address"),
    ],
)
def test_a_public_page_needs_a_login_or_the_word_that_it_needs_none(options, reason):
    with pytest.raises(LoginMissing, match=rf"{reason}.*ISENGARD_AUTH=name:password.*--no-auth"):
        check_exposure(Settings(**options))
    assert check_exposure(Settings(**options, **LOGIN)) == ""
    assert check_exposure(Settings(**options, no_auth=True)) == ""


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_a_page_for_this_machine_needs_no_word(host):
    assert check_exposure(Settings(host=host)) == ""


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "box.example"])  # noqa: S104
def test_a_page_for_other_machines_without_a_login_is_warned_of(host):
    assert f"everybody who reaches {host}:7860 may use this page" in check_exposure(Settings(host=host))
    assert check_exposure(Settings(host=host, no_auth=True)) == ""


def test_a_login_and_no_login_contradict_each_other():
    with pytest.raises(InvalidSpec, match="take one of them away"):
        check_exposure(Settings(no_auth=True, **LOGIN))


def test_a_login_that_is_none_is_said_before_anything_starts():
    with pytest.raises(InvalidSpec, match="must be name:password"):
        check_exposure(Settings(auth="anna"))


def test_a_pod_is_known_by_the_variable_that_runpod_sets():
    assert Settings.load({"RUNPOD_POD_ID": "ab12"}).runpod_pod_id == "ab12"
    assert Settings.load({}).runpod_pod_id is None


def test_what_follows_is_told_no_password(monkeypatch):
    monkeypatch.setenv("ISENGARD_AUTH", "anna:tower")
    assert Settings.load().without_login().auth is None
    assert Settings.load().auth is None


@pytest.mark.parametrize(
    ("settings", "given", "trusted"),
    [
        (Settings(), None, "127.0.0.1,::1"),
        (Settings(runpod_pod_id="ab12"), None, "127.0.0.1,::1,10.0.0.0/8,100.64.0.0/10"),
        (Settings(runpod_pod_id="ab12"), "192.0.2.1", "192.0.2.1"),
    ],
    ids=["here", "on a pod", "set by hand"],
)
def test_the_server_is_told_which_proxies_may_name_a_client(monkeypatch, settings, given, trusted):
    for name in ("GRADIO_ANALYTICS_ENABLED", "GRADIO_TEMP_DIR"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", given or "")
    if given is None:
        monkeypatch.delenv("FORWARDED_ALLOW_IPS")
    settings.prepare_gradio()
    assert str(Config(app="x").forwarded_allow_ips).startswith(trusted)
