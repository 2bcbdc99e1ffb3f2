"""What Prometheus is told, and whether the dashboard and the alert rules ask for just that."""

import json
import re

import promql_parser
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from isengard.domain.job import JobKind, Lane, Phase, Progress
from isengard.domain.memory import Kind
from isengard.domain.worker import WorkerState
from isengard.errors import QueueUnavailable
from isengard.logs import bound_field
from isengard.queue.base import ALIVE_S
from isengard.queue.sqlite import SqliteQueue
from isengard.settings import ROOT, Settings
from isengard.wiring import build
from tabs.http import jobs
from tabs.http.jobs import FRESH_S, Told
from tabs.http.stack import middleware, routes
from tabs.http.traffic import ROUTES, route_of
from tests.clock import Clock
from tests.machines import gpu, processor

MONITORING = ROOT / "docs" / "monitoring"
GIB = 2**30


@pytest.fixture
def app(tmp_path):
    return build(Settings(data_dir=tmp_path / "data", device="cpu"))


def fails(_):
    raise RuntimeError("a bug")


def bound(_):
    return PlainTextResponse(str(bound_field("correlation_id")))


@pytest.fixture
def client(app):
    ours = [
        *routes(app),
        Route("/config", bound),
        Route("/login", fails),
        Route("/gradio_api/startup-events", bound),
    ]
    return TestClient(
        Starlette(routes=ours, middleware=middleware(app, ours=ours, logins=None)),
        base_url="http://127.0.0.1:7860",
        raise_server_exceptions=False,
    )


@pytest.fixture
def scrape(client):
    """All samples: by name, and the values of its labels in the order of the labels' names."""

    def scrape():
        answer = client.get("/metrics")
        assert answer.status_code == 200
        return {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
        }

    return scrape


def test_waiting_and_running_jobs_are_told_by_lane_and_state(app, scrape):
    for _ in range(2):
        app.queue.enqueue(JobKind.TRAIN_LORA, {})
    app.queue.claim("w", lease_s=60)
    told = scrape()
    assert told["isengard_jobs", "training", "queued"] == 1
    assert told["isengard_jobs", "training", "running"] == 1
    assert told["isengard_jobs", "interactive", "queued"] == 0


def test_how_long_jobs_took_is_a_histogram_by_kind_and_result(app, scrape):
    name = "isengard_job_duration_seconds"
    now = [1000.0]
    queue = SqliteQueue(app.settings.jobs_db, clock=lambda: now[0])
    for took in (4, 100_000):
        job = queue.enqueue(JobKind.GENERATE_IMAGES, {}, lane=Lane.INTERACTIVE)
        claimed = queue.claim("w", lease_s=200_000)
        now[0] += took
        queue.succeed(claimed, {})
        queue.remove(job.id)
    told = scrape()
    assert told[f"{name}_bucket", "generate_images", "2.0", "succeeded"] == 0
    assert told[f"{name}_bucket", "generate_images", "5.0", "succeeded"] == 1
    assert told[f"{name}_bucket", "generate_images", "86400.0", "succeeded"] == 1
    assert told[f"{name}_bucket", "generate_images", "+Inf", "succeeded"] == 2
    assert told[f"{name}_count", "generate_images", "succeeded"] == 2
    assert told[f"{name}_sum", "generate_images", "succeeded"] == 100_004
    assert told[f"{name}_count", "train_lora", "failed"] == 0  # so that the first failure is a rise


def test_a_running_trainings_speed_is_told_by_its_worker(app, scrape):
    app.queue.enqueue(JobKind.TRAIN_LORA, {})
    job = app.queue.claim("pod/cuda:0", lease_s=60)
    progress = Progress(phase=Phase.TRAINING, step=1, total=9, steps_per_s=2.5)
    app.queue.heartbeat(job, lease_s=60, progress=progress)
    assert scrape()["isengard_training_steps_per_second", "pod/cuda:0"] == 2.5


def test_workers_are_counted_by_what_they_do(app, scrape):
    old = SqliteQueue(app.settings.jobs_db, clock=lambda: 1000.0 - ALIVE_S)
    old.announce(WorkerState(name="gone"))
    for name in ("idle", "drains", "works"):
        app.queue.announce(WorkerState(name=name))
    app.queue.drain("drains")
    app.queue.enqueue(JobKind.TRAIN_LORA, {})
    app.queue.claim("works", lease_s=60)
    told = scrape()
    assert {state: told["isengard_workers", state] for state in ("busy", "idle", "draining", "silent")} == {
        "busy": 1, "idle": 1, "draining": 1, "silent": 1,
    }  # fmt: skip


def test_a_gpu_is_told_wherever_it_is_and_a_processor_is_none(app, scrape):
    card = gpu(24).model_copy(update={"kind": Kind.CUDA})
    app.queue.announce(WorkerState(name="pod/cuda:0", machine=card, free_bytes=4 * GIB, load=0.75))
    app.queue.announce(WorkerState(name="pod/cuda:1", machine=card))
    app.queue.announce(WorkerState(name="here/cpu", machine=processor(), free_bytes=GIB))
    told = scrape()
    assert told["isengard_gpu_load_ratio", "pod/cuda:0"] == 0.75
    assert told["isengard_gpu_memory_used_bytes", "pod/cuda:0"] == card.total_bytes - 4 * GIB
    assert told["isengard_gpu_memory_total_bytes", "pod/cuda:1"] == card.total_bytes
    assert ("isengard_gpu_load_ratio", "pod/cuda:1") not in told
    assert ("isengard_gpu_memory_total_bytes", "here/cpu") not in told


def test_the_disk_and_the_parts_of_the_data_folder_are_told(app, scrape):
    (app.settings.data_dir / "images").mkdir()
    (app.settings.data_dir / "images" / "a.png").write_bytes(b"x" * 1000)
    told = scrape()
    assert told["isengard_disk_total_bytes",] >= told["isengard_disk_free_bytes",] > 0
    app.footprint.wait(10)
    assert scrape()["isengard_data_bytes", "images"] == 1000


def test_what_cannot_be_asked_is_left_out_and_the_rest_is_told(app, scrape, monkeypatch, tmp_path):
    def away(*_, **__):
        raise QueueUnavailable("away")

    for method in ("tally", "jobs", "check_writable"):
        monkeypatch.setattr(type(app.jobs), method, away)
    monkeypatch.setattr(type(app.workers), "workers", away)
    app.settings.data_dir.rename(tmp_path / "gone")
    told = scrape()
    assert told["isengard_check_ok", "jobs"] == 0
    assert ("isengard_jobs", "training", "queued") not in told
    assert ("isengard_disk_free_bytes",) not in told
    assert told["isengard_workers", "idle"] == 0


# Requests


def test_requests_are_counted_by_kind_and_status_also_those_that_are_refused(client, scrape):
    client.get("/config")
    client.get("/config", headers={"origin": "http://evil.example"})
    client.get("/login")
    client.get("/nothing/here")
    told = scrape()
    count = "isengard_http_requests_total"
    assert told[count, "page", "200"] == told[count, "page", "403"] == 1
    assert told[count, "login", "500"] == told[count, "other", "404"] == 1
    assert told["isengard_http_request_seconds_count", "page"] == 2
    assert told["isengard_http_requests_open", "probe"] == 1


def test_each_request_has_an_id_of_its_own_that_is_bound_and_answered(client):
    answers = [client.get("/config") for _ in range(2)]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert [answer.text for answer in answers] == ids
    assert ids[0] != ids[1]


def test_what_starts_gradios_queue_leaves_no_id_behind(client):
    assert client.get("/gradio_api/startup-events").text == "None"


def test_a_failed_request_is_logged_with_its_id_and_its_traceback(client, caplog):
    caplog.set_level("ERROR", "tabs.http.traffic")
    client.get("/login")
    (record,) = caplog.records
    assert (record.message, record.route, str(record.exc_info[1])) == ("request failed", "login", "a bug")
    assert re.fullmatch(r"[0-9a-f]{12}", record.correlation_id)


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/", "page"),
        ("/config", "page"),
        ("/health", "probe"),
        ("/metrics", "probe"),
        ("/login", "login"),
        ("/gradio_api/component_server/", "live"),
        ("/jobs/a1b2", "job"),
        ("/gradio_api/queue/join", "event"),
        ("/gradio_api/run/predict", "event"),
        ("/gradio_api/call/train", "event"),
        ("/gradio_api/call/train/abc", "stream"),
        ("/gradio_api/queue/data", "stream"),
        ("/gradio_api/upload", "upload"),
        ("/gradio_api/file=/data/images/a.png", "file"),
        ("/assets/index.js", "asset"),
        ("/gradio_api/theme.css", "asset"),
        ("/../../etc/passwd", "other"),
        ("/loginx", "other"),
        ("/gradio_api/uploads", "other"),
    ],
)
def test_a_request_is_of_one_of_few_kinds(path, route):
    assert route_of(path) == route
    assert route in {name for name, _ in ROUTES} | {"other"}


# The files for Prometheus and Grafana


@pytest.fixture
def known(client):
    """Every name that /metrics may say."""
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}
    client.get("/config")
    typed = re.findall(r"^# TYPE (\w+) (\w+)$", client.get("/metrics").text, re.MULTILINE)
    return {name.removesuffix("_total") + suffix for name, kind in typed for suffix in suffixes[kind]}


def rules():
    (group,) = yaml.safe_load((MONITORING / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    return group["rules"]


def dashboard():
    return json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))


def panels():
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def names(query):
    """The names of all series that a query reads. Raises: ValueError when it is none."""
    promql_parser.parse(query)
    outside = re.sub(r'"[^"]*"|\{[^}]*\}', "", query)
    return set(re.findall(r"\b(?:isengard|process)_\w+", outside))


def test_each_alert_asks_for_what_the_app_tells_and_says_what_to_do(known):
    assert len(rules()) > 5
    for rule in rules():
        assert names(rule["expr"]) <= known, rule["alert"]
        assert names(rule["expr"]) or rule["expr"].startswith("up{")
        assert set(rule["annotations"]) == {"summary", "description"}
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"].count("{{") == rule["annotations"]["summary"].count("}}")


def test_each_panel_asks_for_what_the_app_tells(known):
    queries = [target["expr"] for panel in panels() for target in panel["targets"]]
    assert len(queries) > 10
    for query in queries:
        assert names(query), query
        assert names(query) <= known, query


def test_the_labels_that_are_asked_for_are_those_of_the_app(client):
    """A label that does not exist is an empty panel, and an alert that never fires."""
    asked = " ".join([rule["expr"] for rule in rules()] + [t["expr"] for p in panels() for t in p["targets"]])
    used = set(re.findall(r"(\w+)\s*[=!]~?\s*\"", asked))
    used |= {label for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", asked) for label in group.split(", ")}
    said = set(re.findall(r"[{,](\w+)=", client.get("/metrics").text)) | {"worker", "part"}
    assert used <= said | {"instance", "job"}


def test_the_dashboard_has_ids_of_its_own_and_no_panel_upon_another():
    everything = dashboard()["panels"]
    assert len({panel["id"] for panel in everything}) == len(everything)
    taken = set()
    for place in (panel["gridPos"] for panel in everything):
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells


def test_the_handbook_names_what_the_app_tells(known):
    text = (ROOT / "docs" / "monitoring.md").read_text(encoding="utf-8")
    told = set(re.findall(r"`(isengard_\w+)`", text))
    assert told <= known | {"isengard_job_duration_seconds", "isengard_http_request_seconds"}


# The state of a job


@pytest.fixture
def job(app):
    return app.queue.enqueue(JobKind.GENERATE_IMAGES, {"secret": "x"}, lane=Lane.INTERACTIVE)


def test_a_program_can_ask_for_a_job_by_its_address(client, job):
    told = client.get(f"/jobs/{job.id}").json()
    assert (told["id"], told["status"], told["progress"]) == (job.id, "queued", None)
    assert "payload" not in told


def test_a_job_that_is_not_there_is_said_so(client):
    answer = client.get("/jobs/nobody")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_while_nobody_can_know_of_a_job_it_is_not_said_to_be_gone(app, client, job, monkeypatch):
    def away(*_):
        raise QueueUnavailable("away")

    monkeypatch.setattr(type(app.jobs), "get", away)
    answer = client.get(f"/jobs/{job.id}")
    assert (answer.status_code, answer.json()["code"]) == (503, "queue_unavailable")


def test_many_programs_that_ask_for_a_job_cost_one_look(app, job, monkeypatch):
    clock, looks, get = Clock(), [], type(app.jobs).get
    monkeypatch.setattr(type(app.jobs), "get", lambda jobs, job_id: looks.append(job_id) or get(jobs, job_id))
    told = Told(app, clock=clock)
    assert told.known(job.id) is None
    first = told.look(job.id)
    assert told.known(job.id).body == first.body
    assert looks == [job.id]
    clock.now += FRESH_S
    assert told.known(job.id) is None


def test_answers_of_few_jobs_are_kept(app, monkeypatch):
    monkeypatch.setattr(jobs, "REMEMBERED", 1)
    told, (one, other) = (
        Told(app),
        [app.queue.enqueue(JobKind.TRAIN_LORA, {}, lane=Lane.TRAINING) for _ in "ab"],
    )
    for each in (one, other):
        told.look(each.id)
    assert (told.known(one.id), told.known(other.id) is None) == (None, False)
