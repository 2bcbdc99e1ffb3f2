from pathlib import Path

import pytest

from isengard.errors import InvalidSpec
from isengard.settings import ROOT, Settings, WorkerMode


def test_defaults_need_no_environment():
    settings = Settings.load({})
    assert settings.data_dir == Path("data").resolve()
    assert settings.configs_dir == ROOT / "configs"
    assert settings.worker is WorkerMode.PROCESS


def test_the_environment_is_read_and_a_command_line_option_wins(tmp_path):
    environment = {
        "ISENGARD_DATA_DIR": str(tmp_path / "a"),
        "ISENGARD_WORKER": "thread",
        "ISENGARD_DEVICE": "",
    }
    settings = Settings.load(environment, data_dir=tmp_path / "b", worker=None)
    assert settings.data_dir == tmp_path / "b"
    assert settings.worker is WorkerMode.THREAD
    assert settings.device == "auto"


def test_the_environment_of_the_process_is_the_default(monkeypatch):
    monkeypatch.setenv("ISENGARD_DEVICE", "cpu")
    assert Settings.load().device == "cpu"


def test_a_tilde_and_a_relative_folder_become_absolute(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Settings.load({}, data_dir="~/isengard").data_dir == tmp_path / "isengard"
    assert Settings.load({}, data_dir="x").data_dir.is_absolute()
    assert Settings.load({}, configs_dir="x").configs_dir.is_absolute()


def test_a_given_checkout_of_ai_toolkit_wins_over_the_one_in_the_data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = Settings.load({"ISENGARD_AI_TOOLKIT": "~/checkout"}, data_dir=tmp_path)
    assert settings.ai_toolkit == settings.ai_toolkit_dir == tmp_path / "checkout"
    assert Settings.load(settings.child_environment()).ai_toolkit == tmp_path / "checkout"
    none_given = Settings.load({"ISENGARD_AI_TOOLKIT": ""}, data_dir=tmp_path)
    assert (none_given.ai_toolkit, none_given.ai_toolkit_dir) == (None, tmp_path / "ai-toolkit")


@pytest.mark.parametrize(
    ("variable", "value"),
    [("WORKER", "often"), ("LEASE_S", "0"), ("LEASE_S", "nan"), ("DEVICE", "gpu"), ("LOG_LEVEL", "loud")],
)
def test_a_wrong_value_is_refused_with_its_variable_and_value(variable, value):
    with pytest.raises(InvalidSpec, match=f"ISENGARD_{variable}.*{value}"):
        Settings.load({f"ISENGARD_{variable}": value})


def test_a_child_process_gets_the_same_settings(tmp_path):
    settings = Settings.load({}, data_dir=tmp_path, device="cpu", lease_s=5)
    assert Settings.load(settings.child_environment()) == settings


@pytest.mark.parametrize("url", ["redis://h", "rediss://me:s%2Fecret@h:6380/3?ssl_ca_certs=ca.pem"])
def test_the_shared_job_list_reaches_a_child_process_and_no_log(url, tmp_path):
    settings = Settings.load({"ISENGARD_REDIS_URL": url}, data_dir=tmp_path)
    assert Settings.load(settings.child_environment()) == settings
    assert url not in f"{settings!r} {settings.model_dump()}"


@pytest.mark.parametrize(
    "url",
    ["http://me:hidden@h", "me:hidden@h", "redis://", "redis://me:hid/den@h", "redis://me:hidden@h/jobs"],
)
def test_a_wrong_address_of_the_shared_job_list_is_refused_without_showing_it(url):
    with pytest.raises(InvalidSpec, match=r"ISENGARD_REDIS_URL.*redis://user:password@host:port/0") as raised:
        Settings.load({"ISENGARD_REDIS_URL": url})
    assert "hid" not in str(raised.value)


def test_everything_that_is_written_lies_in_the_data_folder(tmp_path):
    settings = Settings.load({}, data_dir=tmp_path)
    folders = [getattr(settings, name) for name in dir(Settings) if name.endswith(("_dir", "_db"))]
    assert {folder.parent for folder in folders if folder not in (tmp_path, settings.configs_dir)} == {
        tmp_path,
        settings.cache_dir,
    }
