"""Models that describe pictures, and what they are asked: captions of what may change, not of who it is."""

import hashlib
import unicodedata

from pydantic import Field

from isengard.domain.base import Frozen, validated
from isengard.domain.captions import MAX_CAPTION
from isengard.domain.identity_words import without_identity
from isengard.domain.job import Job

#: Categories of characters that are no text.
STRANGE = ("Cc", "Cf", "Cs", "Co", "Cn")
#: Square brackets would be taken for a placeholder.
ROUND = str.maketrans("[]", "()")


class CaptionerCard(Frozen):
    """What must be known of a captioner before it is on the machine; one of ``configs/captioners.yaml``."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    title: str
    repository: str = Field(description="repository on the Hugging Face hub, in transformers' layout")
    licence: str
    licence_url: str
    gated: bool = False


class CaptionRequest(Frozen):
    """The payload of a captioning job."""

    character: str
    name: str = Field(description="the character's, for whoever looks at the job")
    class_word: str
    captioner: str
    captions: dict[str, str] = Field(
        description="by image id, the digest of the caption at the time of asking: only where it still fits, it is replaced"
    )


def digest(caption: str) -> str:
    """What tells whether a caption is still the same: captions themselves are long, and no concern of a job list."""
    return hashlib.sha256(caption.encode()).hexdigest()[:16]


def read_request(job: Job) -> CaptionRequest:
    """Raises: InvalidSpec when another version wrote it."""
    return validated(CaptionRequest, job.payload)


def instruction(class_word: str) -> str:
    """What a model that listens is asked for. Others describe everything: `caption_of` takes out what must not stay."""
    return (
        f"Describe this picture of a {class_word} in one sentence of at most 40 words. Say only what may be different"
        " in another picture: framing and angle, pose, expression, clothes, what is held, place, background, light."
        " Leave out what always stays the same: age, ethnicity, skin, eyes, colour or length of hair, beard, the shape"
        " of the face or the body, and whether somebody is beautiful."
        f' Begin with "A {class_word}". No introduction, no guesses, no list.'
    )


def caption_of(reply: str, class_word: str) -> str:
    """A model's reply as a caption: one line of plain text without the identity, the trigger first."""
    plain = "".join(" " if unicodedata.category(letter) in STRANGE else letter for letter in reply)
    return _cut(without_identity(" ".join(plain.translate(ROUND).split()), class_word))


def _cut(caption: str) -> str:
    """At most `MAX_CAPTION` characters, ended at a sentence or a word."""
    if len(caption) <= MAX_CAPTION:
        return caption
    kept = caption[:MAX_CAPTION]
    return kept[: max(kept.rfind(". ") + 1, 0) or kept.rfind(" ")].rstrip(" ,")
