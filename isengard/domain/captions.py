"""Captions: the text a training pairs with each image, with placeholders for what may still change."""

import re
import unicodedata

from isengard.domain.base import MAX_TEXT
from isengard.errors import InvalidSpec

TRIGGER = "[trigger]"
CLASS = "[class]"
CAPTION = "[caption]"
#: What an empty caption means.
DEFAULT_CAPTION = f"{TRIGGER} {CLASS}"
MAX_CAPTION = MAX_TEXT
#: Of a text with its white space, before it is looked at any closer.
MAX_GROWN = 16 * MAX_CAPTION


def clean_caption(text: str) -> str:
    """One line: runs of white space become one space.

    Raises:
        InvalidSpec: too long, or it holds control characters.
    """
    caption = " ".join(text.split())
    if len(caption) > MAX_CAPTION:
        raise InvalidSpec(f"a caption has at most {MAX_CAPTION} characters, got {len(caption)}: shorten it")
    strange = next((letter for letter in caption if unicodedata.category(letter) in ("Cc", "Cs")), None)
    if strange:
        raise InvalidSpec(f"a caption is plain text, got the control character {strange!r}: remove it")
    return caption


def resolve_caption(caption: str, trigger: str, class_word: str) -> str:
    """Put the words in the place of ``[trigger]`` and ``[class]``.

    An empty caption resolves as ``[trigger] [class]``. To any other caption nothing is added: one without the
    trigger is trained without it, and `has_trigger` lets the readiness report say so.
    """
    return (caption or DEFAULT_CAPTION).replace(TRIGGER, trigger).replace(CLASS, class_word)


def has_trigger(caption: str, trigger: str) -> bool:
    """Whether the resolved caption holds the trigger as a word of its own."""
    resolved = resolve_caption(caption, trigger, "")
    return re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", resolved, re.IGNORECASE) is not None


def unknown_placeholders(caption: str) -> tuple[str, ...]:
    """What stands in square brackets and will not be replaced: most likely a misspelt ``[trigger]``."""
    return tuple(word for word in re.findall(r"\[\w+\]", caption) if word not in (TRIGGER, CLASS))


def fill_template(template: str, caption: str) -> str:
    """The new caption; ``[caption]`` stands for the old one, so ``[trigger], [caption]`` puts words before it.

    Raises: InvalidSpec, as `clean_caption`.
    """
    return clean_caption(replaced(template, CAPTION, caption)).strip(" ,")


def replaced(text: str, find: str, replace: str) -> str:
    """The text with all replaced. Raises: InvalidSpec: it would be too long for a caption."""
    length = len(text) + text.count(find) * (len(replace) - len(find))
    if max(len(text), length) > MAX_GROWN:
        raise InvalidSpec(
            f"a caption has at most {MAX_CAPTION} characters, and would have {length}: shorten it"
        )
    return text.replace(find, replace)
