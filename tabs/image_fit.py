"""How an image would be made on this machine, and what it takes: a line near the size."""

from typing import Any

import gradio as gr

from isengard.domain.base import validated
from isengard.domain.generation import ImageSpec
from isengard.domain.model import ModelCard
from isengard.errors import IsengardError
from tabs.common import QUIET, Page, spoken

GIB = 1024**3
#: The form's fields that decide memory.
FIELDS = ("base_model", "width", "height", "count")

#: Behind the title of a model that has to be fetched first.
ABSENT = " · not on this machine"


def lay() -> gr.HTML:
    """Make the line inside the open block."""
    return spoken("image", "image_fit", {}, elem_id="image-fit")


def wire(page: Page, fields: dict[str, Any], line: gr.HTML) -> None:
    """Paint the line whenever a field changes that decides memory."""
    chosen = [fields[name] for name in FIELDS]

    def fit(base_model: str, width: float, height: float, count: float) -> dict[str, Any]:
        return view(page, base_model, width, height, count)

    gr.on([each.change for each in chosen], fit, chosen, line, trigger_mode="always_last", **QUIET)


def view(page: Page, base_model: str, width: float, height: float, count: float) -> dict[str, Any]:
    """The plan of a request; empty when the model or a value is none, or nothing is known of the model's memory."""
    given = {
        "base_model": base_model or "", "prompt": "-", "width": width, "height": height, "count": count,
    }  # fmt: skip
    try:
        made = page.app.images.fit(validated(ImageSpec, given))
    except IsengardError:
        return {}
    if not made.peak_bytes:
        return {}
    total = page.app.planning.machine().total_bytes
    return {
        "words": made.words if made.fits else " ".join(made.reasons),
        "fits": made.fits,
        "measured": made.measured,
        "peak": f"{max(made.peak_bytes / GIB, 0.1):.1f}",
        "total": f"{total / GIB:.0f} GB",
    }


def label(page: Page, card: ModelCard, *, ready: bool) -> str:
    """A model in the list, with what keeps it from being used."""
    if not page.app.planning.makes_images(card).fits:
        return f"{card.title} · does not fit here"
    return card.title if ready else card.title + ABSENT
