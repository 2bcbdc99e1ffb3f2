"""The page: header, four tabs, and how they lead to each other."""

from collections.abc import Sequence
from typing import Any, cast

import gradio as gr

from tabs import api, characters, image, status, training, video
from tabs.common import QUIET, Page, t, widget
from tabs.frame import Tab

IDS = ("characters", "training", "image", "video")


def build(page: Page) -> gr.Blocks:
    """Build the page. Its events are private to it; `tabs.api` adds what other programs may call."""
    with gr.Blocks(title="Isengard", analytics_enabled=False, delete_cache=(3600, 86400)) as demo:
        api.add(page)  # first, so that no listener takes one of its names
        with gr.Row(elem_id="header"):
            widget("brand", elem_id="brand", min_width=120)
            header = widget("status", {}, elem_id="status", server_functions=[status.looker(page)])
        with gr.Tabs(elem_id="tabs") as strip:
            built: dict[str, Tab] = {}
            for name, make in (("characters", characters), ("training", training), ("image", image)):
                with gr.Tab(t(f"tab.{name}"), id=name):
                    built[name] = make.build(page)
            with gr.Tab(t("tab.video"), id="video"):
                video.build()
        _follow_links(demo, strip, built)
        for tab in built.values():
            header.refresh(tab.refresh, list(tab.inputs), list(tab.outputs), **QUIET)
        header.openjob(_tab_of_running(page), None, strip, **QUIET)
        _lead(strip, built)
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


def _opener(name: str) -> Any:
    def open_tab(character: str) -> Sequence[Any]:
        return gr.Tabs(selected=name), character

    return open_tab


def _tab_of_running(page: Page) -> Any:
    look = status.looker(page)

    def open_running() -> Any:
        job = look()["job"]
        if job is None:
            return gr.skip()
        return gr.Tabs(selected="training" if job["kind"] == "train_lora" else "image")

    return open_running
