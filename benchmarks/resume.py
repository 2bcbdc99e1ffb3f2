"""Seconds from the start of a fresh process to its first new step: with a checkpoint to go on from, and without.

``resumed`` finds a checkpoint and everything encoded; ``cold`` finds nothing. By turns, each in a fresh process.
Run it as ``python -m benchmarks.resume``.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from statistics import median

from rich.table import Table

from benchmarks.process import fresh, shown
from benchmarks.task import Task
from isengard.domain.job import Phase, Progress, Requests
from isengard.errors import JobPaused, LeaseLost

#: What a start consists of, in order.
PARTS = ("import", "encode", "load", "restore", "step")
STARTS = ("resumed", "cold")
CHECKPOINT = 3
#: By the names of `PARTS`.
Seconds = dict[str, float]


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.start:
        print(json.dumps(measure(options.start, spawned=options.spawned)))
        return
    rounds: list[dict[str, Seconds]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_checkpoint(folder / "prepared")
        for number in range(options.rounds):
            resumed = shutil.copytree(folder / "prepared", folder / f"resumed-{number}")
            rounds.append({"resumed": spawn(resumed), "cold": spawn(folder / f"cold-{number}")})
    print(table(rounds))
    if options.json:
        options.json.write_text(json.dumps({"rounds": rounds}, indent=2), encoding="utf-8")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.resume", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="pairs of processes (default: 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results to this file")
    parser.add_argument("--start", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    parser.add_argument("--spawned", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds must be 1 or more, got {options.rounds}")
    return options


def make_checkpoint(folder: Path) -> None:
    """Train a few steps and pause, as a user would."""

    def report(progress: Progress) -> Requests:
        if progress.phase is Phase.TRAINING and progress.step == CHECKPOINT:
            raise JobPaused
        return Requests()

    with suppress(JobPaused):
        train(folder, report)


def spawn(folder: Path) -> Seconds:
    result: Seconds = fresh("benchmarks.resume", ["--start", str(folder), "--spawned", repr(time.time())])
    return result


def measure(folder: Path, *, spawned: float) -> Seconds:
    """Train in this process until one new step is done; return the seconds of each part.

    Args:
        folder: Empty, or with a checkpoint.
        spawned: ``time.time()`` when this process was asked for.
    """
    marks = {"spawned": spawned}
    steps: list[int] = []

    def report(progress: Progress) -> Requests:
        if progress.phase is Phase.LOADING:
            ended = {"loading transformer": "encode", "loading adapter": "load"}.get(
                progress.message, "import"
            )
            marks.setdefault(ended, time.time())
        if progress.phase is Phase.TRAINING:
            marks["step" if steps else "restore"] = time.time()
            steps.append(progress.step)
            if progress.step > steps[0]:
                raise LeaseLost("one new step is enough")
        return Requests()

    with suppress(LeaseLost):
        train(folder, report)
    times = [marks[name] for name in ("spawned", *PARTS)]
    return {part: after - before for part, (before, after) in zip(PARTS, pairwise(times), strict=True)}


def train(folder: Path, report: Callable[[Progress], Requests]) -> None:
    from benchmarks.ours import run  # imports torch; part of what is measured

    run(Task(steps=100), run_dir=folder / "run", cache_dir=folder / "cache", report=report)


def table(rounds: Sequence[dict[str, Seconds]]) -> str:
    """Return the median seconds of each part of each start."""
    result = Table(title="seconds to the first new step, median", title_justify="left")
    for heading in ("start", *PARTS, "in all"):
        result.add_column(heading, justify="left" if heading == "start" else "right")
    for start in STARTS:
        parts = [median(one[start][part] for one in rounds) for part in PARTS]
        total = median(sum(one[start].values()) for one in rounds)
        result.add_row(start, *(f"{seconds:.2f}" for seconds in [*parts, total]))
    return shown(result)


if __name__ == "__main__":
    main()
