"""Captions on request."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from isengard.domain.captioner import caption_of, digest, instruction, read_request
from isengard.domain.job import Job, Phase, Progress
from isengard.engines.base import Captioner, Report
from isengard.services.characters import CharacterService
from isengard.store.configs import Catalog
from isengard.store.weights import Weights

OpenCaptioner = Callable[[Path], AbstractContextManager[Captioner]]


def caption_images(
    job: Job,
    report: Report,
    *,
    open_captioner: OpenCaptioner,
    make_room: Callable[[], None],
    characters: CharacterService,
    catalog: Catalog,
    weights: Weights,
) -> dict[str, Any]:
    """Describe the images that the job names, keeping each caption as soon as there is one.

    An image whose caption is not the one any more that was to be replaced is passed over: it was described by an
    earlier attempt, or a person has written something meanwhile. ``make_room`` empties the device: a captioner needs
    all of it.

    Returns:
        ``{"written", "passed_over"}``, of this attempt.
    """
    request = read_request(job)
    folder = weights.locate_files(catalog.captioner(request.captioner))
    asked, total = instruction(request.class_word), len(request.captions)
    report(Progress(phase=Phase.LOADING, total=total))
    make_room()
    written, began = 0, time.monotonic()
    with open_captioner(folder) as captioner:
        for place, (image_id, old) in enumerate(request.captions.items()):
            image = characters.get(request.character).image(image_id)
            if image is None or digest(image.caption) != old:
                continue
            each = (time.monotonic() - began) / written if written else None
            told = Progress(
                phase=Phase.CAPTIONING,
                step=place,
                total=total,
                message=f"image {place + 1} of {total}",
                eta_s=None if each is None else each * (total - place),
            )
            report(told)
            with Image.open(characters.image_path(request.character, image_id)) as picture:
                (reply,) = captioner.caption([picture], instruction=asked, on_token=partial(report, told))
            new = {image_id: (image.caption, caption_of(reply, request.class_word))}
            written += characters.replace_captions(request.character, new, change=job.id)
    report(Progress(phase=Phase.CAPTIONING, step=total, total=total))
    return {"written": written, "passed_over": total - written}
