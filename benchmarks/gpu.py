"""FLUX.1-dev at full size on this GPU, with random weights: training steps and images, setting by setting.

Nothing is downloaded and no large file is written. Beside torch, transformers, peft and accelerate it needs diffusers and
pydantic. Each case runs in a fresh process; results go to a file case by case, and a case that is in it is not run again, so
the work can be cut into pieces:

    python -m benchmarks.gpu --minutes 9     (again and again, until it says that nothing is left)
    python -m benchmarks.gpu --table         (writes the table into docs/performance.md)
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field
from rich.table import Table

from benchmarks.gpu_cases import (
    CASES,
    GENERATE,
    IMAGE_SIDE,
    SIDES,
    TRAIN,
    Case,
    Measured,
    Result,
    floor_flops,
)
from benchmarks.process import shown
from benchmarks.random_flux import Shape
from isengard.domain.base import Frozen
from isengard.errors import IsengardError
from isengard.files import write_text
from isengard.settings import ROOT

DOCS = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- gpu table -->", "<!-- end of gpu table -->"
#: A case that takes longer is given up.
CASE_S = 420
TERA = 1e12


class Results(Frozen):
    """All that is known of one card on one day."""

    device: str
    torch: str
    diffusers: str
    date: str
    shape: Shape
    matmul_tflops: float = Field(description="measured: bf16, 8192 x 8192 x 8192, random values")
    results: tuple[Result, ...] = ()


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if options.only:
        print(measure(next(case for case in CASES if case.key == options.only), options).model_dump_json())
    elif options.about:
        print(json.dumps(about_the_device()))
    elif options.table:
        results = Results.model_validate_json(newest(options).read_text(encoding="utf-8"))
        write_text(DOCS, with_table(DOCS.read_text(encoding="utf-8"), markdown(results)))
    else:
        run(options)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    full = Shape()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="start no case after this time (default: 9)"
    )
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="default: benchmarks/results/<card>-<date>.json"
    )
    parser.add_argument(
        "--cases", metavar="WORDS", default="", help="only cases whose name has these words in it"
    )
    parser.add_argument("--steps", type=int, default=12, help="of a training that are timed (default: 12)")
    parser.add_argument("--sides", type=int, nargs="+", default=list(SIDES), help="pixels a training sees")
    parser.add_argument("--image-side", type=int, default=IMAGE_SIDE)
    parser.add_argument(
        "--table", action="store_true", help="write the newest results into docs/performance.md"
    )
    sizes = [full.layers, full.single_layers]
    parser.add_argument("--layers", type=int, nargs=2, default=sizes, help="blocks of both kinds")
    parser.add_argument("--heads", type=int, default=full.heads)
    parser.add_argument("--only", help=argparse.SUPPRESS)  # of the child processes
    parser.add_argument("--about", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"--steps must be 1 or more, got {options.steps}")
    if not options.table and shape(options) == full and not has_gpu():
        parser.error(
            "this machine has no CUDA device; `--layers 1 1 --heads 1 --sides 64 --image-side 64` tries it out on the CPU"
        )
    return options


def shape(options: argparse.Namespace) -> Shape:
    layers, single_layers = options.layers
    return Shape(layers=layers, single_layers=single_layers, heads=options.heads)


def has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


# The whole


def run(options: argparse.Namespace) -> None:
    """Measure what the results file lacks, as long as there is time."""
    ends = time.monotonic() + options.minutes * 60
    about: dict[str, Any] = json.loads(child(options, ["--about"], timeout=CASE_S).splitlines()[-1])
    path = options.results or results_file(about["device"])
    found = (
        Results.model_validate_json(path.read_text(encoding="utf-8"))
        if path.exists()
        else Results(**about, date=datetime.now(UTC).date().isoformat(), shape=shape(options))
    )
    done = {result.case.key for result in found.results}
    wanted = [case for case in CASES if case.key not in done and options.cases in case.key]
    while wanted and time.monotonic() < ends:
        result = attempt(wanted.pop(0), options)
        print(row_in_words(result), flush=True)
        found = found.model_copy(update={"results": (*found.results, result)})
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, found.model_dump_json(indent=1))
    print(table(found))
    print(
        f"results in {path}; "
        + (f"{len(wanted)} cases are left: run it again" if wanted else "nothing is left")
    )


def results_file(device: str) -> Path:
    day = datetime.now(UTC).date().isoformat()
    return ROOT / "benchmarks" / "results" / f"{device.lower().replace(' ', '-')}-{day}.json"


def newest(options: argparse.Namespace) -> Path:
    if options.results:
        return Path(options.results)
    found = sorted((ROOT / "benchmarks" / "results").glob("*.json"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise SystemExit("there are no results in benchmarks/results yet; run this without --table first")
    return found[-1]


def attempt(case: Case, options: argparse.Namespace) -> Result:
    """Run a case in a process of its own; whatever ends it is the reason that it has no numbers."""
    try:
        said = child(options, ["--only", case.key], timeout=CASE_S)
    except subprocess.TimeoutExpired:
        return Result(case=case, refused=f"took more than {CASE_S} s")
    except subprocess.CalledProcessError as error:
        lines = str(error.stderr).strip().splitlines() or [f"ended with {error.returncode}"]
        return Result(case=case, refused=lines[-1][:300])
    return Result.model_validate_json(said.splitlines()[-1])


def child(options: argparse.Namespace, arguments: Sequence[str], *, timeout: float) -> str:
    handed_on = [
        "--layers",
        *map(str, options.layers),
        "--heads",
        str(options.heads),
        "--steps",
        str(options.steps),
    ]
    handed_on += ["--image-side", str(options.image_side), "--sides", *map(str, options.sides)]
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments, *handed_on]
    return subprocess.run(  # noqa: S603  # our own module
        command, capture_output=True, text=True, check=True, timeout=timeout, cwd=ROOT
    ).stdout


# In the child process


def about_the_device() -> dict[str, Any]:
    """The card, the packages, and what the card's matrix units reach."""
    import diffusers
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    side, rounds = (8192, 20) if on_gpu else (256, 3)
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    if on_gpu:
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(rounds):
        a @ b
    if on_gpu:
        torch.cuda.synchronize()
    rate = rounds * 2 * side**3 / (time.perf_counter() - began)
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "matmul_tflops": float(f"{rate / TERA:.3g}"),
    }


def measure(case: Case, options: argparse.Namespace) -> Result:
    """All sizes of one case; a setting that cannot be used here is no failure."""
    import torch

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    rows: list[Measured] = []
    try:
        if case.kind == TRAIN:
            from benchmarks.gpu_training import measure as train

            for side in options.sides:
                rows += [train(case, side=side, steps=options.steps, shape=shape(options), device=device)]
        else:
            from benchmarks.gpu_generation import measure as generate

            rows.append(generate(case, side=options.image_side, shape=shape(options), device=device))
    except IsengardError as error:
        return Result(case=case, rows=tuple(rows), refused=str(error))
    return Result(case=case, rows=tuple(rows))


# What is shown


def row_in_words(result: Result) -> str:
    figures = ", ".join(f"{row.side} px {row.seconds:.3f} s" for row in result.rows)
    return f"{result.case.key}: {figures}" + (f" ({result.refused})" if result.refused else "")


def cells(found: Results) -> list[list[str]]:
    """Kind, case, side, seconds, images a minute, share of the matmul rate, peak, first, swap; a row a size."""
    lines = []
    for result in found.results:
        for row in result.rows:
            rate = floor_flops(result.case, row.side, found.shape) / row.seconds / TERA
            per_minute = f"{60 / row.seconds:.1f}" if result.case.kind == GENERATE else ""
            swap = "" if row.swap_s is None else f"{row.swap_s:.2f}"
            lines.append(
                [
                    result.case.kind, result.case.name, str(row.side), f"{row.seconds:.3f}", per_minute,
                    f"{rate / found.matmul_tflops:.0%}", f"{row.peak_bytes / 2**30:.1f}", f"{row.first_s:.0f}", swap,
                ]
            )  # fmt: skip
        if result.refused:
            lines.append([result.case.kind, result.case.name, "", f"none: {result.refused}", *[""] * 5])
    return lines


HEADINGS = ("", "setting", "px", "s", "images/min", "of matmul", "peak GiB", "first s", "swap s")


def title(found: Results) -> str:
    return (
        f"{found.device}, torch {found.torch}, diffusers {found.diffusers}, {found.date};"
        f" bf16 matmul {found.matmul_tflops:g} TFLOP/s"
    )


def table(found: Results) -> str:
    result = Table(title=title(found), title_justify="left", box=None)
    for number, heading in enumerate(HEADINGS):
        result.add_column(heading, justify="left" if number < 2 else "right")
    for line in cells(found):
        result.add_row(*line)
    return shown(result, width=140)


def markdown(found: Results) -> str:
    lines = [f"{title(found)}.", "", f"| {' | '.join(HEADINGS)} |", "|---" * len(HEADINGS) + "|"]
    return "\n".join(lines + [f"| {' | '.join(line)} |" for line in cells(found)])


def with_table(document: str, text: str) -> str:
    """Put the table between its two marks. Raises: SystemExit when they are missing."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{DOCS} has no place for the table: {BEGIN} and {END} are missing")
    return f"{before}{BEGIN}\n\n{text}\n\n{END}{after}"


if __name__ == "__main__":
    main()
