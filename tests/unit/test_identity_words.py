"""What a caption keeps of a description, and what it leaves out."""

import time

import pytest

from isengard.domain.captioner import caption_of, instruction
from isengard.domain.captions import MAX_CAPTION


@pytest.mark.parametrize(
    ("reply", "caption"),
    [
        (
            "A young woman with long brown hair and blue eyes wearing a red jacket, standing on a beach.",
            "[trigger] [class] wearing a red jacket, standing on a beach",
        ),
        (
            "The image is a portrait of a young woman with long blonde hair that falls over her shoulders. She is wearing"
            " a black sweater and is looking directly at the camera. The background is blurred.",
            "[trigger] [class] is wearing a black sweater and is looking directly at the camera. The background is blurred",
        ),
        (
            "A bearded middle-aged Caucasian man in his forties in a blue shirt smiles at the camera, arms crossed.",
            "[trigger] [class] in a blue shirt smiles at the camera, arms crossed",
        ),
        ("The woman in the image has curly black hair, and she wears a hat.", "[trigger] [class] wears a hat"),
        ("A woman with blue eyes and a warm smile in a park.", "[trigger] [class] with a warm smile in a park"),
        (
            "A woman with long, wavy hair and freckles leans against a wall, eyes closed, soft light.",
            "[trigger] [class] leans against a wall, eyes closed, soft light",
        ),
        (
            "a smiling woman in a red coat walks along a wet street",
            "[trigger] [class], smiling, in a red coat walks along a wet street",
        ),
        (
            "A close-up portrait of a young Asian woman in a white shirt, in the dark",
            "[trigger] [class] in a white shirt, in the dark, close-up",
        ),
        ("Her hair is blonde and her eyes are blue.", "[trigger] [class]"),
        ("", "[trigger] [class]"),
        ("Two people at a table", "[trigger] [class], two people at a table"),
        ("An old house behind a tall woman in a black suit", "[trigger] [class], an old house behind a woman in a black suit"),
        ("A woman  walks\n\nalone\x05 [trigger]", "[trigger] [class] walks alone (trigger)"),
    ],
)  # fmt: skip
def test_a_description_becomes_a_caption_without_the_identity(reply, caption):
    assert caption_of(reply, "woman") == caption


def test_of_an_animal_the_breed_and_the_fur_are_left_out():
    assert caption_of("A brown and white dog with floppy ears laying on a green field.", "dog") == (
        "[trigger] [class] laying on a green field"
    )


def test_a_class_word_is_taken_as_it_is_written():
    assert caption_of("A C-3PO (v2) in a hall", "C-3PO (v2)") == "[trigger] [class], a C-3PO (v2) in a hall"


@pytest.mark.parametrize("end", [". ", ", "])
def test_a_long_description_ends_with_a_sentence_or_a_word(end):
    caption = caption_of(f"A woman walks{end}" + f"she passes a shop{end}" * 300, "woman")
    assert MAX_CAPTION - 30 < len(caption) <= MAX_CAPTION
    assert caption.endswith(("shop.", "shop", " a", "passes", "she"))


def test_no_description_takes_long_to_read():
    began = time.monotonic()
    for text in ("very long, and " * 300, "a " * 2000, "young and " * 300 + "house", "-" * 4000):
        caption_of(text, "dog")
    assert time.monotonic() - began < 5


def test_the_instruction_names_what_the_character_is():
    assert "a lighthouse" in instruction("lighthouse")
