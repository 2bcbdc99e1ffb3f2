"""What the characters tab shows, as plain values for its templates."""

from datetime import UTC, datetime
from typing import Any

from isengard.domain.character import Character, ReferenceImage
from isengard.domain.job import JobKind, JobStatus
from isengard.domain.readiness import Finding, Readiness
from isengard.wiring import Application
from tabs.characters_roster import Roster
from tabs.common import Page

#: The kinds of findings that are shown on the pictures they are about.
FLAGS = frozenset(
    (
        "image_missing",
        "image_changed",
        "near_duplicates",
        "no_caption",
        "no_trigger",
        "unknown_placeholder",
        "caption_damaged",
    )
)


def present(roster: Roster, wanted: str) -> str:
    """The character to show: the wanted one when it exists, else the first; empty when there is none."""
    ids = [*roster.known, *roster.damaged]
    return wanted if wanted in ids else next(iter(ids), "")


def cards(page: Page, roster: Roster, chosen: str) -> list[dict[str, Any]]:
    """All characters, then the folders that hold none that can be read."""
    trained = trainings(page.app)
    whole = [
        {
            "id": character.id,
            "name": character.name,
            "count": counted(len(character.images), "image"),
            "picture": cover(page, character),
            "initial": character.name[0].upper(),
            "badge": trained.get(character.id) or ("ready" if readiness.ready else "draft"),
            "chosen": character.id == chosen,
        }
        for character, readiness in roster.known.values()
    ]
    broken = [
        {
            "id": damaged_id,
            "name": damaged_id,
            "count": reason,
            "picture": "",
            "initial": "!",
            "badge": "damaged",
            "chosen": damaged_id == chosen,
        }
        for damaged_id, reason in roster.damaged.items()
    ]
    return whole + broken


def trainings(app: Application) -> dict[str, str]:
    """The characters that a job trains now or will, with ``training`` or ``queued``."""
    jobs = app.jobs.jobs(statuses=(JobStatus.QUEUED, JobStatus.RUNNING), kinds=(JobKind.TRAIN_LORA,))
    ordered = sorted(jobs, key=lambda job: job.status is JobStatus.RUNNING)
    return {
        str(job.payload.get("spec", {}).get("character", "")): "training"
        if job.status is JobStatus.RUNNING
        else "queued"
        for job in ordered
    }


def heading(roster: Roster, character_id: str) -> dict[str, Any]:
    """Name, words and readiness of a character; ``{}`` when there is none at all."""
    if character_id in roster.damaged:
        finding = {"text": roster.damaged[character_id], "blocks": True}
        return {"name": character_id, "damaged": True, "findings": [finding]}
    if character_id not in roster.known:
        return {}
    character, readiness = roster.known[character_id]
    return {
        "name": character.name,
        "trigger": character.trigger,
        "class_word": character.class_word,
        "notes": character.notes,
        "scorer": character.scorer or "",
        "summary": readiness.summary,
        "ready": readiness.ready,
        "findings": [
            {"text": sentence(finding.text), "blocks": finding.blocks} for finding in ordered(readiness)
        ],
    }


def ordered(readiness: Readiness) -> list[Finding]:
    """What keeps a training from starting comes first."""
    return sorted(readiness.findings, key=lambda finding: not finding.blocks)


def grid(page: Page, roster: Roster, character_id: str) -> dict[str, Any]:
    """The pictures of a character with their captions and what is wrong with each."""
    if character_id not in roster.known:
        return {"character": "", "images": []}
    character, readiness = roster.known[character_id]
    before = {entry.instead: entry.image.id for entry in character.former}
    return {
        "character": character.id,
        "images": [
            {
                "id": image.id,
                "before": before.get(image.id, ""),
                "name": image.filename,
                "size": f"{image.width} x {image.height}",
                "picture": thumbnail(page, character, image),
                "caption": image.caption,
                "flags": flags(image, readiness, roster.least),
            }
            for image in character.images
        ],
    }


def flags(image: ReferenceImage, readiness: Readiness, least: int) -> list[dict[str, str]]:
    """What is wrong with a picture, each with a sentence."""
    found = [
        {"kind": finding.kind, "text": sentence(finding.text)}
        for finding in readiness.findings
        if finding.kind in FLAGS and image.id in finding.images
    ]
    if min(image.width, image.height) < least:
        text = f"{image.width} x {image.height} pixels: under {least}, the smallest size the largest base model here is made for."
        found.append({"kind": "small", "text": text})
    return found


def trash(app: Application) -> list[dict[str, str]]:
    """Deleted characters, the last one first."""
    return [
        {
            "id": entry.id,
            "name": entry.name,
            "count": counted(entry.images, "image"),
            "when": datetime.fromtimestamp(entry.deleted_at, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        }
        for entry in app.characters.trashed()
    ]


def cover(page: Page, character: Character) -> str:
    """The address of the first picture that can be shown."""
    addresses = (thumbnail(page, character, image) for image in character.images)
    return next((address for address in addresses if address), "")


def thumbnail(page: Page, character: Character, image: ReferenceImage) -> str:
    """The address of a small copy; empty when the file is gone or no picture any more."""
    try:
        return page.pictures.thumbnail(page.app.characters.image_path(character.id, image.id))
    except (OSError, SyntaxError, ValueError):
        return ""


def sentence(text: str) -> str:
    """The text with a capital letter and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def counted(number: int, noun: str) -> str:
    """``1 image``, ``2 images``."""
    return f"{number} {noun}" + ("" if number == 1 else "s")
