"""The characters tab: who there is, their pictures and captions."""

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import gradio as gr

from tabs import characters_describe
from tabs import characters_view as view
from tabs.characters_changes import Changes
from tabs.characters_doctor import Doctor
from tabs.characters_layout import Main, Side, lay_main, lay_side
from tabs.characters_roster import Reader
from tabs.common import PRIVATE, QUIET, Page, handled, remembered
from tabs.frame import Tab

#: Asks before a character goes into the trash; its answer decides which id the handler gets.
ASK_DELETE = (
    """(id) => confirm("Move this character to the trash? It can be restored from there.") ? id : "" """
)


def build(page: Page) -> Tab:
    """Build the tab's content inside the open block."""
    reader = Reader(page.app)
    changes = Changes(page.app, reader)
    doctor = Doctor(doctor=page.app.doctor, characters=page.app.characters, pictures=page.pictures)
    selected = gr.Textbox("", visible=False, elem_id="characters-selected")
    shown = gr.Textbox("", visible=False)
    with gr.Row(equal_height=False, elem_id="characters"):
        with gr.Column(scale=1, min_width=270, elem_classes=["card", "side"]):
            side = lay_side(changes)
        with gr.Column(scale=3, min_width=300):
            main = lay_main(changes, doctor, selected)
    outputs: list[Any] = [
        *(selected, side.cards, main.head, main.train, main.body, main.drop, main.grid, *main.record, shown),
        main.describe,
        *(side.trash, side.fold, main.delete, main.doctor),
    ]

    def painted(wanted: str, already_shown: str, *, fresh: bool = False) -> list[Any]:
        values = paint(page, reader, wanted, already_shown, fresh=fresh)
        return [*values, doctor.shown(reader.read(fresh=False).known.get(values[0], (None,))[0])]

    tab = Tab(
        refresh=painted,
        inputs=[selected, shown],
        outputs=outputs,
        character=selected,
        leads={"training": main.train},
    )
    again = {
        "fn": partial(painted, fresh=True),
        "inputs": tab.inputs,
        "outputs": tab.outputs,
        **QUIET,
    }

    def pick(already_shown: str, event: gr.EventData) -> list[Any]:
        return painted(str(event.id), already_shown, fresh=True)

    side.cards.pick(pick, shown, outputs, **QUIET)
    side.trash.restored(pick, shown, outputs, **QUIET)
    _make(changes, side, main, selected).then(**again)
    main.drop.changed(**again, trigger_mode="always_last")
    main.doctor.changed(**again, trigger_mode="always_last")
    main.grid.changed(**again, trigger_mode="always_last")
    described = characters_describe.wire(page.app, main.describe, selected)
    for change in (*main.tools, *described, *_change(changes, side, main, selected)):
        change.then(**again)
    return tab


def _make(changes: Changes, side: Side, main: Main, selected: gr.Textbox) -> Any:
    """Wire the form for a new character; the event after which there is one more."""
    fields, suggested = side.fields, gr.Textbox("", visible=False)
    side.new.click(lambda: gr.Column(visible=True), None, side.form, **QUIET)
    main.head.new(lambda: gr.Column(visible=True), None, side.form, **QUIET)
    side.cancel.click(lambda: gr.Column(visible=False), None, side.form, **QUIET)
    fields.name.input(
        changes.suggest,
        [fields.name, fields.trigger, suggested],
        [fields.trigger, suggested],
        trigger_mode="always_last",
        **QUIET,
    )

    @handled
    def create(name: str, class_word: str, trigger: str, request: gr.Request) -> str:
        changes.count(request)
        return changes.create(name, class_word, trigger)

    made = gr.on(
        [side.create.click, fields.name.submit, fields.trigger.submit],
        create,
        [fields.name, fields.class_word, fields.trigger],
        selected,
        **PRIVATE,
    )
    emptied = [side.form, fields.name, fields.trigger, suggested, fields.warning]
    return made.success(lambda: [gr.Column(visible=False), "", "", "", ""], None, emptied, **QUIET)


def _change(changes: Changes, side: Side, main: Main, selected: gr.Textbox) -> list[Any]:
    """Wire what changes or removes; the events after which something else is true."""
    return [
        main.save.click(handled(changes.edit), [selected, *main.record], None, **PRIVATE),
        main.grid.remove(handled(_on_picture(changes.remove_image)), selected, None, **PRIVATE),
        main.delete.click(handled(changes.delete), selected, None, js=ASK_DELETE, **PRIVATE),
        side.trash.purge(handled(_on_entry(changes.purge)), None, None, **PRIVATE),
    ]


@handled
def paint(page: Page, reader: Reader, wanted: str, shown: str, *, fresh: bool = False) -> list[Any]:
    """The values of the tab's outputs. ``shown``: the record in the fields, and what can be seen of the tab.

    Only what differs from it is sent: an answer on its way would take back what a person has typed meanwhile.
    """
    roster = reader.read(fresh=fresh)
    character_id = view.present(roster, wanted)
    head = view.heading(roster, character_id)
    whole = bool(head) and not head.get("damaged")
    deleted = view.trash(page.app)
    record = [head.get(name, "") for name in ("name", "trigger", "class_word", "notes", "scorer")]
    known = remembered(shown)
    now: dict[str, list[Any]] = {
        "record": [character_id, *record],
        "parts": [bool(head), whole, bool(head.get("ready")), bool(deleted)],
    }
    parts = [
        gr.Button(interactive=bool(head.get("ready")), visible=bool(head)),
        gr.Column(visible=whole),
        gr.Accordion(visible=bool(deleted)),
        gr.Button(visible=bool(head)),
    ]
    train, body, fold, delete = parts if known.get("parts") != now["parts"] else [gr.skip()] * len(parts)
    return [
        character_id,
        view.cards(page, roster, character_id),
        head,
        train,
        body,
        {"character": character_id if whole else ""},
        view.grid(page, roster, character_id),
        *(record if known.get("record") != now["record"] else [gr.skip()] * len(record)),
        json.dumps(now),
        characters_describe.value(page.app, character_id) if whole else {},
        deleted,
        fold,
        delete,
    ]


def _on_picture(change: Callable[[str, str], None]) -> Callable[..., None]:
    def on_picture(character_id: str, event: gr.EventData) -> None:
        change(character_id, str(event.id))

    return on_picture


def _on_entry(change: Callable[[str], None]) -> Callable[..., None]:
    def on_entry(event: gr.EventData) -> None:
        change(str(event.id))

    return on_entry
