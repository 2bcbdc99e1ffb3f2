import pytest

from isengard.domain.base import validated
from isengard.domain.captions import (
    clean_caption,
    fill_template,
    has_trigger,
    resolve_caption,
    unknown_placeholders,
)
from isengard.domain.character import (
    Character,
    ReferenceImage,
    free_id,
    near_duplicates,
    slug,
    suggest_trigger,
    trigger_warning,
)
from isengard.domain.readiness import Finding, assess
from isengard.domain.words import COMMON_WORDS
from isengard.errors import InvalidSpec

#: 15 hashes of which any two differ in 32 bits: rows of a Walsh matrix.
SPREAD = [
    f"{int(''.join(str((row & column).bit_count() % 2) for column in range(64)), 2):016x}"
    for row in range(1, 16)
]


def character(**changes):
    values = {
        "id": "anna",
        "name": "Anna",
        "trigger": "nnxq",
        "class_word": "woman",
        "created_at": 0,
        "updated_at": 0,
    }
    return validated(Character, values | changes)


def image(number, caption="[trigger] smiles", dhash=None):
    dhash = dhash or SPREAD[number]
    return ReferenceImage(
        id=f"{number:016x}",
        sha256="",
        dhash=dhash,
        width=64,
        height=64,
        filename="a",
        added_at=0,
        caption=caption,
    )


@pytest.mark.parametrize(
    "trigger", ["", "two words", "semi;colon", "[trigger]", "x" * 33, "äöü", "a\n", "new\x00"]
)
def test_a_trigger_is_one_short_word_of_letters_and_digits(trigger):
    with pytest.raises(InvalidSpec, match="trigger: must be one word of at most 32 letters a-z and digits"):
        character(trigger=trigger)


@pytest.mark.parametrize("trigger", ["ohwx", "x" * 32, "R2D2"])
def test_a_rare_trigger_is_taken_as_it_is(trigger):
    assert character(trigger=trigger).trigger == trigger
    assert trigger_warning(trigger) == ""


@pytest.mark.parametrize("trigger", ["woman", "Anna", "PHOTO", "dog"])
def test_a_common_word_is_a_trigger_with_a_warning(trigger):
    assert character(trigger=trigger).trigger == trigger
    assert "common word" in trigger_warning(trigger)


@pytest.mark.parametrize("field", ["name", "class_word"])
@pytest.mark.parametrize("value", ["", " Anna", "An\nna", "x" * 81, "[trigger]"])
def test_names_and_class_words_are_one_plain_line(field, value):
    with pytest.raises(InvalidSpec, match=field):
        character(**{field: value})


def test_a_suggested_trigger_begins_like_the_name_and_is_no_word():
    assert suggest_trigger("Anna Smith", ()) == "nnsxq"
    assert suggest_trigger("Éowyn", ()) == "wynxq"
    assert suggest_trigger("李小龙", ()) == "chrxq"


def test_suggested_triggers_never_run_out_and_never_repeat():
    taken: set[str] = set()
    for _ in range(700):
        trigger = suggest_trigger("Bob", taken)
        assert trigger.lower() not in {other.lower() for other in taken}
        assert character(trigger=trigger)
        taken.add(trigger.upper())


def test_the_list_of_common_words_is_small_and_lower_case():
    assert 300 < len(COMMON_WORDS) < 700
    assert all(word == word.lower() for word in COMMON_WORDS)


def test_an_id_is_made_from_the_name_and_is_free():
    assert slug("Zoë van der Meer!") == "zoe-van-der-meer"
    assert slug("李小龙") == "character"
    assert len(slug("long name " * 20)) <= 40
    assert free_id("Anna", {"anna", "anna-2"}) == "anna-3"


@pytest.mark.parametrize("template", ["[caption]" * 100_000, "x" * 10**6])
def test_a_template_that_would_grow_without_end_is_refused_before_it_does(template):
    with pytest.raises(InvalidSpec, match="a caption has at most 4000 characters"):
        fill_template(template, "x" * 4000)


def test_placeholders_become_words():
    assert resolve_caption("[trigger] as a [class], [trigger]", "ohwx", "man") == "ohwx as a man, ohwx"


def test_an_empty_caption_means_trigger_and_class_word():
    assert resolve_caption("", "ohwx", "man") == "ohwx man"


def test_a_caption_without_the_trigger_gets_none():
    assert resolve_caption("a man", "ohwx", "man") == "a man"
    assert not has_trigger("a man named ohwxy", "ohwx")


@pytest.mark.parametrize("caption", ["", "[trigger] sits", "OHWX, sitting"])
def test_the_trigger_may_be_written_out(caption):
    assert has_trigger(caption, "ohwx")


def test_a_misspelt_placeholder_is_noticed():
    assert unknown_placeholders("[tigger] as [class], [trigger]") == ("[tigger]",)


def test_a_caption_is_one_clean_line():
    assert clean_caption(" a\r\n  b\tc \n") == "a b c"


@pytest.mark.parametrize(("text", "message"), [("a\x00b", "control character"), ("x" * 4001, "at most 4000")])
def test_what_is_no_caption_is_refused(text, message):
    with pytest.raises(InvalidSpec, match=message):
        clean_caption(text)


def test_a_template_can_keep_the_present_caption():
    assert fill_template("[trigger], [caption]", "on a bike") == "[trigger], on a bike"
    assert fill_template("[trigger], [caption]", "") == "[trigger]"


def test_near_duplicates_differ_in_at_most_8_bits():
    same, near, far = (image(n, dhash=f"{bits:016x}") for n, bits in enumerate((0, 0xFF, 0x1FF)))
    assert near_duplicates((same, near, far)) == ((same.id, near.id), (near.id, far.id))


def test_a_good_character_is_ready_with_nothing_to_say():
    report = assess(character(images=tuple(image(number) for number in range(15))))
    assert (report.summary, report.ready, report.reason, report.findings) == ("15 images", True, "", ())


def test_a_character_without_images_is_not_ready():
    report = assess(character())
    assert (report.summary, report.ready) == ("0 images", False)
    assert report.reason == "the character has no images: add some"


def test_the_report_counts_what_is_missing_and_names_the_images():
    images = (image(0, ""), image(1, "someone"), image(2, "[tigger] [trigger]"), image(3, dhash=SPREAD[0]))
    report = assess(character(images=images, trigger="anna"), (Finding(kind="extra_files", text="more"),))
    assert report.summary == "4 images, 1 without a caption, 1 near duplicate"
    found = {finding.kind: finding.images for finding in report.findings}
    assert found == {
        "few_images": (),
        "near_duplicates": (images[0].id, images[3].id),
        "common_trigger": (),
        "extra_files": (),
        "no_caption": (images[0].id,),
        "no_trigger": (images[1].id,),
        "unknown_placeholder": (images[2].id,),
    }
    assert report.ready
