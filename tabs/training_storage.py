"""The disk on the training tab: what uses what, and cleaning up after a look at what would go."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from isengard.domain.disk import size
from isengard.domain.storage import Entry, Item, Look, Part, Policy
from isengard.errors import InvalidSpec
from isengard.services.storage import StorageService
from isengard.wiring import Application
from tabs.common import PRIVATE, Page, Section, handled

#: What is told one by one: the largest characters, runs, models, and the largest that can go of each kind.
LARGEST, LINES = 10, 40


def wire(section: Section, page: Page, *, again: Callable[[Any], Any]) -> None:
    """Let the buttons work; ``again`` paints the tab anew after an event. The count begins when the section is opened."""
    storage = page.app.storage
    again(section.fold.expand(lambda: storage.refresh(), None, None, show_progress="hidden", **PRIVATE))

    @handled
    def look(event: gr.EventData) -> None:
        storage.refresh(_days(getattr(event, "days", None)))

    @handled
    def clean(event: gr.EventData) -> None:
        cleaned(storage, getattr(event, "look", None), getattr(event, "policies", None))

    again(section.list.look(look, None, None, show_progress="hidden", **PRIVATE))
    again(section.list.clean(clean, None, None, show_progress="hidden", **PRIVATE))


def cleaned(storage: StorageService, number: Any, names: Any) -> None:
    """Remove what was shown and confirmed. Raises: InvalidSpec, Conflict."""
    known = {str(policy): policy for policy in Policy}
    chosen = [known[name] for name in names if name in known] if isinstance(names, list) else []
    if not chosen or not isinstance(number, int):
        raise InvalidSpec("choose what is to be removed")
    done = storage.clean(number, chosen)
    storage.refresh(storage.latest.days if storage.latest else None)
    gr.Info(f"{size(done.size)} are free again.", title="Removed", duration=6)
    if done.kept:
        gr.Warning("; ".join(done.kept[:5]), title="Some of it stays")


def _days(given: Any) -> float | None:
    """The age that was asked for; None for the ages of each kind."""
    return max(0.0, float(given)) if isinstance(given, int | float) else None


def value(app: Application) -> dict[str, Any]:
    """What the script paints. Nothing is counted for it."""
    look, counting = app.storage.latest, app.storage.counting
    return {"counting": counting, "look": 0} if look is None else {"counting": counting, **_seen(look)}


def _seen(look: Look) -> dict[str, Any]:
    usage = look.usage
    limit = usage.disk_total if usage.quota is None else usage.quota
    left = usage.disk_free if usage.quota is None else min(usage.quota - usage.used, usage.disk_free)
    return {
        "look": look.number,
        "days": look.days,
        "used": size(usage.used),
        "percent": min(100, round(100 * (limit - left) / limit)),
        "free": size(usage.disk_free),
        "total": size(usage.disk_total),
        "quota": "" if usage.quota is None else size(usage.quota),
        "beyond": usage.quota is not None and usage.used > usage.quota,
        "parts": [
            {"part": part, "size": size(count), "percent": round(100 * count / max(usage.used, 1), 1)}
            for part, count in sorted(usage.parts.items(), key=lambda entry: -entry[1])
            if count
        ],
        "entries": [_entry(entry) for entry in usage.entries[:LARGEST]],
        "policies": [_policy(policy, look.items) for policy in Policy],
    }


def _entry(entry: Entry) -> dict[str, Any]:
    inside = {name: size(count) for name, count in entry.inside.items()} if entry.part is Part.RUNS else {}
    return {"part": entry.part, "name": entry.title or entry.name, "size": size(entry.size), "inside": inside}


def _policy(policy: Policy, items: tuple[Item, ...]) -> dict[str, Any]:
    mine = [item for item in items if item.policy is policy]
    return {
        "policy": policy,
        "bytes": sum(item.size for item in mine),
        "size": size(sum(item.size for item in mine)),
        "lines": [f"{size(item.size)} · {item.what}" for item in mine[:LINES]],
        "more": len(mine[LINES:]),
    }
