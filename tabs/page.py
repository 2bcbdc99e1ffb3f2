"""The page: header, four tabs, and how they lead to each other."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import gradio as gr
from gradio.components import Component

from isengard.domain.job import JobKind
from tabs import api, characters, image, pod, report, status, training, training_workers, video
from tabs.common import QUIET, Page, handled, scripted, t, widget
from tabs.frame import Tab
from tabs.progress import compared

#: Ends this browser's session; what answers then is the login page.
LEAVE = "() => fetch('/logout', {method: 'POST'}).finally(() => location.reload())"
IDS = ("characters", "training", "image", "video")


def build(page: Page) -> gr.Blocks:
    """Build the page. Its events are private to it; `tabs.api` adds what other programs may call."""
    with gr.Blocks(title="Isengard", analytics_enabled=False, delete_cache=(3600, 86400)) as demo:
        api.add(page)  # first, so that no listener takes one of its names
        with gr.Row(elem_id="header"):
            widget("brand", elem_id="brand", min_width=120)
            look = status.looker(page)
            header = scripted(
                "header", "training_dom", "status", {}, elem_id="status", server_functions=[look]
            )
            if page.login:
                leave = gr.Button(t("login.leave"), size="sm", min_width=90, scale=0, elem_id="leave")
                leave.click(None, None, None, js=LEAVE, **QUIET)
            pod.bell()
        pod.banner(page)
        with gr.Tabs(elem_id="tabs") as strip:
            built: dict[str, Tab] = {}
            for name, make in (("characters", characters), ("training", training), ("image", image)):
                with gr.Tab(t(f"tab.{name}"), id=name):
                    built[name] = make.build(page)
            with gr.Tab(t("tab.video"), id="video"):
                video.build()
        report.build(page, job=cast("Component", built["training"].opens["job"]))
        _follow_links(demo, strip, built)
        for tab in built.values():
            header.refresh(tab.refresh, list(tab.inputs), list(tab.outputs), **QUIET)
        for tab in built.values():
            if course := tab.course:  # everything else changes with an event, which the header's key tells
                header.moved(course.refresh, list(course.inputs), list(course.outputs), **QUIET)
        _lead_from_header(page, header, strip, built)
        _lead(strip, built)
        _use_checkpoints(strip, built)
    return cast("gr.Blocks", demo)


def _follow_links(demo: gr.Blocks, strip: gr.Tabs, built: dict[str, Tab]) -> None:
    """``?tab=image&character=nova`` opens that tab with that character."""
    targets = [tab.character for tab in built.values()]

    def open_link(request: gr.Request) -> list[Any]:
        asked = dict(request.query_params)
        name, character = asked.get("tab", ""), asked.get("character", "")
        return [
            gr.Tabs(selected=name) if name in IDS else gr.skip(),
            *(character or gr.skip() for _ in targets),
        ]

    opened = demo.load(open_link, None, [strip, *targets], **QUIET)
    for tab in built.values():
        opened.then(tab.refresh, list(tab.inputs), list(tab.outputs), **QUIET)


def _lead(strip: gr.Tabs, built: dict[str, Tab]) -> None:
    for tab in built.values():
        for name, button in tab.leads.items():
            target = built[name]
            button.click(_opener(name), tab.character, [strip, target.character], **QUIET).then(
                target.refresh, list(target.inputs), list(target.outputs), **QUIET
            )


def _use_checkpoints(strip: gr.Tabs, built: dict[str, Tab]) -> None:
    """A checkpoint that is chosen on the training tab is put into the form of images, which is opened then."""
    event, take = built["training"].chooses, cast("Callable[[Any], Any]", built["image"].takes)
    taken = take(event).success(lambda: gr.Tabs(selected="image"), None, strip, **QUIET)
    taken.then(None, None, None, js="() => window.scrollTo({ top: 0 })", **QUIET)


def _opener(name: str) -> Any:
    def open_tab(character: str) -> Sequence[Any]:
        return gr.Tabs(selected=name), character

    return open_tab


def _lead_from_header(page: Page, header: gr.HTML, strip: gr.Tabs, built: dict[str, Tab]) -> None:
    """A running job leads to where it is shown, and what is said of the workers to their list."""
    training = built["training"]
    shown, workers = training.opens["job"], training.opens["workers"]
    opened = header.openjob(_job_opener(page), None, [strip, shown], **QUIET)
    opened.then(training.refresh, list(training.inputs), list(training.outputs), **QUIET)
    opened = header.openworkers(lambda: gr.Tabs(selected="training"), None, strip, **QUIET)
    opened = opened.then(lambda: gr.Accordion(open=True), None, workers, **QUIET)
    opened.then(None, None, None, js=training_workers.SHOW, **QUIET)


def _job_opener(page: Page) -> Callable[[gr.EventData], list[Any]]:
    """A comparison is shown with the training whose checkpoints it compares."""

    @handled
    def open_job(event: gr.EventData) -> list[Any]:
        job, kind = str(getattr(event, "job", "")), getattr(event, "kind", "")
        if kind == JobKind.EVALUATE_CHECKPOINTS:
            return [gr.Tabs(selected="training"), compared(page.app.jobs.get(job))]
        if kind == JobKind.TRAIN_LORA:
            return [gr.Tabs(selected="training"), job]
        if kind == JobKind.CAPTION_IMAGES:
            return [gr.Tabs(selected="characters"), gr.skip()]
        return [gr.Tabs(selected="image"), gr.skip()]

    return open_job
