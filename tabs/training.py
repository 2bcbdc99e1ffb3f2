"""The training tab: choose, start, watch, steer, and look back."""

import functools
import json
from collections.abc import Callable
from typing import Any

import gradio as gr

from tabs import (
    training_compare,
    training_exchange,
    training_fields,
    training_models,
    training_storage,
    training_workers,
)
from tabs.common import PRIVATE, QUIET, Page, Section, asked_by, handled, scripted, section, t
from tabs.frame import Course, Tab
from tabs.training_actions import Actions
from tabs.training_setup import Choice
from tabs.training_view import View, key_of

BUTTONS = ("resume", "pause", "save", "sample", "cancel")


def build(page: Page) -> Tab:
    """Build the tab's content inside the open block."""
    view, actions = View(page), Actions(page)
    parts, exchange, models, workers = _layout(page)
    storage = section("storage")
    parts["storage"] = storage.list
    hidden = {name: gr.Textbox(visible=False, elem_id=f"training-{name}") for name in HIDDEN}
    refresh = _refresher(view, parts)
    inputs = [
        hidden["character"],
        hidden["model"],
        hidden["preset"],
        parts["form"],
        hidden["chosen"],
        hidden["painted"],
    ]
    outputs = [*(parts[name] for name in parts), *(hidden[name] for name in HIDDEN)]
    again = functools.partial(_then, refresh=refresh, inputs=inputs, outputs=outputs)
    parts["form"].changed(refresh, inputs, outputs, trigger_mode="always_last", **QUIET)
    _wire_setup(parts, hidden, actions, again)
    _wire_engine(parts, actions, again)
    _wire_run(parts, hidden, actions, again)
    _wire_lists(parts, hidden, actions, again)
    training_models.wire(models, page, opener=parts["get_model"], again=again)
    training_workers.wire(workers, page.app, again=again)
    training_storage.wire(storage, page, again=again)
    training_compare.wire(parts["compare"], page, again=again)
    training_exchange.wire(exchange, page, form=parts["form"], hidden=hidden, again=again)
    return Tab(
        course=_course(view, parts, hidden["chosen"]),
        refresh=refresh,
        inputs=inputs,
        outputs=outputs,
        character=hidden["character"],
        leads={"image": parts["generate"]},
        chooses=parts["compare"].use,
        opens={"job": hidden["chosen"], "workers": workers.fold},
    )


#: Ids and choices that the page holds; everything else comes from the services.
HIDDEN = ("character", "model", "preset", "chosen", "shown", "painted")


def _layout(
    page: Page,
) -> tuple[dict[str, Any], training_exchange.Exchange, training_models.Section, Section]:
    own = functools.partial(scripted, "training", "training_dom")
    parts: dict[str, Any] = {}
    with gr.Row(equal_height=False):
        with gr.Column(scale=1, min_width=330):
            with gr.Group(elem_id="training-choices"):
                parts["characters"] = gr.Dropdown([], label=t("training.character"), elem_id="training-who")
                parts["models"] = gr.Dropdown([], label=t("training.base_model"), elem_id="training-what")
                parts["presets"] = gr.Radio([], label=t("training.preset"), elem_id="training-how", info=" ")
            with gr.Accordion(t("training.advanced"), open=False, elem_id="training-advanced"):
                groups = training_fields.groups(page.app.training.engine_names)
                parts["form"] = own("training_form", {}, elem_id="training-form", groups=groups)
                exchange = training_exchange.lay()
                parts["engine"] = own("training_engine", {}, elem_id="training-engine")
            parts["estimate"] = own("training_estimate", {}, elem_id="training-estimate")
            parts["get_model"] = gr.Button(
                t("models.get"), size="sm", visible=False, elem_id="training-get-model"
            )
            parts["start"] = gr.Button(
                t("training.start"),
                variant="primary",
                elem_id="training-start",
                elem_classes=["primary-action"],
            )
        with gr.Column(scale=2, min_width=330):
            parts["latest"] = gr.Button(
                t("training.latest"), size="sm", visible=False, elem_id="training-latest"
            )
            parts["others"] = own("training_others", [], elem_id="training-others")
            parts["card"] = own("training_live", {"job": ""}, elem_id="training-live")
            with gr.Row(visible=False, elem_id="training-actions") as parts["actions"]:
                for name in BUTTONS:
                    variant: Any = "stop" if name == "cancel" else "secondary"
                    parts[name] = gr.Button(
                        t(f"training.{name}"),
                        variant=variant,
                        size="md",
                        min_width=104,
                        elem_id=f"training-{name}",
                    )
            parts["generate"] = gr.Button(
                t("training.generate"), variant="primary", visible=False, elem_id="training-generate"
            )
            parts["curves"] = own("training_chart", {}, shares=["chart_dom"], elem_id="training-chart")
            parts["samples"] = own("training_samples", {}, elem_id="training-samples")
            parts["compare"] = training_compare.lay(page)
            parts["queue"] = own("training_queue", [], elem_id="training-queue")
            with gr.Accordion(t("training.log"), open=False, elem_id="training-log-fold"):
                parts["log"] = own("training_log", [], elem_id="training-log")
            parts["history"] = own("training_history", [], elem_id="training-history")
    models = training_models.lay()
    parts["weights"] = models.list
    workers = section("workers")
    parts["workers"] = workers.list
    return parts, exchange, models, workers


def _refresher(view: View, parts: dict[str, Any]) -> Callable[..., list[Any]]:
    """Paint only what has changed since this page was last painted, so that nobody is disturbed while typing.

    Our own widgets always get their value, and see themselves whether it has changed: Gradio forgets the properties of
    one that is not on the page yet when an update without a value comes for it.
    What the browser holds itself is answered only where it has to change: the user may have changed it meanwhile.
    """

    @handled
    def refresh(character: str, model: str, preset: str, form: Any, chosen: str, painted: str) -> list[Any]:
        values = view.parts(Choice(character or "", model or "", preset or ""), form, chosen or "")
        known = _painted(painted)
        keys = {name: key_of(component_view(name, values)) for name in parts}
        answers = [
            gr.skip()
            if known.get(name) == keys[name] and not isinstance(parts[name], gr.HTML)
            else component(name, component_view(name, values))
            for name in parts
        ]
        asked = {"characters": character, "models": model, "presets": preset}
        ids = [
            gr.skip() if values[name]["value"] == said else values[name]["value"]
            for name, said in asked.items()
        ]
        return [*answers, *ids, gr.skip(), values["shown"], json.dumps(keys)]

    return refresh


def _course(view: View, parts: dict[str, Any], chosen: gr.Textbox) -> Course:
    names = ("card", "curves", "log")

    @handled
    def refresh(picked: str) -> list[Any]:
        values = view.course(picked or "")
        return [values[name] for name in names]

    return Course(refresh=refresh, inputs=[chosen], outputs=[parts[name] for name in names])


def _painted(text: str) -> dict[str, str]:
    try:
        known = json.loads(text or "{}")
    except ValueError:
        return {}
    return known if isinstance(known, dict) else {}


def component_view(name: str, values: dict[str, Any]) -> Any:
    """What one component depends on."""
    if name == "actions":
        return any(values["can"].values())
    if name in BUTTONS:
        return values["can"][name]
    return values[name]


def component(name: str, view: Any) -> Any:
    """The update of one component."""
    makers: dict[str, Callable[[Any], Any]] = {
        "characters": lambda view: gr.Dropdown(choices=view["choices"], value=view["value"] or None),
        "models": lambda view: gr.Dropdown(choices=view["choices"], value=view["value"] or None),
        "presets": lambda view: gr.Radio(
            choices=view["choices"], value=view["value"] or None, info=view["about"] or " "
        ),
        "latest": lambda view: gr.Button(visible=view),
        "get_model": lambda view: gr.Button(visible=view),
        "generate": lambda view: gr.Button(visible=view),
        "actions": lambda view: gr.Row(visible=view),
        **dict.fromkeys(("start", *BUTTONS), lambda view: gr.Button(interactive=view)),
    }
    return makers[name](view) if name in makers else view


def _then(event: Any, *, refresh: Any, inputs: list[Any], outputs: list[Any]) -> Any:
    return event.then(refresh, inputs, outputs, trigger_mode="always_last", **QUIET)


def _wire_setup(parts: dict[str, Any], hidden: dict[str, Any], actions: Actions, again: Any) -> None:
    for choice, name in (("characters", "character"), ("models", "model"), ("presets", "preset")):
        again(parts[choice].input(None, parts[choice], hidden[name], js="(value) => value || ''", **QUIET))

    @handled
    def start(character: str, model: str, preset: str, form: Any, request: gr.Request) -> str:
        job = actions.admitted(
            asked_by(request), lambda: actions.start(Choice(character, model, preset), form)
        )
        gr.Info(
            f"The training of {job.payload['name']} is in the queue.", title="Training queued", duration=4
        )
        return ""

    chosen = [hidden["character"], hidden["model"], hidden["preset"]]
    again(
        parts["start"].click(
            start, [*chosen, parts["form"]], hidden["chosen"], show_progress="hidden", **PRIVATE
        )
    )


def _wire_engine(parts: dict[str, Any], actions: Actions, again: Any) -> None:
    @handled
    def install_engine() -> None:
        actions.install_engine()

    @handled
    def stop_installing() -> None:
        actions.stop_installing()

    @handled
    def tell_installed() -> None:
        if actions.installed_engine():
            gr.Info("AI-Toolkit is installed; trainings of real base models use it from now on.", duration=8)
        else:
            gr.Info("The installation was cancelled; what was whole by then stays.", duration=5)

    notice = parts["engine"]
    for event, handler in (
        (notice.install, install_engine),
        (notice.halt, stop_installing),
        (notice.ended, tell_installed),
    ):
        again(event(handler, None, None, show_progress="hidden", **PRIVATE))


def _wire_run(parts: dict[str, Any], hidden: dict[str, Any], actions: Actions, again: Any) -> None:
    for name in BUTTONS:
        js = _confirmed("training.confirm_cancel") if name == "cancel" else None
        button = parts[name]
        again(
            button.click(
                _on_job(name, getattr(actions, name)),
                hidden["shown"],
                None,
                js=js,
                show_progress="hidden",
                **PRIVATE,
            )
        )
    again(parts["latest"].click(lambda: "", None, hidden["chosen"], **QUIET))

    @handled
    def mend(event: gr.EventData, request: gr.Request) -> None:
        job, number = _said(event, "job"), _number(event, "number")
        actions.admitted(asked_by(request), lambda: actions.mend(job, number))

    again(parts["card"].mend(mend, None, None, show_progress="hidden", **PRIVATE))


def _on_job(name: str, act: Callable[[str], Any]) -> Callable[[str], None]:
    """A handler for a button that acts on the run shown; an empty id is a refused confirmation."""

    def on_job(job_id: str) -> None:
        if job_id:
            act(job_id)

    on_job.__name__ = f"{name}_training"
    return handled(on_job)


def _wire_lists(parts: dict[str, Any], hidden: dict[str, Any], actions: Actions, again: Any) -> None:
    queue, history = parts["queue"], parts["history"]
    for event in (parts["others"].show, queue.show, history.show):
        again(event(_shown_job, None, hidden["chosen"], **QUIET))
    for name, event, act in (
        ("move", queue.move, lambda said: actions.move(_said(said, "job"), _said(said, "before"))),
        ("resume", queue.resume, lambda said: actions.resume(_said(said, "job"))),
        ("drop", queue.drop, lambda said: actions.cancel(_said(said, "job"))),
        ("forget", history.forget, lambda said: actions.forget(_said(said, "job"))),
    ):
        again(event(_on_event(name, act), None, None, show_progress="hidden", **PRIVATE))
    _wire_continuing(parts, hidden, actions, again)


def _shown_job(event: gr.EventData) -> str:
    return _said(event, "job")


def _on_event(name: str, act: Callable[[gr.EventData], Any]) -> Callable[[gr.EventData], None]:
    def on_event(event: gr.EventData) -> None:
        act(event)

    on_event.__name__ = f"{name}_training"
    return handled(on_event)


def _wire_continuing(parts: dict[str, Any], hidden: dict[str, Any], actions: Actions, again: Any) -> None:
    @handled
    def more(event: gr.EventData, request: gr.Request) -> str:
        job, steps = _said(event, "job"), _number(event, "steps")
        actions.admitted(asked_by(request), lambda: actions.more(job, steps))
        gr.Info("The training goes on from its last checkpoint.", title="Training queued", duration=4)
        return ""

    @handled
    def take(form: Any, event: gr.EventData) -> list[Any]:
        choice, changes = actions.again(_said(event, "job"))
        gr.Info(
            "The settings are on the left. Change what you like, then start.",
            title="Settings taken",
            duration=5,
        )
        known = form if isinstance(form, dict) else {}
        return [choice.character, choice.model, choice.preset, {**known, "overrides": changes}]

    setup = [hidden["character"], hidden["model"], hidden["preset"], parts["form"]]
    again(parts["history"].more(more, None, hidden["chosen"], show_progress="hidden", **PRIVATE))
    again(parts["history"].again(take, parts["form"], setup, show_progress="hidden", **PRIVATE))


def _said(event: gr.EventData, name: str) -> str:
    return str(getattr(event, name, "") or "")


def _number(event: gr.EventData, name: str) -> int:
    try:
        return int(float(getattr(event, name, 0)))
    except (TypeError, ValueError):
        return -1


def _confirmed(key: str) -> str:
    """A script that passes the job's id on when the user says yes, in the language of the browser."""
    languages = {language: said.get(key, "") for language, said in t.translations.items()}
    return f"(id) => {{ const said = {json.dumps(languages)}; const mine = said[navigator.language.slice(0, 2)] || said.en; return confirm(mine) ? id : ''; }}"
