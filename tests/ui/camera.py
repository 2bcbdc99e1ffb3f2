"""Looks at the page as people do: on a desk and on a phone, light and dark. Keeps what it saw as pictures."""

import os
from pathlib import Path

import axe_playwright_python

DESK, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
AXE = Path(axe_playwright_python.__file__).with_name("axe.min.js")
#: Keep the pictures here instead of in the test's own folder.
FOLDER = "ISENGARD_SCREENSHOTS"


class Camera:
    """Photographs a state of the page in every size and theme, and checks what a picture does not show."""

    def __init__(self, folder):
        self.folder = Path(os.environ.get(FOLDER) or folder)  # noqa: TID251  # a setting of the tests alone
        self.folder.mkdir(parents=True, exist_ok=True)
        self.problems = []
        self._axe = AXE.read_text(encoding="utf-8")

    def shoot(self, view, name):
        """Write ``<name>-<desk or phone>-<light or dark>.png``; note sideways scrolling and what axe finds serious."""
        view.add_style_tag(content="* { transition: none !important }")  # no colour halfway between two
        for scheme in ("light", "dark"):
            view.emulate_media(color_scheme=scheme)
            for device, size in (("phone", PHONE), ("desk", DESK)):
                view.set_viewport_size(size)
                view.evaluate("window.scrollTo(0, 0)")
                view.wait_for_timeout(300)
                view.screenshot(
                    path=self.folder / f"{name}-{device}-{scheme}.png", full_page=device == "phone"
                )
                wide = view.evaluate("document.documentElement.scrollWidth - window.innerWidth")
                if wide > 0:
                    self.problems.append(f"{name}, {device}, {scheme}: {wide} pixels of sideways scrolling")
            self._look_for_barriers(view, f"{name}, {scheme}")
        view.emulate_media(color_scheme="light")

    def _look_for_barriers(self, view, where):
        view.evaluate(self._axe)
        # The toasts are Gradio's own: a button for the whole list holds the buttons that close each.
        found = view.evaluate("axe.run({exclude: ['.toast-wrap']}, {runOnly: ['wcag2a', 'wcag2aa']})")
        for each in found["violations"]:
            if each["impact"] in ("serious", "critical"):
                nodes = "; ".join(node["html"][:160] for node in each["nodes"][:3])
                self.problems.append(f"{where}: {each['id']} ({each['impact']}): {nodes}")
