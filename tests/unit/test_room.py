"""What is refused because the disk, or the quota, has no room for it."""

import pytest

from isengard.domain import disk
from isengard.domain.job import JobKind, JobStatus
from isengard.domain.model import ModelParts
from isengard.errors import DiskFull, JobSuspended
from isengard.handlers.room import LOOK_EVERY_S, watching
from isengard.services.room import PROMISE_AGE_S, RESERVE_BYTES, Room
from tests.tiny_app import submit_training, tiny_app

PARTS = ModelParts(
    denoiser=10**6,
    quantizable=10**6,
    text_encoders=(10**6,),
    vae=10**6,
    adapter_per_rank={"attention": 500_000, "attention_mlp": 700_000, "all_linear": 1_000_000},
    training=(1, 1),
    training_checkpointed=(1, 1),
    generation=(1, 1),
    decoding=(1, 1),
)


class Disk:
    """So much is free, and so much of a quota is used."""

    def __init__(self):
        self.free, self.used, self.now = 10**12, 0, 0.0


@pytest.fixture
def hard_disk():
    return Disk()


@pytest.fixture
def app(tmp_path, tiny_flux):
    return tiny_app(tmp_path, tiny_flux)


@pytest.fixture
def make(app, hard_disk):
    def made(**options):
        return Room(
            queue=app.queue,
            catalog=app.catalog,
            folder=app.settings.data_dir / "not" / "there",
            runs_dir=app.settings.runs_dir,
            free=lambda _: hard_disk.free,
            used=lambda: hard_disk.used,
            clock=lambda: hard_disk.now,
            **options,
        )

    return made


@pytest.fixture
def card(app):
    return app.catalog.model("tiny").model_copy(update={"parts": PARTS})


@pytest.fixture
def spec(training_spec):
    return training_spec.model_copy(update={"sample_every": 0})


def need(card, spec):
    return disk.training_bytes(card, spec, images=9)


def test_a_checkpoint_is_the_adapter_the_optimizer_the_average_and_the_lora(training_spec):
    plain = training_spec.model_copy(update={"ema_decay": 0.0})
    assert disk.checkpoint_bytes(PARTS, plain) == 4_000_000 * (4 + 8 + 4)
    assert disk.checkpoint_bytes(PARTS, training_spec) == 4_000_000 * (4 + 8 + 4 + 4)
    own_layers = training_spec.model_copy(update={"targets": ".*attn.*"})
    assert disk.checkpoint_bytes(PARTS, own_layers) == disk.checkpoint_bytes(PARTS, training_spec)


def test_a_training_needs_its_checkpoints_and_one_more_beside_samples_and_caches(card, training_spec):
    longer = training_spec.model_copy(update={"steps": 8})
    one = disk.checkpoint_bytes(PARTS, training_spec)
    samples = 2 * 64 * 64 * disk.PIXEL_BYTES  # at step 6, and at the end
    assert need(card, training_spec) > 4 * one
    assert need(card, longer) - need(card, training_spec) == pytest.approx(one, abs=samples)
    flipped = training_spec.model_copy(update={"flip": True})
    assert need(card, flipped) - need(card, training_spec) == 9 * 64 * 64 * disk.LATENT_BYTES


def test_a_model_with_large_text_encoders_has_large_prompts(card, training_spec):
    large = card.model_copy(update={"parts": PARTS.model_copy(update={"text_encoders": (4 * 10**9,)})})
    prompts = 9 + 1 + 1
    grown = need(large, training_spec) - need(card, training_spec)
    assert grown == prompts * (disk.LONG_PROMPT_BYTES - disk.SHORT_PROMPT_BYTES)


def test_a_training_that_would_fill_the_disk_is_refused_with_what_it_needs_and_the_way_out(
    make, card, spec, hard_disk
):
    hard_disk.free = need(card, spec) + RESERVE_BYTES
    make().check_training(card, spec, images=9)
    hard_disk.free -= 1
    said = (
        r"this training needs about \d+\.\d MB \(3 checkpoints of 80\.0 MB and the rest\), and .*there has"
        r" \d+\.\d MB free, and 33\.6 MB should stay free; free some space: .*cleanup, or keep fewer checkpoints \(keep_checkpoints\)$"
    )
    with pytest.raises(DiskFull, match=said):
        make().check_training(card, spec, images=9)


def test_what_was_promised_to_waiting_and_running_trainings_is_not_given_twice(app, make, hard_disk, spec):
    tiny = app.catalog.model("tiny")
    first = submit_training(app, sample_resolution=2048)
    promised = make().unpromised() - hard_disk.free
    app.room._free = lambda _: hard_disk.free
    assert app.models._free(app.settings.models_dir) == hard_disk.free + promised  # a download, too
    assert promised < -4 * 2048**2
    hard_disk.free = need(tiny, spec) + RESERVE_BYTES - promised
    make().check_training(tiny, spec, images=9)
    hard_disk.free -= 1
    with pytest.raises(DiskFull, match=r"of which \d+\.\d MB are promised to other jobs"):
        make().check_training(tiny, spec, images=9)
    make().check_training(tiny, spec, images=9, begins=True)  # what waits comes later
    assert app.queue.claim("w", lease_s=60).id == first
    with pytest.raises(DiskFull):
        make().check_training(tiny, spec, images=9, begins=True)
    make().check_training(tiny, spec, images=9, job=first, begins=True)


def test_what_a_run_has_written_already_is_not_needed_again(app, make, hard_disk, spec):
    tiny, job_id = app.catalog.model("tiny"), submit_training(app)
    folder = app.settings.runs_dir / job_id / "checkpoints"
    before = make().unpromised()
    folder.mkdir(parents=True)
    (folder / "state").write_bytes(b"x" * 5000)
    assert make().unpromised() - before == 5000
    hard_disk.free = need(tiny, spec) - 5000 + RESERVE_BYTES
    make().check_training(tiny, spec, images=9, job=job_id, begins=True)


def test_paused_and_ended_jobs_and_records_of_another_time_are_promised_nothing(app, make, hard_disk):
    app.queue.pause(submit_training(app))
    app.queue.cancel(submit_training(app))
    app.queue.enqueue(JobKind.TRAIN_LORA, {"spec": {}})
    app.queue.enqueue(JobKind.GENERATE_IMAGES, {})
    assert make().unpromised() == hard_disk.free


def test_promises_are_counted_anew_after_a_moment_only(app, make, hard_disk):
    room = make()
    assert room.unpromised() == hard_disk.free
    submit_training(app)
    assert room.unpromised() == hard_disk.free
    hard_disk.now += PROMISE_AGE_S
    assert room.unpromised() < hard_disk.free


def test_images_are_refused_too(app, make, hard_disk):
    image = app.images.plan(overrides={"prompt": "a person", "base_model": "tiny", "count": 4})
    hard_disk.free = RESERVE_BYTES + disk.images_bytes(image) - 1
    with pytest.raises(DiskFull, match=r"4 images of 64 x 64 need about 0\.0 MB"):
        make().check_images(image)
    app.images.submit(image)
    hard_disk.free += 1
    with pytest.raises(DiskFull, match="promised"):
        make().check_images(image)


def test_beyond_the_quota_uploads_are_refused_until_something_goes_or_it_is_raised(make, hard_disk):
    room = make(quota=10**9)
    hard_disk.used = 10**9 - RESERVE_BYTES - 500
    room.check_upload(500)
    with pytest.raises(
        DiskFull,
        match=r"of the 1\.0 GB that ISENGARD_QUOTA_GB allows 33\.6 MB are left, and 33\.6 MB should stay free; free",
    ):
        room.check_upload(501)
    hard_disk.used = 2 * 10**9
    with pytest.raises(DiskFull, match=r"allows it holds 2\.0 GB already; .*cleanup, or raise the quota$"):
        room.check_upload(1)
    hard_disk.free = 0
    with pytest.raises(DiskFull, match=r"there has 0\.0 MB free"):
        make().check_upload(1)


def test_a_nearly_full_disk_says_so_while_there_is_room_to_save(make, hard_disk):
    hard_disk.free = RESERVE_BYTES + 100
    make().check_floor(100)
    with pytest.raises(
        JobSuspended, match=r"nearly full \(33\.6 MB free\), so this was saved and paused; .*resume"
    ):
        make().check_floor(101)


def test_a_running_job_is_suspended_at_the_next_look_at_the_disk(make, hard_disk):
    heard = []
    report = watching(
        lambda said: heard.append(said) or "wishes", make(), floor=0, clock=lambda: hard_disk.now
    )
    assert report(1) == "wishes"
    hard_disk.free = 0
    assert report(2) == "wishes"
    hard_disk.now += LOOK_EVERY_S
    with pytest.raises(JobSuspended):
        report(3)
    assert heard == [1, 2, 3]


@pytest.fixture
def full(app):
    app.room._free = lambda _: 1000
    return app


def test_a_full_disk_refuses_trainings_images_and_photos_before_they_wait(full, tmp_path):
    picture = next((tmp_path / "pictures").glob("*.png"))
    image = full.images.plan(overrides={"prompt": "a person", "base_model": "tiny"})
    with pytest.raises(DiskFull):
        submit_training(full)
    with pytest.raises(DiskFull):
        full.images.submit(image)
    with pytest.raises(DiskFull):
        next(full.characters.add_files("mira", [picture]))
    assert full.jobs.jobs() == []


def test_a_full_disk_refuses_to_go_on_with_a_training_too(app):
    job_id = submit_training(app)
    app.queue.cancel(job_id)
    app.room._free = lambda _: 1000
    with pytest.raises(DiskFull):
        app.training.resume(job_id, {})
    assert app.jobs.get(job_id).status is JobStatus.CANCELLED
