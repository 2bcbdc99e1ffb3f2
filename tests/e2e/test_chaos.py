"""Three workers and sixty jobs while processes, server and network fail: all ends as if nothing had happened.

Each seed is another course: ``pytest tests/e2e/test_chaos.py --chaos-seed 8 --chaos-seed 9``.
"""

import gc
from collections import Counter
from datetime import datetime

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from isengard.domain.job import JobStatus
from isengard.equipment import equip
from isengard.files import PARTIAL
from isengard.worker import Worker
from tests.e2e.chaos import Chaos
from tests.redis_servers import Server
from tests.tiny_app import submit_training, tiny_app

LEASE_S = 3.0
#: On two idle cores it takes a fifth of this.
LIMIT_S = 600

#: What may be logged about a job by one who has lost it.
GIVING_UP = {
    "heartbeat failed",
    "job lost",
    "the job's end is not written yet",
    "the job's end could not be written",
}

STEPS = 10
TRAINING = {"steps": STEPS, "save_every": 2, "validate_every": 5, "sample_every": 5}
#: What is asked for, by name.
TRAINED = {f"training {seed}": {**TRAINING, "seed": seed} for seed in (1, 2)}
MADE = {
    f"images {seed}": {"prompt": "a person", "base_model": "tiny", "seed": seed, "count": count}
    for seed, count in ((1, 1), (2, 2), (3, 1), (4, 2))
}
JOBS = [*list(TRAINED) * 7, *list(MADE) * 11, "images 2", "images 4"]


def submit(app, name):
    """Ask for a training or for images; the job's id."""
    if name in TRAINED:
        return submit_training(app, **TRAINED[name])
    return app.images.submit(app.images.plan(overrides=MADE[name])).id


@pytest.fixture
def calm(tmp_path, tiny_flux):
    """What comes out without disturbance: the application, and the job of each name."""
    gc.collect()
    gc.freeze()  # a training makes several full collections
    (tmp_path / "calm").mkdir()
    app = tiny_app(tmp_path / "calm", tiny_flux)
    jobs = {name: submit(app, name) for name in (*TRAINED, *MADE)}
    worker = Worker(queue=app.queue, handlers=equip(app.settings, app).handlers, name="calm", lease_s=600)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    while worker.run_one():
        pass
    torch.set_num_threads(threads)
    return app, jobs


@pytest.fixture
def server(tmp_path):
    one = Server(tmp_path / "valkey", durable=True)
    yield one
    one.kill()


@pytest.fixture
def chaos(tmp_path, server, tiny_flux, chaos_seed):
    (tmp_path / "chaos").mkdir()
    app = tiny_app(tmp_path / "chaos", tiny_flux, redis_url=server.url, lease_s=LEASE_S)
    notes = tmp_path / "notes.jsonl"
    one = Chaos(app, server, jobs=JOBS, submit=submit, notes=notes, lease_s=LEASE_S, seed=chaos_seed)
    yield one
    one.fleet.kill()


@pytest.mark.slow
def test_sixty_jobs_on_three_workers_outlive_what_can_happen_and_lose_nothing(chaos, calm):
    assert len(JOBS) == 60
    chaos.run(limit_s=LIMIT_S)
    wrong = [
        *wrong_ends(chaos),
        *wrong_trainings(chaos, *calm),
        *wrong_images(chaos, *calm),
        *writes_out_of_turn(chaos),
        *two_owners(chaos),
        *left_behind(chaos),
    ]
    assert not wrong, "\n".join([*wrong, chaos.report()])


def named(chaos, names):
    """The jobs of these names, each with its name."""
    return [(job, chaos.asked[job.id]) for job in chaos.jobs() if chaos.asked[job.id] in names]


def wrong_ends(chaos):
    losses = 0
    for job, name in named(chaos, JOBS):
        kinds = [event.kind for event in chaos.app.queue.events(job.id)]
        losses += kinds.count("lost")
        if job.status is not JobStatus.SUCCEEDED or kinds.count("succeeded") != 1 or kinds[-1] != "succeeded":
            yield f"{name} {job.id} is {job.status}: {job.error}, {kinds}"
    if chaos.plan:
        yield f"the jobs ended before this could happen: {chaos.plan}"
    if losses < 3:
        yield f"only {losses} times a worker lost its job: that was no chaos"
    if len(chaos.jobs()) != len(JOBS):
        yield f"there are {len(chaos.jobs())} jobs, not {len(JOBS)}"


def wrong_trainings(chaos, calm_app, calm_jobs):
    for job, name in named(chaos, TRAINED):
        if job.status is not JobStatus.SUCCEEDED:
            continue
        metrics = chaos.app.jobs.metrics(job.id)
        steps = [row["step"] for row in metrics if "loss" in row]
        if steps != list(range(1, STEPS + 1)):
            yield f"{name} {job.id} has the steps {steps}"
        if metrics != calm_app.jobs.metrics(calm_jobs[name]):
            yield f"{name} {job.id} has other metrics than without disturbance"
        one, other = (
            load_file(app.images.lora_path(job_id))
            for app, job_id in ((chaos.app, job.id), (calm_app, calm_jobs[name]))
        )
        if one.keys() != other.keys() or not all(torch.equal(one[key], other[key]) for key in one):
            yield f"{name} {job.id} has other weights than without disturbance"


def wrong_images(chaos, calm_app, calm_jobs):
    expected = set()
    for job, name in named(chaos, MADE):
        files = [f"{job.id}-{index}.png" for index in range(MADE[name]["count"])]
        expected.update(files)
        if job.result != {"images": [file.removesuffix(".png") for file in files]}:
            yield f"{name} {job.id} says {job.result}"
        for index, file in enumerate(files):
            calm = calm_app.settings.images_dir / f"{calm_jobs[name]}-{index}.png"
            if pixels(chaos.app.settings.images_dir / file) != pixels(calm):
                yield f"{name} {job.id}: image {index} is lost or another one"
    found = {path.name for path in chaos.app.settings.images_dir.iterdir()}
    if found != expected:
        yield f"images too many: {found - expected}, too few: {expected - found}"
    made = Counter(note["path"] for note in chaos.notes() if "/images/" in note["path"])
    for path, times in made.items():
        if times > 1:
            yield f"{path} was made {times} times"


def pixels(path):
    if not path.exists():
        return None
    with Image.open(path) as image:
        return image.tobytes()


def writes_out_of_turn(chaos):
    """Files that took their place before their writer had claimed the job, or when the next owner had."""
    claims = chaos.claims()
    for note in chaos.notes():
        (begin, host), *later = claims[note["job_id"]][note["fence"] - 1 :]
        if note["host"] != host or note["at"] < begin or (later and note["at"] >= later[0][0]):
            yield f"written out of turn: {note}; claims: {claims[note['job_id']]}"


def two_owners(chaos):
    """Who logged work on a job that was another's: with a fence of another machine, or when the next owner had it.

    A worker that was stopped may still say what it was about to say. A second line means that it went on.
    """
    claims, started, late = chaos.claims(), Counter(), Counter()
    for line in chaos.lines():
        owner = (line["job_id"], line["fence"])
        tenure = claims[line["job_id"]][line["fence"] - 1 :]
        if line["message"] == "job started":
            started[owner] += 1
            if line["worker"].partition("/")[0] != tenure[0][1]:
                yield f"started by another than who claimed it: {line}"
        at = datetime.fromisoformat(line["time"]).timestamp()
        if tenure[1:] and at >= tenure[1][0] and line["message"] not in GIVING_UP:
            late[owner] += 1
    twice = {owner for counter in (started, late) for owner, times in counter.items() if times > 1}
    for job_id, fence in twice:
        lines = [line for line in chaos.lines() if (line["job_id"], line["fence"]) == (job_id, fence)]
        yield f"two owners: {lines}, claims: {claims[job_id]}"


def left_behind(chaos):
    settings = chaos.app.settings
    for folder in (settings.runs_dir, settings.images_dir, settings.loras_dir):
        for path in folder.rglob(f"*{PARTIAL}*"):
            yield f"unfinished and still there: {path}"
