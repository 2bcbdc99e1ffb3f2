"""Ids and names that lead elsewhere, given to everything that takes one."""

import pytest

from isengard.domain.doctor import Fix, FixKind
from isengard.errors import IsengardError
from isengard.services.model_tasks import Action
from isengard.settings import Settings
from isengard.wiring import build

HOSTILE = (
    "", ".", "..", "../..", "../characters/nova", "../../outside", "/etc", "nova/../nova", "nova/", "a\\b", "nova\0",
    "NOVA", ".lock", "nova.partial-1", "%2e%2e", "*", "?", "[a-z]*", "~", "nova ", "x" * 300, "x" * 5000,
)  # fmt: skip

CALLS = {
    "a character": lambda app, given: app.characters.get(given),
    "a character's readiness": lambda app, given: app.characters.readiness(given),
    "a character to edit": lambda app, given: app.characters.edit(given, name="x"),
    "a character to add to": lambda app, given: list(app.characters.add_files(given, [])),
    "a character to caption": lambda app, given: app.characters.caption_all(given, "x"),
    "a character to delete": lambda app, given: app.characters.delete(given),
    "a character to export": lambda app, given: app.characters.export(given, app.settings.exports_dir / "x.zip"),
    "a picture to caption": lambda app, given: app.characters.set_caption("nova", given, "x"),
    "a picture to remove": lambda app, given: app.characters.remove_image("nova", given),
    "a character to fix": lambda app, given: app.characters.fix(given, "0" * 16, Fix(kind=FixKind.LEAVE_OUT)),
    "a picture to fix": lambda app, given: app.characters.fix("nova", given, Fix(kind=FixKind.LEAVE_OUT)),
    "a picture to bring back": lambda app, given: app.characters.bring_back("nova", given),
    "a picture to forget": lambda app, given: app.characters.forget("nova", given),
    "trash to restore": lambda app, given: app.characters.restore(given),
    "trash to restore as": lambda app, given: app.characters.restore("gone", character_id=given or "-"),
    "trash to purge": lambda app, given: app.characters.purge(given),
    "a character to train": lambda app, given: app.training.submit(
        character_id=given, base_model="demo", preset="quick", overrides={}
    ),
    "a model to train": lambda app, given: app.training.submit(
        character_id="nova", base_model=given, preset="quick", overrides={}
    ),
    "a preset": lambda app, given: app.training.submit(
        character_id="nova", base_model="demo", preset=given, overrides={}
    ),
    "a LoRA": lambda app, given: app.images.lora(given),
    "a LoRA to use": lambda app, given: app.images.plan(overrides={"prompt": "x", "loras": [{"lora": given}]}),
    "a LoRA to remove": lambda app, given: app.images.remove_lora(given),
    "an image": lambda app, given: app.images.image(given),
    "an image to remove": lambda app, given: app.images.remove(given),
    "an image to restore": lambda app, given: app.images.restore([given]),
    "a template": lambda app, given: app.images.plan(template=given or "-", overrides={"prompt": "x"}),
    "a job": lambda app, given: app.jobs.get(given),
    "a job to cancel": lambda app, given: app.jobs.cancel(given),
    "a job to forget": lambda app, given: app.jobs.remove(given),
    "a job to measure": lambda app, given: app.jobs.metrics(given),
    "a job to resume": lambda app, given: app.training.resume(given, {}),
    "a model": lambda app, given: app.models.get(given),
    "a model to remove": lambda app, given: app.models.remove(given),
    "a model to download": lambda app, given: app.model_tasks.start(app.catalog.model(given).name, Action.DOWNLOAD),
    "a worker": lambda app, given: app.workers.drain(given),
}  # fmt: skip


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ids")
    (folder / "outside").mkdir()
    (folder / "outside" / "character.json").write_text("{}")
    app = build(Settings(data_dir=folder / "data", device="cpu"))
    app.characters.create("Nova")
    app.characters.delete(app.characters.create("Gone").id)
    return app


def files(app):
    """All in the data folder and beside it, but for locks and the job list's own."""
    found = app.settings.data_dir.parent.rglob("*")
    return {path for path in found if path.is_file() and not path.name.startswith((".", "jobs.db"))}


@pytest.mark.parametrize("what", CALLS)
def test_an_id_that_leads_elsewhere_is_refused_in_our_own_words_and_touches_nothing(app, what):
    before = files(app)
    for given in HOSTILE:
        with pytest.raises(IsengardError):
            CALLS[what](app, given)
    assert files(app) == before


def test_the_pictures_of_a_job_are_found_by_its_whole_id_only(app):
    assert all(app.images.of_job(given) == () for given in HOSTILE)
