"""Ending a training when its samples have stopped becoming more like the character."""

import pytest
from PIL import Image
from pydantic import ValidationError

from isengard.domain.character import Character
from isengard.domain.early_stop import has_stopped_rising
from isengard.domain.identity import Portrait, ScorerKind
from isengard.domain.job import Phase, Progress, Requests
from isengard.domain.training import TrainingSpec
from isengard.errors import InvalidSpec
from isengard.handlers.early_stop import EarlyStop, stopping_early

EVERY = 10
RISING_THEN_FLAT = (0.0, 0.4, 0.7, 0.71, 0.7, 0.69)


def spec(**changes):
    values = {"character": "mira", "base_model": "tiny", "trigger": "ohwx", "sample_every": EVERY}
    return TrainingSpec.model_validate({**values, "stop_early": True, **changes})


@pytest.mark.parametrize(
    ("likeness", "stops"),
    [
        (RISING_THEN_FLAT, True),
        (RISING_THEN_FLAT[:-1], False),  # three samplings without a rise are asked for
        ((0.0, 0.4, 0.7, 0.5, 0.3, 0.1), True),  # falling is no rise
        ((0.0, 0.3, 0.4, 0.5, 0.6, 0.7), False),
        ((0.0, 0.01, 0.0, 0.01, 0.0, 0.01), False),  # it has not begun to rise
        ((0.0, 0.7, 0.3, 0.3, 0.9), False),
        ((0.9, 0.9, 0.9, 0.9, 0.9), False),  # the base model is as like it as the photos: nothing to tell by
        ((), False),
    ],
)
def test_it_is_enough_when_the_newest_samples_are_no_more_like_the_character(likeness, stops):
    assert has_stopped_rising(likeness, ceiling=0.8) is stops


@pytest.fixture
def training(tmp_path):
    """Report the step of each sampling in turn, with pictures whose brightness is their likeness; the steps that ask for the end."""

    def run(likeness, *, from_step=0, nobody=()):
        def scores(paths):
            found = []
            for path in paths:
                with Image.open(path) as image:
                    found.append(image.getpixel((0, 0)) / 255)
            return [
                None if int(path.stem[:8]) in nobody else one for path, one in zip(paths, found, strict=True)
            ]

        report = EarlyStop(
            lambda _progress: Requests(save=True),
            spec=spec(),
            samples_dir=tmp_path,
            scores=scores,
            ceiling=0.8,
        )
        asked = []
        for place, mean in enumerate(likeness):
            step = place * EVERY
            if step >= from_step:
                report(Progress(phase=Phase.TRAINING, step=step))  # before its pictures are made
                Image.new("L", (1, 1), round(mean * 255)).save(tmp_path / f"{step:08d}-0.png")
                report(Progress(phase=Phase.SAMPLING, step=step))
                asked += [step] * report(Progress(phase=Phase.TRAINING, step=step)).finish
                asked += [step + 1] * report(Progress(phase=Phase.TRAINING, step=step + 1)).finish
        return asked

    return run


def test_the_end_is_asked_for_at_the_sampling_after_which_nothing_rose(training):
    assert training(RISING_THEN_FLAT) == [50]


def test_a_restarted_worker_comes_to_the_same_decision_from_the_pictures_alone(training):
    training(RISING_THEN_FLAT[:-1])
    assert training(RISING_THEN_FLAT, from_step=50) == [50]


def test_samples_that_show_nobody_are_no_rise(training):
    assert training((0.0, 0.4, 0.7, 0.9, 0.7, 0.69), nobody=(30,)) == [50]


def test_a_newest_sampling_that_shows_nobody_ends_nothing(training):
    assert training(RISING_THEN_FLAT, nobody=(50,)) == []


def test_a_base_model_that_shows_nobody_leaves_nothing_to_rise_from(training):
    assert training(RISING_THEN_FLAT, nobody=(0,)) == []


def test_what_the_user_asks_for_is_passed_on(tmp_path):
    report = EarlyStop(
        lambda _progress: Requests(save=True), spec=spec(), samples_dir=tmp_path, scores=list, ceiling=1
    )
    assert report(Progress(phase=Phase.SAVING, step=10)) == Requests(save=True)


class Likeness:
    """Of a character with so many clear photos."""

    def __init__(self, photos):
        self._photos = photos

    def portrait(self, character):
        ids = tuple(map(str, range(self._photos)))
        return Portrait(
            scorer=ScorerKind.DRAWN_FIGURES, centroid=(1.0,), ceiling=(0.8,) * self._photos, images=ids
        )

    def score(self, portrait, paths):
        return [0.5 for _ in paths]


def watched(tmp_path, *, photos):
    character = Character(
        id="mira", name="Mira", trigger="ohwx", class_word="person", created_at=0, updated_at=0
    )
    return stopping_early(
        lambda _progress: Requests(),
        spec=spec(),
        run_dir=tmp_path,
        character=character,
        likeness=Likeness(photos),
    )


def test_too_few_clear_photos_are_said_before_the_first_step(tmp_path):
    with pytest.raises(
        InvalidSpec, match="stop_early: 2 photos of Mira show whom to look for, and it takes 3"
    ):
        watched(tmp_path, photos=2)


def test_enough_photos_let_the_training_begin(tmp_path):
    assert watched(tmp_path, photos=3)(Progress(phase=Phase.TRAINING, step=0)) == Requests()


@pytest.mark.parametrize("changes", [{"sample_every": 0}, {"sample_prompts": ()}, {"devices": 2}])
def test_without_samples_of_one_device_there_is_nothing_to_stop_by(changes):
    with pytest.raises(ValidationError, match="stop_early looks at the samples of a training on one device"):
        spec(**changes)
