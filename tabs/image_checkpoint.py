"""A checkpoint that was chosen on the training tab, in the form of images."""

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
from gradio.components import Component

from isengard.domain.base import validated
from isengard.domain.generation import LoraRef
from isengard.domain.lora import Lora
from isengard.errors import NotFound
from tabs import image_form
from tabs.common import PRIVATE, Page, handled
from tabs.image_form import Form
from tabs.image_layout import NEVER, Parts

#: What `LoraRef` calls what the event says.
SAID = {"lora": "run", "step": "step", "strength": "strength"}


def taking(
    page: Page, parts: Parts, fill: Callable[[Form], dict[Component, Any]], outputs: Sequence[Component]
) -> Callable[[Any], Any]:
    """Return what lets the form follow such an event; ``fill`` puts a whole form on the page."""

    @handled
    def use_checkpoint(given: dict[Component, Any], event: gr.EventData) -> dict[Component, Any]:
        ref = validated(LoraRef, {name: getattr(event, said, None) for name, said in SAID.items()})
        lora = page.app.images.lora(ref.lora)
        if given[parts.filled] == NEVER:  # what this browser kept of it has not been put on the page yet
            form = image_form.restored(page, getattr(event, "draft", None), lora.character)
        else:
            form = image_form.form_of([given[field] for field in parts.fields.values()])
        return fill(form | _chosen(page, lora, ref, form))

    def take(event: Any) -> Any:
        inputs = {*parts.fields.values(), parts.filled}
        return event(use_checkpoint, inputs, list(outputs), show_progress="hidden", **PRIVATE)

    return take


def _chosen(page: Page, lora: Lora, ref: LoraRef, form: Form) -> dict[str, Any]:
    """The fields that change. Raises: NotFound: the checkpoint is gone."""
    if ref.step == lora.steps:
        key = image_form.lora_key(lora.id)
    elif ref.step in page.app.images.checkpoints(lora.id):
        key = image_form.lora_key(lora.id, ref.step)
    else:
        raise NotFound(
            f"the checkpoint at step {ref.step} of {lora.name} is not here any more; choose another"
        )
    model = image_form.of_model(page, page.app.images.model_for(lora.id), form)
    return {"character": lora.character, "lora": key, "strength": ref.strength, **model}
