"""Choosing a checkpoint: scores with intervals, what is wrong with a candidate, and when nothing can be said."""

import numpy as np
import pytest

from isengard.domain.evaluation import Candidate, Fault, Reference, Shot, centroid, evaluate, left_out
from isengard.errors import InvalidSpec

PROMPTS, SEEDS = range(8), (1, 2)


def shots(mean, *, noise=0.03, nobody=0, nearest=0.3, spread=0.4, change=0.0, of=0):
    """A picture for each prompt and seed; the first ``nobody`` of them show nobody."""
    added = np.random.default_rng(of).normal(0, noise, (len(PROMPTS), len(SEEDS)))
    added -= added.mean()
    keys = [(prompt, seed) for prompt in PROMPTS for seed in SEEDS]
    return [
        Shot(
            prompt=prompt,
            seed=seed,
            likeness=None if place < nobody else mean + added[prompt, SEEDS.index(seed)],
            nearest=nearest,
            variety=0.1,
            spread=spread,
            change=change,
        )
        for place, (prompt, seed) in enumerate(keys)
    ]


def reference(**changes):
    known = {"ceiling": (0.78, 0.8, 0.82, 0.8), "twins": 0.8, "floor": tuple(shots(0.1))}
    return Reference(**known | changes)


def at(step, strength=1.0):
    return Candidate(step=step, strength=strength)


def only_score(made, **changes):
    return evaluate(reference(**changes), {at(100): made}).scores[0]


def test_a_score_is_the_part_of_the_way_from_the_base_model_to_the_photos():
    assert only_score(shots(0.45)).value == pytest.approx(0.5, abs=0.03)


def test_the_interval_holds_the_score_and_is_wider_when_the_pictures_differ_more():
    narrow, wide = only_score(shots(0.45, of=1)), only_score(shots(0.45, noise=0.3, of=1))
    assert narrow.low < narrow.value < narrow.high
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_the_same_pictures_get_the_same_interval_again():
    assert only_score(shots(0.45, of=1)) == only_score(shots(0.45, of=1))


def test_the_earliest_of_those_that_cannot_be_told_from_the_best_is_recommended():
    made = {at(100): shots(0.3, of=1), at(200): shots(0.7, of=2), at(300): shots(0.702, of=3)}
    verdict = evaluate(reference(), made)
    assert verdict.recommended == at(200)
    assert (
        verdict.reason
        == "step 200 at strength 1 is the earliest that cannot be told from the best (step 300)"
    )


def test_a_worse_one_whose_pictures_differ_too_much_to_tell_is_not_taken_for_as_good():
    verdict = evaluate(reference(), {at(100): shots(0.6, noise=0.3, of=1), at(200): shots(0.7, of=2)})
    assert verdict.recommended == at(200)


def test_the_interval_of_few_prompts_is_as_wide_as_theirs_should_be():
    """On eight normal numbers, 19 of 20 intervals hold the true mean; a plain bootstrap's only 17 or 18."""
    holds = 0
    for draw in range(200):
        rows = np.random.default_rng(draw).normal(0.45, 0.1, len(PROMPTS))
        made = [shot.model_copy(update={"likeness": rows[shot.prompt]}) for shot in shots(0)]
        score = only_score(made, floor=tuple(shots(0.1, noise=0)), ceiling=(0.8,) * 4)
        holds += score.low <= 0.5 <= score.high
    assert holds >= 184


def test_a_clear_best_is_said_to_be_the_best():
    verdict = evaluate(reference(), {at(100): shots(0.3, of=1), at(200): shots(0.7, of=2)})
    assert verdict.reason == "step 200 at strength 1 is the most like the photos"


def test_candidates_that_cannot_be_told_apart_have_no_clear_winner():
    made = {at(step): shots(0.6, noise=0.1, of=step) for step in (100, 200, 300)}
    verdict = evaluate(reference(), made)
    assert verdict.reason.startswith("no clear winner: the 3 candidates cannot be told apart")
    assert verdict.recommended == at(100)


def test_at_the_same_step_the_usual_strength_comes_first():
    made = {at(100, 0.6): shots(0.6, of=1), at(100, 1.0): shots(0.6, of=1)}
    assert evaluate(reference(), made).recommended == at(100, 1.0)


def test_the_same_noise_in_two_candidates_does_not_hide_their_difference():
    noisy = np.random.default_rng(5).normal(0, 0.2, len(PROMPTS))
    worse, better = (
        [shot.model_copy(update={"likeness": mean + noisy[shot.prompt]}) for shot in shots(0)]
        for mean in (0.5, 0.55)
    )
    verdict = evaluate(reference(), {at(100): worse, at(200): better})
    assert verdict.recommended == at(200)


def test_pictures_that_show_nobody_are_no_gain():
    whole, half = only_score(shots(0.6)), only_score(shots(0.6, nobody=8))
    assert half.faceless == 0.5
    assert half.value == pytest.approx(whole.value / 2, abs=0.05)


def test_a_lora_that_changes_nothing_is_named():
    score = only_score(shots(0.1))
    assert (score.value, score.faults) == (0, (Fault.NO_EFFECT,))


def test_a_lora_whose_pictures_show_nobody_any_more_is_overcooked():
    assert only_score(shots(0.7, nobody=6)).faults == (Fault.OVERCOOKED,)


def test_a_lora_whose_pictures_are_all_the_same_is_overcooked():
    assert only_score(shots(0.7, spread=0.1)).faults == (Fault.OVERCOOKED,)


def test_seeds_that_make_the_same_person_the_same_are_no_fault():
    same = [shot.model_copy(update={"variety": 0.01}) for shot in shots(0.7)]
    score = only_score(same)
    assert (score.variety, score.faults) == (pytest.approx(0.1), ())


def test_a_lora_that_breaks_the_pictures_is_overcooked_and_not_without_effect():
    assert only_score(shots(0.05, change=0.3)).faults == (Fault.OVERCOOKED,)


def test_a_lora_that_changes_little_and_not_the_likeness_has_no_effect():
    assert only_score(shots(0.1, change=0.1)).faults == (Fault.NO_EFFECT,)


def test_pictures_without_spread_in_the_base_model_say_nothing_of_the_loras_spread():
    floor = tuple(shots(0.1, spread=0))
    score = only_score(shots(0.7, spread=0, change=0.5), floor=floor)
    assert (score.spread, score.faults) == (1, ())


def test_a_base_model_that_often_shows_nobody_is_not_the_loras_fault():
    floor = tuple(shots(0.1, nobody=6))
    assert only_score(shots(0.7, nobody=6), floor=floor).faults == ()


def test_pictures_that_are_as_near_to_a_photo_as_two_photos_to_each_other_are_no_copies():
    assert only_score(shots(0.8, nearest=0.84)).faults == ()


def test_copies_are_all_the_same_because_they_are_copies():
    assert only_score(shots(0.8, nearest=0.95, spread=0.1)).faults == (Fault.COPYING,)


def test_pictures_that_are_nearly_a_photo_are_copies():
    assert only_score(shots(0.8, nearest=0.95)).faults == (Fault.COPYING,)


@pytest.mark.parametrize(("spread", "faults"), [(0.9, ()), (0.1, (Fault.COPYING,))])
def test_prompts_that_ask_for_what_a_photo_shows_are_no_copying_as_long_as_others_differ(spread, faults):
    far, near = (shots(0.8, nearest=nearest, spread=spread) for nearest in (0.3, 0.95))
    assert only_score([*far[:8], *near[8:]]).faults == faults


def test_a_faulty_candidate_is_not_recommended_however_like_it_is():
    verdict = evaluate(reference(), {at(100): shots(0.5), at(200): shots(0.8, nearest=0.95)})
    assert verdict.recommended == at(100)


def test_only_faulty_candidates_leave_no_recommendation_and_the_reasons():
    verdict = evaluate(reference(), {at(100): shots(0.1), at(200): shots(0.8, nearest=0.95, nobody=6)})
    assert verdict.recommended is None
    assert verdict.reason == (
        "no checkpoint can be recommended: step 100 at 1 has no effect on the likeness; "
        "step 200 at 1 breaks the pictures or makes them all the same and copies training photos"
    )


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"ceiling": (0.8, 0.8)}, "only 2 photos show the character clearly; it takes 3"),
        ({"floor": tuple(shots(0.1)[:6])}, "only 3 prompts were tried; it takes 4"),
        ({"floor": tuple(shots(0.1, nobody=16))}, "the base model's pictures show nobody"),
        ({"floor": tuple(shots(0.78))}, "this scorer cannot tell the character apart"),
    ],
)
def test_without_what_it_takes_to_know_there_is_no_answer_but_the_reason(changes, why):
    verdict = evaluate(reference(**changes), {at(100): shots(0.7)})
    assert (verdict.scores, verdict.recommended) == ((), None)
    assert why in verdict.reason


def test_other_pictures_than_the_base_models_are_refused():
    with pytest.raises(
        InvalidSpec, match="step 100 at strength 1 has 15 pictures which are not those of the base model"
    ):
        only_score(shots(0.7)[1:])


def test_the_centroid_is_of_unit_length():
    assert centroid([(1.0, 0.0), (0.0, 1.0)]) == pytest.approx((0.7071, 0.7071), abs=1e-4)


def test_a_photo_is_compared_with_the_others_only():
    assert left_out([(1.0, 0.0), (0.0, 1.0), (0.0, 1.0)]) == pytest.approx((0.0, 0.7071, 0.7071), abs=1e-4)


def test_without_a_photo_that_shows_the_character_there_is_no_centroid():
    with pytest.raises(InvalidSpec, match="no photo shows the character"):
        centroid([])
