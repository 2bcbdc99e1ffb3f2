"""What uses the disk, and what a cleanup takes and leaves."""

import json
import os
import time

import pytest

from isengard.domain.comparison import Comparison, ComparisonSpec
from isengard.domain.evaluation import Candidate, Reference, Verdict
from isengard.domain.identity import ScorerKind
from isengard.domain.job import JobError, JobKind
from isengard.domain.storage import DAY_S, Part, Policy
from isengard.errors import Conflict, NotFound, QueueUnavailable
from isengard.services import cleanup
from isengard.services.storage import OLD_S, VERY_OLD_S, StorageService
from isengard.settings import Settings
from isengard.store import usage
from isengard.store.comparisons import Comparisons
from isengard.store.download import locked
from isengard.store.usage import files_in, size_of
from isengard.wiring import build

NOW = 2_000_000_000.0


class Clock:
    def __init__(self):
        self.now = NOW

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def app(tmp_path, clock):
    app = build(Settings(data_dir=tmp_path / "data"))
    app.characters.create("Mira")
    app.queue._clock = clock
    return app


@pytest.fixture
def data(app):
    return app.settings.data_dir


@pytest.fixture
def storage(app, data, clock):
    return StorageService(folder=data, queue=app.queue, characters=app.characters._store, clock=clock)


def write(path, size=1000, *, age_days=0.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    os.utime(path, (NOW - age_days * DAY_S,) * 2)
    return path


def a_run(app, data, clock, end, *, age_days=40.0, best=2):
    """A training with checkpoints and two samples at steps 2, 4 and 6, ended so long ago."""
    clock.now = NOW - age_days * DAY_S
    job_id = app.queue.enqueue(JobKind.TRAIN_LORA, {"name": "Mira"}).id
    job = app.queue.claim("w", lease_s=60)
    for step in (2, 4, 6):
        folder = data / "runs" / job_id / "checkpoints" / f"step-{step:08d}"
        write(folder / "state.pt")
        write(folder / "lora.safetensors", 500)
        (folder / "about.json").write_text(json.dumps({"reason": "scheduled"}))
        for number in range(2):
            write(data / "runs" / job_id / "samples" / f"{step:08d}-{number}.png", 100)
    write(data / "runs" / job_id / "metrics.jsonl", 0)
    end(app.queue, job, {"steps": 6, "best_step": best})
    clock.now = NOW
    return job_id


def succeed(queue, job, result):
    queue.succeed(job, result)


def fail(queue, job, _):
    queue.fail(job, JobError(code="training_failed", message="no"))


def pause(queue, job, _):
    queue.pause(job.id)
    queue.stopped(job)


def run_on(queue, job, _):
    queue.heartbeat(job, lease_s=10**9)


def found(storage, policy, days=None):
    return [item for item in storage.look(days).items if item.policy is policy]


def cleaned(storage, *policies, days=None):
    return storage.clean(storage.look(days).number, policies)


def left(data, job_id):
    return sorted(int(path.name[5:]) for path in (data / "runs" / job_id / "checkpoints").glob("step-*"))


# What uses what


def test_each_byte_is_counted_once_under_what_it_is_for(app, storage, data, clock, tmp_path):
    job_id = a_run(app, data, clock, succeed)
    write(data / "images" / "a-0.png", 4000)
    write(data / "models" / "far" / "vae" / "x.safetensors", 900_000)
    write(data / "trash" / "images" / "20300101T000000Z-b-0.png", 50)
    write(data / "strange" / "file", 7)
    (data / "images" / "link.png").symlink_to(write(tmp_path / "outside", 10**6))
    seen = storage.look().usage
    assert seen.parts[Part.IMAGES] == 4000
    assert seen.parts[Part.MODELS] == 900_000
    assert seen.parts[Part.TRASH] == 50
    assert seen.parts[Part.OTHER] == 7 + sum(path.stat().st_size for path in data.iterdir() if path.is_file())
    assert seen.used == size_of(data) == sum(path.stat().st_size for path in data.rglob("*") if path.is_file() and not path.is_symlink())  # fmt: skip
    assert seen.files == len(list(files_in(data)))
    assert seen.disk_total >= seen.disk_free > 0
    by_name = {(entry.part, entry.name): entry for entry in seen.entries}
    run = by_name[Part.RUNS, job_id]
    assert (run.title, run.inside["samples"]) == ("Mira", 600)
    assert run.inside["checkpoints"] == run.size - 600
    assert by_name[Part.CHARACTERS, "mira"].title == "Mira"
    assert seen.entries[0].name == "far"


def test_what_vanishes_while_it_is_counted_counts_for_nothing(tmp_path, monkeypatch):
    write(tmp_path / "a", 10)

    class Vanishing:
        name, path = "b", "b"

        def is_dir(self, **_):
            raise FileNotFoundError

    def scandir(folder):
        class Entries(list):
            __enter__ = lambda self: self  # noqa: E731
            __exit__ = lambda *_: None  # noqa: E731

        with real(folder) as entries:
            return Entries([Vanishing(), *entries])

    real = os.scandir
    monkeypatch.setattr(usage.os, "scandir", scandir)
    assert size_of(tmp_path) == 10
    assert size_of(tmp_path / "nowhere") == 0


def test_the_count_is_made_in_the_background_and_one_at_a_time(storage):
    assert storage.latest is None
    storage.refresh(7)
    storage.refresh(9)
    storage.wait(10)
    assert (storage.latest.days, storage.latest.number, storage.counting) == (7, 1, False)


def test_a_job_list_that_is_away_leaves_the_last_count(storage, monkeypatch):
    last = storage.look()

    def away(**_):
        raise QueueUnavailable("the disk is gone")

    monkeypatch.setattr(storage._queue, "jobs", away)  # which requests use a checkpoint
    storage.refresh()
    storage.wait(10)
    assert storage.latest is last


def test_the_first_count_in_the_background_serves_the_quota_too(storage):
    storage.refresh()
    assert storage.used() == storage.latest.usage.used
    assert storage.latest.number == 1


def test_for_the_quota_a_count_of_the_last_minutes_will_do(storage, data, clock):
    first = storage.used()
    write(data / "images" / "a-0.png", 4000)
    assert storage.used() == first
    clock.now += OLD_S + 1
    assert storage.used() == first
    storage.wait(10)
    assert storage.used() == first + 4000
    write(data / "images" / "a-1.png", 4000)
    clock.now += VERY_OLD_S + 1
    assert storage.used() == first + 8000


# What can go


def test_between_the_first_and_the_last_checkpoint_those_that_nobody_chose_go(app, storage, data, clock):
    job_id = a_run(app, data, clock, succeed)
    (item,) = found(storage, Policy.CHECKPOINTS)
    about = (data / "runs" / job_id / "checkpoints" / "step-00000004" / "about.json").stat().st_size
    assert (item.job, item.size) == (job_id, 1500 + about)
    assert item.what == f"1 checkpoints of Mira ({job_id}) (those of steps 2, 6 stay)"
    assert left(data, job_id) == [2, 4, 6]
    done = cleaned(storage, Policy.CHECKPOINTS)
    assert (done.size, done.items, done.kept) == (item.size, 1, ())
    assert left(data, job_id) == [2, 6]


def recommend(app, run, candidate):
    spec = ComparisonSpec(
        run=run, character="mira", base_model="tiny", steps=(candidate.step,), prompts=tuple("abcd"),
        width=64, height=64, num_inference_steps=1, guidance_scale=1,
    )  # fmt: skip
    Comparisons(app.settings.runs_dir).write(
        Comparison(
            spec=spec,
            scorer=ScorerKind.FACES,
            reference=Reference(ceiling=(), twins=1, floor=()),
            tested=(),
            verdict=Verdict(scores=(), recommended=candidate, reason="the best"),
            complete=True,
            made_at=0,
        )
    )


@pytest.mark.parametrize("mark", ["pinned", "requested", "unknown", "used", "compared", "recommended"])
def test_a_checkpoint_that_is_pinned_asked_for_unknown_recommended_or_used_by_a_waiting_job_stays(
    app, storage, data, clock, mark
):
    job_id = a_run(app, data, clock, succeed)
    folder = data / "runs" / job_id / "checkpoints" / "step-00000004"
    if mark == "pinned":
        app.training.pin(job_id, 4, pinned=True)
    elif mark == "requested":
        (folder / "about.json").write_text(json.dumps({"reason": "requested"}))
    elif mark == "unknown":
        (folder / "about.json").unlink()
    elif mark == "compared":
        app.queue.enqueue(JobKind.EVALUATE_CHECKPOINTS, {"spec": {"run": job_id, "steps": [4]}})
    elif mark == "recommended":
        recommend(app, job_id, Candidate(step=4, strength=1))
    else:
        refs = [{"lora": "other"}, {"lora": job_id, "step": 4}]
        app.queue.enqueue(JobKind.GENERATE_IMAGES, {"spec": {"loras": refs}})
    assert found(storage, Policy.CHECKPOINTS, 0) == []


def test_with_very_many_waiting_images_no_checkpoint_goes(app, storage, data, clock, monkeypatch):
    job_id = a_run(app, data, clock, succeed)
    look = storage.look()
    app.queue.enqueue(JobKind.GENERATE_IMAGES, {})
    monkeypatch.setattr(cleanup, "REQUESTS", 1)
    assert "look again" in storage.clean(look.number, [Policy.CHECKPOINTS]).kept[0]
    assert found(storage, Policy.CHECKPOINTS) == []
    assert left(data, job_id) == [2, 4, 6]


@pytest.mark.parametrize("end", [fail, pause, run_on])
def test_a_training_that_can_go_on_keeps_all_its_checkpoints(app, storage, data, clock, end):
    job_id = a_run(app, data, clock, end)
    clock.now = NOW
    cleaned(storage, *Policy, days=0)
    assert left(data, job_id) == [2, 4, 6]


@pytest.mark.parametrize(("end", "stay"), [(succeed, 2), (fail, 2), (pause, 6), (run_on, 6)])
def test_of_ended_trainings_the_samples_of_the_last_step_stay(app, storage, data, clock, end, stay):
    job_id = a_run(app, data, clock, end)
    cleaned(storage, Policy.SAMPLES)
    samples = sorted(path.name for path in (data / "runs" / job_id / "samples").iterdir())
    assert len(samples) == stay
    assert samples[-1] == "00000006-1.png"


def test_what_is_young_stays_unless_another_age_is_asked_for(app, storage, data, clock):
    a_run(app, data, clock, succeed, age_days=20)
    assert storage.look().items == ()
    assert {item.policy for item in storage.look(7).items} == {Policy.SAMPLES, Policy.CHECKPOINTS}


def test_a_run_that_nobody_knows_is_left_alone(storage, data):
    write(data / "runs" / "lost" / "checkpoints" / "step-00000002" / "state.pt", age_days=900)
    write(data / "runs" / "lost" / "samples" / "00000002-0.png", age_days=900)
    assert storage.look(0).items == ()


def test_the_trash_is_emptied_by_the_time_things_were_thrown_away(app, storage, data, clock):
    write(data / "trash" / "images" / "20330101T000000Z-b-0.png", 50)
    write(data / "trash" / "images" / "20330517T000000Z-c-0.png", 50)
    write(data / "trash" / "loras" / "by-hand" / "lora.json", 50, age_days=31)
    app.characters.create("Old")
    entry = app.characters._store.delete("old", now=NOW - 31 * DAY_S)
    whats = {item.what for item in found(storage, Policy.TRASH)}
    assert whats == {"image b-0.png", "lora hand", "character old"}
    assert cleaned(storage, Policy.TRASH).items == 3
    with pytest.raises(NotFound):
        app.characters.purge(entry.id)
    assert [path.name for path in (data / "trash" / "images").iterdir()] == ["20330517T000000Z-c-0.png"]


def test_a_character_that_was_restored_meanwhile_stays(app, storage):
    entry = app.characters._store.delete("mira", now=NOW - 31 * DAY_S)
    look = storage.look()
    app.characters.restore(entry.id)
    done = storage.clean(look.number, [Policy.TRASH])
    assert (done.items, done.size) == (0, 0)
    assert done.kept[0].startswith("character mira stays: there is no")
    assert app.characters.get("mira").name == "Mira"


def test_caches_go_when_nobody_has_used_them(storage, data):
    old = write(data / "cache" / "latents" / "ab" / "ab12.safetensors", age_days=31)
    young = write(data / "cache" / "latents" / "cd" / "cd12.safetensors", age_days=0.5)
    write(data / "cache" / "pictures" / "x.webp", age_days=31)
    assert [item.what for item in found(storage, Policy.CACHE)] == ["1 cached latents", "1 cached pictures"]
    cleaned(storage, Policy.CACHE, days=0)
    assert (old.exists(), young.exists()) == (False, True)


def test_what_was_never_finished_goes_after_two_days(app, storage, data, clock):
    partial = data / "loras" / "x.partial-1234abcd"
    write(partial / "lora.json", age_days=3)
    begun = write(data / "models" / "far" / "vae" / "x.safetensors.0123.incomplete", age_days=3)
    removed = write(data / "models" / ".near.removed" / "x", age_days=3)
    upload = write(data / "cache" / "uploads" / "0123" / "a.png", age_days=3)
    young = write(data / "images" / "a-0.png.partial-1234abcd", age_days=1)
    running = a_run(app, data, clock, run_on)
    own = write(data / "runs" / running / "metrics.jsonl.partial-1234abcd", age_days=3)
    assert {path for item in found(storage, Policy.ABANDONED) for path in item.paths} == {
        "loras/x.partial-1234abcd",
        "models/far/vae/x.safetensors.0123.incomplete",
        "models/.near.removed",
        "cache/uploads/0123/a.png",
    }
    assert cleaned(storage, Policy.ABANDONED).items == 4
    assert not any(path.exists() for path in (partial, begun, removed.parent, upload))
    assert young.exists()
    assert own.exists()


def test_a_download_that_runs_again_keeps_what_has_come(storage, data):
    begun = write(data / "models" / "far" / "x.safetensors.0123.incomplete", age_days=3)
    look = storage.look()
    with locked([data / "models" / "far"]):
        done = storage.clean(look.number, [Policy.ABANDONED])
    assert (done.items, begun.exists()) == (0, True)
    assert "is being downloaded" in done.kept[0]


# Between the look and the removal


def test_only_what_was_shown_last_is_removed(storage):
    first = storage.look()
    storage.look()
    with pytest.raises(Conflict, match="look at it again"):
        storage.clean(first.number, Policy)


def test_what_was_removed_once_is_not_removed_again(app, storage, data, clock):
    a_run(app, data, clock, succeed)
    look = storage.look()
    storage.clean(look.number, [Policy.SAMPLES])
    with pytest.raises(Conflict):
        storage.clean(look.number, [Policy.SAMPLES])
    assert [item.policy for item in storage.latest.items] == [Policy.CHECKPOINTS]


def test_a_training_that_goes_on_meanwhile_keeps_its_samples(app, storage, data, clock):
    job_id = a_run(app, data, clock, fail)
    look = storage.look()
    app.queue.requeue(job_id, {"name": "Mira"})
    done = storage.clean(look.number, [Policy.SAMPLES])
    assert done.kept == (f"4 sample pictures of Mira ({job_id}) stays: training {job_id} is queued now",)
    assert len(list((data / "runs" / job_id / "samples").iterdir())) == 6


def test_a_checkpoint_that_is_pinned_meanwhile_stays(app, storage, data, clock):
    job_id = a_run(app, data, clock, succeed)
    look = storage.look()
    app.training.pin(job_id, 4, pinned=True)
    assert "one of them is kept or used now" in storage.clean(look.number, [Policy.CHECKPOINTS]).kept[0]
    assert left(data, job_id) == [2, 4, 6]


def test_thousands_of_files_are_counted_in_a_moment(storage, data):
    folder = data / "images"
    folder.mkdir(parents=True)
    for number in range(3000):
        (folder / f"{number}.png").touch()
    began = time.monotonic()
    assert storage.look().usage.files >= 3000
    assert time.monotonic() - began < 5
