"""What every tab shares: the services, how a handler fails, and which uploaded paths are believed."""

import functools
import html
import inspect
import json
import logging
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import gradio as gr
import yaml
from gradio.context import LocalContext
from pydantic import ConfigDict, ValidationError, validate_call

from isengard import logs
from isengard.domain.base import refusal
from isengard.errors import InvalidSpec, IsengardError
from isengard.services.machine import Machine
from isengard.wiring import Application
from tabs.http.address import client_address
from tabs.pictures import Pictures
from tabs.uploads import upload_at

log = logging.getLogger(__name__)

WEB = Path(__file__).with_name("web")
#: A listener of the page itself: hidden from the API's documentation. Hidden is not safe: each checks what it is given.
PRIVATE: dict[str, Any] = {"api_visibility": "private"}
#: Also not queued: for quick reads, which show no toast when they fail.
QUIET: dict[str, Any] = {"api_visibility": "private", "queue": False, "show_progress": "hidden"}

#: An event that no script of ours has sent.
NO_EVENT = "this event lacks what it is about: reload the page and try again"

Handler = TypeVar("Handler", bound=Callable[..., Any])


@dataclass(frozen=True)
class Page:
    """What the tabs are built on."""

    app: Application
    machine: Machine
    pictures: Pictures
    login: bool = False
    """Whether it was logged in to, so that one can log out."""


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


def scripted(
    section: str,
    beginning: str,
    name: str,
    value: Any = None,
    *,
    shares: Sequence[str] = (),
    **options: Any,
) -> gr.HTML:
    """A `widget` whose script begins with others, ``shares`` the last, and with the words of a tab as ``WORDS``.

    They are part of the script, as Gradio forgets the properties of a component that is changed while it is hidden.
    """
    made = widget(name, value, apply_default_css=False, **options)
    shared = "".join((WEB / f"{each}.js").read_text(encoding="utf-8") for each in (beginning, *shares))
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


@dataclass(frozen=True)
class Section:
    """A part of a tab that is folded until it is wanted, and what is wired in it."""

    fold: gr.Accordion
    list: gr.HTML


def section(name: str) -> Section:
    """Lay out one of the training tab, of the widget ``name``, inside the open block."""
    with gr.Accordion(t(f"{name}.title"), open=False, elem_id=name) as fold:
        shown = scripted(name, "training_dom", name, {}, elem_id=f"training-{name}")
    return Section(fold=fold, list=shown)


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
            if not all(isinstance(each._data, dict) for each in args if isinstance(each, gr.EventData)):
                raise InvalidSpec(NO_EVENT)
            return function(*args, **kwargs)

    return plain  # type: ignore[return-value]


def typed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse what is not of the types that a function names, as another program may send anything.

    Raises: InvalidSpec, from the function that is returned: names each wrong value.
    """
    signature = inspect.signature(function)
    checking = validate_call(config=ConfigDict(strict=True, arbitrary_types_allowed=True))(function)

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        named = dict(zip(signature.parameters, args, strict=False)) | kwargs
        try:
            return checking(**named)
        except ValidationError as error:
            raise refusal(error, known=signature.parameters) from None
        except UnicodeEncodeError as error:
            # Half of a pair of code units: JSON can hold it, and UTF-8 cannot.
            strange = error.object[error.start]
            raise InvalidSpec(f"a text holds {strange!r}, which is no character: remove it") from None

    return checked


class _guarded:  # noqa: N801  # used like a function
    def __init__(self, name: str) -> None:
        self._name = name
        self._reference = request_id()
        self._bound = logs.bound(correlation_id=self._reference)

    def __enter__(self) -> None:
        self._bound.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        try:
            if isinstance(error, AttributeError) and isinstance(error.obj, gr.EventData):
                error = InvalidSpec(NO_EVENT)
            if isinstance(error, IsengardError):
                log.info(
                    "refused", extra={"handler": self._name, "code": error.code, "error": str(error)[:1000]}
                )
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


def request_id() -> str:
    """The id of the request that is being handled; a new one where there is none.

    A queued handler runs in the context of whoever started the queue, so what is bound there is of another request.
    """
    request = LocalContext.request.get(None)
    state = getattr(getattr(request, "request", None), "state", None)
    return getattr(state, "request_id", "") or str(
        logs.bound_field("correlation_id") or uuid.uuid4().hex[:12]
    )


def uploaded(paths: Iterable[Any]) -> list[Path]:
    """The files of an upload. Raises: gr.Error for a path that this app has not received as an upload.

    Gradio itself does not check every component (images and galleries pass any path of the server on).
    """
    found = []
    for given in paths:
        path = upload_at(given)
        if path is None:
            raise gr.Error("This file was not uploaded here.", title="Upload rejected", print_exception=False)
        found.append(path)
    return found


def asked_by(request: gr.Request) -> str:
    """The address of whoever sent the request that a handler answers."""
    return client_address(request.request.scope)  # type: ignore[union-attr]  # an event has one


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
