"""The base models on the training tab: what is here, downloads and checks, and the token for gated ones."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from isengard.domain.captioner import CaptionerCard
from isengard.domain.model import ModelCard
from isengard.errors import IsengardError
from isengard.services.machine import GIB
from isengard.services.model_tasks import Action, Outcome, Task
from isengard.services.models import ModelState
from isengard.wiring import Application
from tabs.common import PRIVATE, QUIET, Page, duration, handled, scripted, t

#: Seconds for which an answer holds: every open page asks again and again, and each file is looked at.
LOOK_EVERY_S = 2.0
#: Opens the section and brings it into sight.
SHOW = "() => setTimeout(() => document.getElementById('base-models')?.scrollIntoView({behavior: 'smooth'}), 120)"


@dataclass(frozen=True)
class Section:
    """The section and what is wired in it."""

    fold: gr.Accordion
    list: gr.HTML
    answer: gr.Textbox


def lay() -> Section:
    """Lay out the section inside the open block."""
    with gr.Accordion(t("models.title"), open=False, elem_id="base-models") as fold:
        shown = scripted("models", "training_dom", "models", {}, elem_id="training-models")
        answer = gr.Textbox(
            label=t("models.answer"),
            interactive=False,
            visible=False,
            lines=1,
            max_lines=8,
            elem_id="models-answer",
        )
    return Section(fold=fold, list=shown, answer=answer)


def wire(section: Section, page: Page, *, opener: gr.Button, again: Callable[[Any], Any]) -> None:
    """Let the buttons work; ``again`` paints the tab anew after an event; ``opener`` leads here."""
    app = page.app
    opener.click(_open, None, section.fold, js=SHOW, **QUIET)
    for event, act in (
        (section.list.fetch, lambda name: app.model_tasks.start(_known(app, name), Action.DOWNLOAD)),
        (section.list.check, lambda name: app.model_tasks.start(_known(app, name), Action.VERIFY)),
        (section.list.halt, app.model_tasks.cancel),
        (section.list.drop, lambda name: _remove(app, name)),
    ):
        again(event(_on_model(act), None, None, show_progress="hidden", **PRIVATE))

    def keep_token(event: gr.EventData) -> Any:
        return gr.Textbox(value=tried(app, str(getattr(event, "token", "") or "")), visible=True)

    def forget_token() -> Any:
        app.models.token.forget()
        return gr.Textbox(value="", visible=False)

    again(section.list.token(keep_token, None, section.answer, **QUIET))
    again(section.list.forget(forget_token, None, section.answer, **QUIET))


def _open() -> Any:
    return gr.Accordion(open=True)


def _on_model(act: Callable[[str], Any]) -> Callable[[gr.EventData], None]:
    def on_model(event: gr.EventData) -> None:
        act(str(getattr(event, "model", "") or ""))

    return handled(on_model)


def _known(app: Application, name: str) -> str:
    """The name, of a card. Raises: NotFound."""
    return app.catalog.model(name).name


def _remove(app: Application, name: str) -> None:
    if (task := app.model_tasks.tasks().get(name)) is not None and task.running:
        app.model_tasks.cancel(name)
        app.model_tasks.wait(name, LOOK_EVERY_S)
    app.models.remove(name)


def tried(app: Application, token: str) -> str:
    """What the hub says of a token that was typed, also when it is wrong."""
    try:
        return app.models.keep_token(token).sentence
    except IsengardError as error:
        said = str(error)
        return f"{said[0].upper()}{said[1:]}"


class ModelsView:
    """The section as plain values; an answer holds for `LOOK_EVERY_S` seconds while nothing is known to have changed."""

    def __init__(self, app: Application, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._app, self._clock = app, clock
        self._seen: tuple[float, Any, tuple[tuple[ModelState, dict[str, str]], ...]] | None = None

    def value(self) -> dict[str, Any]:
        """What the script paints."""
        tasks = self._app.model_tasks.tasks()
        return {
            "rows": [
                row(state, tasks.get(state.card.name), memory=memory) for state, memory in self._states(tasks)
            ],
            "token": self._app.models.token.origin,
            "offline": self._app.models.offline,
        }

    def _memory(self, card: ModelCard | CaptionerCard) -> dict[str, str]:
        """What a training and an image take here, as the planner would hold the model; without what is not known."""
        if isinstance(card, CaptionerCard):
            return {}
        plans = {"train": self._app.training.fit(card), "images": self._app.planning.makes_images(card)}
        return {
            what: f"{plan.peak_bytes / GIB:.1f}" for what, plan in plans.items() if plan and plan.peak_bytes
        }

    def _states(self, tasks: Mapping[str, Task]) -> tuple[tuple[ModelState, dict[str, str]], ...]:
        """Each model with what it takes here."""
        stamp, now = (self._app.models.version(), changes(tasks)), self._clock()
        if self._seen is None or now - self._seen[0] >= LOOK_EVERY_S or self._seen[1] != stamp:
            try:
                known = tuple((state, self._memory(state.card)) for state in self._app.models.list())
                self._seen = (now, stamp, known)
            except IsengardError:  # a broken card: the estimate says which
                return ()
        return self._seen[2]


def changes(tasks: Mapping[str, Task]) -> list[Any]:
    """What makes the section worth painting again; the progress itself comes with every look."""
    return [(task.number, task.outcome) for task in tasks.values()]


def live(tasks: Mapping[str, Task]) -> dict[str, Any]:
    """How far each running task is, by the model's name: small, as every open page asks for it."""
    return {task.model: course(task) for task in tasks.values() if task.running}


def course(task: Task) -> dict[str, Any]:
    """A running task as the bar shows it."""
    told = task.progress
    parts = [f"{size(told.done_bytes)} / {size(told.total_bytes)}"] if told.total_bytes else []
    if told.bytes_per_s:
        parts.append(f"{told.bytes_per_s / 1e6:.1f} MB/s")
    return {
        "action": task.action,
        "percent": 100 * told.done_bytes // told.total_bytes if told.total_bytes else None,
        "figures": " · ".join(parts),
        "left": "" if told.eta_s is None else duration(told.eta_s),
        "file": told.message or told.file,
    }


def row(state: ModelState, task: Task | None, *, memory: Mapping[str, str]) -> dict[str, Any]:
    """One model: where it is, what it is, and which buttons it has."""
    card, running = state.card, task is not None and task.running
    own = state.place == "models folder"
    begun = state.begun_bytes > 0
    return {
        "name": card.name,
        "title": card.title,
        "state": task.action if task and running else state.state,
        "place": state.place,
        "path": "" if state.path is None else str(state.path),
        "size": size(state.size_bytes) if state.state == "ready" else "",
        "begun": f"{size(state.begun_bytes)} / {size(state.promised_bytes)}" if begun else "",
        "memory": dict(memory),
        "licence": card.licence,
        "licence_url": card.licence_url,
        "gated": f"https://huggingface.co/{card.repository}" if card.gated else "",
        "describes": isinstance(card, CaptionerCard),
        "lacks_adapter": state.lacks_adapter and state.state == "ready",
        "partner": state.partner,
        "course": course(task) if task and running else None,
        "error": "" if task is None else task.error,
        "checked": checked(task),
        "can": {
            "fetch": not running
            and card.repository is not None
            and (state.state != "ready" or state.lacks_adapter),
            "halt": running,
            "check": not running and state.state == "ready",
            "drop": not running and own,
        },
    }


def checked(task: Task | None) -> list[str] | None:
    """Of a check that has ended: the damaged files; None when there was none."""
    if task is None or task.action is not Action.VERIFY or task.outcome is not Outcome.DONE:
        return None
    return list(task.damaged)


def size(count: float) -> str:
    """``25.0 MB``, ``33.7 GB``."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
