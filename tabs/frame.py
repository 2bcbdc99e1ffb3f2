"""What the page needs to know of a tab."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from gradio.components import Component


@dataclass(frozen=True)
class Course:
    """Paints a few components anew, again and again."""

    refresh: Callable[..., Any]
    inputs: Sequence[Component]
    outputs: Sequence[Component]


@dataclass(frozen=True)
class Tab:
    """A built tab. Everything it shows comes from ``refresh``, so that a reload and a second browser show the truth."""

    refresh: Callable[..., Any]
    """Called with the values of ``inputs`` when the page is opened and whenever a job or a file has changed; returns a
    value for each of ``outputs``. It is quick and changes nothing."""
    inputs: Sequence[Component]
    outputs: Sequence[Component]
    character: Component
    """Holds the id of the character the tab is about; empty for none. Other tabs and links set it."""
    leads: dict[str, gr.Button] = field(default_factory=dict)
    """Buttons that lead to another tab, by its id: pressing one opens that tab with this tab's character."""
    course: Course | None = None
    """What of it moves while a job runs, and nothing else has changed."""
    chooses: Any = None
    """The event of a chosen checkpoint, when the tab has one: it says ``run``, ``step``, ``strength``, and this browser's
    ``draft`` of the image form."""
    takes: Callable[[Any], Any] | None = None
    """Lets the tab's form follow such an event; returns what goes on after it."""
    opens: dict[str, Component | gr.Accordion] = field(default_factory=dict)
    """What links of the header change here, by what they lead to."""
