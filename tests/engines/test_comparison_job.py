"""A comparison job run by its handler on a tiny FLUX: drawn figures are scored by the encoder that ships with the package."""

import shutil
from dataclasses import replace
from functools import partial

import pytest

from isengard.domain.evaluation import Candidate
from isengard.domain.identity import Box, ScorerKind, Sighting
from isengard.domain.job import JobKind, Phase
from isengard.equipment import equip
from isengard.errors import InvalidSpec, JobYielded, NotFound
from isengard.files import PARTIAL
from isengard.services.likeness import LikenessService
from isengard.store.comparisons import RECORD
from tests.comparisons import FEW, PROMPTS, drawn_app, new_run, write_checkpoints
from tests.engines.demo_model import Reports

STEPS = (2, 4)
PICTURES = (len(STEPS) + 1) * len(PROMPTS) * 2


@pytest.fixture(scope="module")
def loras(tmp_path_factory, tiny_flux):
    return write_checkpoints(tmp_path_factory.mktemp("run") / "checkpoints", tiny_flux, steps=STEPS)


def new_job(app, run, **overrides):
    job = app.comparison.submit(app.comparison.plan(run, **FEW | overrides))
    app.jobs.cancel(job.id)  # nobody waits for it: the handler is called by hand
    return job


def handler(app, generator):
    return replace(equip(app.settings, app).handlers[JobKind.EVALUATE_CHECKPOINTS], generator=generator)


@pytest.fixture(scope="module")
def first(tmp_path_factory, tiny_flux, loras, generator):
    """A whole comparison: its application, its run and the job's result."""
    app = drawn_app(tmp_path_factory.mktemp("first"), tiny_flux)
    run = new_run(app, loras)
    return app, run, handler(app, generator)(new_job(app, run), Reports())


@pytest.fixture
def app(tmp_path, tiny_flux):
    return drawn_app(tmp_path, tiny_flux)


@pytest.fixture
def run(app, loras):
    return new_run(app, loras)


@pytest.fixture
def compared(app, run, first):
    """The run has been compared already."""
    others, other_run, _ = first
    folder = app.settings.runs_dir / run / "comparison"
    shutil.copytree(others.settings.runs_dir / other_run / "comparison", folder)
    record = folder / RECORD
    record.write_text(record.read_text().replace(other_run, run))


@pytest.fixture
def compare(app, generator):
    return handler(app, generator)


@pytest.fixture
def submit(app, run):
    return partial(new_job, app, run)


def pictures(app, run):
    folder = app.settings.runs_dir / run / "comparison"
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.glob("*/*.png")}


def test_each_candidate_and_the_base_model_make_the_same_pictures_and_get_scores(first):
    app, run, result = first
    comparison = app.comparison.of_run(run)
    assert (result["pictures"], len(pictures(app, run))) == (PICTURES, PICTURES)
    assert comparison.complete
    assert [one.candidate.step for one in comparison.tested] == list(STEPS)
    keys = [(shot.prompt, shot.seed) for shot in comparison.reference.floor]
    assert all([(shot.prompt, shot.seed) for shot in one.shots] == keys for one in comparison.tested)
    assert result["reason"] == comparison.verdict.reason


def test_a_comparison_that_yields_goes_on_behind_the_last_picture(app, run, submit, compare):
    job = submit()
    with pytest.raises(JobYielded):
        compare(job, Reports(JobYielded(), lambda progress: progress.step == 2 * 11))
    before = pictures(app, run)
    reports = Reports()
    assert len(before) == 10  # those of the base model, and one pair
    assert compare(job, reports)["pictures"] == PICTURES - len(before)
    assert before.items() <= pictures(app, run).items()
    assert next(each for each in reports if each.phase is Phase.GENERATING).step == 2 * len(before) + 1
    assert reports[-1].step == reports[-1].total == 2 * PICTURES
    assert reports[-1].message == f"step 4 at 1: picture {PICTURES} of {PICTURES}"


def test_what_was_made_and_scored_is_neither_made_nor_scored_again(app, run, compared, submit, compare):
    before = app.comparison.of_run(run)
    result = compare(submit(), Reports())
    assert (result["pictures"], result["scoring_s"]) == (0, 0)
    assert app.comparison.of_run(run).tested == before.tested


def test_a_changed_prompt_makes_its_pictures_only_and_the_old_ones_go(app, run, compared, submit, compare):
    before = pictures(app, run)
    result = compare(submit(prompts=(*PROMPTS[:3], "[trigger] in a city")), Reports())
    after = pictures(app, run)
    assert result["pictures"] == PICTURES // 4
    assert (len(after), len(before.items() & after.items())) == (PICTURES, PICTURES - PICTURES // 4)


def test_another_strength_joins_the_table_and_other_prompts_begin_a_new_one(
    app, run, compared, submit, compare
):
    before, made = app.comparison.of_run(run), pictures(app, run)
    result = compare(submit(steps=(4,), strengths=(0.5,)), Reports())
    joined = app.comparison.of_run(run)
    assert result["pictures"] == 2 * len(PROMPTS)
    assert joined.tested[:-1] == before.tested
    assert joined.tested[-1].candidate == Candidate(step=4, strength=0.5)
    assert len(joined.verdict.scores) == len(STEPS) + 1
    assert made.items() <= pictures(app, run).items()
    compare(submit(steps=(4,), prompts=(*PROMPTS[:3], "[trigger] in a city")), Reports())
    assert [one.candidate for one in app.comparison.of_run(run).tested] == [Candidate(step=4, strength=1)]


def test_a_candidate_without_its_checkpoint_or_a_picture_leaves_the_table(
    app, run, compared, submit, compare
):
    (app.settings.runs_dir / run / "checkpoints" / "step-00000002" / "lora.safetensors").unlink()
    compare(submit(steps=(4,), strengths=(0.5,)), Reports())
    assert [one.candidate.step for one in app.comparison.of_run(run).tested] == [4, 4]
    app.comparison.picture(run, Candidate(step=4, strength=1), prompt=0, seed=3).unlink()
    compare(submit(steps=(4,), strengths=(0.7,)), Reports())
    strengths = [one.candidate.strength for one in app.comparison.of_run(run).tested]
    assert strengths == [0.5, 0.7]


def test_other_photos_are_measured_against_anew_without_new_pictures(app, run, compared, submit, compare):
    former = app.comparison.of_run(run)
    app.characters.remove_image("marisol", app.characters.get("marisol").images[0].id)
    assert compare(submit(), Reports())["pictures"] == 0
    assert app.comparison.of_run(run).reference.ceiling != former.reference.ceiling


def test_seeds_that_are_not_in_a_row_are_made_one_by_one(app, run, submit, compare):
    compare(submit(seeds=(9, 3), steps=(2,)), Reports())
    files = {
        app.comparison.picture(run, Candidate(step=2, strength=1), prompt=0, seed=seed) for seed in (3, 9)
    }
    assert len({file.read_bytes() for file in files}) == 2


def test_the_result_so_far_is_there_before_the_end(app, run, submit, compare):
    with pytest.raises(JobYielded):
        compare(submit(), Reports(JobYielded(), lambda progress: progress.message.startswith("step 4")))
    comparison = app.comparison.of_run(run)
    assert (comparison.complete, [one.candidate.step for one in comparison.tested]) == (False, [2])


def test_what_a_killed_worker_left_unfinished_goes(app, run, compared, submit, compare):
    job = submit()
    left = app.settings.runs_dir / run / "comparison" / "base" / f"x.png{PARTIAL}1"
    left.touch()
    compare(job, Reports())
    assert not left.exists()
    assert not (app.settings.runs_dir / job.id).exists()


def test_a_checkpoint_that_went_away_is_named(app, run, submit, compare):
    job = submit()
    (app.settings.runs_dir / run / "checkpoints" / "step-00000004" / "lora.safetensors").unlink()
    with pytest.raises(NotFound, match=f"the checkpoint of step 4 of training '{run}' is gone"):
        compare(job, Reports())


def test_a_character_whose_photos_show_nobody_is_not_compared(app, submit, compare):
    for image in app.characters.get("marisol").images:
        app.characters.remove_image("marisol", image.id)
    with pytest.raises(InvalidSpec, match="no photo shows the character"):
        compare(submit(), Reports())


class Shy:
    """An `IdentityScorer` that sees everybody in photos and nobody in made pictures."""

    def find(self, images):
        everywhere = Box(left=0, top=0, width=64, height=64)
        seen = (Sighting(box=everywhere, embedding=(1.0, 0.0)),)
        return [() if "comparison" in str(image.filename) else seen for image in images]


def test_where_nothing_can_be_known_no_checkpoint_makes_a_picture(app, run, submit, generator):
    likeness = LikenessService(
        characters=app.characters, scorers=lambda _: Shy(), cache_dir=app.settings.cache_dir
    )
    app = replace(app, likeness=likeness)
    result = handler(app, generator)(submit(), Reports())
    comparison = app.comparison.of_run(run)
    assert result["pictures"] == len(PROMPTS) * 2
    assert (comparison.complete, comparison.tested, comparison.scorer) == (True, (), ScorerKind.DRAWN_FIGURES)
    assert comparison.verdict.reason.startswith("the base model's pictures show nobody")


class Judge:
    """A `PromptJudge` that likes one prompt more than the others."""

    def follow(self, images, prompts):
        assert len(images) == len(prompts) == 2 * len(PROMPTS)
        return [0.2 + 0.1 * (prompt == "sks sad") for prompt in prompts]


def test_with_a_clip_it_is_told_how_well_prompts_are_followed(app, run, compared, submit, compare):
    assert app.comparison.of_run(run).adherence is None
    replace(compare, judge=Judge)(submit(), Reports())
    comparison = app.comparison.of_run(run)
    assert [one.adherence for one in comparison.tested] == pytest.approx([0.225, 0.225])
    assert comparison.followed(Candidate(step=2, strength=1)) == pytest.approx(1)
    assert comparison.followed(Candidate(step=3, strength=1)) is None
