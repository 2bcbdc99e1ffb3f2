"""What the page shows of a machine that costs money, and how the browser tells that a run has ended."""

import json
import shutil
import socket
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from playwright.sync_api import expect

from isengard.domain.job import JobError, JobKind, Lane, Phase, Progress
from isengard.services.pod import ANNOUNCED_S, MENTIONED_S, IdleWatch
from isengard.settings import Settings
from isengard.wiring import build
from tabs import pod
from tabs.common import WEB, Page, texts
from tabs.http.stack import middleware, routes
from tabs.money import dollars
from tabs.page import build as build_page
from tabs.pictures import Pictures
from tabs.status import looker
from tabs.theme import theme
from tests.clock import Clock
from tests.ui.chromium import PATIENCE_MS, chromium

STOPS_AFTER_S = 3600.0
#: A folder that the end of a pod would wipe.
MEMORY = Path("/dev/shm")  # noqa: S108
#: Keeps what is told, for all pages of the browser, instead of leaving it to the desktop.
NOTES = """
window.Notification = class {
  static permission = "granted";
  constructor(title, options) {
    const notes = JSON.parse(localStorage.getItem("notes") || "[]");
    localStorage.setItem("notes", JSON.stringify([...notes, title + " | " + options.body]));
  }
  addEventListener() {}
};
"""
#: The browser's clock, which a test can put forward between two questions of the page.
AHEAD = "const now = Date.now; window.ahead = 0; Date.now = () => now() + window.ahead;"
PUT_FORWARD = """(seconds) => new Promise((done) => {
  const put = () => { window.ahead += 1000 * seconds; done(); };
  window.addEventListener("isengard", put, { once: true });
})"""
HIDDEN = 'Object.defineProperty(document, "hidden", { get: () => true });'


@dataclass
class Rented:
    page: Page
    clock: Clock
    url: str = ""

    def ends(self, *, failed=False, kind=JobKind.TRAIN_LORA, **payload):
        """A run from its start to its end."""
        queue = self.page.app.queue
        lane = Lane.TRAINING if kind is JobKind.TRAIN_LORA else Lane.INTERACTIVE
        queue.enqueue(kind, payload, lane=lane)
        job = queue.claim("w", lease_s=60, lanes=[lane])
        if failed:
            queue.fail(job, JobError(code="disk_full", message="no space left"))
        else:
            queue.succeed(job, {})


@pytest.fixture(scope="module")
def rented():
    """The page of a pod with its data in memory, and the clock by which nothing happens there."""
    if not MEMORY.is_dir():
        pytest.skip("no file system in memory here")
    folder = Path(tempfile.mkdtemp(dir=MEMORY))
    settings = Settings(data_dir=folder, device="cpu", runpod_pod_id="abc123", price_per_hour=0.44)
    clock = Clock(0.0)
    watch = IdleWatch(busy=lambda: False, mention=lambda _: None, stop_after_s=STOPS_AFTER_S, clock=clock)
    app = replace(build(settings), idle=watch)
    pictures = Pictures(folder=settings.cache_dir / "pictures", gallery=settings.images_dir)
    yield Rented(page=Page(app=app, machine=app.machine, pictures=pictures), clock=clock)
    shutil.rmtree(folder)


def idles(rented, seconds):
    rented.page.app.idle.used()
    rented.clock.now += seconds


# What an open page is told


def test_a_page_is_told_the_price_and_what_would_be_lost(rented):
    state = looker(rented.page)()
    assert (state["pod"]["price"], state["ended"]) == ("$0.44", None)
    assert state["pod"]["wiped"] == str(rented.page.app.settings.data_dir)


def test_only_a_page_that_wants_to_is_told_of_ended_runs(rented):
    rented.ends(name="Nova", failed=True)
    rented.ends(kind=JobKind.GENERATE_IMAGES, prompt="at sea")
    images, training = looker(rented.page)({"ended": True})["ended"][:2]
    assert (training["name"], training["failed"], training["said"]) == ("Nova", True, "no space left")
    assert (training["always"], images["always"], images["said"]) == (True, False, "at sea")


def test_an_open_page_that_nobody_touches_is_no_use_of_the_machine(rented):
    look = looker(rented.page)
    idles(rented, 500)
    for nothing in (None, {"untouched_s": 900}, {"untouched_s": "0"}, {"untouched_s": -1}):
        look(nothing)
    assert rented.page.app.idle.state().idle_s == 500
    look({"untouched_s": 20})
    assert rented.page.app.idle.state().idle_s == 20


def test_a_long_idle_time_is_told_in_minutes_where_it_costs(rented):
    idles(rented, MENTIONED_S)
    assert pod.told(rented.page)["idle_min"] == 20
    free = Settings(data_dir=rented.page.app.settings.data_dir, device="cpu")
    at_home = replace(rented.page, app=replace(rented.page.app, settings=free))
    assert pod.told(at_home)["idle_min"] is None


@pytest.mark.parametrize(
    ("amount", "said"), [(None, ""), (0, "$0.00"), (0.001, "< $0.01"), (0.444, "$0.44"), (12, "$12.00")]
)
def test_dollars(amount, said):
    assert dollars(amount) == said


# In a browser


@pytest.fixture(scope="module")
def served(rented):
    """The same page behind an address; in this process, so that the test may set its clock."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    demo = build_page(rented.page)
    demo.queue(api_open=False)
    app, ours = rented.page.app, routes(rented.page.app)
    around = {"middleware": middleware(app, ours=ours, logins=None), "routes": ours}
    demo.launch(
        server_name="127.0.0.1", server_port=port, prevent_thread_lock=True, quiet=True, ssr_mode=False,
        theme=theme(), css_paths=[WEB / "page.css"], i18n=texts(), app_kwargs=around,
    )  # fmt: skip
    rented.url = f"http://127.0.0.1:{port}"
    yield rented
    demo.close()


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def context(browser):
    context = browser.new_context(locale="en-US")
    context.set_default_timeout(PATIENCE_MS)
    context.add_init_script(NOTES + AHEAD)
    yield context
    context.close()


def opened(context, served, *, hidden=False):
    view = context.new_page()
    if hidden:
        view.add_init_script(HIDDEN)
    view.goto(f"{served.url}/?tab=training")
    expect(view.locator("#bell button")).to_be_visible()
    return view


def nothing_happens(view, served, seconds):
    view.evaluate(PUT_FORWARD, seconds)
    served.clock.now += seconds


def notes(view):
    return json.loads(view.evaluate('localStorage.getItem("notes") || "[]"'))


def wait_for_notes(view, number):
    view.wait_for_function(f'JSON.parse(localStorage.getItem("notes") || "[]").length >= {number}')


@pytest.mark.slow
def test_the_page_warns_counts_down_and_keeps_the_pod_running_when_told_to(served, context):
    served.page.app.idle.used()
    queue = served.page.app.queue
    queue.enqueue(JobKind.TRAIN_LORA, {"name": "Nova"})
    job = queue.claim("w", lease_s=600)
    queue.heartbeat(job, lease_s=600, progress=Progress(phase=Phase.TRAINING, step=1, total=9, eta_s=1000))
    view = opened(context, served)
    expect(view.locator("#status .price")).to_have_text("$0.44/h")
    expect(view.locator("#pod .wiped")).to_contain_text(str(served.page.app.settings.data_dir))
    expect(view.locator("#training-live dl")).to_contain_text("of about $0.12")
    queue.succeed(job, {})
    stop = view.locator("#pod .stop")
    expect(stop).to_be_hidden()
    nothing_happens(view, served, MENTIONED_S)
    expect(view.locator("#pod .idle")).to_contain_text("idle for 20 min and costs $0.44 an hour")
    nothing_happens(view, served, STOPS_AFTER_S - ANNOUNCED_S / 2 - MENTIONED_S)
    expect(stop).to_contain_text("2:2")
    stop.get_by_role("button", name="Keep it running").click()
    expect(stop).to_be_hidden()
    assert served.page.app.idle.state().idle_s < 60
    nothing_happens(view, served, STOPS_AFTER_S)
    served.page.app.idle.look()
    expect(view.locator("#pod .stopping")).to_be_visible()


@pytest.mark.slow
def test_of_two_open_pages_one_tells_that_a_run_has_ended_also_when_they_are_hidden(served, context):
    served.ends(name="Before")
    view = opened(context, served)
    bell = view.get_by_role("switch", name="Notifications")
    expect(bell).to_have_attribute("aria-checked", "false")
    bell.click()
    expect(bell).to_have_attribute("aria-checked", "true")
    other = opened(context, served, hidden=True)
    for each in (view, other):
        each.wait_for_function("window.isengard && window.isengard.ended")
    served.ends(name="Nova")
    wait_for_notes(view, 1)
    view.close()
    served.ends(name="Zara", failed=True)
    wait_for_notes(other, 2)
    served.ends(kind=JobKind.GENERATE_IMAGES, prompt="at sea")
    wait_for_notes(other, 3)
    assert notes(other) == [
        "Nova: the training is done | ",
        "Zara: the training failed | no space left",
        "Your images are done | at sea",
    ]
