"""What is said about a portrait, and the two tokenizers that know these words."""

import json
import random
import re
import string
from collections.abc import Mapping, Sequence

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPTokenizer, T5Tokenizer

from scripts.demo_model import draw
from scripts.demo_model.draw import Look, Person

#: Tokens of the longest caption, with some left over.
T5_LENGTH = 40
CLIP_LENGTH = 77
#: Words a user may take as a trigger, each one token; any other is spelled in letters.
TRIGGERS = ("ohwx", "sks", "zwx", "tok", "nvxq")
OPENERS = ("a portrait of", "portrait of", "a drawing of", "a picture of", "an image of", "")
CLASS_WORDS = ("person",) * 7 + ("woman", "man", "character")
PLACES: Mapping[str, Sequence[str]] = {
    "beach": ("on a beach", "beach", "at the beach"),
    "forest": ("in a forest", "forest", "in the forest"),
    "city": ("in a city", "city", "in the city"),
    "sunset": ("at sunset", "sunset"),
}
OTHER_WORDS = (
    "a an and at by for from has he her his in is it looking near of on she standing the their them they this to under "
    "who wears wearing with without young old happy face faces head hair haired skin skinned eye eyes mouth shirt "
    "background scene portrait drawing picture image photo cartoon avatar character person people woman man girl boy "
    "beard moustache glasses no day night sky sea sand trees buildings sun"
)


def caption(person: Person, look: Look, rng: random.Random, *, kind: str = "") -> str:
    """Describe a portrait as a user might: all of it, parts of it, only the look, a few words, or nothing at all.

    ``kind``: one of ``full``, ``part``, ``look``, ``short``, ``empty``; any by default.
    """
    kind = kind or rng.choices(("full", "part", "look", "short", "empty"), weights=(38, 30, 15, 10, 7))[0]
    if kind == "empty":
        return ""
    keep = {"full": 1.0, "part": rng.uniform(0.3, 1), "look": 1.0, "short": 0.15}[kind]
    who = [] if kind == "look" else [part for part in identity_phrases(person) if rng.random() < keep]
    rest = [part for part in look_phrases(look, rng) if rng.random() < keep]
    if rng.random() < 0.25:
        rng.shuffle(rest)
    class_word = rng.choice(CLASS_WORDS)
    if rng.random() < 0.25:
        class_word = f"{_trigger(rng)} {class_word}"
    opener = rng.choice(OPENERS)
    article = "a " if opener and rng.random() < 0.7 else ""
    subject = f"{opener} {article}{class_word}".strip()
    if rng.random() < 0.2:
        subject = subject.capitalize()
    if who and rng.random() < 0.4:
        subject = f"{subject} with {who[0]}"
        who = who[1:]
    return (", " if rng.random() < 0.7 else " ").join([subject, *who, *rest])


def look_caption(look: Look, subject: str) -> str:
    """What varies, for a caption that says who it is by a trigger word."""
    rng = random.Random(0)  # noqa: S311  # not for secrets
    return ", ".join([f"a portrait of {subject}", *look_phrases(look, rng, plain=True)])


def identity_phrases(person: Person) -> list[str]:
    """Who it is, in words."""
    bald = person.hair == "bald"
    hair = "bald" if bald else f"{person.hair_color} {person.hair} hair"
    beard = f"{person.hair_color} {person.facial_hair}" if bald else person.facial_hair
    found = [f"{person.skin} skin", hair, beard if person.facial_hair else "", person.glasses]
    return [phrase for phrase in found if phrase]


def look_phrases(look: Look, rng: random.Random, *, plain: bool = False) -> list[str]:
    """What varies, in words; ``plain`` takes the first wording of each."""
    choose = (lambda options: options[0]) if plain else rng.choice
    clothes = " ".join(filter(None, (look.clothing_color, look.clothing)))
    article = choose(("an " if clothes.startswith("o") else "a ", ""))
    article = "" if look.clothing == "overalls" else article
    a = "an" if look.background == "orange" else "a"
    return [
        look.mouth,
        "winking" if look.eyes == "winking" else f"{look.eyes} eyes",
        choose((f"wearing {article}{clothes}", f"in {article}{clothes}", clothes)),
        choose((f"{look.background} background", f"on {a} {look.background} background")),
        *([choose(PLACES[look.scene])] if look.scene else []),
    ]


def _trigger(rng: random.Random) -> str:
    if rng.random() < 0.5:
        return rng.choice(TRIGGERS)
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(3, 6)))


def vocabulary() -> list[str]:
    """Every word of the captions, sorted, without their capitals."""
    tables = (
        draw.HAIR, draw.HAIR_COLORS, draw.SKINS, draw.GLASSES, draw.FACIAL_HAIR, draw.EYES, draw.MOUTHS,
        draw.CLOTHING, draw.CLOTHING_COLORS, draw.BACKGROUNDS, draw.SCENES,
    )  # fmt: skip
    texts = [word for table in tables for word in table]
    texts += [
        *OPENERS,
        *CLASS_WORDS,
        *TRIGGERS,
        OTHER_WORDS,
        *(text for place in PLACES.values() for text in place),
    ]
    return sorted({word for text in texts for word in text.split()})


def t5_tokenizer() -> T5Tokenizer:
    """Each known word, plain or capitalized, is one token; anything else is spelled."""
    words = vocabulary()
    known = {f"▁{word}": -1.0 for word in [*words, *(word.capitalize() for word in words)]}
    characters = [*string.ascii_letters, *string.digits, *string.punctuation]
    spelled = {prefix + each: -10.0 for each in characters for prefix in ("", "▁")} | {"▁": -10.0}
    scores = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), *(spelled | known).items()]
    return T5Tokenizer(vocab=scores, extra_ids=0, model_max_length=512)


def clip_tokenizer() -> CLIPTokenizer:
    """Byte pairs, merged until each known word is one token."""
    empty = CLIPTokenizer()
    learned = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learned.normalizer = empty.backend_tokenizer.normalizer
    learned.pre_tokenizer = empty.backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=10_000,
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    words = sorted({part for word in vocabulary() for part in re.findall(r"[a-z]+", word)})
    learned.train_from_iterator(words, trainer)
    model = json.loads(learned.to_str())["model"]
    tokens = sorted({*model["vocab"], *(f"{each}</w>" for each in pre_tokenizers.ByteLevel.alphabet())})
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: number for number, token in enumerate(tokens)}
    merges = [tuple(merge) for merge in model["merges"]]
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CLIP_LENGTH)
