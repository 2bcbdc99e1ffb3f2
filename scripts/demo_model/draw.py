"""Drawn portraits: the world the demo model knows.

A `Person` is what stays the same in every picture, a `Look` is what changes. Their fields are plain words, the keys of
the tables below: what a caption says and what a classifier tells apart. The same person and look give the same pixels.
"""

import io
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace

import python_avatars as pa
import resvg_py
from PIL import Image

#: Parts of the package that look alike at this size, or have no colour of their own, are left out.
HAIR: Mapping[str, pa.HairType] = {
    "bald": pa.HairType.NONE,
    "big wavy": pa.HairType.BIG_HAIR,
    "bob": pa.HairType.BOB,
    "bun": pa.HairType.BUN,
    "caesar": pa.HairType.CAESAR,
    "curly": pa.HairType.CURLY,
    "curvy": pa.HairType.CURVY,
    "dreads": pa.HairType.DREADS,
    "frizzle": pa.HairType.FRIZZLE,
    "headband afro": pa.HairType.FRO_BAND,
    "afro": pa.HairType.FRO,
    "medium": pa.HairType.LONG_NOT_TOO_LONG,
    "fringe": pa.HairType.MIA_WALLACE,
    "mullet": pa.HairType.SHAGGY_MULLET,
    "swept": pa.HairType.SHAGGY,
    "short curly": pa.HairType.SHORT_CURLY,
    "short dreads": pa.HairType.SHORT_DREADS_1,
    "fluffy": pa.HairType.SHORT_DREADS_2,
    "flat": pa.HairType.SHORT_FLAT,
    "receding": pa.HairType.SIDES,
    "straight": pa.HairType.STRAIGHT_1,
    "long straight": pa.HairType.STRAIGHT_STRAND,
    "buzzcut": pa.HairType.BUZZCUT,
    "cornrows": pa.HairType.CORNROWS,
    "long curly": pa.HairType.CURLY_2,
    "pigtails": pa.HairType.DREADLOCKS,
    "elvis": pa.HairType.ELVIS,
    "spiked": pa.HairType.EVIL_SPIKE,
    "asymmetric": pa.HairType.HALF_SHAVED,
    "glamorous": pa.HairType.LONG_HAIR_CURLY,
    "loose": pa.HairType.LOOSE_HAIR,
    "messy": pa.HairType.MOWGLI,
    "pixie": pa.HairType.PIXIE,
    "quiff": pa.HairType.QUIFF,
    "long twisted": pa.HairType.TWIST_LONG_HAIR,
    "shoulder": pa.HairType.WICK,
    "wild": pa.HairType.WILD,
}
#: Hair styles the demo model and the identity encoder never see in training: a LoRA has to learn them.
HELD_OUT_HAIR: Mapping[str, pa.HairType] = {
    "mohawk": pa.HairType.MOHAWK,
    "tousled": pa.HairType.EINSTEIN_HAIR,
    "braids": pa.HairType.BRAIDS,
    "flower": pa.HairType.FRIDA,
}
HAIR_COLORS: Mapping[str, pa.HairColor] = {
    "auburn": pa.HairColor.AUBURN,
    "black": pa.HairColor.BLACK,
    "bronze": pa.HairColor.BLONDE,
    "blonde": pa.HairColor.BLONDE_GOLDEN,
    "brown": pa.HairColor.BROWN,
    "espresso": pa.HairColor.BROWN_DARK,
    "pink": pa.HairColor.PASTEL_PINK,
    "platinum": pa.HairColor.PLATINUM,
    "red": pa.HairColor.RED,
    "silver": pa.HairColor.SILVER_GRAY,
}
SKINS: Mapping[str, pa.SkinColor] = {
    "tanned": pa.SkinColor.TANNED,
    "yellow": pa.SkinColor.YELLOW,
    "pale": pa.SkinColor.PALE,
    "light": pa.SkinColor.LIGHT,
    "brown": pa.SkinColor.BROWN,
    "dark": pa.SkinColor.DARK_BROWN,
    "black": pa.SkinColor.BLACK,
}
GLASSES: Mapping[str, pa.AccessoryType] = {
    "": pa.AccessoryType.NONE,
    "eyepatch": pa.AccessoryType.EYEPATCH,
    "clear glasses": pa.AccessoryType.PRESCRIPTION_1,
    "square glasses": pa.AccessoryType.PRESCRIPTION_2,
    "round glasses": pa.AccessoryType.ROUND,
    "sunglasses": pa.AccessoryType.WAYFARERS,
    "white sunglasses": pa.AccessoryType.KURT,
}
FACIAL_HAIR: Mapping[str, pa.FacialHairType] = {
    "": pa.FacialHairType.NONE,
    "short beard": pa.FacialHairType.BEARD_LIGHT,
    "long beard": pa.FacialHairType.BEARD_MAGESTIC,
    "full beard": pa.FacialHairType.BEARD_MEDIUM,
    "fancy moustache": pa.FacialHairType.MOUSTACHE_FANCY,
    "moustache": pa.FacialHairType.MOUSTACHE_MAGNUM,
    "goatee": pa.FacialHairType.WICK_BEARD,
}
NOSES: Mapping[str, pa.NoseType] = {
    "normal": pa.NoseType.DEFAULT,
    "small": pa.NoseType.SMALL,
    "wide": pa.NoseType.WIDE,
}
EYES: Mapping[str, pa.EyeType] = {
    "open": pa.EyeType.DEFAULT,
    "happy": pa.EyeType.HAPPY,
    "winking": pa.EyeType.WINK,
    "sideways": pa.EyeType.SIDE,
    "narrow": pa.EyeType.SQUINT,
    "surprised": pa.EyeType.SURPRISED,
    "closed": pa.EyeType.CLOSED,
}
BROWS: Mapping[str, pa.EyebrowType] = {
    "curved": pa.EyebrowType.DEFAULT,
    "raised": pa.EyebrowType.RAISED_EXCITED,
    "flat": pa.EyebrowType.FLAT_NATURAL,
}
MOUTHS: Mapping[str, pa.MouthType] = {
    "talking": pa.MouthType.DEFAULT,
    "smiling": pa.MouthType.SMILE,
    "laughing": pa.MouthType.BIG_SMILE,
    "calm": pa.MouthType.TWINKLE,
    "serious": pa.MouthType.SERIOUS,
    "sad": pa.MouthType.SAD,
    "tongue out": pa.MouthType.TONGUE,
    "screaming": pa.MouthType.SCREAM_OPEN,
}
CLOTHING: Mapping[str, pa.ClothingType] = {
    "blazer": pa.ClothingType.BLAZER_SHIRT,
    "sweater": pa.ClothingType.COLLAR_SWEATER,
    "hoodie": pa.ClothingType.HOODIE,
    "overalls": pa.ClothingType.OVERALL,
    "t-shirt": pa.ClothingType.SHIRT_CREW_NECK,
    "top": pa.ClothingType.SHIRT_SCOOP_NECK,
    "v-neck": pa.ClothingType.SHIRT_V_NECK,
    "chef jacket": pa.ClothingType.CHEF,
    "robe": pa.ClothingType.JEDI_ROBE,
    "suit": pa.ClothingType.BOND_SUIT,
    "spacesuit": pa.ClothingType.ASTRONAUT_SUIT,
}
#: Clothing that is always drawn in its own colours.
UNCOLORED = ("suit", "spacesuit")
CLOTHING_COLORS: Mapping[str, pa.ClothingColor] = {
    "black": pa.ClothingColor.BLACK,
    "blue": pa.ClothingColor.BLUE_02,
    "navy": pa.ClothingColor.BLUE_03,
    "gray": pa.ClothingColor.GRAY_02,
    "light blue": pa.ClothingColor.PASTEL_BLUE,
    "green": pa.ClothingColor.PASTEL_GREEN,
    "orange": pa.ClothingColor.PASTEL_ORANGE,
    "yellow": pa.ClothingColor.PASTEL_YELLOW,
    "pink": pa.ClothingColor.PINK,
    "red": pa.ClothingColor.RED,
    "white": pa.ClothingColor.WHITE,
}
BACKGROUNDS: Mapping[str, str] = {
    "blue": "#84CCE9",
    "navy": "#19203D",
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
SCENES: Mapping[str, str] = {
    "": "",
    "beach": '<path fill="#4696C7" d="M0 57h128v20H0z"/><path fill="#EEDCA3" d="M0 77h128v51H0z"/>',
    "forest": '<path fill="#2A703E" d="M-8 128 8 34 24 128zM18 128 34 34 46 128zM80 128 94 36 108 128zM104 128 120 34 136 128z"/>',
    "city": '<path fill="#5F6571" d="M0 128V38h13v90zM19 128V84h11v44zM35 128V92h10v36zM82 128V88h10v40zM92 128V78h11v50zM107 128V70h14v58zM125 128V40h3v88z"/>',
    "sunset": '<circle fill="#F56928" cx="104" cy="36" r="21"/>',
}
#: Held out as well: nobody in the training data has such a pair.
HELD_OUT_PAIRS = (
    ("pink", "tanned"),  # hair colour and skin
    ("black", "brown"),
    ("red", "pale"),
)


@dataclass(frozen=True, slots=True)
class Person:
    """An identity. Each field is a key of the table of its name."""

    hair: str
    hair_color: str
    skin: str
    glasses: str = ""
    facial_hair: str = ""
    nose: str = "normal"


@dataclass(frozen=True, slots=True)
class Look:
    """All that differs between two pictures of one person. Each word is a key of the table of its name."""

    eyes: str
    brows: str
    mouth: str
    clothing: str
    clothing_color: str
    """Empty for clothing with its own colours."""
    background: str
    scene: str
    scale: float
    """Of the person; at 1 the avatar's canvas is as wide as the picture."""
    shift: float
    """To the right, in widths of the picture."""
    mirrored: bool
    """The person, not the scene."""


def random_person(rng: random.Random) -> Person:
    """Draw somebody the demo model may be trained on."""
    while True:
        hair = rng.choice(list(HAIR))
        person = Person(
            hair=hair,
            hair_color=rng.choice(list(HAIR_COLORS)),
            skin=rng.choice(list(SKINS)),
            glasses=rng.choice(list(GLASSES)[1:]) if rng.random() < 0.45 else "",
            facial_hair=rng.choice(list(FACIAL_HAIR)[1:]) if rng.random() < 0.35 else "",
            nose=rng.choice(list(NOSES)),
        )
        if is_allowed(person):
            return person


def is_allowed(person: Person) -> bool:
    """Whether the demo model may be trained on this person."""
    return person.hair in HAIR and (person.hair_color, person.skin) not in HELD_OUT_PAIRS


def sibling(person: Person, rng: random.Random) -> Person:
    """Return a person of the training world who differs from this one in a single trait."""
    while True:
        other = random_person(rng)
        name = rng.choice(("hair", "hair_color", "skin", "glasses", "facial_hair", "nose"))
        changed = replace(person, **{name: getattr(other, name)})
        if changed != person and is_allowed(changed):
            return changed


def random_look(rng: random.Random) -> Look:
    """Draw an expression, clothes and a place."""
    clothing = rng.choice(list(CLOTHING))
    color = rng.choice(list(CLOTHING_COLORS))
    return Look(
        eyes=rng.choice(list(EYES)),
        brows=rng.choice(list(BROWS)),
        mouth=rng.choice(list(MOUTHS)),
        clothing=clothing,
        clothing_color="" if clothing in UNCOLORED else color,
        background=rng.choice(list(BACKGROUNDS)),
        scene=rng.choice(list(SCENES)[1:]) if rng.random() < 0.6 else "",
        scale=rng.uniform(1.0, 1.1),
        shift=rng.uniform(-0.03, 0.03),
        mirrored=rng.random() < 0.25,
    )


def draw(person: Person, look: Look, *, size: int = 128) -> Image.Image:
    """Return an RGB portrait of ``size`` x ``size`` pixels: head and chest, cut off by the lower edge."""
    scale = look.scale * 128 / 264  # the avatar's canvas is 264 x 280
    x, y = 64 + 128 * look.shift - 132 * scale, 140 - 280 * scale
    flip = "translate(264 0) scale(-1 1)" if look.mirrored else ""
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 128 128">'
        f'<path fill="{BACKGROUNDS[look.background]}" d="M0 0h128v128H0z"/>{SCENES[look.scene]}'
        f'<g transform="translate({x:.3f} {y:.3f}) scale({scale:.5f}) {flip}">{_avatar(person, look)}</g></svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
    return Image.open(io.BytesIO(png)).convert("RGB")


def _avatar(person: Person, look: Look) -> str:
    avatar = pa.Avatar(
        style=pa.AvatarStyle.TRANSPARENT,
        top=HAIR[person.hair] if person.hair in HAIR else HELD_OUT_HAIR[person.hair],
        hair_color=HAIR_COLORS[person.hair_color],
        skin_color=SKINS[person.skin],
        accessory=GLASSES[person.glasses],
        facial_hair=FACIAL_HAIR[person.facial_hair],
        facial_hair_color=HAIR_COLORS[person.hair_color],
        nose=NOSES[person.nose],
        eyes=EYES[look.eyes],
        eyebrows=BROWS[look.brows],
        mouth=MOUTHS[look.mouth],
        clothing=CLOTHING[look.clothing],
        clothing_color=CLOTHING_COLORS[look.clothing_color or "black"],
    )
    return avatar.render().replace("<svg ", '<svg overflow="visible" ', 1)  # hair may rise above the canvas
