"""The page under load: 20 browsers and 50 programs that poll, while a training runs.

A browser session loads the page and then does what the page's script does: it asks for the header's state when it is its
turn, has the tabs painted anew when something has changed, and the training's now and then. A program asks for the state of the training again and again, at
the address made for it, or with ``--queued`` as `gradio_client` does. The training's speed is taken before, during and after in one run. All of it shares the processors
of this machine, also what makes the load; the table says how much of them each took.
Run it as ``python -m benchmarks.load``.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import quantiles
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import uvloop
from rich.table import Table

from benchmarks.page import SLOWER, Viewer, running, steps, train, wait_for_steps
from benchmarks.process import shown

#: The goals of the product.
SLOWEST_S, KEPT = 1.0, 0.8


@dataclass
class Answers:
    """Seconds until each answer by what was asked, and how many calls failed."""

    seconds: dict[str, list[float]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    async def time(self, what: str, ask: Callable[[], Awaitable[Any]]) -> Any:
        """What ``ask`` gives, or None when it failed."""
        began = time.monotonic()
        try:
            answer = await ask()
        except (httpx.HTTPError, ValueError) as error:
            self.failed.append(f"{what}: {type(error).__name__} {error}"[:200])
            return None
        self.seconds.setdefault(what, []).append(time.monotonic() - began)
        return answer


@dataclass(frozen=True)
class Load:
    """Who asks, for how long, and about which job."""

    url: str
    job: str
    browsers: int
    clients: int
    every_s: float
    seconds: float
    queued: bool


@dataclass(frozen=True)
class Spell:
    """A time of the run: the training's steps per second, and processors that each part of the programs took."""

    speed: float
    processors: dict[str, float]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("--browsers", type=int, default=20, help="(default: 20)")
    parser.add_argument("--clients", type=int, default=50, help="programs that poll (default: 50)")
    parser.add_argument(
        "--every", type=float, default=2.0, help="seconds between their questions (default: 2)"
    )
    parser.add_argument("--seconds", type=float, default=120, help="of the load (default: 120)")
    parser.add_argument(
        "--warm-up", type=int, default=20, help="steps before anything is measured (default: 20)"
    )
    parser.add_argument(
        "--queued", action="store_true", help="the programs call /job_status through Gradio's queue instead"
    )
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name, running(Path(name), worker="process") as (url, _):
        job = train(url)
        metrics = Path(name) / "runs" / job / "metrics.jsonl"
        wait_for_steps(metrics, options.warm_up)
        load = Load(
            url, job, options.browsers, options.clients, options.every, options.seconds, options.queued
        )
        answers = Answers()
        with measured(metrics) as before:
            time.sleep(options.seconds / 2)
        with measured(metrics) as during, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(put(load, answers))
        with measured(metrics) as after:
            time.sleep(options.seconds / 2)
    (alone, other), (loaded,) = [*before, *after], during
    print(shown(latencies(answers)))
    print(shown(speeds(alone, loaded, other)))
    for failure in sorted(set(answers.failed))[:10]:
        print(f"{answers.failed.count(failure)} x {failure}")


@contextmanager
def measured(metrics: Path) -> Iterator[list[Spell]]:
    """Measure the block; the list has the result when it ends."""
    found: list[Spell] = []
    done, began, used = steps(metrics), time.monotonic(), processor_seconds()
    yield found
    took, now = time.monotonic() - began, processor_seconds()
    processors = {part: (now[part] - used[part]) / took for part in used}
    found.append(Spell(speed=(steps(metrics) - done) / took, processors=processors))


def processor_seconds() -> dict[str, float]:
    """Of this process, the page that it started, and the page's worker."""
    me = psutil.Process()
    (page,) = [child for child in me.children() if "app.py" in child.cmdline()]
    workers = [child for child in page.children() if "worker" in child.cmdline()]
    parts = {"page": [page], "worker": workers, "load": [me]}
    return {
        part: sum(sum(process.cpu_times()[:2]) for process in processes) for part, processes in parts.items()
    }


async def put(load: Load, answers: Answers) -> None:
    """Put the load on the page."""
    limits = httpx.Limits(max_connections=None)
    until = time.monotonic() + load.seconds
    async with (
        httpx.AsyncClient(base_url=load.url, timeout=60, limits=limits) as client,
        AsyncExitStack() as opened,
    ):
        config = (await client.get("/config")).json()
        browsers = [
            browse(Viewer(client, load.url, f"browser{n}"), config, answers, n / load.browsers, until)
            for n in range(load.browsers)
        ]
        asking = (
            through_the_queue(client, config, load.job)
            if load.queued
            else by_address(load.url, load.job, opened)
        )
        programs = [
            poll(partial(asking, f"program{n}"), answers, n / load.clients * load.every_s, load, until)
            for n in range(load.clients)
        ]
        await asyncio.gather(*browsers, *programs)


async def browse(viewer: Viewer, config: Any, answers: Answers, offset: float, until: float) -> None:
    """One open page, from its loading on."""
    await asyncio.sleep(5 * offset)
    for path in ("/", "/config", "/theme.css"):
        await answers.time("page", partial(viewer.client.get, path))
    props = {each["id"]: each["props"] for each in config["components"]}
    header = next(number for number, each in props.items() if each.get("elem_id") == "status")
    look = {"fn_name": "look", "component_id": header, "data": {}}
    values = {number: each.get("value") for number, each in props.items()}
    events = config["dependencies"]
    anew, moved = ([e for e in events if [header, name] in e["targets"]] for name in ("refresh", "moved"))
    key, painted = "", 0.0
    while time.monotonic() < until:
        answer = await answers.time("state", partial(viewer.ask, "component_server/", look))
        state: dict[str, Any] = answer[1] if answer else {"key": key, "again_s": 4.0}
        if state["key"] != key or time.monotonic() - painted > SLOWER * state["again_s"]:
            tabs = moved if state["key"] == key else anew
            key, painted = state["key"], time.monotonic()
            await asyncio.gather(*(paint(viewer, tab, values, answers) for tab in tabs))
        await asyncio.sleep(state["again_s"])


async def paint(viewer: Viewer, tab: Any, values: dict[int, Any], answers: Answers) -> None:
    """Have a tab painted anew; ``values`` are those of the browser's components, which say what it shows already."""
    asked = {"fn_index": tab["id"], "data": [values[number] for number in tab["inputs"]]}
    if answer := await answers.time("tab", partial(viewer.ask, "run/predict", asked)):
        given = zip(tab["outputs"], answer[1]["data"], strict=True)
        values |= {number: each for number, each in given if not _is_update(each)}


def _is_update(value: Any) -> bool:
    """Whether it changes properties of a component, or nothing, instead of being its value."""
    return isinstance(value, dict) and "__type__" in value


async def poll(
    ask: Callable[[], Awaitable[Any]], answers: Answers, offset: float, load: Load, until: float
) -> None:
    """A program that asks for the state of a job."""
    await asyncio.sleep(offset)
    while time.monotonic() < until:
        await answers.time("program", ask)
        await asyncio.sleep(load.every_s)


def by_address(url: str, job: str, opened: AsyncExitStack) -> Callable[[str], Awaitable[Any]]:
    """Ask as the README tells programs to. Plain sockets: what asks takes from the training, too, if it runs here."""
    at = urlsplit(url)
    connections: dict[str, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
    question = f"GET /jobs/{job} HTTP/1.1\r\nHost: {at.netloc}\r\n\r\n".encode()

    async def ask(session: str) -> Any:
        if session not in connections:
            connections[session] = await asyncio.open_connection(at.hostname, at.port)
            opened.push_async_callback(closed, connections[session][1])
        reader, writer = connections[session]
        writer.write(question)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        status, length = head.split()[1], int(head.partition("content-length:")[2].split()[0])
        body = json.loads(await reader.readexactly(length))
        if status != "200":
            raise ValueError(f"{status} {body}")
        return body["status"]

    return ask


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


def through_the_queue(client: httpx.AsyncClient, config: Any, job: str) -> Callable[[str], Awaitable[Any]]:
    """Ask as `gradio_client` does."""
    (status,) = [each["id"] for each in config["dependencies"] if each["api_name"] == "job_status"]

    async def ask(session: str) -> Any:
        return await queued(client, {"fn_index": status, "data": [job], "session_hash": session})

    return ask


async def queued(client: httpx.AsyncClient, call: dict[str, Any]) -> Any:
    """Join the queue, and wait for the answer on the session's stream, as `gradio_client` does."""
    (await client.post("/gradio_api/queue/join", json=call)).raise_for_status()
    stream = client.stream("GET", "/gradio_api/queue/data", params={"session_hash": call["session_hash"]})
    async with stream as events:
        events.raise_for_status()
        async for line in events.aiter_lines():
            said = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
            if said.get("msg") == "process_completed":
                if not said["success"]:
                    raise ValueError(said["output"])
                return said["output"]["data"]
    raise ValueError("the stream ended without an answer")


def latencies(answers: Answers) -> Table:
    """The quickness of the page. A browser's answers in one row, and what it is made of."""
    table = Table("answers", "number", "p50 s", "p95 s", "p99 s")
    by_kind = answers.seconds
    rows = {"all of a browser": [s for what in ("page", "state", "tab") for s in by_kind.get(what, [])]}
    rows |= {f"  {what}": by_kind.get(what, []) for what in ("page", "state", "tab")}
    rows["a program's call"] = by_kind.get("program", [])
    for what, seconds in rows.items():
        if seconds:
            cuts = quantiles(seconds * 2, n=100, method="inclusive")  # twice: of one there is no quantile
            table.add_row(what, str(len(seconds)), *(f"{cuts[p - 1]:.3f}" for p in (50, 95, 99)))
    table.add_row("failed", str(len(answers.failed)))
    table.caption = f"goal: p95 below {SLOWEST_S:g} s"
    return table


def speeds(before: Spell, during: Spell, after: Spell) -> Table:
    """The training beside it."""
    table = Table("", "before", "under load", "after", "kept")
    kept = during.speed / ((before.speed + after.speed) / 2)
    spells = (before, during, after)
    table.add_row("steps/s", *(f"{each.speed:.2f}" for each in spells), f"{kept:.0%}")
    for part in before.processors:
        table.add_row(f"processors: {part}", *(f"{each.processors[part]:.2f}" for each in spells))
    table.caption = f"goal: the training keeps {KEPT:.0%}"
    return table


if __name__ == "__main__":
    main()
