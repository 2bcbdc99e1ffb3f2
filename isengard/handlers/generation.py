"""Images on request."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from isengard.domain import disk
from isengard.domain.generation import ImageSpec, SavedImage
from isengard.domain.job import Job, Phase, Progress, Requests
from isengard.domain.likeness import surplus, worth
from isengard.engines.base import ImageGenerator, Report
from isengard.errors import NotFound
from isengard.files import check_now, sweep
from isengard.handlers.likeness import Likenesses
from isengard.handlers.memory import MemoryBook
from isengard.handlers.room import watching
from isengard.services.images import read_payload
from isengard.services.room import Room
from isengard.store.artifacts import Images, Loras
from isengard.store.configs import Catalog
from isengard.store.weights import Weights

PREVIEW = "preview.png"


def generate_images(  # noqa: PLR0913  # each is a collaborator
    job: Job,
    report: Report,
    *,
    generator: ImageGenerator,
    catalog: Catalog,
    weights: Weights,
    loras: Loras,
    images: Images,
    runs_dir: Path,
    memory: MemoryBook,
    room: Room,
    likenesses: Likenesses,
) -> dict[str, Any]:
    """Make what the job asks for, keeping each image as soon as it is finished.

    A job that is taken over goes on behind the last image that was kept: image i depends on ``seed + i`` only.

    Returns:
        ``{"images": [id, ...]}``, in their order; where characters are known, ``"likeness"`` with what was measured of
        each image, by its id; with ``keep_best``, ``"left_out"`` with the ids of those in the trash.
    """
    spec, prompt = read_payload(job)
    model = weights.locate(catalog.model(spec.base_model))
    used = [loras.resolve(ref) for ref in spec.loras]
    saved = list(images.kept(job.id, count=spec.count))
    left_out = images.trashed(job.id) if spec.keep_best else ()
    done = max((one.record.index + 1 for one in (*saved, *left_out)), default=0)
    preview = runs_dir / job.id / PREVIEW
    if (
        job.attempt > 1
    ):  # a killed worker may have left something unfinished, and a stopped one may be about to move it
        images.sweep(job.id)
        sweep(preview.parent, PREVIEW)
    if done < spec.count:
        rest = spec.model_copy(update={"seed": (spec.seed + done) % 2**32, "count": spec.count - done})
        room.check_images(rest, job=job.id, begins=True)
        report = watching(report, room, floor=disk.images_bytes(rest) // rest.count)
        measure = likenesses.of_job(spec.loras, report)
        facts: dict[str, Any] = {"job_id": job.id, "spec": spec, "prompt": prompt, "loras": used}
        with memory.images(model.card, rest, _behind(report, done=done, count=spec.count)) as watched:
            made = generator.generate(
                spec=rest, prompt=prompt, model=model, loras=used, preview=preview, report=watched
            )
            saved += [
                images.add(
                    one.image,
                    index=done + one.index,
                    seed=one.seed,
                    seconds=one.seconds,
                    likeness=measure(one.image),
                    **facts,
                )
                for one in made
            ]
    check_now()
    preview.unlink(missing_ok=True)
    sweep(preview.parent, PREVIEW)
    with suppress(OSError):  # it has something else in it, or never was
        preview.parent.rmdir()
    return _sorted_out(images, spec, saved, left_out)


def _sorted_out(
    images: Images, spec: ImageSpec, saved: Sequence[SavedImage], left_out: Sequence[SavedImage]
) -> dict[str, Any]:
    """Move what is not among the best into the trash; ``left_out``: what an earlier attempt has moved there."""
    by_id = {image.id: image for image in (*left_out, *saved)}
    made = sorted(by_id.values(), key=lambda image: image.record.index)
    worse = surplus([worth(image.record.likeness) for image in made], keep=spec.keep_best or len(made))
    gone = [made[place].id for place in worse]
    for image in saved:
        if image.id in gone:
            with suppress(NotFound):  # deleted in the meantime
                images.remove(image.id)
    result: dict[str, Any] = {"images": [image.id for image in saved if image.id not in gone]}
    if spec.keep_best:
        result["left_out"] = gone
    measured = {image.id: image.record.likeness for image in made if image.record.likeness}
    if measured:
        result["likeness"] = {
            key: [one.model_dump(mode="json") for one in found] for key, found in measured.items()
        }
    return result


def _behind(report: Report, *, done: int, count: int) -> Report:
    """Count the images of an earlier attempt as well."""

    def passed_on(progress: Progress) -> Requests:
        if progress.phase is not Phase.GENERATING or not done:
            return report(progress)
        steps = progress.total // (count - done)
        return report(
            progress.model_copy(
                update={
                    "step": progress.step + done * steps,
                    "total": count * steps,
                    "message": f"image {done + (progress.step - 1) // steps + 1} of {count}",
                }
            )
        )

    return passed_on
