"""What is compared when somebody asks for it, and what is refused."""

import pytest

from isengard.domain.base import validated
from isengard.domain.comparison import PROMPTS, Comparison, ComparisonSpec, spread
from isengard.domain.evaluation import Candidate, Reference, Shot, Verdict
from isengard.domain.identity import ScorerKind
from isengard.domain.job import JobKind, JobStatus, Lane, Phase, Progress
from isengard.errors import Conflict, DiskFull, InvalidSpec, NotFound, QueueUnavailable
from isengard.services.comparison import read_payload
from isengard.services.notices import message
from isengard.services.room import Room
from isengard.services.training import payload
from isengard.store.comparisons import Comparisons
from isengard.wiring import build
from tests.tiny_app import tiny_settings

SANE = {
    "run": "r1",
    "character": "mira",
    "base_model": "tiny",
    "steps": [2],
    "prompts": ["a", "b", "c", "d"],
    "width": 64,
    "height": 64,
    "num_inference_steps": 2,
    "guidance_scale": 3,
}


@pytest.fixture
def app(tmp_path, tiny_flux):
    made = build(tiny_settings(tmp_path, tiny_flux))
    made.characters.create("Mira", trigger="ohwx")
    return made


@pytest.fixture
def run(app):
    return trained(app, 2, 4, 6)


def trained(app, *steps):
    """A training that left these checkpoints."""
    choice = {"character_id": "mira", "base_model": "tiny", "preset": "quick", "overrides": {}}
    job_id = app.queue.enqueue(JobKind.TRAIN_LORA, payload(app.training.plan(**choice), (), "Mira")).id
    app.jobs.cancel(job_id)
    for step in steps:
        folder = app.settings.runs_dir / job_id / "checkpoints" / f"step-{step:08d}"
        folder.mkdir(parents=True)
        (folder / "lora.safetensors").touch()
    return job_id


def result(spec):
    floor = tuple(
        Shot(prompt=prompt, seed=seed, likeness=likeness, nearest=0)
        for prompt in range(len(spec.prompts))
        for seed, likeness in zip(spec.seeds, (0.1, None), strict=True)
    )
    return Comparison(
        spec=spec,
        scorer=ScorerKind.FACES,
        reference=Reference(ceiling=(0.7, 0.9), twins=0.5, floor=floor),
        tested=(),
        verdict=Verdict(scores=(), reason="only 2 photos show the character clearly; it takes 3"),
        complete=True,
        made_at=1.0,
    )


def keep(app, comparison):
    path = app.settings.runs_dir / comparison.spec.run / "comparison" / "comparison.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(comparison.model_dump_json())
    return path


def test_every_checkpoint_is_compared_with_prompts_that_call_the_character(app, run):
    spec = app.comparison.plan(run)
    assert (spec.steps, spec.strengths, spec.base_model, spec.width) == ((2, 4, 6), (1.0, 0.8), "tiny", 64)
    assert len(spec.prompts) == 8
    assert all("ohwx person" in prompt for prompt in spec.prompts)


@pytest.mark.parametrize("kind", ScorerKind)
def test_there_are_eight_prompts_for_each_way_of_telling_a_character_apart(kind):
    assert len(set(PROMPTS[kind])) == 8
    assert all("[trigger] [class]" in prompt for prompt in PROMPTS[kind])


def test_own_prompts_get_the_trigger_word_as_well(app, run):
    prompts = ["[trigger] a", "[trigger] b", "[class] c", "ohwx d"]
    spec = app.comparison.plan(run, prompts=prompts)
    assert spec.prompts == ("ohwx a", "ohwx b", "person c", "ohwx d")


def test_of_a_long_training_so_many_checkpoints_are_compared_evenly_apart():
    assert spread(tuple(range(10, 170, 10))) == (20, 40, 60, 80, 100, 120, 140, 160)
    assert spread((5, 10)) == (5, 10)


def test_a_training_without_checkpoints_cannot_be_compared(app):
    with pytest.raises(Conflict, match="has no checkpoint that could be compared; train first"):
        app.comparison.plan(trained(app))


def test_a_step_without_a_checkpoint_is_named(app, run):
    with pytest.raises(InvalidSpec, match=r"steps: \[5\] have no checkpoint \(there are: 2, 4, 6\)"):
        app.comparison.plan(run, steps=[4, 5])


def test_another_training_than_the_one_that_is_asked_for_is_refused(app, run):
    with pytest.raises(
        InvalidSpec, match=f"run: it is the training '{run}' that is compared, and not 'other'"
    ):
        app.comparison.plan(run, run="other")


def test_images_cannot_be_compared(app):
    image = app.images.submit(app.images.plan(overrides={"base_model": "tiny", "prompt": "a"}))
    with pytest.raises(InvalidSpec, match="is no training"):
        app.comparison.plan(image.id)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompts": ["a", "b", "c"]}, "at least 4 prompts"),
        ({"prompts": ["a", "b", "c", " "]}, "a prompt has 1 to 4000 characters"),
        ({"prompts": "a"}, "prompts: must be a valid tuple"),
        ({"seeds": [1]}, "two seeds at least"),
        ({"seeds": [1, -1]}, "two seeds at least"),
        ({"strengths": [0]}, "a strength is above 0"),
        ({"steps": [2, 2]}, "steps holds something twice"),
        ({"steps": []}, "steps: "),
        ({"steps": list(range(200)), "seeds": [1, 2, 3]}, "a comparison has at most 4000"),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(change, said):
    with pytest.raises(InvalidSpec, match=said):
        validated(ComparisonSpec, SANE | change)


def test_a_comparison_waits_among_the_trainings_with_all_it_needs(app, run):
    spec = app.comparison.plan(run)
    job = app.comparison.submit(spec)
    assert (job.kind, job.lane, job.needs.model) == (JobKind.EVALUATE_CHECKPOINTS, Lane.TRAINING, "tiny")
    assert read_payload(job) == spec
    assert app.comparison.job_of(run).id == job.id


def test_a_training_is_not_compared_twice_at_once(app, run):
    spec = app.comparison.plan(run)
    job = app.comparison.submit(spec)
    with pytest.raises(Conflict, match=f"are being compared already \\(job {job.id}, queued\\)"):
        app.comparison.submit(spec)
    app.jobs.cancel(job.id)
    assert app.comparison.submit(spec).status is JobStatus.QUEUED


def test_a_comparison_that_would_fill_the_disk_is_refused(app, run):
    small = Room(
        queue=app.queue,
        catalog=app.catalog,
        folder=app.settings.data_dir,
        runs_dir=app.settings.runs_dir,
        free=lambda _: 10**6,
    )
    with pytest.raises(DiskFull, match=r"112 pictures of 64 x 64 need about 1\.4 MB"):
        small.check_comparison(app.comparison.plan(run))


def test_what_a_waiting_comparison_will_write_is_promised(app, run):
    free = app.room.unpromised()
    app.comparison.submit(app.comparison.plan(run))
    app.room._promise = None  # it would be counted anew after two seconds
    assert free - app.room.unpromised() == pytest.approx(112 * 64 * 64 * 3, abs=4e6)


def test_a_training_that_asked_for_it_is_compared_once_however_often_it_ends(app, run):
    app.comparison.after_training(run)
    app.comparison.after_training(run)
    assert [job.id for job in app.jobs.jobs(kinds=[JobKind.EVALUATE_CHECKPOINTS])] == [f"{run}-comparison"]


def test_a_training_whose_comparison_cannot_be_written_down_now_is_not_done(app, run, monkeypatch):
    def away(*_, **__):
        raise QueueUnavailable("the server is away")

    monkeypatch.setattr(app.queue, "enqueue", away)
    with pytest.raises(QueueUnavailable):
        app.comparison.after_training(run)


def test_a_comparison_that_cannot_be_made_does_not_fail_the_training(app, caplog):
    app.comparison.after_training(trained(app))
    assert "checkpoints are not compared" in caplog.messages


def test_the_time_is_that_of_the_last_pictures_of_the_model(app, run):
    spec = app.comparison.plan(run)
    assert app.comparison.seconds(spec) is None
    app.images.submit(
        app.images.plan(overrides={"base_model": "tiny", "prompt": "a", "width": 128, "height": 128})
    )
    job = app.queue.claim("w", lease_s=60)
    told = Progress(phase=Phase.GENERATING, step=1, total=2, steps_per_s=1.0)
    app.queue.heartbeat(job, lease_s=60, progress=told)
    assert app.comparison.seconds(spec) == pytest.approx(spec.pictures * spec.num_inference_steps / 4)


def test_pictures_that_are_there_are_not_counted_as_missing(app, run):
    spec = app.comparison.plan(run)
    place = {"candidate": Candidate(step=2, strength=0.8), "prompt": 1, "seed": 12}
    path = Comparisons(app.settings.runs_dir).picture(spec, **place)
    assert app.comparison.missing(spec) == spec.pictures == 112
    path.parent.mkdir(parents=True)
    path.touch()
    assert app.comparison.missing(spec) == 111


@pytest.mark.parametrize(
    "place", [{"prompt": 8, "seed": 11}, {"prompt": -1, "seed": 11}, {"prompt": 0, "seed": 5}]
)
def test_a_picture_that_is_not_there_is_refused(app, run, place):
    keep(app, result(app.comparison.plan(run)))
    with pytest.raises(NotFound, match="there is no such picture in the comparison"):
        app.comparison.picture(run, None, **place)


def test_the_floor_and_the_ceiling_are_means(app, run):
    comparison = result(app.comparison.plan(run))
    assert (comparison.floor, comparison.ceiling) == (pytest.approx(0.1), pytest.approx(0.8))


def test_where_nobody_is_seen_there_is_no_floor_and_no_ceiling(app, run):
    found = result(app.comparison.plan(run))
    none = found.model_copy(update={"reference": Reference(ceiling=(), twins=1, floor=())})
    assert (none.floor, none.ceiling) == (None, None)


def test_a_result_is_read_again_only_when_its_file_has_changed(app, run):
    assert app.comparison.of_run(run) is None
    comparison = result(app.comparison.plan(run))
    keep(app, comparison)
    read = app.comparison.of_run(run)
    assert read == comparison
    assert app.comparison.of_run(run) is read
    keep(app, comparison.model_copy(update={"made_at": 20.0}))
    assert app.comparison.of_run(run).made_at == 20.0


def test_an_id_that_leads_out_of_the_folder_of_runs_has_no_result(app, run):
    keep(app, result(app.comparison.plan(run)))
    assert app.comparison.of_run(f"../runs/{run}") is None
    with pytest.raises(NotFound):
        app.comparison.picture(f"../runs/{run}", None, prompt=0, seed=11)


def test_a_damaged_result_counts_as_none(app, run, caplog):
    keep(app, result(app.comparison.plan(run))).write_text("{")
    assert app.comparison.of_run(run) is None
    assert "comparison cannot be read" in caplog.messages


def test_the_message_at_the_end_says_what_was_compared(app, run):
    job = app.comparison.submit(app.comparison.plan(run))
    ended = job.model_copy(update={"status": JobStatus.SUCCEEDED, "started_at": 0.0, "finished_at": 10_000.0})
    assert message(ended, page=None)["text"] == "Mira: comparison of the checkpoints done"
