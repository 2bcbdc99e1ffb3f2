"""Images on request."""

from contextlib import suppress
from pathlib import Path
from typing import Any

from isengard.domain.job import Job, Phase, Progress, Requests
from isengard.engines.base import ImageGenerator, Report
from isengard.handlers.memory import MemoryBook
from isengard.services.images import read_payload
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
) -> dict[str, Any]:
    """Make what the job asks for, keeping each image as soon as it is finished.

    A job that is taken over goes on behind the last image that was kept: image i depends on ``seed + i`` only.

    Returns:
        ``{"images": [id, ...]}``, in their order.
    """
    spec, prompt = read_payload(job)
    model = weights.locate(catalog.model(spec.base_model))
    used = [loras.resolve(ref) for ref in spec.loras]
    saved = list(images.of_job(job.id))
    done = saved[-1].record.index + 1 if saved else 0
    preview = runs_dir / job.id / PREVIEW
    if done < spec.count:
        rest = spec.model_copy(update={"seed": (spec.seed + done) % 2**32, "count": spec.count - done})
        facts: dict[str, Any] = {"job_id": job.id, "spec": spec, "prompt": prompt, "loras": used}
        with memory.images(model.card, rest, _behind(report, done=done, count=spec.count)) as watched:
            made = generator.generate(
                spec=rest, prompt=prompt, model=model, loras=used, preview=preview, report=watched
            )
            saved += [
                images.add(one.image, index=done + one.index, seed=one.seed, seconds=one.seconds, **facts)
                for one in made
            ]
    preview.unlink(missing_ok=True)
    with suppress(OSError):  # it has something else in it, or never was
        preview.parent.rmdir()
    return {"images": [image.id for image in saved]}


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
