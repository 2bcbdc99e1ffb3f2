"""Steps per second and peak memory of our trainer beside a textbook's loop.

Each loop runs in its own fresh process, by turns (ours, textbook, ours, ...), so that a change of the machine's mood
meets both. Loading, encoding and the first steps are not timed. Run it as ``python -m benchmarks.train_step``.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from rich.table import Table

from benchmarks.process import fresh, shown
from benchmarks.task import WARM_UP, Measured, Task
from isengard.domain.base import Frozen
from isengard.domain.training import Precision

LOOPS = ("ours", "textbook")


class Round(Frozen):
    """One pair of processes."""

    ours: Measured
    textbook: Measured

    @property
    def ratio(self) -> float:
        """Our speed by the textbook's; above 1 ours is faster."""
        return median(self.textbook.seconds) / median(self.ours.seconds)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    task = Task(steps=options.steps, precision=options.precision)
    if options.only:
        print(measure(options.only, task).model_dump_json())
        return
    rounds = []
    for _ in range(options.rounds):
        rounds.append(measure_both(task))
        print(table(rounds[-1:], title=f"round {len(rounds)} of {options.rounds}"))
    print(
        table(rounds, title=f"all rounds, {task.steps} steps of {task.batch_size} images, {task.precision}")
    )
    print(f"ours by textbook, steps per second: {', '.join(f'{one.ratio:.3f}' for one in rounds)}")
    if options.json:
        result = {"task": task.model_dump(mode="json"), "rounds": [one.model_dump() for one in rounds]}
        options.json.write_text(json.dumps(result, indent=2), encoding="utf-8")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__)
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of each process (default: 60)")
    parser.add_argument("--rounds", type=int, default=3, help="pairs of processes (default: 3)")
    parser.add_argument("--precision", type=Precision, choices=list(Precision), default=Precision.FP32)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results to this file")
    parser.add_argument("--only", choices=LOOPS, help="measure one loop in this process and print JSON")
    options = parser.parse_args(arguments)
    if options.steps <= WARM_UP:
        parser.error(f"--steps must be more than the {WARM_UP} that are not timed, got {options.steps}")
    if options.rounds < 1:
        parser.error(f"--rounds must be 1 or more, got {options.rounds}")
    return options


def measure(loop: str, task: Task) -> Measured:
    """Train in this process; each loop imports only what it needs."""
    if loop == "ours":
        from benchmarks.ours import train
    else:
        from benchmarks.textbook import train
    return train(task)


def measure_both(task: Task) -> Round:
    options = ["--steps", str(task.steps), "--precision", task.precision]
    results = {loop: fresh("benchmarks.train_step", ["--only", loop, *options]) for loop in LOOPS}
    both = Round.model_validate(results)
    if both.ours.parameters != both.textbook.parameters:
        raise SystemExit(
            f"the loops train different adapters: {both.ours.parameters} and {both.textbook.parameters} parameters"
        )
    return both


def table(rounds: Sequence[Round], *, title: str) -> str:
    """Return medians over all timed steps, and the highest peak."""
    result = Table(title=title, title_justify="left")
    for heading in ("loop", "s/step", "steps/s", "peak MiB"):
        result.add_column(heading, justify="left" if heading == "loop" else "right")
    for loop in LOOPS:
        found: list[Measured] = [getattr(one, loop) for one in rounds]
        seconds = median(second for one in found for second in one.seconds)
        peak = max(one.peak_bytes for one in found) / 2**20
        result.add_row(loop, f"{seconds:.4f}", f"{1 / seconds:.2f}", f"{peak:.0f}")
    return shown(result)


if __name__ == "__main__":
    main()
