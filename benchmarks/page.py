"""The page: seconds until it answers, and what 40 viewers cost it and a running training.

Starts are fresh processes with a fresh data folder. Viewers do what the page's script does: they ask for the header's
state when it is their turn, and have the course of the training painted anew now and then; the training's speed is
taken by turns without and with them, in one run. They run on the same processor, which costs the training something, too.
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
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx
from gradio_client import Client, handle_file
from rich.table import Table

from benchmarks.process import shown
from isengard.settings import ASSETS, ROOT

#: As in tabs/web/status.js.
SLOWER = 3.5
PATIENCE_S = 120.0
EXAMPLE = ASSETS / "characters" / "nova"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    parser.add_argument("--starts", type=int, default=5, help="fresh starts (default: 5)")
    parser.add_argument("--viewers", type=int, default=40, help="(default: 40)")
    parser.add_argument("--rounds", type=int, default=3, help="turns without and with viewers (default: 3)")
    parser.add_argument("--seconds", type=float, default=30, help="of each turn (default: 30)")
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
    """Do what that many open pages do; the seconds of each answer."""
    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None)) as client:
        config = (await client.get(f"{url}/config")).json()
        ids = {each["id"]: each["props"] for each in config["components"]}
        header = next(number for number, props in ids.items() if props.get("elem_id") == "status")
        look = {"fn_name": "look", "component_id": header, "data": {}}
        paints = [
            {"fn_index": each["id"], "data": [ids[number].get("value") for number in each["inputs"]]}
            for each in config["dependencies"]
            if [header, "moved"] in each["targets"]
        ]
        if not paints:
            raise SystemExit("the page has no event for what moves any more: mend this benchmark")
        until = time.monotonic() + seconds
        found = await asyncio.gather(
            *(
                _view(Viewer(client, url, f"viewer{n}"), look, paints, n / viewers, until)
                for n in range(viewers)
            )
        )
    return [each for answers in found for each in answers]


@dataclass(frozen=True)
class Viewer:
    """One open page."""

    client: httpx.AsyncClient
    url: str
    session: str

    async def ask(self, path: str, body: dict[str, Any]) -> tuple[float, Any]:
        """Seconds until the answer, and the answer."""
        began = time.monotonic()
        answer = await self.client.post(
            f"{self.url}/gradio_api/{path}", json=body | {"session_hash": self.session}
        )
        answer.raise_for_status()
        return time.monotonic() - began, answer.json()


async def _view(
    viewer: Viewer, look: dict[str, Any], paints: list[dict[str, Any]], offset: float, until: float
) -> list[float]:
    found = []
    await asyncio.sleep(offset)
    painted = time.monotonic()
    while time.monotonic() < until:
        took, state = await viewer.ask("component_server/", look)
        found.append(took)
        if time.monotonic() - painted > SLOWER * state["again_s"]:
            painted = time.monotonic()
            found += [
                took
                for took, _ in await asyncio.gather(*(viewer.ask("run/predict", each) for each in paints))
            ]
        await asyncio.sleep(state["again_s"])
    return found


if __name__ == "__main__":
    main()
