import pytest

from isengard.domain.traits import traits, with_trigger, without_traits


@pytest.mark.parametrize(
    ("caption", "found", "rest"),
    [
        (
            "a photo of [trigger] woman with long dark hair and blue eyes, smiling, in a park",
            ("long dark hair", "blue eyes"),
            "a photo of [trigger] woman, smiling, in a park",
        ),
        ("a blonde woman with freckles sits on a bench", ("blonde", "freckles"), "a woman sits on a bench"),
        ("[trigger], an elderly man, high cheekbones, at night", ("elderly", "high cheekbones"), "[trigger], a man, at night"),
        ("a man with a short beard and a red hat", ("short beard",), "a man with a red hat"),
        ("[trigger] 30 year old asian woman, dark skin", ("30 year old", "asian", "dark skin"), "[trigger] woman"),
        ("a woman with blonde, curly hair in a dress", ("blonde, curly hair",), "a woman in a dress"),
    ],
)  # fmt: skip
def test_what_says_who_somebody_is_can_be_taken_out_of_a_caption(caption, found, rest):
    assert traits(caption) == found
    assert without_traits(caption) == rest


@pytest.mark.parametrize(
    "caption",
    [
        "portrait of [trigger] person, laughing, narrow eyes, wearing a red top, blue background",
        "a woman with wet hair tied back, wide eyes, dark glasses",
        "[trigger] on a long road in an asian restaurant, red light on her hair",
        "",
    ],
)
def test_expressions_clothes_and_places_are_no_traits(caption):
    assert traits(caption) == ()
    assert without_traits(caption) == caption


def test_the_trigger_is_put_before_the_class_word_or_first():
    assert with_trigger("a photo of a [class] at sea", "ohwx") == "a photo of a [trigger] [class] at sea"
    assert with_trigger("at sea", "ohwx") == "[trigger] [class], at sea"
    assert with_trigger("OHWX at sea", "ohwx") == "OHWX at sea"
