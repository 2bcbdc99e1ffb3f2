"""What every tab shares: the services, how a handler fails, and which uploaded paths are believed."""

import functools
import html
import inspect
import json
import logging
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
import yaml
from gradio.utils import get_upload_folder, is_in_or_equal

from isengard import logs
from isengard.errors import IsengardError
from isengard.services.machine import Machine
from isengard.wiring import Application
from tabs.pictures import Pictures

log = logging.getLogger(__name__)

WEB = Path(__file__).with_name("web")
#: A listener of the page itself: hidden from the API's documentation. Hidden is not safe: each checks what it is given.
PRIVATE: dict[str, Any] = {"api_visibility": "private"}
#: Also not queued: for quick reads, which show no toast when they fail.
QUIET: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}

Handler = TypeVar("Handler", bound=Callable[..., Any])


@dataclass(frozen=True)
class Page:
    """What the tabs are built on."""

    app: Application
    machine: Machine
    pictures: Pictures


def texts() -> gr.I18n:
    """The labels: for each language a folder of files with the same keys; what one lacks is shown in English."""
    languages: dict[str, dict[str, str]] = {}
    for file in sorted((WEB / "texts").glob("*/*.yaml")):
        languages.setdefault(file.parent.name, {}).update(yaml.safe_load(file.read_text(encoding="utf-8")))
    return gr.I18n(**languages)


#: ``t("train.start")`` is that label in the language of the browser.
t = texts()


def widget(name: str, value: Any = None, **options: Any) -> gr.HTML:
    """A component of our own: its template, style and script are ``web/<name>.html``, ``.css`` and ``.js``."""
    script = WEB / f"{name}.js"
    return gr.HTML(
        value,
        html_template=(WEB / f"{name}.html").read_text(encoding="utf-8"),
        css_template=(WEB / f"{name}.css").read_text(encoding="utf-8"),
        js_on_load=script.read_text(encoding="utf-8") if script.exists() else None,
        elem_classes=["plain"],
        **options,
    )


def spoken(section: str, name: str, value: Any = None, **options: Any) -> gr.HTML:
    """A `widget` whose script begins with ``web/dom.js`` and knows the tab's words: its content is made by that script."""
    return scripted(section, "dom", name, value, **options)


def scripted(section: str, beginning: str, name: str, value: Any = None, **options: Any) -> gr.HTML:
    """A `widget` whose script begins with another, and with the words of a tab as ``WORDS``.

    They are part of the script, as Gradio forgets the properties of a component that is changed while it is hidden.
    """
    made = widget(name, value, apply_default_css=False, **options)
    shared = (WEB / f"{beginning}.js").read_text(encoding="utf-8")
    said = {
        language: {key.removeprefix(f"{section}.say."): text for key, text in each.items()}
        for language, each in words(section).items()
    }
    made.js_on_load = f"const WORDS = {json.dumps(said)};\n{shared}{made.js_on_load or ''}"
    return made


def words(section: str) -> dict[str, dict[str, str]]:
    """What the scripts of a tab say, by language."""
    return {
        language: {key: text for key, text in said.items() if key.startswith(f"{section}.say.")}
        for language, said in t.translations.items()
    }


def handled(function: Handler) -> Handler:
    """Let a handler fail as a toast: our errors in their own words, any other with a reference to the log."""
    if inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        async def generator(*args: Any, **kwargs: Any) -> Any:
            with _guarded(function.__name__):
                async for value in function(*args, **kwargs):
                    yield value

        return generator  # type: ignore[return-value]  # the same call for Gradio

    @functools.wraps(function)
    def plain(*args: Any, **kwargs: Any) -> Any:
        with _guarded(function.__name__):
            return function(*args, **kwargs)

    return plain  # type: ignore[return-value]


class _guarded:  # noqa: N801  # used like a function
    def __init__(self, name: str) -> None:
        self._name = name
        self._reference = uuid.uuid4().hex[:12]
        self._bound = logs.bound(correlation_id=self._reference)

    def __enter__(self) -> None:
        self._bound.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        try:
            if isinstance(error, IsengardError):
                log.info("refused", extra={"handler": self._name, "code": error.code, "error": str(error)})
                raise gr.Error(
                    html.escape(str(error)), title="That did not work", print_exception=False
                ) from error
            if isinstance(error, Exception) and not isinstance(error, gr.Error):
                log.error("handler crashed", exc_info=error, extra={"handler": self._name})
                raise gr.Error(
                    f"This is a bug in Isengard; the log has the details (reference {self._reference}).",
                    title="Something broke",
                    print_exception=False,
                ) from error
        finally:
            self._bound.__exit__(None, None, None)


def uploaded(paths: Iterable[Any]) -> list[Path]:
    """The files of an upload. Raises: gr.Error for a path that this app has not received as an upload.

    Gradio itself does not check every component (images and galleries pass any path of the server on).
    """
    found = []
    for given in paths:
        path = Path(str(given)).resolve()
        if not is_in_or_equal(path, get_upload_folder()) or not path.is_file():
            raise gr.Error("This file was not uploaded here.", title="Upload rejected", print_exception=False)
        found.append(path)
    return found


def remembered(seen: str) -> dict[str, Any]:
    """What a browser says it shows already, of a hidden field: nothing when that is not readable."""
    try:
        known = json.loads(seen or "{}")
    except ValueError:
        return {}
    return known if isinstance(known, dict) else {}


def duration(seconds: float) -> str:
    """``2 h 05 min``, ``3 min 20 s``, ``12 s``."""
    whole = max(0, round(seconds))
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
