"""Settings of a training in a file of AI-Toolkit's: written for elsewhere, and read from elsewhere."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import gradio as gr

from isengard.errors import InvalidSpec
from tabs import training_fields
from tabs.common import PRIVATE, Page, handled, t, uploaded
from tabs.training_setup import Choice

#: Saves a text as a file named after the character; nothing is kept on the server.
SAVE_TEXT = """(character, text) => {
  const href = URL.createObjectURL(new Blob([text], { type: "application/yaml" }));
  Object.assign(document.createElement("a"), { href, download: `${character}-ai-toolkit.yaml` }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60000);
}"""
#: Keys shown of those that were not carried over.
LISTED = 200


@dataclass(frozen=True)
class Exchange:
    """The two buttons, the text on its way to a file, and what an import has left out."""

    export: gr.Button
    load: gr.UploadButton
    text: gr.Textbox
    left_out: gr.Textbox


def lay() -> Exchange:
    """Lay out the buttons inside the open block."""
    with gr.Row():
        export = gr.Button(
            t("training.export_ai_toolkit"), size="sm", min_width=150, elem_id="training-export-ai-toolkit"
        )
        load = gr.UploadButton(
            cast("Any", t("training.import_ai_toolkit")),
            file_types=[".yaml", ".yml"],
            size="sm",
            min_width=150,
            elem_id="training-import-ai-toolkit",
        )
    left_out = gr.Textbox(
        label=t("training.not_carried"),
        interactive=False,
        visible=False,
        lines=2,
        max_lines=10,
        elem_id="training-not-carried",
    )
    return Exchange(export=export, load=load, text=gr.Textbox("", visible=False), left_out=left_out)


def wire(exchange: Exchange, page: Page, *, form: Any, hidden: Mapping[str, Any], again: Any) -> None:
    """Let the buttons work; ``again`` paints the tab anew after an event."""

    @handled
    def export_settings(character: str, model: str, preset: str, given: Any) -> str:
        return exported(page, Choice(character, model, preset), given)

    @handled
    def import_settings(path: str, given: Any) -> list[Any]:
        changed, left_out = imported(page, path, given)
        return [changed, gr.Textbox(value="\n".join(left_out), visible=bool(left_out))]

    chosen = [hidden["character"], hidden["model"], hidden["preset"], form]
    made = exchange.export.click(export_settings, chosen, exchange.text, **PRIVATE)
    made.success(None, [hidden["character"], exchange.text], None, js=SAVE_TEXT)
    again(
        exchange.load.upload(
            import_settings,
            [exchange.load, form],
            [form, exchange.left_out],
            show_progress="hidden",
            **PRIVATE,
        )
    )


def exported(page: Page, choice: Choice, form: Any) -> str:
    """What is chosen, with what was changed in the form, as a file for AI-Toolkit."""
    if not choice.character:
        raise InvalidSpec("choose a character first; new ones are made on the Characters tab")
    return page.app.training.export_ai_toolkit(
        character_id=choice.character,
        base_model=choice.model,
        preset=choice.preset,
        overrides=training_fields.overrides(form),
    )


def imported(page: Page, path: str, form: Any) -> tuple[dict[str, Any], list[str]]:
    """The form with the settings of a file over what was changed before, and what the file has besides."""
    (file,) = uploaded([path])
    found = page.app.training.import_ai_toolkit(file)
    known = form if isinstance(form, dict) else {}
    read = {name: training_fields.shown(value) for name, value in found.overrides.items()}
    changed = {**known, "overrides": {**training_fields.overrides(known), **read}}
    gr.Info(
        f"{len(read)} settings taken. {len(found.not_carried)} keys of the file were not carried over;"
        " they are listed under the settings.",
        title="AI-Toolkit config read",
        duration=6,
    )
    more = len(found.not_carried) - LISTED
    return changed, [*found.not_carried[:LISTED], *([f"… ({more} more)"] if more > 0 else [])]
