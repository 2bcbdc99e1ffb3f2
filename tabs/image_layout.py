"""How the Image tab is laid out."""

from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.i18n import I18nData

from tabs import image_fit
from tabs.common import Page, spoken, t, widget
from tabs.image_form import FIELDS
from tabs.image_gallery import ALL, PAGE, Alike
from tabs.image_live import watcher

#: The slider goes this far; settings that are taken over may widen it.
MAX_STRENGTH = 2.0
#: Images of one press; other programs may ask for more.
MAX_COUNT = 16
#: For whom the form is filled before it ever was.
NEVER = "?"


@dataclass(frozen=True)
class Parts:
    """The tab's components. ``fields`` are those of `image_form.FIELDS`, in their order."""

    fields: dict[str, Any]
    selected: gr.Textbox
    filled: gr.Textbox
    seen: gr.Textbox
    shown: gr.Textbox
    address: gr.Textbox
    look: gr.HTML
    lack: gr.HTML
    train: gr.Button
    sent: gr.HTML
    size: gr.Radio
    fit: gr.HTML
    random: gr.Button
    reuse: gr.Button
    drop: gr.HTML
    generate: gr.Button
    stage: gr.HTML
    meter: gr.HTML
    made_with: gr.Dropdown
    made_on: gr.Dropdown
    alike: gr.Dropdown
    archive: gr.Button
    gallery: gr.HTML
    viewer: gr.HTML


def lay_out(page: Page) -> Parts:
    """Make the components inside the open block: settings in the left third, results beside them."""
    fields: dict[str, Any] = {}
    made: dict[str, Component] = _state()
    made["look"] = widget("image_look", elem_id="image-look")
    with gr.Row(equal_height=False, elem_id="image"):
        with gr.Column(scale=5, min_width=310):
            made |= _character(fields)
            made["size"] = gr.Radio([], label=t("image.size"), elem_id="image-size", elem_classes=["small"])
            _amounts(fields)
            made["fit"] = image_fit.lay()
            with gr.Accordion(t("image.further"), open=False):
                fields["further"] = spoken(
                    "image", "image_further", {"rows": [], "choices": []}, elem_id="image-further"
                )
            with gr.Accordion(t("image.advanced"), open=False):
                made |= _advanced(fields)
            made["drop"] = spoken("image", "image_drop", {}, elem_id="image-drop")
            made["generate"] = gr.Button(
                t("image.generate"),
                variant="primary",
                elem_id="image-generate",
                elem_classes=["primary-action"],
            )
        with gr.Column(scale=10, min_width=320):
            made["stage"] = spoken(
                "image",
                "image_stage",
                {"state": "empty"},
                shares=["image_badge"],
                elem_id="image-stage",
                server_functions=[watcher(page)],
            )
            made["meter"] = widget("image_meter", elem_id="image-meter")
            made |= _gallery()
    return Parts(fields={name: fields[name] for name in FIELDS}, **made)  # type: ignore[arg-type]  # each by its name


def _state() -> dict[str, Component]:
    return {
        "selected": gr.Textbox(visible=False, elem_id="image-selected"),
        "filled": gr.Textbox(NEVER, visible=False),
        "seen": gr.Textbox(visible=False),
        "shown": gr.Textbox(str(PAGE), visible=False),
        "address": gr.Textbox(visible=False),
    }


def _character(fields: dict[str, Any]) -> dict[str, Component]:
    made: dict[str, Component] = {}
    fields["character"] = _list(t("image.character"), "image-character")
    fields["lora"] = _list(t("image.lora"), "image-lora")
    made["lack"] = spoken("image", "image_lack", {}, elem_id="image-lack")
    made["train"] = gr.Button(t("image.train"), visible=False, elem_id="image-train")
    fields["prompt"] = gr.Textbox(
        label=t("image.prompt"),
        info=t("image.prompt.info"),
        placeholder=t("image.prompt.placeholder"),
        lines=4,
        max_lines=10,
        max_length=4000,
        elem_id="image-prompt",
    )
    made["sent"] = spoken("image", "image_sent", {"pieces": []}, elem_id="image-sent")
    return made


def _amounts(fields: dict[str, Any]) -> None:
    fields["count"] = gr.Slider(1, MAX_COUNT, value=1, step=1, label=t("image.count"), elem_id="image-count")
    fields["keep_best"] = gr.Slider(
        0,
        MAX_COUNT,
        value=0,
        step=1,
        label=t("image.keep_best"),
        info=t("image.keep_best.info"),
        visible=False,
        elem_id="image-keep-best",
    )
    fields["strength"] = gr.Slider(
        0,
        MAX_STRENGTH,
        value=1.0,
        step=0.05,
        label=t("image.strength"),
        info=t("image.strength.info"),
        elem_id="image-strength",
    )
    fields["cache"] = gr.Radio(
        [],
        label=t("image.speed"),
        info=t("image.speed.info"),
        interactive=True,
        elem_id="image-speed",
        elem_classes=["small"],
    )


def _advanced(fields: dict[str, Any]) -> dict[str, Component]:
    fields["template"] = _list(t("image.template"), "image-template")
    fields["base_model"] = _list(t("image.model"), "image-model")
    with gr.Row():
        fields["width"] = gr.Number(label=t("image.width"), precision=0, step=16, min_width=110)
        fields["height"] = gr.Number(label=t("image.height"), precision=0, step=16, min_width=110)
    fields["num_inference_steps"] = gr.Slider(1, 200, step=1, label=t("image.steps"), elem_id="image-steps")
    fields["guidance_scale"] = gr.Slider(
        0, 30, step=0.1, label=t("image.guidance"), info=t("image.guidance.info")
    )
    fields["seed"] = gr.Textbox(
        label=t("image.seed"), info=t("image.seed.info"), max_lines=1, elem_id="image-seed"
    )
    with gr.Row():
        random = gr.Button(t("image.seed.random"), size="sm", min_width=80)
        reuse = gr.Button(t("image.seed.reuse"), size="sm", min_width=80, elem_id="image-reuse")
    return {"random": random, "reuse": reuse}


def _gallery() -> dict[str, Component]:
    with gr.Column(elem_classes=["card"]):
        with gr.Row(elem_id="image-made"):
            made_with = gr.Dropdown(
                [("All characters", ALL)],
                value=ALL,
                label=t("image.gallery.character"),
                min_width=150,
                allow_custom_value=True,
                elem_id="image-made-with",
            )
            made_on = gr.Dropdown(
                [("All models", ALL)],
                value=ALL,
                label=t("image.gallery.model"),
                min_width=150,
                allow_custom_value=True,
                elem_id="image-made-on",
            )
            alike = gr.Dropdown(
                [(t(f"image.alike.{each}"), each) for each in Alike],
                value=Alike.NEWEST,
                label=t("image.gallery.alike"),
                min_width=150,
                allow_custom_value=True,
                elem_id="image-alike",
            )
            archive = gr.Button(t("image.gallery.zip"), scale=0, min_width=200, elem_id="image-archive")
        gallery = spoken(
            "image", "image_gallery", {"items": []}, shares=["image_badge"], elem_id="image-gallery"
        )
    viewer = spoken("image", "image_viewer", {}, elem_id="image-viewer")
    return {
        "made_with": made_with,
        "made_on": made_on,
        "alike": alike,
        "archive": archive,
        "gallery": gallery,
        "viewer": viewer,
    }


def _list(label: I18nData, name: str) -> gr.Dropdown:
    """A list whose choices come later.

    It lets any value through: the services check it, not the choices of a session that a restart has lost.
    """
    return gr.Dropdown([], label=label, allow_custom_value=True, interactive=True, elem_id=name)
