import hashlib
import random
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from PIL import Image

from isengard.settings import ASSETS

NOVA = ASSETS / "characters" / "nova"
IDENTITY = ("hair", "skin", "glasses", "pink hair", "tanned", "wayfarers")


def test_the_example_character_has_twelve_plain_pictures_of_the_demo_models_size():
    pictures = sorted(NOVA.glob("*.png"))
    assert [path.name for path in pictures] == [f"{number:02}.png" for number in range(1, 13)]
    for path in pictures:
        with Image.open(path) as image:
            assert (image.format, image.mode, image.size, image.info) == ("PNG", "RGB", (128, 128), {})


def test_no_two_pictures_of_the_example_character_are_equal():
    assert len({hashlib.sha256(path.read_bytes()).digest() for path in NOVA.glob("*.png")}) == 12


def test_captions_of_the_example_character_tell_what_varies_and_never_who_it_is():
    for number in range(1, 13):
        caption = (NOVA / f"{number:02}.txt").read_text(encoding="utf-8").strip()
        assert caption.startswith("a portrait of [trigger] person, ")
        assert "wearing" in caption
        assert "background" in caption
        assert not [word for word in IDENTITY if word in caption]


def test_the_example_characters_trigger_is_one_token_of_both_tokenizers():
    from tokenizers import Tokenizer

    trigger = yaml.safe_load((NOVA / "about.yaml").read_text(encoding="utf-8"))["trigger"]
    for name in ("tokenizer", "tokenizer_2"):
        tokenizer = Tokenizer.from_file(str(ASSETS / "demo-base" / name / "tokenizer.json"))
        tokenizer.no_padding()
        assert len(tokenizer.encode(trigger, add_special_tokens=False).ids) == 1


@pytest.fixture
def drawing():
    pytest.importorskip("python_avatars", reason="pip install -r requirements-demo-model.txt")
    pytest.importorskip("resvg_py")
    from scripts.demo_model import draw

    return draw


def test_writing_an_example_again_gives_the_shipped_files(drawing, tmp_path):
    from scripts.demo_model.examples import EXAMPLES, write

    (nova,) = EXAMPLES
    write(nova, tmp_path / "nova")
    assert _contents(tmp_path / "nova") == _contents(NOVA)


def test_the_example_character_has_a_hair_style_the_demo_model_has_never_seen(drawing):
    from scripts.demo_model.examples import EXAMPLES

    assert all(example.person.hair in drawing.HELD_OUT for example in EXAMPLES)


def test_random_people_never_have_a_held_out_hair_style(drawing):
    rng = random.Random(1)
    assert not {drawing.random_person(rng).hair for _ in range(2000)} & set(drawing.HELD_OUT)


def test_the_same_seed_draws_the_same_portrait(drawing):
    first, second = (
        drawing.draw(drawing.random_person(rng), drawing.random_look(rng))
        for rng in (random.Random(5), random.Random(5))
    )
    assert first.tobytes() == second.tobytes()


def test_every_scene_and_background_shows(drawing):
    rng = random.Random(2)
    person, look = drawing.random_person(rng), drawing.random_look(rng)
    pictures = {
        drawing.draw(person, replace(look, scene=scene, background=background), size=64).tobytes()
        for scene in drawing.SCENES
        for background in drawing.BACKGROUNDS
    }
    assert len(pictures) == len(drawing.SCENES) * len(drawing.BACKGROUNDS)


def test_a_caption_names_identity_expression_clothes_and_place(drawing):
    pa = drawing.pa
    person = drawing.Person(
        hair=pa.HairType.LOOSE_HAIR,
        hair_color=pa.HairColor.SILVER_GRAY,
        skin=pa.SkinColor.BLACK,
        glasses=pa.AccessoryType.ROUND,
        facial_hair=pa.FacialHairType.BEARD_LIGHT,
    )
    look = drawing.Look(
        eyes=pa.EyeType.WINK,
        brows=pa.EyebrowType.DEFAULT,
        mouth=pa.MouthType.BIG_SMILE,
        clothing=pa.ClothingType.JEDI_ROBE,
        clothing_color=pa.ClothingColor.HEATHER,
        background="pink",
        scene="beach",
        scale=0.9,
        shift=0.0,
    )
    assert drawing.caption(person, look) == (
        "a portrait of a person, black skin, silver gray loose hair, beard light, round glasses, "
        "big smile mouth, wink eyes, wearing heather jedi robe, pink background, beach"
    )
    suited = replace(look, clothing=pa.ClothingType.ASTRONAUT_SUIT, scene="")
    assert drawing.look_words(suited).endswith("wearing astronaut suit, pink background")


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
