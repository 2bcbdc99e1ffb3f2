"""Does the comparison of checkpoints choose well? On characters that the demo model has never seen.

Each is drawn, trained for too long through the app, and its checkpoints are compared as a user would have it done. Then
every checkpoint makes pictures of other prompts and seeds: the truth. The recommended checkpoint is set beside the last
one and those of the lowest training and validation loss. Run it as ``python -m benchmarks.identity --data FOLDER``: what
the folder holds already is not made again.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.identity_cases import CASES, Case, character_of, training_of
from benchmarks.identity_truth import INFERENCE_STEPS, Painter
from isengard.cli.follow import finish, working
from isengard.domain.base import Frozen
from isengard.domain.comparison import Comparison
from isengard.domain.evaluation import Candidate, Reference, Score, Shot, evaluate
from isengard.errors import IsengardError
from isengard.settings import Settings
from isengard.wiring import Application, build, loras_of

STRENGTH = 1.0


class Choice(Frozen):
    """A checkpoint, who chose it, and what it is worth in truth."""

    way: str
    score: Score
    is_best: bool
    within: bool
    """Not below the interval of the best checkpoint."""


class Result(Frozen):
    """What came of one character."""

    character: str
    reason: str
    compared: tuple[Score, ...]
    truth: tuple[Score, ...]
    choices: tuple[Choice, ...]
    scoring_share: float | None
    """Seconds of scoring, as a part of those of making the pictures; None when none were made this time."""


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    app = build(Settings.load(data_dir=options.data))
    results = [measure(app, case) for case in CASES]
    console = Console(width=110)
    console.print(table(results))
    for result in results:
        console.print(curve(result))
    if options.json:
        documents = [result.model_dump(mode="json") for result in results]
        options.json.write_text(json.dumps(documents, indent=2) + "\n", encoding="utf-8")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.identity", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("build/identity"), help="a data folder of its own")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to this file")
    return parser.parse_args(arguments)


def measure(app: Application, case: Case) -> Result:
    """Train, compare and find the truth, as far as that is not done. Raises: IsengardError when a job fails."""
    with working(app):
        run = training_of(app, case)
        finish(app, run)
        comparison, share = compared(app, run)
    truth = true_scores(app, case, run)
    return Result(
        character=case.name,
        reason=comparison.verdict.reason,
        compared=comparison.verdict.scores,
        truth=truth,
        choices=tuple(choices(app, run, comparison, truth)),
        scoring_share=share,
    )


def compared(app: Application, run: str) -> tuple[Comparison, float | None]:
    """The comparison of all checkpoints, by the app's own prompts and seeds."""
    steps = tuple(app.jobs.checkpoints(run))
    spec = app.comparison.plan(run, steps=steps, strengths=(STRENGTH,), num_inference_steps=INFERENCE_STEPS)
    result = finish(app, app.comparison.submit(spec).id).result or {}
    comparison = app.comparison.of_run(run)
    if comparison is None:
        raise IsengardError(f"the comparison of {run} left nothing behind")
    return comparison, result["scoring_s"] / result["making_s"] if result["pictures"] else None


def true_scores(app: Application, case: Case, run: str) -> tuple[Score, ...]:
    """Each checkpoint by pictures of fresh prompts and seeds."""
    loras, model = loras_of(app.settings), app.weights.locate(app.catalog.model("demo"))
    painter = Painter(model=model, loras=loras, folder=app.settings.data_dir / "fresh")
    portrait = app.likeness.portrait(character_of(app, case))
    candidates = [Candidate(step=step, strength=STRENGTH) for step in app.jobs.checkpoints(run)]

    def shots(candidate: Candidate | None) -> list[Shot]:
        made = list(painter.pictures(loras.get(run), candidate))
        scores = app.likeness.score(portrait, [path for _, _, path in made])
        return [
            Shot(prompt=prompt, seed=seed, likeness=score, nearest=-1)
            for (prompt, seed, _), score in zip(made, scores, strict=True)
        ]

    reference = Reference(ceiling=portrait.ceiling, twins=1, floor=tuple(shots(None)))
    return evaluate(reference, {candidate: shots(candidate) for candidate in candidates}).scores


def choices(app: Application, run: str, comparison: Comparison, truth: Sequence[Score]) -> list[Choice]:
    """What each way to choose would have taken."""
    best = max(truth, key=lambda score: score.value)
    by_step = {score.candidate.step: score for score in truth}
    recommended = comparison.verdict.recommended
    ways = {
        **({"recommended": recommended.step} if recommended else {}),
        "last checkpoint": max(by_step),
        "lowest training loss": lowest_training_loss(app, run, sorted(by_step)),
        "lowest validation loss": int((app.jobs.get(run).result or {})["best_step"]),
        "best in truth": best.candidate.step,
    }
    return [
        Choice(
            way=way,
            score=by_step[step],
            is_best=step == best.candidate.step,
            within=by_step[step].value >= best.low,
        )
        for way, step in ways.items()
    ]


def lowest_training_loss(app: Application, run: str, steps: Sequence[int]) -> int:
    """The checkpoint whose last steps, since the one before, had the lowest mean loss."""
    losses = {row["step"]: row["loss"] for row in app.jobs.metrics(run) if "loss" in row}
    before = [0, *steps[:-1]]

    def mean(place: int) -> float:
        return fmean(losses[step] for step in range(before[place] + 1, steps[place] + 1))

    return steps[min(range(len(steps)), key=mean)]


def table(results: Sequence[Result]) -> Table:
    found = Table(title="Likeness on fresh prompts and seeds: 0 as the base model, 1 as the photos")
    for column in ("character", "chosen by", "step", "likeness", "95 %", "within the best's interval"):
        found.add_column(column)
    for result in results:
        for choice in result.choices:
            score = choice.score
            found.add_row(
                result.character,
                choice.way,
                str(score.candidate.step),
                f"{score.value:.3f}",
                f"{score.low:.3f} to {score.high:.3f}",
                "yes" if choice.within else "no",
            )
        found.add_section()
    return found


def curve(result: Result) -> Table:
    """Each checkpoint, as the comparison saw it and in truth."""
    shares = "" if result.scoring_share is None else f"; scoring took {result.scoring_share:.1%} of making"
    found = Table(title=f"{result.character}: {result.reason}{shares}")
    for column in ("step", "compared", "95 %", "in truth", "95 %", "copied", "faults"):
        found.add_column(column)
    truth: Mapping[Any, Score] = {score.candidate: score for score in result.truth}
    for score in result.compared:
        true = truth[score.candidate]
        found.add_row(
            str(score.candidate.step),
            f"{score.value:.3f}",
            f"{score.low:.3f} to {score.high:.3f}",
            f"{true.value:.3f}",
            f"{true.low:.3f} to {true.high:.3f}",
            f"{score.copied:.0%}",
            ", ".join(score.faults),
        )
    return found


if __name__ == "__main__":
    main()
