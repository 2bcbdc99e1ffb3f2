"""``python -m isengard compare``: which checkpoint, at what strength, looks like the character."""

from collections.abc import Iterator
from typing import Annotated

import typer
from rich.table import Table

from isengard.cli.common import application, err, out, print_json
from isengard.cli.follow import duration, finish, working
from isengard.cli.train import AsJson, Detach, Settings, parsed
from isengard.domain.comparison import Comparison, ComparisonSpec
from isengard.errors import NotFound
from isengard.wiring import Application

FAULTS = {
    "no_effect": "no effect on the likeness",
    "overcooked": "overcooked: pictures broken or all the same",
    "copying": "copies training photos",
}


def compare(
    context: typer.Context,
    run: Annotated[str, typer.Argument(help="Job id of a training; see: jobs list")],
    *,
    settings: Settings = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show what would be made, and end.")] = False,
    last: Annotated[bool, typer.Option("--last", help="Show the newest result, and make nothing.")] = False,
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Find the checkpoint and the strength that look most like the character.

      python -m isengard compare JOB_ID

      python -m isengard compare JOB_ID --set "strengths=[0.7, 0.85, 1]" --set "steps=[500, 1000]"

    Each checkpoint makes the same pictures, and so does the base model without the LoRA. 0 % is as like as the base
    model's pictures, 100 % as like as the photos are to each other. A picture that is there is not made again, and what
    was compared before with the same prompts and settings stays in the table.
    """
    app = application(context)
    app.volume.same()
    if not last:
        spec = app.comparison.plan(run, **parsed(settings or []))
        if plan:
            print_json(spec.model_dump(mode="json"))
            return
        if not as_json:
            err.print(_announced(app, spec))
        job = app.comparison.submit(spec)
        if detach:
            print_json({"job": job.id}) if as_json else out.print(job.id)
            return
        with working(app):
            finish(app, job.id)
    comparison = app.comparison.of_run(run)
    if comparison is None:
        raise NotFound(f"the checkpoints of {run!r} were not compared yet; leave out --last to compare them")
    _show(comparison, as_json=as_json)


def _announced(app: Application, spec: ComparisonSpec) -> str:
    missing, seconds = app.comparison.missing(spec), app.comparison.seconds(spec)
    said = f"{spec.pictures} pictures: {len(spec.candidates)} candidates and the base model, {len(spec.prompts)} prompts,"
    said += f" {len(spec.seeds)} seeds"
    if missing < spec.pictures:
        said += f"; {missing} of them are still to be made"
    return said + (f"; about {duration(seconds)}" if seconds else "")


def _show(comparison: Comparison, *, as_json: bool) -> None:
    if as_json:
        print_json(comparison.model_dump(mode="json"))
        return
    table = Table(box=None)
    followed = ["Prompt"] if comparison.adherence is not None else []
    for title in ("Step", "Strength", "Likeness (95 %)", "Nobody", "Copied", "Variety", *followed, ""):
        table.add_column(title, justify="left" if not title else "right")
    for row in _rows(comparison):
        table.add_row(*row)
    if comparison.verdict.scores:
        out.print(table)
    out.print(comparison.verdict.reason)
    if not comparison.complete:
        err.print("not all candidates were tested yet")


def _rows(comparison: Comparison) -> Iterator[tuple[str, ...]]:
    for score in comparison.verdict.scores:
        followed = comparison.followed(score.candidate)
        chosen = score.candidate == comparison.verdict.recommended
        said = [*(["recommended"] if chosen else []), *(FAULTS[fault] for fault in score.faults)]
        yield (
            str(score.candidate.step),
            f"{score.candidate.strength:g}",
            f"{score.value:.0%} ({100 * score.low:.0f} to {score.high:.0%})",
            f"{score.faceless:.0%}",
            f"{score.copied:.0%}",
            f"{score.variety:.0%}",
            *([] if followed is None else [f"{followed:.0%}"]),
            "; ".join(said),
        )
