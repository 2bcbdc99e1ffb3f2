"""What the left side of the training tab shows: choices, settings, and what is known before the start."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from isengard.domain.memory import Machine
from isengard.domain.model import ModelCard
from isengard.domain.planner import TrainingPlan
from isengard.domain.training import TrainingSpec
from isengard.errors import IsengardError
from isengard.services.costs import Costs
from isengard.services.estimate import Estimate, Estimator, Measured
from isengard.services.training import TrainingService
from tabs import training_fields
from tabs.common import Page, duration
from tabs.money import dollars

GIB = 1024**3
#: Free memory is looked at in steps of so many bytes.
ROOM_STEP = 2**28
#: The preset the others are compared with.
COMPARED = "balanced"


@dataclass(frozen=True)
class Choice:
    """The three choices; empty where nothing is chosen."""

    character: str
    model: str
    preset: str


class Setup:
    """Answers from memory as long as the files and jobs it was made from have not changed."""

    def __init__(self, page: Page) -> None:
        self._page = page
        app = page.app
        self._estimator = Estimator(jobs=app.jobs, card=app.catalog.model, free=app.room.unpromised)
        self._catalog = lru_cache(maxsize=2)(self._read_catalog)
        self._view = lru_cache(maxsize=64)(self._make_view)

    def titles(self) -> dict[str, str]:
        """The models' titles by name."""
        return {name: title for title, name in self._known()["all_models"]}

    def presets(self) -> dict[str, str]:
        """The presets' titles by name."""
        return {name: title for title, name in self._known()["presets"]}

    def choices(self) -> dict[str, Any]:
        """What can be chosen, each as (label, value)."""
        characters = [(character.name, character.id) for character in self._page.app.characters.list()]
        return {**self._known(), "characters": characters}

    def first_ready(self) -> str:
        """The first model to choose from that a training can have; empty when there is none."""
        known, lacking = self._known(), self._page.app.training.lacking
        ready = (name for _, name in known["models"] if not lacking(known["cards"][name]))
        return next(ready, "")

    def view(self, choice: Choice, overrides: dict[str, Any], jobs: tuple[Any, ...]) -> dict[str, Any]:
        """The form's values and the estimate; ``jobs``: what has to change for the estimate to be made anew."""
        if problem := self._known()["problem"]:
            return _nothing(problem)
        room = self._estimator.free_bytes() // 50_000_000
        engines = self._engines(choice.model)
        stamp = (self._files(), self._of_character(choice.character), jobs, room, engines, self._machine())
        made: dict[str, Any] = self._view(choice, json.dumps(overrides, sort_keys=True), stamp)
        if not made["planned"]:
            return made
        problems = [*self._problems(choice), *made["estimate"]["problems"]]
        return {**made, "estimate": {**made["estimate"], "problems": problems}}

    def _known(self) -> dict[str, Any]:
        """The catalog; empty, with the reason, when a file of it is wrong."""
        try:
            catalog: dict[str, Any] = self._catalog((self._files(), self._machine()))
        except IsengardError as error:
            return {
                "models": [],
                "all_models": [],
                "presets": [],
                "about": {},
                "cards": {},
                "problem": str(error),
            }
        return catalog

    def _machine(self) -> tuple[Any, ...]:
        """What plans depend on, in steps that are not crossed all the time."""
        machine, known = self._page.app.planning.machine(), self._page.app.planning.corrections()
        return (machine.name, machine.room() // ROOM_STEP, machine.system_room() // ROOM_STEP, known)

    def lacks_model(self, name: str) -> bool:
        """Whether the model that is chosen has still to be fetched."""
        card = self._known()["cards"].get(name)
        return card is not None and bool(self._page.app.training.lacking(card))

    def _files(self) -> tuple[Any, ...]:
        folder = self._page.app.settings.configs_dir
        files = [folder / "models.yaml", *sorted((folder / "training").glob("*.yaml"))]
        return tuple((str(file), file.stat().st_mtime_ns) for file in files if file.exists())

    def _engines(self, model: str) -> tuple[str, ...]:
        """What can train the model now: AI-Toolkit may come while the page is open."""
        card = self._known()["cards"].get(model)
        return () if card is None else self._page.app.training.available_engines(card)

    def _of_character(self, character_id: str) -> Any:
        try:
            return self._page.app.characters.get(character_id) if character_id else None
        except IsengardError as error:
            return str(error)

    def _read_catalog(self, _: tuple[Any, ...]) -> dict[str, Any]:
        app = self._page.app
        cards, presets = app.catalog.models(), app.catalog.presets()
        return {
            "models": offered(app.training, cards),
            "all_models": [(card.title, card.name) for card in cards],
            "presets": [(preset.title, preset.name) for preset in presets],
            "about": {preset.name: preset.description for preset in presets},
            "cards": {card.name: card for card in cards},
            "problem": "",
        }

    def _make_view(self, choice: Choice, overrides: str, _: Any) -> dict[str, Any]:
        if not choice.character:
            problem = "There is no character yet. Make one on the Characters tab: a name and some photos."
            return _nothing(problem if not self._page.app.characters.list() else "Choose a character.")
        given: dict[str, Any] = json.loads(overrides)
        try:
            base = training_fields.values(self._plan(choice, {}))
            form = {
                "base": base,
                "compared": self._compared(choice, base),
                "compared_with": self._compared_title(),
            }
        except IsengardError as error:
            return _nothing(str(error))
        try:
            plan = self._page.app.training.planned(**_asked(choice, given))
        except IsengardError as error:
            return {**_nothing(str(error)), "form": form}
        machine = self._page.app.planning.machine()
        estimate = estimate_view(self._estimator.estimate(plan), self._page.app.costs)
        problems = [*([] if plan.fits else plan.reasons), *estimate["problems"]]
        return {
            "planned": True,
            "startable": plan.fits or plan.possible,
            "form": form,
            "estimate": {**estimate, "problems": problems, "plan": plan_view(plan, machine)},
        }

    def _plan(self, choice: Choice, overrides: dict[str, Any]) -> TrainingSpec:
        return self._page.app.training.plan(**_asked(choice, overrides))

    def _compared(self, choice: Choice, base: dict[str, Any]) -> dict[str, Any]:
        """The fields that are not as in the preset everything is compared with, as they are there."""
        known = [name for _, name in self._known()["presets"]]
        if choice.preset == COMPARED or COMPARED not in known:
            return {}
        other = self._plan(Choice(choice.character, choice.model, COMPARED), {})
        return training_fields.differing(base, training_fields.values(other))

    def _compared_title(self) -> str:
        titles = {name: str(title) for title, name in self._known()["presets"]}
        return titles.get(COMPARED, "")

    def _problems(self, choice: Choice) -> list[str]:
        """What would stop the start, in the services' own words."""
        app = self._page.app
        found = []
        card = self._known()["cards"][choice.model]
        readiness = app.characters.readiness(choice.character)
        if not readiness.ready:
            found.append(f"The character is not ready: {readiness.reason}")
        if lacking := app.training.lacking(card):
            found.append(lacking)
        return found


def offered(training: TrainingService, cards: Sequence[ModelCard]) -> list[tuple[str, str]]:
    """The models to choose from as (label, name): what is recommended here first, what cannot work here last."""
    plans = {card.name: training.fit(card) for card in cards}
    trained = [(card, plan) for card in cards if (plan := plans[card.name]) is not None]
    best = training.recommended()
    ranked = sorted(trained, key=lambda pair: (not pair[1].fits, pair[0].name != best))
    return [(_label(card, plan, best), card.name) for card, plan in ranked]


def _label(card: ModelCard, plan: TrainingPlan, best: str) -> str:
    if not plan.fits:
        return f"{card.title} · does not fit here"
    return f"{card.title} · recommended here" if card.name == best else card.title


def _asked(choice: Choice, overrides: dict[str, Any]) -> dict[str, Any]:
    return {
        "character_id": choice.character,
        "base_model": choice.model,
        "preset": choice.preset,
        "overrides": overrides,
    }


def plan_view(plan: TrainingPlan, machine: Machine) -> dict[str, Any]:
    """The plan in a line, its expected peak beside the device's memory, and why it is so; empty when nothing is known."""
    if not plan.expected_peak_bytes:
        return {}
    return {
        "words": plan.words,
        "peak": f"{max(plan.expected_peak_bytes / GIB, 0.1):.1f}",
        "total": f"{machine.total_bytes / GIB:.0f} GB",
        "percent": min(100, round(100 * plan.expected_peak_bytes / max(machine.total_bytes, 1))),
        "fits": plan.fits,
        "measured": plan.measured,
        "reasons": list(plan.reasons) if plan.fits else [],
    }


def _nothing(problem: str) -> dict[str, Any]:
    return {
        "planned": False,
        "startable": True,
        "form": {"base": {}, "compared": {}, "compared_with": ""},
        "estimate": {"figures": [], "problems": [problem]},
    }


def estimate_view(estimate: Estimate, costs: Costs) -> dict[str, Any]:
    """The three figures, each with where it comes from, and what stands in the way."""
    problems = []

    def time_and_cost(seconds: float) -> str:
        return ", ".join(filter(None, (duration(seconds), dollars(costs.of(seconds)))))

    if estimate.lacks_disk and estimate.disk_bytes:
        problems.append(
            f"Too little disk: the checkpoints need about {size(estimate.disk_bytes.value)}, and"
            f" {size(estimate.free_bytes)} are free. Free some space, or keep fewer checkpoints (Advanced)."
        )
    return {
        "figures": [
            _figure("Time", estimate.seconds, time_and_cost, "not measured yet", "nothing like it was trained here yet"),
            _memory_figure(estimate.memory_gb),
            _figure(
                "Disk", estimate.disk_bytes, size, "not measured yet",
                f"known after the first checkpoint; {size(estimate.free_bytes)} free",
            ),
        ],
        "problems": problems,
    }  # fmt: skip


def _memory_figure(memory: Measured | None) -> dict[str, str]:
    if memory is None:
        return {"label": "Memory", "value": "not known", "origin": "nothing like it was trained here yet"}
    origin = f"measured: {memory.origin}" if memory.exact else memory.origin
    return {"label": "Memory", "value": f"{memory.value:.1f} GB", "origin": origin}


def _figure(
    label: str, measured: Measured | None, words: Callable[[float], str], unknown: str, why: str
) -> dict[str, str]:
    if measured is None:
        return {"label": label, "value": unknown, "origin": why}
    how = "measured" if measured.exact else "scaled"
    return {
        "label": label,
        "value": f"about {words(measured.value)}",
        "origin": f"{how} from {measured.origin}",
    }


def size(count: float) -> str:
    """``25 MB``, ``1.4 GB``."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{max(count / 1e6, 0.1):.1f} MB"
