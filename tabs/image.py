"""The image tab."""

import gradio as gr

from tabs.common import Page
from tabs.frame import Tab


def build(page: Page) -> Tab:
    """Build the tab's content inside the open block."""
    selected = gr.Textbox(visible=False, elem_id="image-selected")

    def refresh(chosen: str) -> str:
        return chosen

    return Tab(refresh=refresh, inputs=[selected], outputs=[selected], character=selected)
