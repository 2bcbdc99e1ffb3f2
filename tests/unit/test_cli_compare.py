"""``compare`` on the command line: what it would make, what it queues, and how it shows what came of it."""

import json

import pytest
from typer.testing import CliRunner

from isengard.cli import app as commands
from isengard.domain.comparison import Comparison
from isengard.domain.evaluation import Candidate, Fault, Reference, Score, Verdict
from isengard.domain.identity import ScorerKind
from isengard.domain.job import JobKind
from isengard.services.training import payload
from isengard.wiring import build
from tests.tiny_app import tiny_settings

CHOICE = {"character_id": "mira", "base_model": "tiny", "preset": "quick", "overrides": {}}


@pytest.fixture
def app(tmp_path, tiny_flux):
    made = build(tiny_settings(tmp_path, tiny_flux))
    made.characters.create("Mira", trigger="ohwx")
    return made


@pytest.fixture
def run(app):
    """A training with one checkpoint."""
    job_id = app.queue.enqueue(JobKind.TRAIN_LORA, payload(app.training.plan(**CHOICE), (), "Mira")).id
    app.jobs.cancel(job_id)
    path = app.settings.runs_dir / job_id / "checkpoints" / "step-00000002" / "lora.safetensors"
    path.parent.mkdir(parents=True)
    path.touch()
    return job_id


@pytest.fixture
def call(app, monkeypatch):
    monkeypatch.setenv("ISENGARD_CONFIGS_DIR", str(app.settings.configs_dir))

    def invoke(*words):
        folder = str(app.settings.data_dir)
        return CliRunner().invoke(commands, ["--data-dir", folder, "--worker", "none", "compare", *words])

    return invoke


@pytest.fixture
def compared(app, run):
    """What came of the first of two candidates, and of both."""

    def score(strength, *faults):
        return Score(
            candidate=Candidate(step=2, strength=strength),
            value=0.62, low=0.5, high=0.75, faceless=0.25, copied=0, variety=0.9, faults=faults,
        )  # fmt: skip

    comparison = Comparison(
        spec=app.comparison.plan(run),
        scorer=ScorerKind.FACES,
        reference=Reference(ceiling=(0.8,), twins=0.5, floor=()),
        tested=(),
        verdict=Verdict(
            scores=(score(1.0), score(0.8, Fault.COPYING)),
            recommended=Candidate(step=2, strength=1.0),
            reason="step 2 at strength 1 is the most like the photos",
        ),
        complete=False,
        made_at=1.0,
    )
    path = app.settings.runs_dir / run / "comparison" / "comparison.json"
    path.parent.mkdir()
    path.write_text(comparison.model_dump_json())


def test_a_plan_says_what_would_be_made_and_queues_nothing(app, run, call):
    ended = call(run, "--plan", "--set", "strengths=[0.7]")
    assert (ended.exit_code, json.loads(ended.stdout)["strengths"]) == (0, [0.7])
    assert not app.jobs.jobs(kinds=[JobKind.EVALUATE_CHECKPOINTS])


def test_a_detached_comparison_is_queued_and_its_size_told(app, run, call):
    ended = call(run, "--detach")
    (job,) = app.jobs.jobs(kinds=[JobKind.EVALUATE_CHECKPOINTS])
    assert ended.stdout.strip() == job.id
    assert "48 pictures: 2 candidates and the base model, 8 prompts, 2 seeds" in ended.stderr


def test_a_detached_comparison_for_a_program_is_one_document(app, run, call):
    ended = call(run, "--detach", "--json")
    assert app.jobs.get(json.loads(ended.output)["job"]).kind is JobKind.EVALUATE_CHECKPOINTS


def test_the_last_result_is_a_table_with_the_recommended_one_named(run, compared, call):
    ended = call(run, "--last")
    first, second = (line.split() for line in ended.stdout.splitlines()[1:3])
    assert first == ["2", "1", "62%", "(50", "to", "75%)", "25%", "0%", "90%", "recommended"]
    assert second[-2:] == ["copies", "training"]
    assert "step 2 at strength 1 is the most like the photos" in ended.stdout
    assert "not all candidates were tested yet" in ended.stderr


def test_the_last_result_for_a_program_is_one_document(run, compared, call):
    assert json.loads(call(run, "--last", "--json").output)["verdict"]["recommended"]["step"] == 2


def test_without_a_result_the_way_to_one_is_said(run, call):
    ended = call(run, "--last")
    assert ended.exit_code == 1
    assert "were not compared yet; leave out --last" in ended.output


def test_the_list_of_jobs_says_what_is_compared(app, run, call):
    call(run, "--detach")
    listed = CliRunner().invoke(commands, ["--data-dir", str(app.settings.data_dir), "jobs", "list"])
    assert f"comparison of {run}" in " ".join(listed.output.split())
