"""The components of the characters tab, and what those do that touch nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from isengard.domain.character import CLASS_WORDS
from isengard.domain.identity import ScorerKind
from tabs import characters_describe
from tabs.characters_changes import Changes, answering
from tabs.characters_doctor import Doctor
from tabs.common import PRIVATE, QUIET, handled, spoken, t

#: Saves the file at an address.
SAVE_FILE = """(href) => Object.assign(document.createElement("a"), { href, download: "" }).click()"""


@dataclass(frozen=True)
class Fields:
    """Name, words and notes: to make a character, or to change one."""

    name: gr.Textbox
    class_word: gr.Dropdown
    trigger: gr.Textbox
    warning: gr.Markdown


@dataclass(frozen=True)
class Side:
    """The left column: who there is, who is new, who is gone."""

    new: gr.Button
    form: gr.Column
    fields: Fields
    cancel: gr.Button
    create: gr.Button
    cards: gr.HTML
    fold: gr.Accordion
    trash: gr.HTML


@dataclass(frozen=True)
class Main:
    """The right column: the chosen character."""

    head: gr.HTML
    train: gr.Button
    body: gr.Column
    drop: gr.HTML
    doctor: gr.HTML
    grid: gr.HTML
    tools: Sequence[Any]
    describe: gr.HTML
    fields: Fields
    notes: gr.Textbox
    scorer: gr.Dropdown
    save: gr.Button
    delete: gr.Button

    @property
    def record(self) -> list[Component]:
        """The fields of what is kept of a character besides its images."""
        return [self.fields.name, self.fields.trigger, self.fields.class_word, self.notes, self.scorer]


def lay_side(changes: Changes) -> Side:
    """Lay out the left column inside the open block."""
    new = gr.Button(t("characters.new"), elem_id="characters-new")
    with gr.Column(visible=False, elem_id="characters-form") as form:
        fields = _fields(changes, "characters-new")
        with gr.Row():
            cancel = gr.Button(t("characters.cancel"), size="md", min_width=80)
            create = gr.Button(
                t("characters.create"),
                variant="primary",
                size="md",
                min_width=80,
                elem_id="characters-create",
            )
    cards = spoken("characters", "characters_cards", [], elem_id="characters-cards")
    with gr.Accordion(t("characters.trash"), open=False, visible=False, elem_id="characters-trash") as fold:
        trash = spoken("characters", "characters_trash", [], server_functions=[answering(changes.restore)])
    return Side(
        new=new,
        form=form,
        fields=fields,
        cancel=cancel,
        create=create,
        cards=cards,
        fold=fold,
        trash=trash,
    )


def lay_main(changes: Changes, doctor: Doctor, selected: gr.Textbox) -> Main:
    """Lay out the right column inside the open block."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=260):
            head = spoken("characters", "characters_head", {}, elem_id="characters-head")
        train = gr.Button(
            t("characters.train"),
            variant="primary",
            scale=1,
            min_width=230,
            interactive=False,
            elem_id="characters-train",
            elem_classes=["primary-action"],
        )
    with gr.Column(visible=False) as body:
        take = [answering(each) for each in (changes.take, changes.more, changes.describe)]
        drop = spoken("characters", "characters_drop", {}, elem_id="characters-drop", server_functions=take)
        check = [
            answering(each)
            for each in (doctor.examine, doctor.look, doctor.stop, doctor.fix, doctor.undo, doctor.forget)
        ]
        found = spoken("doctor", "characters_doctor", {}, elem_id="characters-doctor", server_functions=check)
        keep = [answering(changes.caption)]
        grid = spoken("characters", "characters_grid", {}, elem_id="characters-grid", server_functions=keep)
        tools, describe = _tools(changes, selected)
        fields, notes, scorer, save = _edit(changes, selected)
        _export(changes, selected)
    delete = gr.Button(
        t("characters.delete"), variant="stop", size="md", visible=False, elem_id="characters-delete"
    )
    return Main(
        head=head,
        train=train,
        body=body,
        drop=drop,
        doctor=found,
        grid=grid,
        tools=tools,
        describe=describe,
        fields=fields,
        notes=notes,
        scorer=scorer,
        save=save,
        delete=delete,
    )


def _fields(changes: Changes, prefix: str) -> Fields:
    name = gr.Textbox("", label=t("characters.name"), max_length=80, elem_id=f"{prefix}-name")
    class_word = gr.Dropdown(
        list(CLASS_WORDS),
        value="person",
        label=t("characters.class_word"),
        info=t("characters.class_word.info"),
        allow_custom_value=True,
        elem_id=f"{prefix}-class",
    )
    trigger = gr.Textbox(
        "",
        label=t("characters.trigger"),
        info=t("characters.trigger.info"),
        max_length=32,
        elem_id=f"{prefix}-trigger",
    )
    warning = gr.Markdown(elem_id=f"{prefix}-warning", elem_classes=["plain"])
    trigger.change(changes.warn, trigger, warning, trigger_mode="always_last", **QUIET)
    return Fields(name=name, class_word=class_word, trigger=trigger, warning=warning)


def _edit(changes: Changes, selected: gr.Textbox) -> tuple[Fields, gr.Textbox, gr.Dropdown, gr.Button]:
    with gr.Accordion(t("characters.edit"), open=False, elem_id="characters-edit") as fold:
        fields = _fields(changes, "characters-edit")
        scorer = gr.Dropdown(
            [(t("characters.scorer.automatic"), "")]
            + [(t(f"characters.scorer.{kind}"), kind.value) for kind in ScorerKind],
            value="",
            label=t("characters.scorer"),
            info=t("characters.scorer.info"),
            elem_id="characters-edit-scorer",
        )
        suggested = spoken("characters", "characters_scorer", {}, elem_id="characters-edit-suggested")
        notes = gr.Textbox(
            label=t("characters.notes"), lines=2, max_length=4000, elem_id="characters-edit-notes"
        )
        save = gr.Button(t("characters.save"), size="md", elem_id="characters-save")
    selected.change(
        dict, None, suggested, **QUIET
    )  # what was said of another character is not true of this one
    fold.expand(handled(changes.suggested), selected, suggested, **PRIVATE)
    return fields, notes, scorer, save


def _tools(changes: Changes, selected: gr.Textbox) -> tuple[Sequence[Any], gr.HTML]:
    fold = gr.Accordion(t("characters.tools"), open=False, elem_id="characters-tools")
    with fold, gr.Row(equal_height=False):
        with gr.Column(min_width=260):
            template = gr.Textbox(
                label=t("characters.template"),
                info=t("characters.template.info"),
                value="a photo of [trigger] [class], [caption]",
                elem_id="characters-template",
            )
            only_empty = gr.Checkbox(
                value=True, label=t("characters.only_empty"), elem_id="characters-only-empty"
            )
            caption = gr.Button(t("characters.caption_all"), size="md", elem_id="characters-caption-all")
        with gr.Column(min_width=260):
            find = gr.Textbox(
                label=t("characters.find"), info=t("characters.find.info"), elem_id="characters-find"
            )
            instead = gr.Textbox(label=t("characters.replace"), elem_id="characters-instead")
            replace = gr.Button(t("characters.replace_all"), size="md", elem_id="characters-replace")
    with fold:
        describe = characters_describe.lay()
    changed = (
        caption.click(handled(changes.caption_all), [selected, template, only_empty], None, **PRIVATE),
        replace.click(handled(changes.replace), [selected, find, instead], None, **PRIVATE),
    )
    return changed, describe


def _export(changes: Changes, selected: gr.Textbox) -> None:
    with gr.Accordion(t("characters.export"), open=False, elem_id="characters-export"):
        resolve = gr.Checkbox(
            value=False,
            label=t("characters.resolve"),
            info=t("characters.resolve.info"),
            elem_id="characters-resolve",
        )
        export = gr.Button(t("characters.download"), size="md", elem_id="characters-download")
        archive = gr.Textbox("", visible=False)

    @handled
    def pack(character_id: str, resolve: bool, request: gr.Request) -> str:  # noqa: FBT001
        changes.count(request)
        return changes.export(character_id, resolve)

    made = export.click(pack, [selected, resolve], archive, **PRIVATE)
    made.success(None, archive, None, js=SAVE_FILE)
