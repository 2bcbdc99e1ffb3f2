"""Drawn portraits: the world the demo model knows.

A `Person` is what stays the same in every picture, a `Look` is what changes. Both are drawn from a seeded generator;
the same person and look give the same pixels.
"""

import io
import random
from dataclasses import dataclass
from enum import Enum

import python_avatars as pa
import resvg_py
from PIL import Image

#: Left out of the demo model's training, so that a character with one of them is new to it.
HELD_OUT = (
    pa.HairType.MOHAWK,
    pa.HairType.EINSTEIN_HAIR,
    pa.HairType.BRAIDS,
    pa.HairType.FRIDA,
)
#: Hats and hair whose colour cannot be chosen.
UNCOLORED = (
    pa.HairType.NONE,
    pa.HairType.ASTRONAUT,
    pa.HairType.BRIDE,
    pa.HairType.HAT,
    pa.HairType.SHAVED_SIDES,
    pa.HairType.STRAIGHT_2,
)
HAIR = tuple(style for style in pa.HairType if style not in HELD_OUT + UNCOLORED)
GLASSES = tuple(
    style for style in pa.AccessoryType if style not in (pa.AccessoryType.NONE, pa.AccessoryType.KURT)
)
FACIAL_HAIR = tuple(style for style in pa.FacialHairType if style is not pa.FacialHairType.NONE)
EYES = (
    pa.EyeType.DEFAULT,
    pa.EyeType.HAPPY,
    pa.EyeType.WINK,
    pa.EyeType.SIDE,
    pa.EyeType.SQUINT,
    pa.EyeType.SURPRISED,
    pa.EyeType.CLOSED,
)
MOUTHS = (
    pa.MouthType.SMILE,
    pa.MouthType.BIG_SMILE,
    pa.MouthType.DEFAULT,
    pa.MouthType.TWINKLE,
    pa.MouthType.SERIOUS,
    pa.MouthType.SAD,
    pa.MouthType.TONGUE,
    pa.MouthType.SCREAM_OPEN,
)
CLOTHING = tuple(
    style for style in pa.ClothingType if style not in (pa.ClothingType.NONE, pa.ClothingType.GRAPHIC_SHIRT)
)
BACKGROUNDS = {
    "sky blue": "#84CCE9",
    "night blue": "#19203D",
    "pink": "#F9BBCD",
    "green": "#78C37D",
    "yellow": "#FADF81",
    "white": "#FFFDFA",
    "red": "#D25147",
    "orange": "#FAAF5B",
    "purple": "#AE86D5",
    "gray": "#A1ADAA",
}
#: SVG on a canvas of 128 x 128, between the background and the person.
SCENES = {
    "": "",
    "beach": '<path fill="#4696C7" d="M0 57h128v20H0z"/><path fill="#EEDCA3" d="M0 77h128v51H0z"/>',
    "forest": '<path fill="#2A703E" d="M-8 128 8 34 24 128zM18 128 34 34 46 128zM80 128 94 36 108 128zM104 128 120 34 136 128z"/>',
    "city": '<path fill="#5F6571" d="M0 128V38h13v90zM19 128V84h11v44zM35 128V92h10v36zM82 128V88h10v40zM92 128V78h11v50zM107 128V70h14v58zM125 128V40h3v88z"/>',
    "sunset": '<circle fill="#F56928" cx="104" cy="36" r="21"/>',
}


@dataclass(frozen=True)
class Person:
    """An identity."""

    hair: pa.HairType
    hair_color: pa.HairColor
    skin: pa.SkinColor
    glasses: pa.AccessoryType = pa.AccessoryType.NONE
    facial_hair: pa.FacialHairType = pa.FacialHairType.NONE
    nose: pa.NoseType = pa.NoseType.DEFAULT


@dataclass(frozen=True)
class Look:
    """All that differs between two pictures of one person."""

    eyes: pa.EyeType
    brows: pa.EyebrowType
    mouth: pa.MouthType
    clothing: pa.ClothingType
    clothing_color: pa.ClothingColor
    background: str
    """A key of BACKGROUNDS."""
    scene: str
    """A key of SCENES."""
    scale: float
    """Of the person; at 1 the avatar's canvas is as wide as the picture."""
    shift: float
    """To the right, in widths of the picture."""


def random_person(rng: random.Random) -> Person:
    """Draw somebody the demo model may be trained on."""
    return Person(
        hair=rng.choice(HAIR),
        hair_color=rng.choice(list(pa.HairColor)),
        skin=rng.choice(list(pa.SkinColor)),
        glasses=rng.choice(GLASSES) if rng.random() < 0.4 else pa.AccessoryType.NONE,
        facial_hair=rng.choice(FACIAL_HAIR) if rng.random() < 0.3 else pa.FacialHairType.NONE,
        nose=rng.choice(list(pa.NoseType)),
    )


def random_look(rng: random.Random) -> Look:
    """Draw an expression, clothes and a place."""
    return Look(
        eyes=rng.choice(EYES),
        brows=rng.choice(
            (pa.EyebrowType.DEFAULT, pa.EyebrowType.RAISED_EXCITED, pa.EyebrowType.FLAT_NATURAL)
        ),
        mouth=rng.choice(MOUTHS),
        clothing=rng.choice(CLOTHING),
        clothing_color=rng.choice(list(pa.ClothingColor)),
        background=rng.choice(list(BACKGROUNDS)),
        scene=rng.choice(list(SCENES)),
        scale=rng.uniform(0.8, 0.95),
        shift=rng.uniform(-0.03, 0.03),
    )


def draw(person: Person, look: Look, *, size: int = 128) -> Image.Image:
    """Return an RGB portrait of ``size`` x ``size`` pixels: head and shoulders, standing on the lower edge."""
    scale = look.scale * 128 / 264  # the avatar's canvas is 264 x 280
    x = 64 + 128 * look.shift - 132 * scale
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 128 128">'
        f'<path fill="{BACKGROUNDS[look.background]}" d="M0 0h128v128H0z"/>{SCENES[look.scene]}'
        f'<g transform="translate({x:.3f} {128 - 280 * scale:.3f}) scale({scale:.5f})">{_avatar(person, look)}</g></svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    return Image.open(io.BytesIO(png)).convert("RGB")


def _avatar(person: Person, look: Look) -> str:
    avatar = pa.Avatar(
        style=pa.AvatarStyle.TRANSPARENT,
        top=person.hair,
        hair_color=person.hair_color,
        skin_color=person.skin,
        accessory=person.glasses,
        facial_hair=person.facial_hair,
        facial_hair_color=person.hair_color,
        nose=person.nose,
        eyes=look.eyes,
        eyebrows=look.brows,
        mouth=look.mouth,
        clothing=look.clothing,
        clothing_color=look.clothing_color,
    )
    return avatar.render().replace("<svg ", '<svg overflow="visible" ', 1)  # hair may rise above the canvas


def person_words(person: Person) -> str:
    """Identity in words, such as ``black skin, silver gray frizzle hair, round glasses``."""
    hair = f"{_words(person.hair_color)} {_words(person.hair).removesuffix(' hair')} hair"
    words = [f"{_words(person.skin)} skin", hair]
    if person.facial_hair is not pa.FacialHairType.NONE:
        words.append(_words(person.facial_hair))
    if person.glasses is not pa.AccessoryType.NONE:
        words.append(f"{_words(person.glasses)} glasses")
    return ", ".join(words)


def look_words(look: Look) -> str:
    """What varies, in words, such as ``big smile mouth, wink eyes, wearing red hoodie, pink background, beach``."""
    suit = pa.ClothingType.ASTRONAUT_SUIT  # has its own colour
    color = "" if look.clothing is suit else f"{_words(look.clothing_color)} "
    words = [
        f"{_words(look.mouth)} mouth",
        f"{_words(look.eyes)} eyes",
        f"wearing {color}{_words(look.clothing)}",
        f"{look.background} background",
    ]
    return ", ".join([*words, look.scene] if look.scene else words)


def caption(person: Person, look: Look) -> str:
    """Return the full description, as the demo model is trained on it."""
    return f"a portrait of a person, {person_words(person)}, {look_words(look)}"


def _words(part: Enum) -> str:
    return part.name.lower().replace("_", " ")
