"""The button that makes a report of a problem: a zip that is kept nowhere but with the user who asked for it."""

import base64
from typing import Any

import gradio as gr
from gradio.components import Component

from tabs.common import PRIVATE, Page, handled, t

#: Saves "name base64" as a file.
SAVE = """(file) => {
  const [name, content] = file.split(" ");
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  const href = URL.createObjectURL(new Blob([bytes], { type: "application/zip" }));
  Object.assign(document.createElement("a"), { href, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60000);
}"""


def build(page: Page, *, job: Component) -> None:
    """Build it inside the open block. ``job`` holds the id of the job that is looked at, or nothing."""
    reports = page.app.reports

    @handled
    def report_problem(job_id: str) -> str:
        gr.Info(
            "Versions, settings, logs and the job are collected, without passwords and pictures. It takes some seconds.",
            title="Report a problem",
            duration=8,
        )
        return f"{reports.name()} {base64.b64encode(reports.content(job_id or None)).decode()}"

    with gr.Row(elem_id="foot"):
        button = gr.Button(
            t("frame.report"), variant="secondary", size="sm", scale=0, min_width=150, elem_id="report"
        )
    file = gr.Textbox("", visible=False)
    options: dict[str, Any] = {**PRIVATE, "concurrency_limit": 1, "show_progress": "hidden"}
    made = button.click(report_problem, job, file, **options)
    made.success(None, file, None, js=SAVE)
