"""The Image tab: a form, the generation that is under way, and the gallery of everything made."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.context import Context

from isengard.domain.generation import FoundSettings
from isengard.domain.performance import StepCache
from tabs import image_checkpoint, image_fit, image_form, image_gallery, image_live
from tabs.common import PRIVATE, QUIET, Page, asked_by, handled, remembered, uploaded
from tabs.frame import Tab
from tabs.image_form import FIELDS, Form
from tabs.image_layout import MAX_STRENGTH, NEVER, lay_out

#: What a handler is given, and what it changes, by component.
Given = dict[Component, Any]
Painted = dict[Component, Any]

SILENT = {**PRIVATE, "show_progress": "hidden"}
KEEP_DRAFT = f"""(filled, ...fields) => {{
  if (filled !== '{NEVER}') localStorage.setItem('isengard-image', JSON.stringify(fields));
}}"""
TAKE_SIZE = "(size) => size.split('x').map(Number)"
SHOW_SIZE = "(width, height) => `${width}x${height}`"
SHOW_STAGE = """() => {
  if (window.innerWidth < 760) document.getElementById('image-stage').scrollIntoView({ behavior: 'smooth' });
}"""
SHOW_FORM = "() => { if (window.innerWidth < 760) document.getElementById('image').scrollIntoView(); }"
#: Until the first answer the form is inert: it would take back what is typed before (`image_look.js`).
AWAKE = "() => { document.getElementById('image').inert = false; }"
DOWNLOAD = """(address) => {
  if (!address) return;
  const link = Object.assign(document.createElement('a'), { href: address, download: '' });
  document.body.append(link);
  link.click();
  link.remove();
}"""


def build(page: Page) -> Tab:
    """Build the tab's content inside the open block."""
    return ImageTab(page).tab()


class ImageTab:
    """The tab's components and their handlers, which answer with what changes, by component."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._blocks = Context.root_block
        self.parts = lay_out(page)
        self._wire_form()
        self._wire_results()

    def tab(self) -> Tab:
        """What the page needs to know."""
        p = self.parts
        return Tab(
            refresh=self.refresh,
            inputs=[
                p.selected,
                p.filled,
                p.seen,
                p.shown,
                p.made_with,
                p.made_on,
                p.alike,
                *p.fields.values(),
            ],
            outputs=[*self._form_outputs(), p.seen, p.stage, p.made_with, p.made_on, p.gallery],
            character=p.selected,
            leads={"training": p.train},
            takes=image_checkpoint.taking(self._page, p, self._fill, self._form_outputs()),
        )

    @handled
    def refresh(
        self,
        selected: str,
        filled: str,
        seen: str,
        shown: str,
        made_with: str,
        made_on: str,
        alike: str,
        *values: Any,
    ) -> Painted:
        """Paint what has changed since the browser's last answer. The form is filled anew for another character only."""
        known, form, character = remembered(seen), image_form.form_of(values), selected or ""
        painted: Painted = {}
        if filled not in (NEVER, character):
            painted = self._fill(form | image_form.of_character(self._page, character, form))
        elif filled == character:
            painted = self._offer(form, known)
        painted |= self._results(known, shown, made_with, made_on, alike)
        painted[self.parts.seen] = json.dumps(known)
        return painted

    # The form

    def open(self, selected: str, filled: str, event: gr.EventData) -> Painted:
        """Fill the form when the tab is opened for the first time, with the draft that this browser has kept."""
        if filled != NEVER:
            return {self.parts.filled: filled}  # Gradio takes an empty mapping for a value
        return self._fill(image_form.restored(self._page, getattr(event, "draft", None), selected or ""))

    def choose_character(self, given: Given) -> Painted:
        form = self._form(given)
        return self._fill(form | image_form.of_character(self._page, form["character"], form))

    def choose_lora(self, given: Given) -> Painted:
        form = self._form(given)
        lora = image_form.lora_ref(form["lora"], 1)["lora"]
        model = self._page.app.images.model_for(lora)
        return self._fill(form | image_form.of_model(self._page, model, form))

    def choose_model(self, given: Given) -> Painted:
        form = self._form(given)
        card = self._page.app.catalog.model(form["base_model"])
        return self._fill(form | image_form.of_card(card) | {"template": ""})

    def choose_template(self, given: Given) -> Painted:
        form = self._form(given)
        return self._fill(form | image_form.of_template(self._page, form["template"]))

    def as_sent(self, lora: str, strength: float, further: Any, prompt: str) -> dict[str, Any]:
        """The prompt with its trigger words, as it is typed."""
        form = {"lora": lora, "strength": strength, "further": further, "prompt": prompt}
        return image_form.prompt_as_sent(self._page, form)

    @handled
    def reuse_seed(self) -> str:
        return image_live.newest_seed(self._page.app.images.gallery(limit=1))

    @handled
    def use(self, given: Given, event: gr.EventData) -> Painted:
        """Take the settings of an image of the gallery."""
        saved = self._page.app.images.image(str(getattr(event, "id", "")))
        settings = saved.record.again.model_dump(mode="json")
        return self._take_over(given, FoundSettings(origin="isengard", settings=settings), saved.path.name)

    @handled
    def use_file(self, given: Given, event: gr.EventData) -> Painted:
        """Take the settings of a PNG that was dropped."""
        (path,) = uploaded([getattr(event, "path", "")])
        return self._take_over(given, self._page.app.images.read_settings(path), path.name)

    def _take_over(self, given: Given, found: FoundSettings, name: str) -> Painted:
        form, lacking = image_form.take_over(self._page, found, self._form(given))
        said = {"title": f"The settings of {name} are in the form.", "lacking": lacking}
        return {**self._fill(form), self.parts.drop: said}

    def _form(self, given: Given) -> Form:
        return image_form.form_of([given[component] for component in self.parts.fields.values()])

    def _form_outputs(self) -> list[Component]:
        p = self.parts
        return [*p.fields.values(), p.selected, p.filled, p.size, p.lack, p.train]

    def _fill(self, form: Form) -> Painted:
        """Put a whole form on the page."""
        p, strength = self.parts, float(form["strength"] or 0)
        offered = image_form.choices(self._page, form)
        painted: Painted = {p.fields[name]: form[name] for name in FIELDS}
        for name in ("character", "lora", "base_model", "template"):
            painted[p.fields[name]] = gr.Dropdown(
                choices=offered[name], value=form[name], allow_custom_value=True
            )
        painted[p.fields["lora"]] = gr.Dropdown(
            choices=offered["lora"], value=form["lora"], allow_custom_value=True, visible=bool(form["lora"])
        )
        painted[p.fields["strength"]] = gr.Slider(
            value=strength,
            minimum=min(0, strength),
            maximum=max(MAX_STRENGTH, strength),
            visible=bool(form["lora"]),
        )
        painted[p.fields["keep_best"]] = gr.Slider(value=form["keep_best"], visible=bool(form["lora"]))
        painted[p.fields["further"]] = image_form.further(form, offered["further"])
        speeds = [key for _, key in offered["cache"]]
        painted[p.fields["cache"]] = gr.Radio(
            choices=offered["cache"], value=form["cache"] if form["cache"] in speeds else StepCache.NONE
        )
        painted[p.size] = gr.Radio(choices=offered["size"], value=f"{form['width']}x{form['height']}")
        return {
            **painted,
            **self._lack(form, offered),
            p.selected: form["character"],
            p.filled: form["character"],
        }

    def _offer(self, form: Form, known: dict[str, str]) -> Painted:
        """New choices for a form that stays as it is."""
        p, offered = self.parts, image_form.choices(self._page, form)
        if not _is_news(known, "choices", offered):
            return {}
        lists = {
            p.fields[name]: gr.Dropdown(choices=offered[name])
            for name in ("character", "lora", "base_model", "template")
        }
        further = image_form.further(form, offered["further"])
        return {**lists, p.fields["further"]: further, **self._lack(form, offered)}

    def _lack(self, form: Form, offered: dict[str, image_form.Choices]) -> Painted:
        absent, lack = image_form.absent_model(form, offered), image_form.lack(form, offered)
        p, shown = self.parts, lack is not None and absent is None
        return {p.lack: absent or lack or {}, p.train: gr.Button(visible=shown)}

    # Results

    async def generate(
        self,
        given: Given,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # how Gradio asks for it
    ) -> AsyncIterator[Painted]:
        """Enqueue the form's request and stay with it. The gallery follows by the header's refresh.

        Only the request is `handled`: a closed tab ends this generator in another context, which its guard refuses.
        """
        make = partial(image_form.submit, self._page, self._form(given))
        job = await asyncio.to_thread(handled(self._page.app.admission.submit), asked_by(request), make)
        yield {self.parts.stage: image_live.stage(self._page)}
        job = await image_live.attach(self._page.app.jobs, job.id, progress, leaving=self._is_leaving)
        image_live.say_how_it_ended(job)
        yield {self.parts.stage: image_live.stage(self._page)}

    @handled
    def stop(self, event: gr.EventData) -> dict[str, Any]:
        """Cancel a generation that runs or waits."""
        image_live.cancel(self._page, str(getattr(event, "id", "")))
        return image_live.stage(self._page)

    @handled
    def go_on(self, event: gr.EventData) -> dict[str, Any]:
        """Resume a generation that is paused."""
        self._page.app.jobs.resume(str(getattr(event, "id", "")))
        return image_live.stage(self._page)

    @handled
    def restore(self, given: Given, event: gr.EventData) -> Painted:
        """Bring back the images of a job that were left out as less alike."""
        image_live.restore(self._page, str(getattr(event, "id", "")))
        return self._repaint(given)

    @handled
    def remove(self, given: Given, event: gr.EventData) -> Painted:
        """Move an image into the trash."""
        self._page.app.images.remove(str(getattr(event, "id", "")))
        gr.Info("The image lies in the trash folder now.", title="Deleted", duration=4)
        return self._repaint(given)

    def more(self, given: Given) -> Painted:
        """Show a further page of the gallery."""
        shown = str(_count(given[self.parts.shown]) + image_gallery.PAGE)
        return {**self._repaint({**given, self.parts.shown: shown}), self.parts.shown: shown}

    def choose_filter(self, given: Given) -> Painted:
        shown = str(image_gallery.PAGE)
        return {**self._repaint({**given, self.parts.shown: shown}), self.parts.shown: shown}

    @handled
    def archive(self, made_with: str, made_on: str, alike: str) -> str:
        """Pack all that fits the filters."""
        return image_gallery.archive(self._page, character=made_with, model=made_on, alike=alike)

    def _repaint(self, given: Given) -> Painted:
        p, known = self.parts, remembered(given[self.parts.seen])
        painted = self._results(known, given[p.shown], given[p.made_with], given[p.made_on], given[p.alike])
        return {**painted, p.seen: json.dumps(known)}

    def _results(
        self, known: dict[str, str], shown: str, made_with: str, made_on: str, alike: str
    ) -> Painted:
        """The stage, the filters and the gallery, each when it is not what the browser shows already."""
        p = self.parts
        painted: Painted = {}
        stage = image_live.stage(self._page)
        if _is_news(known, "stage", image_live.still(stage)):
            painted[p.stage] = stage
        found = image_gallery.everything(self._page)
        filters = image_gallery.filters(self._page, found)
        if _is_news(known, "filters", filters):
            painted[p.made_with] = gr.Dropdown(choices=filters["characters"])
            painted[p.made_on] = gr.Dropdown(choices=filters["models"])
        gallery = image_gallery.gallery(
            self._page, found, character=made_with, model=made_on, alike=alike, shown=_count(shown)
        )
        if _is_news(known, "gallery", gallery):
            painted[p.gallery] = gallery
        return painted

    def _is_leaving(self) -> bool:
        """Whether the server is about to end: it waits for its handlers."""
        server = getattr(self._blocks, "server", None)
        return bool(server is not None and server.should_exit)

    # Wiring

    def _wire_form(self) -> None:
        p, fields = self.parts, list(self.parts.fields.values())
        chosen = {
            "character": self.choose_character,
            "lora": self.choose_lora,
            "base_model": self.choose_model,
            "template": self.choose_template,
        }
        for name, handler in chosen.items():
            p.fields[name].input(handled(handler), {*fields}, self._form_outputs(), **SILENT)
        prompted = [p.fields[name] for name in ("lora", "strength", "further", "prompt")]
        gr.on(
            [component.change for component in prompted],
            self.as_sent,
            prompted,
            p.sent,
            trigger_mode="always_last",
            **QUIET,
        )
        gr.on(
            [component.change for component in fields],
            None,
            [p.filled, *fields],
            None,
            js=KEEP_DRAFT,
            **QUIET,
        )
        sides = [p.fields["width"], p.fields["height"]]
        p.size.input(None, p.size, sides, js=TAKE_SIZE, **QUIET)
        gr.on([side.change for side in sides], None, sides, p.size, js=SHOW_SIZE, **QUIET)
        image_fit.wire(self._page, p.fields, p.fit)
        p.random.click(None, None, p.fields["seed"], js="() => ''", **QUIET)
        p.reuse.click(self.reuse_seed, None, p.fields["seed"], **SILENT)
        p.look.opened(handled(self.open), [p.selected, p.filled], self._form_outputs(), **SILENT).then(
            None, js=AWAKE, **QUIET
        )
        p.drop.dropped(self.use_file, {*fields}, [*self._form_outputs(), p.drop], **SILENT)

    def _wire_results(self) -> None:
        p, fields = self.parts, list(self.parts.fields.values())
        view: set[Any] = {p.seen, p.shown, p.made_with, p.made_on, p.alike}
        painted = [p.seen, p.shown, p.stage, p.made_with, p.made_on, p.gallery]
        p.generate.click(None, js=SHOW_STAGE, **QUIET)
        p.generate.click(
            self.generate,
            {*fields},
            p.stage,
            show_progress_on=p.meter,
            trigger_mode="multiple",
            concurrency_limit=16,
            concurrency_id="attach",
            **PRIVATE,
        )
        p.stage.stop(self.stop, None, p.stage, **SILENT)
        p.stage.resume(self.go_on, None, p.stage, **SILENT)
        p.stage.restore(self.restore, view, painted, **SILENT)
        p.viewer.use(self.use, {*fields}, [*self._form_outputs(), p.drop], **SILENT).then(
            None, js=SHOW_FORM, **QUIET
        )
        p.viewer.remove(self.remove, view, painted, **SILENT)
        p.gallery.more(handled(self.more), view, painted, **SILENT)
        for each in (p.made_with, p.made_on, p.alike):
            each.input(handled(self.choose_filter), view, painted, **SILENT)
        p.archive.click(self.archive, [p.made_with, p.made_on, p.alike], p.address, **PRIVATE).then(
            None, p.address, None, js=DOWNLOAD, **QUIET
        )


def _is_news(known: dict[str, str], part: str, value: Any) -> bool:
    """Whether the browser does not show this value of a part yet; it is kept as shown."""
    key = hashlib.sha256(json.dumps(value, default=str).encode()).hexdigest()[:16]
    if known.get(part) == key:
        return False
    known[part] = key
    return True


def _count(shown: str) -> int:
    """How many images the browser shows; it may say anything."""
    return max(image_gallery.PAGE, int(shown)) if str(shown).isdecimal() else image_gallery.PAGE
