"""What the form of the Image tab holds: its choices, the request it stands for, and settings that are taken over."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from isengard.domain.base import validated
from isengard.domain.generation import FoundSettings, ImageSpec, LoraRef
from isengard.domain.job import Job
from isengard.domain.lora import Lora
from isengard.domain.model import ModelCard
from isengard.domain.performance import StepCache
from isengard.errors import InvalidSpec, IsengardError
from tabs import image_fit
from tabs.common import Page

#: The form's fields, in the order in which handlers get them. Those of `ImageSpec` have its names.
FIELDS = (
    "character",
    "lora",
    "strength",
    "further",
    "prompt",
    "template",
    "base_model",
    "width",
    "height",
    "num_inference_steps",
    "guidance_scale",
    "seed",
    "count",
    "keep_best",
    "cache",
)
SPEC_FIELDS = ("width", "height", "num_inference_steps", "guidance_scale", "count", "cache")
#: Width to height of the presets.
RATIOS = {"1:1": 1.0, "4:5": 4 / 5, "3:2": 3 / 2, "16:9": 16 / 9, "9:16": 9 / 16}
FAST = {StepCache.FIRST_BLOCK: "Fast", StepCache.MAG: "Fast (MagCache)"}
#: `ImageSpec` takes multiples of this.
GRID = 16
MAX_LORAS = 8
NO_CHARACTER = "No character: the base model alone"

Form = dict[str, Any]
Choices = list[tuple[str, str]]


def form_of(values: Sequence[Any]) -> Form:
    """The fields by their names; a list that has no choice yet is empty."""
    return {name: "" if value is None else value for name, value in zip(FIELDS, values, strict=True)}


def lora_key(lora: str, step: int | None = None) -> str:
    """How a choice names a LoRA, or one of its checkpoints: ``job1``, ``job1@250``."""
    return lora if step is None else f"{lora}@{step}"


def lora_ref(key: str, strength: Any) -> dict[str, Any]:
    """The unchecked values of a `LoraRef`."""
    lora, _, step = str(key).partition("@")
    return {"lora": lora, "strength": strength, "step": step or None}


def references(form: Form) -> list[dict[str, Any]]:
    """The form's LoRAs, that of the character first."""
    main = [lora_ref(form["lora"], form["strength"])] if form["lora"] else []
    return main + [lora_ref(row["lora"], row["strength"]) for row in rows_of(form["further"]) if row["lora"]]


def rows_of(further: Any) -> list[dict[str, Any]]:
    """The chosen further LoRAs of the widget's value, which comes from the browser."""
    rows = further.get("rows", []) if isinstance(further, Mapping) else []
    kept = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, Sequence) else []
    return [{"lora": str(row.get("lora") or ""), "strength": row.get("strength")} for row in kept[:MAX_LORAS]]


def overrides(form: Form) -> dict[str, Any]:
    """What the form asks `ImageService.plan` for. Raises: InvalidSpec for what only the page can know."""
    if form["character"] and not form["lora"]:
        raise InvalidSpec(
            'this character has no LoRA yet: train one first, or choose "No character" to use the base model alone'
        )
    if not str(form["prompt"] or "").strip():
        raise InvalidSpec("describe the image first: the prompt is empty")
    given = {name: form[name] for name in SPEC_FIELDS}
    given |= {"base_model": form["base_model"] or "", "prompt": form["prompt"], "loras": references(form)}
    if 0 < int(form["keep_best"] or 0) < int(form["count"] or 0):
        given["keep_best"] = form["keep_best"]
    if str(form["seed"] or "").strip():
        given["seed"] = str(form["seed"]).strip()
    return given


def submit(page: Page, form: Form) -> Job:
    """Enqueue what the form asks for, with the trigger put in. Raises: what `ImageService.submit` raises."""
    images = page.app.images
    spec = images.plan(template=form["template"] or "", overrides=overrides(form))
    return images.submit(spec.model_copy(update={"prompt": images.with_trigger(spec)}))


def prompt_as_sent(page: Page, form: Form) -> dict[str, Any]:
    """The prompt as the model will get it, in pieces: the inserted words are marked; or why it cannot be sent."""
    try:
        loras = tuple(validated(LoraRef, values) for values in references(form))
        if not loras:
            return {"pieces": [], "error": ""}
        text = str(form["prompt"] or "").strip() or "…"
        spec = validated(ImageSpec, {"base_model": "any", "prompt": text, "loras": loras})
        local = page.app.images.local_loras(spec)
        sent = page.app.images.prompt_as_sent(spec)
    except IsengardError as error:
        return {"pieces": [], "error": str(error)}
    words = [
        word for lora in local for word in (f"{lora.trigger} {lora.class_word}", lora.trigger) if lora.trigger
    ]
    if not words:
        return {"pieces": [], "error": ""}
    split = re.split(f"({'|'.join(re.escape(word.strip()) for word in words)})", sent)
    return {
        "pieces": [{"text": text, "mark": place % 2 == 1} for place, text in enumerate(split) if text],
        "error": "",
    }


def sizes(card: ModelCard) -> Choices:
    """Size presets of about as many pixels as the model was made for."""
    side = card.resolutions[-1]
    found = []
    for name, ratio in RATIOS.items():
        width, height = (max(64, round(side * part / GRID) * GRID) for part in (ratio**0.5, ratio**-0.5))
        found.append((name, f"{width}x{height}"))
    return found


def speeds(card: ModelCard, chosen: str) -> Choices:
    """Exact, and fast where a cache works with the model. A second cache is offered to those who have chosen it."""
    usable = [cache for cache in card.step_caches if cache is card.step_caches[0] or cache == chosen]
    return [("Exact", StepCache.NONE), *((FAST[cache], cache) for cache in usable)]


def of_card(card: ModelCard) -> dict[str, Any]:
    """The fields a model's card fills in."""
    side = card.resolutions[-1]
    return {
        "base_model": card.name,
        "width": side,
        "height": side,
        "num_inference_steps": card.num_inference_steps,
        "guidance_scale": card.guidance_scale,
    }


def of_model(page: Page, name: str, form: Form) -> dict[str, Any]:
    """The fields that change when another model is chosen: none when it is the same. Raises: NotFound."""
    if name == form["base_model"]:
        return {}
    return {**of_card(page.app.catalog.model(name)), "template": ""}


def of_template(page: Page, name: str) -> dict[str, Any]:
    """The fields a template fills in. Raises: NotFound."""
    if not name:
        return {}
    settings = page.app.catalog.template(name).settings
    model = settings.get("base_model")
    filled = of_card(page.app.catalog.model(model)) if model else {}
    return {**filled, **{key: value for key, value in settings.items() if key in FIELDS}}


def of_character(page: Page, character: str, form: Form) -> dict[str, Any]:
    """The fields that change when a character is chosen: its newest LoRA, and the model that was made for."""
    newest = next(iter(page.app.images.loras(character=character)), None) if character else None
    if newest is None:
        return {"character": character, "lora": ""}
    model = page.app.images.model_for(newest.id)
    return {"character": character, "lora": newest.id, **of_model(page, model, form)}


def default_form(page: Page, character: str) -> Form:
    """A fresh form; without a character, about the one whose LoRA is the newest."""
    models = [card for card, _ in page.app.images.models()]
    form: Form = {
        **dict.fromkeys(FIELDS, ""),
        **of_card(models[0]),
        "strength": 1.0,
        "further": {"rows": []},
        "count": 1,
        "keep_best": 0,
        "cache": StepCache.NONE,
    }
    newest = next(iter(page.app.images.loras()), None)
    return form | of_character(page, character or (newest.character if newest else ""), form)


def restored(page: Page, draft: Any, character: str) -> Form:
    """The form as it was left in this browser. A link to another character keeps the rest."""
    form = default_form(page, character)
    if not isinstance(draft, list) or len(draft) != len(FIELDS):
        draft = list(form.values())
    kept = {name: value for name, value in form_of(draft).items() if _is_alike(value, form[name])}
    merged = form | kept
    wanted = character or merged["character"]
    offered = choices(page, merged)
    if wanted not in _keys(offered["character"]):
        wanted = ""
    if wanted != merged["character"] or (wanted and merged["lora"] not in _keys(offered["lora"])):
        merged |= of_character(page, wanted, merged)
    if merged["base_model"] not in _keys(offered["base_model"]):
        merged |= {name: form[name] for name in ("base_model", *SPEC_FIELDS)}
    return merged


def _is_alike(value: Any, default: Any) -> bool:
    """Whether a draft's value is of the field's kind: a browser may have kept anything."""
    if isinstance(default, (int, float)):
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, type(default))


def _keys(offered: Choices) -> set[str]:
    return {key for _, key in offered}


def character_choices(page: Page, loras: Sequence[Lora]) -> Choices:
    """Characters with a LoRA first, then those without, also LoRAs of characters that are gone."""
    names = {character.id: character.name for character in page.app.characters.list()}
    trained = {lora.character: names.get(lora.character, lora.name) for lora in reversed(loras)}
    untrained = {key: name for key, name in names.items() if key not in trained}
    return [
        *((name, key) for key, name in sorted(trained.items(), key=lambda item: item[1].lower())),
        *((f"{name} · no LoRA yet", key) for key, name in untrained.items()),
        (NO_CHARACTER, ""),
    ]


def lora_choices(page: Page, loras: Sequence[Lora], *, named: bool = False) -> Choices:
    """Each LoRA, newest first, followed by the earlier checkpoints of its run; ``named``: say whose."""
    found = []
    for lora in loras:
        who = f"{lora.name} · " if named else ""
        made = datetime.fromtimestamp(lora.created_at).astimezone()
        found.append((f"{who}{made:%d %b %H:%M} · {lora.steps} steps", lora.id))
        earlier = [step for step in reversed(page.app.images.checkpoints(lora.id)) if step < lora.steps]
        found += [(f"{who}{made:%d %b %H:%M} · at step {step}", lora_key(lora.id, step)) for step in earlier]
    return found


def choices(page: Page, form: Form) -> dict[str, Choices]:
    """What each list offers; a value of the form that is not among it any more stays, so that nothing changes silently."""
    loras = page.app.images.loras()
    own = [lora for lora in loras if lora.character == form["character"]]
    models = [
        (image_fit.label(page, card, ready=ready), card.name) for card, ready in page.app.images.models()
    ]
    card = next((card for card, _ in page.app.images.models() if card.name == form["base_model"]), None)
    return {
        "character": character_choices(page, loras),
        "lora": lora_choices(page, own) if form["character"] else [],
        "further": lora_choices(page, loras, named=True),
        "base_model": models,
        "template": [("From the model", ""), *((one.title, one.name) for one in page.app.images.templates())],
        "size": sizes(card) if card else [],
        "cache": speeds(card, form["cache"]) if card else [],
    }


def further(form: Form, offered: Choices) -> dict[str, Any]:
    """The value of the widget for further LoRAs."""
    return {
        "choices": [{"value": key, "label": label} for label, key in offered],
        "rows": rows_of(form["further"]),
    }


def absent_model(form: Form, offered: Mapping[str, Choices]) -> dict[str, str] | None:
    """What to tell a person who has chosen a model that has still to be fetched."""
    label = next((label for label, key in offered["base_model"] if key == form["base_model"]), "")
    if not label.endswith(image_fit.ABSENT):
        return None
    return {
        "title": f"{label.removesuffix(image_fit.ABSENT)} is not on this machine",
        "text": "Get it on the Training tab, under “Base models”, or choose another model.",
    }


def lack(form: Form, offered: Mapping[str, Choices]) -> dict[str, str] | None:
    """What to tell a person whose character has no LoRA, or who has none at all."""
    if form["lora"]:
        return None
    if form["character"]:
        name = next(
            (label for label, key in offered["character"] if key == form["character"]), "This character"
        )
        return {
            "title": name.replace(" · ", " has ", 1),
            "text": "A LoRA is what the app has learnt about a character from its photos. Train one to make images of"
            " it. Until then choose “No character” to try the base model alone.",
        }
    if offered["further"]:
        return None
    return {
        "title": "Images of the base model alone work right away",
        "text": "To get a character into them, add its photos on the Characters tab and train a LoRA:"
        " that is what the app learns about a character.",
    }


def take_over(page: Page, found: FoundSettings, form: Form) -> tuple[Form, list[str]]:
    """The form with the settings that were found, and what of them has no place here."""
    settings, lacking = dict(found.settings), list(found.unmapped)
    taken = {name: settings[name] for name in (*SPEC_FIELDS, "prompt") if name in settings}
    if "seed" in settings:
        taken["seed"] = str(settings["seed"])
    model = settings.get("base_model")
    known = {card.name for card, _ in page.app.images.models()}
    if model in known:
        taken = {**of_card(page.app.catalog.model(model)), **taken}
    elif model:
        lacking.append(f"Model {model}: no model here has this name")
    template = settings.get("template", "")
    taken["template"] = template if template in {one.name for one in page.app.images.templates()} else ""
    if "loras" in settings:
        taken |= _taken_loras(page, settings["loras"], lacking)
    return form | taken, lacking


def _taken_loras(page: Page, loras: Sequence[Mapping[str, Any]], lacking: list[str]) -> dict[str, Any]:
    """The form's LoRA fields for those of a spec; what is gone is added to ``lacking``."""
    rows, character = [], ""
    for values in loras:
        ref = validated(LoraRef, dict(values))
        try:
            lora = page.app.images.lora(ref.lora)
        except IsengardError:
            lacking.append(f"LoRA {ref.lora} with strength {ref.strength:g}: it is not here")
            continue
        step = ref.step
        if step is not None and step not in page.app.images.checkpoints(lora.id):
            lacking.append(f"Checkpoint {step} of {lora.name}: it is gone, the finished LoRA is used instead")
            step = None
        character = character or lora.character
        rows.append({"lora": lora_key(lora.id, step), "strength": ref.strength})
    main = rows[0] if rows else {"lora": "", "strength": 1.0}
    return {"character": character, **main, "further": {"rows": rows[1:]}}
