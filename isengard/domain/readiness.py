"""Whether a character is ready for a training, and what would make it better."""

from collections.abc import Iterator

from pydantic import Field

from isengard.domain.base import Frozen
from isengard.domain.captions import has_trigger, resolve_caption, unknown_placeholders
from isengard.domain.character import ADVISED_IMAGES, Character, near_duplicates, trigger_warning


class Finding(Frozen):
    """One thing to know about a character's images, captions or folder."""

    kind: str = Field(description="a stable word for programs, such as no_caption")
    text: str
    images: tuple[str, ...] = Field((), description="ids of the images it is about")
    blocks: bool = Field(False, description="a training cannot start before it is put right")


class Readiness(Frozen):
    """The report of one character."""

    summary: str = Field(description="12 images, 3 without a caption, 2 near duplicates")
    findings: tuple[Finding, ...]

    @property
    def ready(self) -> bool:
        return not any(finding.blocks for finding in self.findings)

    @property
    def reason(self) -> str:
        """Why it is not ready; empty when it is."""
        return "; ".join(finding.text for finding in self.findings if finding.blocks)


def assess(character: Character, on_disk: tuple[Finding, ...] = ()) -> Readiness:
    """The report on a character; ``on_disk`` is what its store found wrong with the files."""
    images = character.images
    uncaptioned = tuple(image.id for image in images if not image.caption)
    later_twins = {later for _, later in near_duplicates(images)}
    summary = _counted(len(images), "image")
    if uncaptioned:
        summary += f", {len(uncaptioned)} without a caption"
    if later_twins:
        summary += f", {_counted(len(later_twins), 'near duplicate')}"
    findings = (*_about_images(character), *on_disk, *_about_captions(character, uncaptioned))
    return Readiness(summary=summary, findings=findings)


def _about_images(character: Character) -> Iterator[Finding]:
    images = character.images
    if not images:
        yield Finding(kind="no_images", text="the character has no images: add some", blocks=True)
    elif len(images) < ADVISED_IMAGES:
        text = f"{_counted(len(images), 'image')} can do, but {ADVISED_IMAGES} to 30 varied ones learn a face better"
        yield Finding(kind="few_images", text=text)
    if pairs := near_duplicates(images):
        ids = tuple(dict.fromkeys(image_id for pair in pairs for image_id in pair))
        text = f"{len(ids)} images look nearly alike: keep the best of each group, or the LoRA learns that one picture"
        yield Finding(kind="near_duplicates", text=text, images=ids)
    if warning := trigger_warning(character.trigger):
        yield Finding(kind="common_trigger", text=warning)


def _about_captions(character: Character, uncaptioned: tuple[str, ...]) -> Iterator[Finding]:
    trigger = character.trigger
    if uncaptioned:
        default = resolve_caption("", trigger, character.class_word)
        text = f"{len(uncaptioned)} without a caption will be trained as {default!r}: describe scene, pose, clothes and light"
        yield Finding(kind="no_caption", text=text, images=uncaptioned)
    if lacking := tuple(image.id for image in character.images if not has_trigger(image.caption, trigger)):
        text = f"{_counted(len(lacking), 'caption')} without [trigger]: these images teach nothing about {trigger!r}"
        yield Finding(kind="no_trigger", text=text, images=lacking)
    strange = {image.id: unknown_placeholders(image.caption) for image in character.images}
    if ids := tuple(image_id for image_id, words in strange.items() if words):
        words = ", ".join(sorted({word for image_id in ids for word in strange[image_id]}))
        text = f"{_counted(len(ids), 'caption')} with a placeholder that is none ({words}): there are [trigger] and [class]"
        yield Finding(kind="unknown_placeholder", text=text, images=ids)


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
