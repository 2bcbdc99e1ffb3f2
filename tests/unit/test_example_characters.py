import hashlib
import json
import random

import pytest
import yaml
from PIL import Image

from isengard.settings import ASSETS
from scripts.demo_model import draw
from scripts.demo_model.examples import EXAMPLES, IMAGES, write
from scripts.demo_model.words import CLIP_LENGTH, T5_LENGTH, caption, clip_tokenizer, t5_tokenizer, vocabulary

#: Odin is left to the measurement of the demo model: nothing is tuned to him.
TESTED = [example for example in EXAMPLES if example.name != "Odin"]


@pytest.fixture(params=TESTED, ids=lambda example: example.name)
def example(request):
    return request.param


def test_an_example_has_ten_plain_different_pictures_of_the_demo_models_size(example):
    pictures = sorted(example.folder.glob("*.png"))
    assert [path.name for path in pictures] == [f"{number:02}.png" for number in range(1, IMAGES + 1)]
    for path in pictures:
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size, image.info) == ("PNG", "RGB", (128, 128), {})
    assert len({hashlib.sha256(path.read_bytes()).digest() for path in pictures}) == IMAGES


def test_captions_of_an_example_tell_what_varies_and_never_who_it_is(example):
    person = example.person
    identity = {
        "hair",
        "skin",
        person.hair,
        f"{person.hair_color} {person.hair}",
        person.glasses,
        person.facial_hair,
    }
    for number in range(1, IMAGES + 1):
        text = (example.folder / f"{number:02}.txt").read_text(encoding="utf-8").strip()
        assert text.startswith(f"a portrait of [trigger] {example.class_word}, ")
        assert "background" in text
        assert not [words for words in identity if words and words in text]


def test_an_examples_trigger_is_one_token_of_both_tokenizers(example):
    trigger = yaml.safe_load((example.folder / "about.yaml").read_text(encoding="utf-8"))["trigger"]
    for tokenizer in (t5_tokenizer(), clip_tokenizer()):
        assert len(tokenizer(trigger, add_special_tokens=False).input_ids) == 1


def test_writing_an_example_again_gives_the_shipped_files(example, tmp_path):
    write(example, tmp_path / "again")
    assert _contents(tmp_path / "again") == _contents(example.folder)


def test_nobody_like_an_example_is_in_the_training_data(example):
    assert not draw.is_allowed(example.person)
    rng = random.Random(1)
    people = [draw.random_person(rng) for _ in range(2000)]
    people += [draw.sibling(person, rng) for person in people]
    assert all(draw.is_allowed(person) for person in people)


def test_a_sibling_differs_in_a_single_trait():
    rng = random.Random(2)
    for _ in range(200):
        person = draw.random_person(rng)
        other = draw.sibling(person, rng)
        assert sum(getattr(person, name) != getattr(other, name) for name in draw.Person.__slots__) == 1


def test_the_same_seed_draws_the_same_portrait():
    first, second = (
        draw.draw(draw.random_person(rng), draw.random_look(rng))
        for rng in (random.Random(5), random.Random(5))
    )
    assert first.tobytes() == second.tobytes()


def test_each_known_word_is_one_token_and_hardly_a_caption_is_cut():
    t5, clip = t5_tokenizer(), clip_tokenizer()
    for word in vocabulary():
        assert len(t5(word, add_special_tokens=False).input_ids) == 1, word
        assert len(clip(word, add_special_tokens=False).input_ids) == (3 if "-" in word else 1), word
    rng = random.Random(3)
    captions = [caption(draw.random_person(rng), draw.random_look(rng), rng) for _ in range(2000)]
    assert sum(len(t5(text).input_ids) > T5_LENGTH for text in captions) <= len(captions) / 500
    assert max(len(clip(text).input_ids) for text in captions) <= CLIP_LENGTH
    assert "" in captions


def test_the_shipped_tokenizers_are_the_ones_these_words_make():
    for folder, tokenizer in (("tokenizer", clip_tokenizer()), ("tokenizer_2", t5_tokenizer())):
        shipped = json.loads((ASSETS / "demo-base" / folder / "tokenizer.json").read_text(encoding="utf-8"))
        assert shipped["model"]["vocab"] == json.loads(tokenizer.backend_tokenizer.to_str())["model"]["vocab"]


def _contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}
