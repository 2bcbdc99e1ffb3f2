"""The page: seconds until it answers, and what 40 viewers cost it and a running training.

Starts are fresh processes with a fresh data folder. Viewers ask for the header's state as the page's script does, every
1.2 seconds; the training's speed is taken by turns without and with them, in one run.
Run it as ``python -m benchmarks.page``.
"""

import argparse
import asyncio
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx
from gradio_client import Client, handle_file
from rich.table import Table

from benchmarks.process import shown
from isengard.settings import ASSETS, ROOT

POLL_EVERY_S = 1.2
PATIENCE_S = 120.0
EXAMPLE = ASSETS / "characters" / "nova"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    parser.add_argument("--starts", type=int, default=5, help="fresh starts (default: 5)")
    parser.add_argument("--viewers", type=int, default=40, help="(default: 40)")
    parser.add_argument("--rounds", type=int, default=3, help="turns without and with viewers (default: 3)")
    parser.add_argument("--seconds", type=float, default=15, help="of each turn (default: 15)")
    options = parser.parse_args(arguments)
    starts = [start() for _ in range(options.starts)]
    table = Table("start", "seconds")
    table.add_row("median", f"{median(starts):.2f}")
    table.add_row("slowest", f"{max(starts):.2f}")
    print(shown(table))
    if options.rounds:
        print(shown(viewed(options.viewers, options.rounds, options.seconds)))


def start() -> float:
    """Seconds from the start of ``python app.py`` to its first answer."""
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), worker="none") as (_, seconds):
        return seconds


def viewed(viewers: int, rounds: int, seconds: float) -> Table:
    """Measure a training and the page by turns without and with viewers."""
    speeds: dict[bool, list[float]] = {False: [], True: []}
    answers: list[float] = []
    with tempfile.TemporaryDirectory() as name, running(Path(name), worker="process") as (url, _):
        metrics = Path(name) / "runs" / train(url) / "metrics.jsonl"
        wait_for_steps(metrics, 20)
        for _ in range(rounds):
            for watched in (False, True):
                before, began = steps(metrics), time.monotonic()
                if watched:
                    answers += asyncio.run(watch(url, viewers, seconds))
                else:
                    time.sleep(seconds)
                speeds[watched].append((steps(metrics) - before) / (time.monotonic() - began))
    table = Table("", "no viewer", f"{viewers} viewers", "ratio")
    alone, together = median(speeds[False]), median(speeds[True])
    table.add_row("steps/s", f"{alone:.2f}", f"{together:.2f}", f"{together / alone:.0%}")
    table.add_row("answer, median s", "", f"{median(answers):.3f}", "")
    table.add_row("answer, 95th percentile s", "", f"{quantiles(answers, n=20)[-1]:.3f}", "")
    table.add_row("answers", "", str(len(answers)), "")
    return table


@contextmanager
def running(data_dir: Path, *, worker: str) -> Iterator[tuple[str, float]]:
    """Run the page; yield its address and the seconds until it answered."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "app.py", "--port", str(port), "--data-dir", str(data_dir), "--worker", worker]
    began = time.monotonic()
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)  # noqa: S603  # our own program
    try:
        yield url, answered(process, url) - began
    finally:
        process.terminate()
        process.communicate(timeout=60)


def answered(process: "subprocess.Popen[str]", url: str) -> float:
    """When the page answered first. Raises: SystemExit when it ended instead."""
    while process.poll() is None:
        try:
            httpx.get(url, timeout=5).raise_for_status()
            return time.monotonic()
        except httpx.TransportError:
            time.sleep(0.02)
    raise SystemExit(f"the page ended with {process.returncode}: {process.communicate()[1]}")


def train(url: str) -> str:
    """Start a long training of the example character through the API; its job id."""
    client = Client(url, verbose=False)
    character = client.predict("Benchmark", api_name="/create_character")["id"]
    files = [handle_file(str(path)) for path in sorted(EXAMPLE.glob("[0-9]*"))]
    client.predict(character, files, api_name="/add_images")
    overrides = {"steps": 100_000, "save_every": 100_000, "sample_every": 0, "validate_every": 0}
    return str(client.predict(character, overrides=overrides, api_name="/train"))


def steps(metrics: Path) -> int:
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def wait_for_steps(metrics: Path, count: int) -> None:
    until = time.monotonic() + PATIENCE_S
    while steps(metrics) < count:
        if time.monotonic() > until:
            raise SystemExit(f"the training made no {count} steps in {PATIENCE_S:.0f} s")
        time.sleep(0.2)


async def watch(url: str, viewers: int, seconds: float) -> list[float]:
    """Poll as that many open pages do; the seconds of each answer."""
    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None)) as client:
        config = (await client.get(f"{url}/config")).json()
        header = next(each["id"] for each in config["components"] if each["props"].get("elem_id") == "status")
        ask = {"fn_name": "look", "component_id": header, "data": {}}
        until = time.monotonic() + seconds
        found = await asyncio.gather(
            *(
                _view(client, url, ask | {"session_hash": f"viewer{n}"}, n / viewers, until)
                for n in range(viewers)
            )
        )
    return [each for answers in found for each in answers]


async def _view(
    client: httpx.AsyncClient, url: str, ask: dict[str, Any], offset: float, until: float
) -> list[float]:
    found = []
    await asyncio.sleep(offset * POLL_EVERY_S)
    while time.monotonic() < until:
        began = time.monotonic()
        (await client.post(f"{url}/gradio_api/component_server/", json=ask)).raise_for_status()
        found.append(time.monotonic() - began)
        await asyncio.sleep(POLL_EVERY_S)
    return found


if __name__ == "__main__":
    main()
