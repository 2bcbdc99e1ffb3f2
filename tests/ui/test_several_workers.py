"""Three worker processes on one machine, and a page that shows what each of them does, also after it was started anew."""

import re
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager

import pytest
from playwright.sync_api import expect

from isengard.domain.memory import Kind, Machine
from isengard.domain.worker import GIB, WorkerState
from isengard.queue.redis import RedisQueue
from isengard.settings import ROOT
from tests.redis_servers import Server
from tests.tiny_app import submit_training, tiny_app
from tests.ui.camera import Camera
from tests.ui.chromium import PATIENCE_MS, chromium, new_view
from tests.ui.conftest import running_page

pytestmark = pytest.mark.usefixtures("unmeasured_children")

PODS = ("pod-a", "pod-b", "pod-c")
#: More steps than are made before the end of the test.
LONG = {"steps": 4000, "save_every": 4000, "sample_every": 0, "validate_every": 0}


@pytest.fixture
def server(tmp_path):
    one = Server(tmp_path / "valkey")
    yield one
    one.kill()


@pytest.fixture
def app(tmp_path, tiny_flux, server, monkeypatch):
    """Two characters, and a history of one training; the page and the workers are given the same settings."""
    app = tiny_app(tmp_path, tiny_flux, redis_url=server.url, worker="none")
    app.characters.create("Rosa", trigger="rsxq")
    list(app.characters.add_files("rosa", sorted((tmp_path / "pictures").iterdir())))
    app.jobs.cancel(submit_training(app))
    monkeypatch.setenv("ISENGARD_REDIS_URL", server.url)
    monkeypatch.setenv("ISENGARD_CONFIGS_DIR", str(app.settings.configs_dir))
    return app


@contextmanager
def three_workers(app):
    """They give way to the page and the browser, which share two cores with them."""
    command = ["nice", sys.executable, "-m", "isengard", "worker"]
    environment = {**app.settings.child_environment(), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**environment, "ISENGARD_MACHINE": pod},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for pod in PODS
    ]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


@contextmanager
def opened(app, view):
    with running_page(app.settings.data_dir, "--worker", "none", "--device", "cpu") as page:
        view.goto(f"{page.url}/?tab=training")
        yield page


@pytest.fixture
def view():
    with chromium() as browser:
        yield new_view(browser)


def announce_one_that_died(server):
    queue = RedisQueue(server.url, clock=lambda: time.time() - 190)
    memory = {
        "total_bytes": 24 * GIB,
        "free_bytes": 20 * GIB,
        "system_total_bytes": 0,
        "system_free_bytes": 0,
    }
    queue.announce(
        WorkerState(name="old-box/auto", machine=Machine(kind=Kind.CUDA, name="RTX 3090", **memory))
    )


def grows(locator):
    """Wait until the percentage in a text is larger than at first."""

    def percent():
        return int(re.search(r"(\d+) %", locator.inner_text()).group(1))

    expect(locator).to_have_text(re.compile(r"\d+ %"))
    before, end = percent(), time.monotonic() + PATIENCE_MS / 1000
    while percent() <= before:
        assert time.monotonic() < end, f"{locator.inner_text()!r} does not grow"
        locator.page.wait_for_timeout(50)


def sees_all_three(view, *, moves):
    """Two trainings on their tab, all three jobs in the header and at their workers, and the image on its tab.

    ``moves(text)`` waits until a percentage has grown.
    """
    card, other = view.locator("#training-live"), view.locator("#training-others li")
    expect(view.locator("#status .fleet b")).to_have_text("3 workers")
    expect(view.locator("#status .job")).to_have_count(2)
    expect(view.locator("#status .more")).to_have_text("+1")
    expect(card.locator(".about")).to_contain_text("on pod-")
    expect(other).to_contain_text(re.compile("on pod-."))
    names = {card.locator("h3").last.inner_text(), other.locator("b").inner_text()}
    assert names == {"Mira", "Rosa"}
    for percent in (card.locator(".percent"), other.locator(".percent")):
        moves(percent)
    view.locator("#status .more").click()
    busy = view.locator("#training-workers li.busy")
    expect(busy).to_have_count(3)
    assert {each.inner_text() for each in busy.locator(".head b").all()} == set(PODS)
    for each in busy.locator(".job .text").all():
        moves(each)
    busy.locator(".job", has_text="Generating").click()
    steps = view.locator("#image-stage .steps")
    expect(steps).to_have_text(re.compile("^step "))
    before = steps.inner_text()
    expect(steps).not_to_have_text(before)
    expect(view.locator("#image-stage .where")).to_contain_text("on pod-")


def chooses_the_other_training(view):
    other = view.locator("#training-others li b")
    name = other.inner_text()
    other.click()
    expect(view.locator("#training-live h3").last).to_have_text(name)
    expect(other).not_to_have_text(name)


def drains_and_forgets(view):
    view.locator("#status .fleet").click()
    section = view.locator("#training-workers")
    section.get_by_role("button", name="Forget: old-box").click()
    expect(section.locator("li")).to_have_count(3)
    section.get_by_role("button", name="Drain: pod-b").click()
    expect(section.locator("li", has_text="pod-b").locator(".badge")).to_have_text("Finishing its job")
    section.get_by_role("button", name="Take jobs again: pod-b").click()
    expect(section.locator("li.busy")).to_have_count(3)


@pytest.mark.slow
def test_three_workers_run_three_jobs_and_the_page_shows_them_all(app, server, view, tmp_path):
    announce_one_that_died(server)
    trainings = [
        app.training.submit(character_id=each, base_model="tiny", preset="quick", overrides=LONG)
        for each in ("mira", "rosa")
    ]
    asked = {"prompt": "at sea", "base_model": "tiny", "count": 64, "num_inference_steps": 200}
    jobs = [each.id for each in (*trainings, app.images.submit(app.images.plan(overrides=asked)))]
    with ExitStack() as running_workers:
        with opened(app, view) as page:
            expect(view.locator("#training-queue li")).to_have_count(2)
            running_workers.enter_context(three_workers(app))
            sees_all_three(view, moves=grows)
            drains_and_forgets(view)
            chooses_the_other_training(view)
            page.end(signal.SIGKILL)
        before = {job: app.jobs.get(job).progress.step for job in jobs}
        with opened(app, view):
            sees_all_three(view, moves=lambda text: expect(text).to_have_text(re.compile(r"\d+ %")))
            assert all(app.jobs.get(job).progress.step > step for job, step in before.items())
            tab(view, "Training")
            expect(view.locator("#training-history li")).to_contain_text("Mira")
            running_workers.close()
            camera = Camera(tmp_path / "screenshots")
            expect(view.locator("#training-workers li.busy")).to_have_count(3)
            camera.shoot(view, "workers")
    assert {app.jobs.get(job).attempt for job in jobs} == {1}
    assert camera.problems == []


def tab(view, name):
    view.get_by_role("tab", name=name, exact=True).first.click()
