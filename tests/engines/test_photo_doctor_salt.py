"""A set salted with what does not belong into it: how much of the salt is found, and what else is."""

import io
import random
from collections.abc import Callable

import resvg_py
from PIL import Image, ImageFilter

from isengard.domain.character import Character, ReferenceImage
from isengard.domain.doctor import FindingKind
from isengard.domain.identity import ScorerKind
from isengard.services.doctor import judge, look
from isengard.wiring import open_scorer
from scripts.demo_model import draw
from tests.photos import photo

FOUND_AS = {
    "stranger": {FindingKind.ANOTHER_PERSON},
    "blurred": {FindingKind.BLURRED},
    "twin": {FindingKind.NEAR_DUPLICATE},
    "sideways": {FindingKind.SIDEWAYS},
    "faceless": {FindingKind.NOBODY, FindingKind.ANOTHER_PERSON},
    "company": {FindingKind.MORE_PEOPLE},
    "far": {FindingKind.SMALL_FACE},
    "close": {FindingKind.CUT_OFF},
}
TURNS = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)


def examined(pictures: list[tuple[str, Image.Image]], kind: ScorerKind) -> dict[str, set[FindingKind]]:
    """The kinds of findings of each picture; names such as ``clean`` get a number."""
    names = [f"{name}-{number}" for number, (name, _) in enumerate(pictures)]
    images = tuple(
        ReferenceImage(
            id=f"{number:016x}", sha256="", dhash=f"{0:016x}", width=1, height=1, filename=name, added_at=0
        )
        for number, name in enumerate(names)
    )
    character = Character(
        id="salted",
        name="Salted",
        trigger="ohwx",
        class_word="person",
        created_at=0,
        updated_at=0,
        images=images,
    )
    scorer = open_scorer(kind)
    photos = {
        image.id: look(scorer, kind, picture, found=scorer.find([picture])[0])
        for image, (_, picture) in zip(images, pictures, strict=True)
    }
    findings, _ = judge(character, photos, kind)
    found: dict[str, set[FindingKind]] = {name: set() for name in names}
    for finding in findings:
        if finding.image:
            found[names[int(finding.image, 16)]].add(finding.kind)
    return found


def shares(found: dict[str, set[FindingKind]]) -> tuple[float, float]:
    """The part of the salt that was found as what it is, and the part of the others that anything was found of."""
    salt = {name: kinds for name, kinds in found.items() if not name.startswith("clean")}
    clean = [kinds for name, kinds in found.items() if name.startswith("clean")]
    right = [bool(FOUND_AS[name.split("-")[0]] & kinds) for name, kinds in salt.items()]
    return sum(right) / len(right), sum(map(bool, clean)) / len(clean)


def drawn_set(person: draw.Person, rng: random.Random) -> list[tuple[str, Image.Image]]:
    def portrait(of: draw.Person = person) -> Image.Image:
        return draw.draw(of, draw.random_look(rng))

    clean = [portrait() for _ in range(14)]
    salt: list[tuple[str, Callable[[], Image.Image]]] = [
        ("stranger", lambda: portrait(draw.random_person(rng))),
        ("blurred", lambda: portrait().filter(ImageFilter.GaussianBlur(rng.uniform(1.5, 3)))),
        ("twin", lambda: rng.choice(clean).crop((rng.randint(0, 4), 0, 128, 124)).resize((128, 128))),
        ("sideways", lambda: portrait().transpose(rng.choice(TURNS))),
        ("faceless", lambda: scenery(rng)),
    ]
    return [("clean", picture) for picture in clean] + [(name, make()) for name, make in salt * 2]


def scenery(rng: random.Random) -> Image.Image:
    """A place of the drawn world without anybody in it."""
    look = draw.random_look(rng)
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 128 128">'
        f'<path fill="{draw.BACKGROUNDS[look.background]}" d="M0 0h128v128H0z"/>{draw.SCENES[look.scene]}'
        f'<circle cx="{rng.randint(0, 127)}" cy="{rng.randint(0, 127)}" r="9" fill="#fff"/></svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=128, height=128, skip_system_fonts=True)
    return Image.open(io.BytesIO(png)).convert("RGB")


def test_of_salt_in_drawn_portraits_nearly_all_is_found_and_nearly_nothing_else():
    rng = random.Random(11)
    found: dict[str, set[FindingKind]] = {}
    for number in range(2):
        one = examined(drawn_set(draw.random_person(rng), rng), ScorerKind.DRAWN_FIGURES)
        found |= {f"{name}-{number}": kinds for name, kinds in one.items()}
    right, wrong = shares(found)
    assert right >= 0.95, found
    assert wrong <= 0.05, found


def test_of_salt_in_photographs_nearly_all_is_found_and_nearly_nothing_else():
    def shown(name: str) -> Image.Image:
        return Image.open(photo(name if "." in name else f"{name}.jpg")).convert("RGB")

    jesper, young = shown("jesper_2"), shown("new_wave_2")
    alone = shown("qt-logo").crop((300, 10, 550, 420))
    found = examined(
        [
            *(
                ("clean", picture)
                for picture in (jesper, young, alone, shown("pool"), shown("grand_canyon_2"))
            ),
            *(
                ("stranger", shown(name))
                for name in ("astronaut.png", "grace_hopper", "anne_helene", "wayne")
            ),
            *(("faceless", shown(name)) for name in ("skagen", "donna")),
            *(("company", shown(name)) for name in ("bar55", "bar55_2", "qt-logo")),
            *(("blurred", picture.filter(ImageFilter.GaussianBlur(3))) for picture in (young, alone)),
            *(("sideways", picture) for picture in (shown("grand_canyon_1"), alone.transpose(TURNS[0]))),
            ("sideways", jesper.transpose(TURNS[2])),
            ("twin", jesper.resize((600, 399))),
            ("twin", young.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
            ("far", shown("cold_water")),
            ("close", shown("jesper")),
        ],
        ScorerKind.FACES,
    )
    right, wrong = shares(found)
    assert right >= 0.95, found
    assert wrong <= 0.05, found
