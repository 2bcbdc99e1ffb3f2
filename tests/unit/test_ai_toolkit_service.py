"""AI-Toolkit as the page and the trainings see it."""

import threading
from dataclasses import replace

import pytest

from isengard.domain.model import Family
from isengard.errors import Conflict, InstallFailed, InvalidSpec
from isengard.services import ai_toolkit
from isengard.services.ai_toolkit import AiToolkitService, Outcome
from isengard.services.training import Engine, TrainingService
from isengard.settings import ROOT
from isengard.store.ai_toolkit import Checkout, Stage
from isengard.store.configs import Catalog
from isengard.wiring import build
from tests.checkouts import repository, whole
from tests.tiny_app import submit_training, tiny_app

TIMEOUT_S = 20


class Scripted(Checkout):
    """A checkout whose installation does what a test says."""

    def __init__(self, folder, act):
        repository(folder)
        super().__init__(folder, owned=True, lock=folder / "lock")
        self.act, self.looked = act, 0

    def state(self):
        self.looked += 1
        return super().state()

    def install(self, report):
        self.act(report)
        return self.state()


@pytest.fixture
def serve(tmp_path):
    """A service around a scripted installation, waited for at the end."""
    services = []

    def serve(act, **options):
        services.append(AiToolkitService(checkout=Scripted(tmp_path / "a", act), **options))
        return services[-1]

    yield serve
    for service in services:
        service.cancel()
        service.wait(TIMEOUT_S)


def ended(service):
    service.wait(TIMEOUT_S)
    installation = service.installation()
    return installation.outcome, installation.error


# Looking


def test_many_looks_in_one_second_look_once(tmp_path):
    now = [0.0]
    checkout = Scripted(tmp_path / "a", print)
    service = AiToolkitService(checkout=checkout, clock=lambda: now[0])
    for _ in range(50):
        service.absence()
    assert checkout.looked == 1
    now[0] = 1.0
    service.absence()
    assert checkout.looked == 2


def test_a_usable_one_is_not_absent_and_an_unusable_one_says_why(tmp_path):
    assert AiToolkitService(checkout=whole(tmp_path / "a")).absence() == ""
    nothing = Checkout(tmp_path / "b", owned=True, lock=tmp_path / "lock")
    assert "is not installed" in AiToolkitService(checkout=nothing).absence()


def test_after_an_installation_the_next_look_is_a_new_one(tmp_path):
    checkout = Scripted(tmp_path / "a", lambda report: None)
    service = AiToolkitService(checkout=checkout, clock=lambda: 0.0)
    service.state()
    service.install(print)
    service.state()
    assert checkout.looked == 3


# Installing in the background


def test_the_course_of_an_installation_can_be_followed(serve):
    reached, go_on = threading.Event(), threading.Event()

    def act(report):
        report(Stage.SOURCE, 0.5, "half")
        reached.set()
        go_on.wait(TIMEOUT_S)

    service = serve(act)
    assert (service.installation().running, service.installation().ended) == (False, 0)
    service.start()
    reached.wait(TIMEOUT_S)
    now = service.installation()
    assert (now.running, now.stage, now.fraction, now.message) == (True, Stage.SOURCE, 0.5, "half")
    with pytest.raises(Conflict, match="being installed already"):
        service.start()
    go_on.set()
    assert ended(service) == (Outcome.INSTALLED, "")
    assert (service.installation().running, service.installation().ended) == (False, 1)


def test_a_cancelled_installation_ends_at_its_next_report(serve):
    def act(report):
        while True:
            report(Stage.PACKAGES, None, "")

    service = serve(act)
    service.start()
    service.cancel()
    assert ended(service) == (Outcome.CANCELLED, "")


def test_a_cancel_before_the_start_does_not_count(serve):
    service = serve(lambda report: report(Stage.SOURCE, None, ""))
    service.cancel()
    service.start()
    assert ended(service) == (Outcome.INSTALLED, "")


@pytest.mark.parametrize("error", [InstallFailed("no network"), OSError("no network")])
def test_a_failed_installation_keeps_its_reason(serve, error):
    def act(report):
        raise error

    service = serve(act)
    service.start()
    assert ended(service) == (Outcome.FAILED, "no network")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_ends_the_installation_too(serve):
    service = serve(lambda report: 1 / 0)
    service.start()
    outcome, said = ended(service)
    assert (outcome, "bug in Isengard" in said) == (Outcome.FAILED, True)


def test_nothing_to_wait_for_is_not_waited_for(serve):
    serve(print).wait(TIMEOUT_S)


# What trainings make of it


class Toolkit:
    """AI-Toolkit that comes and goes; ``absent``: why it cannot be used."""

    def __init__(self):
        self.absent = "AI-Toolkit is not installed; get it with: INSTALL"


@pytest.fixture
def toolkit():
    return Toolkit()


@pytest.fixture
def app(tmp_path, tiny_flux, toolkit):
    """The tiny application, whose model seems to be one that was downloaded."""
    app = tiny_app(tmp_path, tiny_flux)
    cards = app.settings.configs_dir / "models.yaml"
    cards.write_text(cards.read_text().replace(f"path: {tiny_flux}", "repository: example/tiny"))
    (app.settings.models_dir).mkdir(parents=True)
    (app.settings.models_dir / "tiny").symlink_to(tiny_flux)
    training = TrainingService(
        queue=app.queue,
        catalog=app.catalog,
        weights=app.weights,
        characters=app.characters,
        engines={
            "native": Engine((Family.FLUX,)),
            "ai-toolkit": Engine((Family.FLUX, Family.SDXL), absence=lambda: toolkit.absent),
        },
        planning=app.planning,
        room=app.room,
        runs_dir=app.settings.runs_dir,
    )
    return replace(app, training=training)


def engine_of(app, **overrides):
    return app.training.plan(
        character_id="mira", base_model="tiny", preset="quick", overrides=overrides
    ).engine


def edit(app, old, new, file="models.yaml"):
    path = app.settings.configs_dir / file
    path.write_text(path.read_text().replace(old, new))


def test_a_downloaded_model_trains_with_ai_toolkit_as_soon_as_it_is_there(app, toolkit):
    assert engine_of(app) == "native"
    toolkit.absent = ""
    assert engine_of(app) == "ai-toolkit"


def test_the_bundled_model_trains_with_our_own_engine(app, toolkit, tiny_flux):
    toolkit.absent = ""
    edit(app, "repository: example/tiny", f"path: {tiny_flux}")
    assert engine_of(app) == "native"


def test_a_family_that_ai_toolkit_does_not_train_here_does_not_get_it(app, toolkit):
    toolkit.absent = ""
    edit(app, "family: flux", "family: flux2")
    card = app.catalog.model("tiny")
    assert (app.training.default_engine(card), app.training.available_engines(card)) == ("native", ())


def test_a_distilled_model_is_trained_by_both_engines_and_only_with_a_training_adapter(app, toolkit):
    schnell = Catalog(ROOT / "configs").model("flux1-schnell")
    engines = app.training.available_engines
    assert (engines(schnell), app.training.default_engine(schnell)) == (("native",), "native")
    toolkit.absent = ""
    assert (engines(schnell), app.training.default_engine(schnell)) == (
        ("native", "ai-toolkit"),
        "ai-toolkit",
    )
    assert engines(schnell.model_copy(update={"training_adapter": None})) == ()


def test_who_chooses_gets_what_was_chosen(app, toolkit):
    toolkit.absent = ""
    assert engine_of(app, engine="native") == "native"
    edit(app, "settings:", "settings:\n  engine: native", "training/quick.yaml")
    assert engine_of(app) == "native"
    assert engine_of(app, engine="ai-toolkit") == "ai-toolkit"


def test_choosing_ai_toolkit_where_it_is_absent_is_refused_with_both_ways_out(app):
    with pytest.raises(
        InvalidSpec,
        match=r"'ai-toolkit' cannot be used: .* get it with: INSTALL; or choose the engine 'native'",
    ):
        submit_training(app, engine="ai-toolkit")
    assert app.jobs.jobs() == []


def test_a_family_that_only_ai_toolkit_trains_is_refused_with_the_way_to_it(app, toolkit):
    edit(app, "family: flux", "family: sdxl")
    with pytest.raises(InvalidSpec, match="Tiny FLUX is of the family sdxl; AI-Toolkit is not installed"):
        engine_of(app)
    with pytest.raises(InvalidSpec, match=r"get it with: INSTALL$"):
        engine_of(app, engine="ai-toolkit")
    toolkit.absent = ""
    assert engine_of(app) == "ai-toolkit"
    with pytest.raises(InvalidSpec, match=r"family sdxl; choose the engine 'ai-toolkit'$"):
        engine_of(app, engine="native")


def test_a_training_does_not_go_on_without_its_engine(app, toolkit):
    toolkit.absent = ""
    cancelled, succeeded = submit_training(app), submit_training(app)
    app.jobs.cancel(cancelled)
    app.queue.succeed(app.queue.claim("w", lease_s=60), {})
    toolkit.absent = "gone"
    with pytest.raises(InvalidSpec, match="'ai-toolkit' cannot be used: gone"):
        app.training.resume(cancelled, {})
    with pytest.raises(InvalidSpec, match="'ai-toolkit' cannot be used: gone"):
        app.training.extend(succeeded, 99)


def test_the_application_sees_an_installation_without_a_restart(tmp_path, monkeypatch, tiny_flux):
    monkeypatch.setattr(ai_toolkit, "LOOK_EVERY_S", 0)
    app = tiny_app(tmp_path, tiny_flux)
    assert app.training.engine_names == ("native", "ai-toolkit")
    with pytest.raises(
        InvalidSpec, match="AI-Toolkit is not installed; get it with: python -m isengard ai-t"
    ):
        submit_training(app, engine="ai-toolkit")
    repository(app.settings.ai_toolkit_dir)
    assert "is not installed; get it" not in app.ai_toolkit.absence()


def test_a_given_checkout_is_not_ours(tmp_path, tiny_flux):
    app = tiny_app(tmp_path, tiny_flux)
    assert app.ai_toolkit.state().owned
    given = build(app.settings.model_copy(update={"ai_toolkit": tmp_path / "given"}))
    assert (given.ai_toolkit.state().owned, given.ai_toolkit.state().path) == (False, tmp_path / "given")
