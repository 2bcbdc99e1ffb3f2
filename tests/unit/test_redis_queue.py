"""What is particular to the shared queue: its server, and the network to it."""

import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest
from redis import Redis

from isengard.domain.job import JobError, JobKind, JobStatus, Lane, Phase, Progress, Requests
from isengard.domain.worker import WorkerState
from isengard.errors import Conflict, DiskFull, LeaseLost, QueueUnavailable
from isengard.queue import redis_server
from isengard.queue.redis import RedisQueue
from isengard.queue.redis_server import LUA, RedisServer
from tests.contract.conftest import Clock
from tests.contract.test_job_queue_interleavings import Game
from tests.redis_servers import Network, Server, answering, new_prefix
from tests.waiting import PATIENCE_S

TRAIN, IMAGES = JobKind.TRAIN_LORA, JobKind.GENERATE_IMAGES
SECRET = "corr#ct horse"  # noqa: S105  # of a server that lives as long as its test
IN_A_URL = "corr%23ct%20horse"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    one = Server(tmp_path_factory.mktemp("valkey"), durable=True)
    yield one
    one.kill()


@pytest.fixture
def queue(server):
    return RedisQueue(server.url, prefix=new_prefix())


@pytest.fixture
def network(server):
    one = Network(server.port)
    yield one
    one.close()


@pytest.fixture
def start(tmp_path):
    """Start a server with options; it ends with the test."""
    started = []

    def start_one(*options, **keywords):
        started.append(Server(tmp_path / f"server-{len(started)}", *options, **keywords))
        return started[-1]

    yield start_one
    for one in started:
        one.kill()


def claim(queue, worker="w1", lease_s=60.0):
    return queue.claim(worker, lease_s=lease_s)


def report(queue, job, step):
    progress = Progress(phase=Phase.TRAINING, step=step)
    return queue.heartbeat(job, lease_s=60, progress=progress)


# The server


def test_a_server_killed_at_any_moment_and_started_again_has_lost_nothing(start):
    server = start(durable=True)
    queue = RedisQueue(server.url)
    running, paused, ended = (queue.enqueue(TRAIN, {"number": number}).id for number in range(3))
    queue.move(ended, before=running)
    done, owned = claim(queue), claim(queue)
    queue.succeed(done, {"lora": "x"})
    queue.pause(paused)
    queue.request(running, save=True)
    report(queue, owned, 7)
    before = queue.jobs(), [queue.events(job_id) for job_id in (running, paused, ended)]
    server.kill()
    server.start()
    assert (queue.jobs(), [queue.events(job_id) for job_id in (running, paused, ended)]) == before
    assert claim(queue, "w2") is None
    assert queue.heartbeat(owned, lease_s=60).requests == Requests()
    assert queue.release_worker("w1") == 1
    assert claim(queue, "w2").attempt == 2


def test_what_was_answered_before_a_kill_under_load_is_there_after_it(start):
    server = start(durable=True)
    queue, told = RedisQueue(server.url), []

    def enqueue():
        while True:
            try:
                told.append(queue.enqueue(TRAIN, {}).id)
            except QueueUnavailable:
                return

    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            pool.submit(enqueue)
        while len(told) < 50:
            time.sleep(0.01)
        server.kill()
    server.start()
    assert {job.id for job in queue.jobs(limit=10_000)} >= set(told)


CALLS = {
    "enqueue": lambda queue, job: queue.enqueue(TRAIN, {}),
    "claim": lambda queue, job: claim(queue),
    "heartbeat": lambda queue, job: queue.heartbeat(job, lease_s=60),
    "succeed": lambda queue, job: queue.succeed(job, {}),
    "fail": lambda queue, job: queue.fail(job, JobError(code="x", message="y")),
    "release": lambda queue, job: queue.release(job, reason="z"),
    "stopped": lambda queue, job: queue.stopped(job),
    "release_worker": lambda queue, job: queue.release_worker("w1"),
    "cancel": lambda queue, job: queue.cancel(job.id),
    "pause": lambda queue, job: queue.pause(job.id),
    "resume": lambda queue, job: queue.resume(job.id),
    "requeue": lambda queue, job: queue.requeue(job.id, {}),
    "request": lambda queue, job: queue.request(job.id, save=True),
    "move": lambda queue, job: queue.move(job.id, before=None),
    "remove": lambda queue, job: queue.remove(job.id),
    "get": lambda queue, job: queue.get(job.id),
    "jobs": lambda queue, job: queue.jobs(),
    "events": lambda queue, job: queue.events(job.id),
    "announce": lambda queue, job: queue.announce(WorkerState(name="w1")),
    "leave": lambda queue, job: queue.leave("w1"),
    "drain": lambda queue, job: queue.drain("w1"),
    "workers": lambda queue, job: queue.workers(),
    "wait": lambda queue, job: queue.wait("w1", 1),
}


def test_every_method_says_in_one_sentence_that_the_server_is_away(start, monkeypatch):
    monkeypatch.setattr(redis_server, "PAUSES_S", (0.01,))
    server = start()
    queue = RedisQueue(server.url)
    queue.enqueue(TRAIN, {})
    job = claim(queue)
    server.kill()
    address = f"127.0.0.1:{server.port}"
    for call in CALLS.values():
        with pytest.raises(
            QueueUnavailable, match=rf"{address} cannot be reached \(.*refused.*\); start it, or"
        ):
            call(queue, job)


def test_a_server_that_hangs_is_given_up_in_time_and_used_again_afterwards(start, monkeypatch):
    monkeypatch.setattr(redis_server, "TIMEOUT_S", 0.1)
    monkeypatch.setattr(redis_server, "PATIENCE_S", 0.15)
    server = start()
    queue = RedisQueue(server.url)
    job = queue.enqueue(TRAIN, {})
    with server.stalled():
        began = time.monotonic()
        with pytest.raises(QueueUnavailable, match=r"gives no answer within 0\.1 s"):
            queue.get(job.id)
        assert time.monotonic() - began < 3
    assert queue.get(job.id) == job


def test_a_server_that_is_back_in_time_is_not_missed(start):
    server = start(durable=True)
    queue = RedisQueue(server.url)
    job = queue.enqueue(TRAIN, {})
    server.kill()
    back = threading.Timer(0.1, server.start)
    back.start()
    assert queue.get(job.id) == job
    back.join()


def test_a_full_memory_is_refused_in_plain_words_and_nothing_is_half_done(start):
    queue = RedisQueue(start("--maxmemory", "3mb", "--maxmemory-policy", "noeviction").url)

    def fill():
        for _ in range(200):
            queue.enqueue(TRAIN, {"much": "x" * 100_000})

    with pytest.raises(QueueUnavailable, match="has no memory left for jobs; raise its maxmemory"):
        fill()
    for job in queue.jobs(limit=1000):
        assert [event.kind for event in queue.events(job.id)] == ["queued"]


def test_a_full_disk_of_the_server_is_told_as_such(server):
    error = redis_server.exceptions.ResponseError(
        "MISCONF Errors writing to the AOF file: No space left on device"
    )
    explained = RedisServer(server.url, prefix="x:")._explained(error)
    assert isinstance(explained, DiskFull)
    assert "free some space there" in str(explained)


# At start


def refusal(url):
    """The one sentence with which a queue does not start. It and its traceback hold no secret."""
    with pytest.raises(QueueUnavailable) as raised:
        RedisQueue(url)
    told = str(raised.value)
    everything = "".join(traceback.format_exception(raised.value))
    assert not any(secret in everything for secret in (SECRET, IN_A_URL, "horse"))
    assert "\n" not in told
    return told


def with_login(server, user=""):
    return server.url.replace("//", f"//{user}:{IN_A_URL}@")


def test_the_right_password_opens_the_queue_and_a_wrong_one_is_named_as_wrong(start):
    server = start("--requirepass", SECRET)
    assert RedisQueue(with_login(server)).jobs() == []
    for url in (server.url, server.url.replace("//", "//:wr%6Fng@"), with_login(server, "nobody")):
        assert "refuses the login" in refusal(url)
    assert "of 'nobody'; correct user name and password" in refusal(with_login(server, "nobody"))


def test_a_user_with_the_rights_that_are_asked_for_is_enough(start):
    rights = ["~isengard:*", "resetchannels", "&isengard:*", "+@all", "-@admin"]
    server = start("--user", "isengard", "on", f">{SECRET}", *rights)
    queue = RedisQueue(with_login(server, "isengard"))
    queue.enqueue(TRAIN, {})
    assert claim(queue).status is JobStatus.RUNNING


@pytest.mark.parametrize(
    ("rights", "command"),
    [
        (["~*", "+@all", "-xautoclaim"], "XAUTOCLAIM"),
        (["~*", "&*", "+@all", "-blpop"], "BLPOP"),
        (["~other:*", "+@all"], "HSET"),
    ],
)
def test_a_user_who_may_not_run_a_command_hears_which(start, rights, command):
    server = start("--user", "guest", "on", f">{SECRET}", *rights)
    told = refusal(with_login(server, "guest"))
    assert f"refuses the command {command} (" in told
    assert "the user 'guest' must be allowed: ~isengard:* resetchannels &isengard:* +@all -@admin" in told


def test_a_server_without_a_needed_command_is_refused_by_name(start):
    told = refusal(start("--rename-command", "XAUTOCLAIM", "").url)
    assert "refuses the command XAUTOCLAIM (" in told
    assert "Redis 6.2 or newer, or Valkey, is needed" in told


def test_an_old_server_is_refused_with_its_version(server):
    with pytest.raises(QueueUnavailable, match=r"is version 5.0.7; Redis 6.2 or newer, or Valkey, is needed"):
        RedisServer(server.url, prefix="x:")._judge({"redis_version": "5.0.7"})


def test_every_command_of_the_scripts_is_tried_at_start():
    texts = {path.stem: path.read_text(encoding="utf-8") for path in LUA.glob("*.lua")}
    tried = set(re.findall(r"{ '([A-Z]+)'", texts.pop("check")))
    assert tried == set(re.findall(r"redis\.call\('([A-Z]+)'", "".join(texts.values())))


def test_a_server_that_would_drop_jobs_is_refused(start):
    server = start("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    assert "maxmemory-policy allkeys-lru); set maxmemory-policy to noeviction" in refusal(server.url)


def test_a_cluster_is_refused(start):
    assert "the queue needs a single server" in refusal(start("--cluster-enabled", "yes").url)


def test_a_server_that_keeps_nothing_is_used_with_a_warning(start, caplog):
    RedisQueue(start().url)
    assert "jobs may be lost when the server restarts" in caplog.messages
    assert caplog.records[-1].advice == "appendonly yes, appendfsync always"


def test_jobs_of_a_newer_version_are_left_alone(server, monkeypatch):
    prefix = new_prefix()
    monkeypatch.setattr(redis_server, "FORMAT", 99)
    RedisQueue(server.url, prefix=prefix)
    monkeypatch.undo()
    with pytest.raises(Conflict, match="newer Isengard \\(format 99"):
        RedisQueue(server.url, prefix=prefix)


def test_an_address_where_nobody_listens_is_named(monkeypatch):
    monkeypatch.setattr(redis_server, "PAUSES_S", (0.01,))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        told = refusal(f"redis://:{IN_A_URL}@127.0.0.1:{port}/0")
    assert f"the Redis server at 127.0.0.1:{port} cannot be reached" in told
    assert "start it, or correct ISENGARD_REDIS_URL" in told


def test_a_machine_that_does_not_exist_is_named(monkeypatch):
    monkeypatch.setattr(redis_server, "PAUSES_S", (0.01,))
    assert "the Redis server at nowhere.invalid:6379 cannot be reached" in refusal("redis://nowhere.invalid")


@pytest.mark.parametrize(
    "url",
    [
        "redis://h:port",
        f"redis://:{IN_A_URL}@h?socket_timeout=soon",
        f"redis://:{IN_A_URL}@h?colour=red",
        f"http://:{IN_A_URL}@h",
    ],
)
def test_a_url_that_is_none_is_told_how_to_write_it(url):
    assert "redis://user:password@host:port/0" in refusal(url)


@pytest.fixture
def web_server():
    """The port of one that answers everything as a web server does."""
    with answering(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n") as port:
        yield port


def test_another_kind_of_server_is_told_from_redis(web_server):
    told = refusal(f"redis://127.0.0.1:{web_server}")
    assert "speaks another language; correct host and port in ISENGARD_REDIS_URL" in told


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for 127.0.0.1 that no authority has signed, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl is installed")
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
            ),
            *("-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")),
        ],
        check=True,
        capture_output=True,
    )
    return folder / "certificate.pem", folder / "key.pem"


@pytest.fixture
def tls(server, certificate):
    """The server behind TLS; its URL."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    network = Network(server.port, wrap=lambda plain: context.wrap_socket(plain, server_side=True))
    yield network.url.replace("redis://", "rediss://")
    network.close()


def test_a_server_with_tls_is_used_when_its_certificate_is_trusted(tls, certificate):
    queue = RedisQueue(f"{tls}?ssl_ca_certs={certificate[0]}", prefix=new_prefix())
    assert queue.get(queue.enqueue(TRAIN, {}).id).status is JobStatus.QUEUED


def test_a_certificate_that_nobody_signed_is_refused(tls, monkeypatch):
    monkeypatch.setattr(redis_server, "PAUSES_S", ())
    assert "offers no trusted TLS (" in refusal(tls)


def test_tls_is_not_found_where_there_is_none(server, monkeypatch):
    monkeypatch.setattr(redis_server, "TIMEOUT_S", 0.1)
    monkeypatch.setattr(redis_server, "PAUSES_S", ())
    assert "write redis:// when it has no TLS" in refusal(server.url.replace("redis:", "rediss:"))


# The network


def test_a_claim_that_was_never_answered_is_found_by_the_next_one(network, monkeypatch):
    queue = RedisQueue(network.url, prefix=new_prefix())
    assert claim(queue) is None  # the server knows the script now
    queue.enqueue(TRAIN, {}), queue.enqueue(TRAIN, {})
    monkeypatch.setattr(redis_server, "PAUSES_S", ())
    network.break_once("after")
    with pytest.raises(QueueUnavailable):
        claim(queue)
    (unheard,) = queue.jobs(statuses=[JobStatus.RUNNING])
    found = claim(queue)
    assert (found.id, found.fence, found.attempt) == (unheard.id, 1, 1)
    assert claim(queue).id != found.id


def test_an_unheard_claim_whose_lease_ended_belongs_to_the_next_worker(network, server, monkeypatch):
    now = [1_000_000.0]
    prefix = new_prefix()
    queue, other = (RedisQueue(url, prefix=prefix, clock=lambda: now[0]) for url in (network.url, server.url))
    assert claim(queue) is None  # the server knows the script now
    job = queue.enqueue(TRAIN, {})
    monkeypatch.setattr(redis_server, "PAUSES_S", ())
    network.break_once("after")
    with pytest.raises(QueueUnavailable):
        claim(queue)
    now[0] += 60
    assert (claim(other, "w2").id, claim(other, "w2")) == (job.id, None)
    assert claim(queue) is None


def test_a_wish_that_was_handed_over_unheard_is_handed_over_again(network, monkeypatch):
    queue = RedisQueue(network.url, prefix=new_prefix())
    job = queue.enqueue(TRAIN, {})
    job = claim(queue)
    queue.request(job.id, save=True)
    monkeypatch.setattr(redis_server, "PAUSES_S", ())
    network.break_once("after")
    with pytest.raises(QueueUnavailable):
        report(queue, job, 1)
    assert report(queue, job, 2).requests == Requests(save=True)
    assert report(queue, job, 3).requests == Requests()


def test_an_end_that_was_written_unheard_may_be_told_again_and_not_by_others(network, server, monkeypatch):
    prefix = new_prefix()
    queue, other = RedisQueue(network.url, prefix=prefix), RedisQueue(server.url, prefix=prefix)
    job = queue.enqueue(TRAIN, {})
    job = claim(queue)
    monkeypatch.setattr(redis_server, "PAUSES_S", ())
    network.break_once("after")
    with pytest.raises(QueueUnavailable):
        queue.succeed(job, {"a": 1})
    queue.succeed(job, {"a": 1})
    with pytest.raises(LeaseLost):
        other.succeed(job, {"a": 2})
    with pytest.raises(LeaseLost):
        queue.succeed(job, {"a": 3})
    assert queue.get(job.id).result == {"a": 1}
    assert [event.kind for event in queue.events(job.id)] == ["queued", "claimed", "succeeded"]


@pytest.mark.parametrize("how", ["before", "half", "after"])
def test_a_connection_that_breaks_once_is_not_noticed(network, how):
    queue = RedisQueue(network.url, prefix=new_prefix())
    for _ in range(2):
        network.break_once(how)
        queue.enqueue(TRAIN, {})
    assert network.broken == 2
    assert len(queue.jobs()) == 2


def test_an_answer_that_never_comes_is_asked_for_again(network, monkeypatch):
    monkeypatch.setattr(redis_server, "TIMEOUT_S", 0.1)
    queue = RedisQueue(network.url, prefix=new_prefix())
    first = queue.enqueue(TRAIN, {})  # the server knows the script now
    network.break_once("stall")
    second = queue.enqueue(TRAIN, {})
    assert queue.jobs() == [first, second]


def test_workers_on_a_bad_network_and_a_server_that_dies_never_share_a_job(start):
    """Every network breaks at random, the server is killed once: each job is done, and no fence is held twice."""
    server = start(durable=True)
    ids = {RedisQueue(server.url).enqueue(IMAGES, {}, lane=Lane.INTERACTIVE).id for _ in range(60)}
    networks = [Network(server.port) for _ in range(4)]
    held, done = [], []

    def work(number):
        queue = patiently(lambda: RedisQueue(networks[number].url))
        counter = iter(range(1_000_000))
        networks[number].breaks = lambda: {0: "before", 3: "after", 5: "half"}.get(next(counter) % 8, "")
        while job := patiently(lambda: claim(queue, f"w{number}", lease_s=20)):
            held.append((job.id, job.fence))
            try:
                patiently(lambda job=job: report(queue, job, 1))
                patiently(lambda job=job: queue.succeed(job, {"by": number}))
                done.append(job.id)
            except LeaseLost:
                continue

    with ThreadPoolExecutor(4) as pool:
        working = [pool.submit(work, number) for number in range(4)]
        while len(done) < 20:
            time.sleep(0.01)
        server.kill()
        server.start()
        assert [one.result() for one in working] == [None] * 4
    for network in networks:
        network.close()
    assert min(network.broken for network in networks) > 0
    assert len(held) == len(set(held))
    assert sorted(done) == sorted(ids)
    assert {job.status for job in RedisQueue(server.url).jobs()} == {JobStatus.SUCCEEDED}


def patiently(call):
    """As a worker does: try again while the queue cannot be reached."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return call()
        except QueueUnavailable:
            if time.monotonic() > until:
                raise


# Live pages


def test_a_page_hears_of_each_change_at_once(queue):
    job = queue.enqueue(TRAIN, {})
    with queue.listening(job.id) as changed:
        owned = claim(queue)
        assert changed(5)
        report(queue, owned, 3)
        assert changed(5)
        assert queue.get(job.id).progress.step == 3
        assert not changed(0.01)


def test_a_page_hears_of_its_job_only(queue):
    first, second = queue.enqueue(TRAIN, {}), queue.enqueue(TRAIN, {})
    with queue.listening(second.id) as changed:
        queue.cancel(first.id)
        assert not changed(0.05)
        queue.cancel(second.id)
        assert changed(5)


def test_who_listens_hears_that_the_server_went_away(start):
    server = start()
    queue = RedisQueue(server.url)
    with queue.listening("a job") as changed:
        server.kill()
        with pytest.raises(QueueUnavailable, match="cannot be reached"):
            changed(5)


# Order


def test_a_job_moved_past_paused_ones_keeps_them_in_their_places(queue):
    first, held, third, fourth = (queue.enqueue(TRAIN, {}).id for _ in range(4))
    queue.pause(held)
    queue.move(fourth, before=first)
    queue.move(first, before=None)
    queue.resume(held)
    assert [job.id for job in queue.jobs()] == [fourth, held, third, first]


def test_the_time_is_the_servers(queue):
    before = time.time()
    job = queue.enqueue(TRAIN, {})
    assert before - 1 < job.created_at < time.time() + 1
    owned = claim(queue, lease_s=30)
    assert owned.lease_until == pytest.approx(owned.started_at + 30)


def test_leases_of_different_lengths_end_each_in_its_time(queue):
    short, long = queue.enqueue(TRAIN, {}), queue.enqueue(TRAIN, {})
    claim(queue, "w1", lease_s=0.05)
    claim(queue, "w2", lease_s=60)
    time.sleep(0.06)
    assert claim(queue, "w3", lease_s=3600).id == short.id
    assert claim(queue, "w3") is None
    assert queue.get(long.id).worker == "w2"


def test_every_ended_lease_is_found_among_many_that_go_on(server):
    clock = Clock()
    queue = RedisQueue(server.url, prefix=new_prefix(), clock=clock)
    silent = set()
    for number in range(1300):
        queue.enqueue(TRAIN, {})
        lease_s = 1 if number in (0, 600, 1299) or 1100 < number < 1250 else 60
        job = claim(queue, f"w{number}", lease_s=lease_s)
        silent |= {job.id} if lease_s == 1 else set()
    clock.advance(1)
    found = {claim(queue, "w").id for _ in silent}
    assert (found, claim(queue)) == (silent, None)


@pytest.mark.parametrize("seed", range(3))
def test_the_ledgers_hold_exactly_the_jobs_there_are(server, seed):
    clock, prefix = Clock(), new_prefix()
    queue = RedisQueue(server.url, prefix=prefix, clock=clock)
    game = Game(queue, clock, seed)
    with Redis.from_url(server.url, decode_responses=True) as keys:
        for _ in range(150):
            game.play()
            check_ledgers(keys, prefix, queue.jobs(limit=1000))
        for job in queue.jobs(limit=1000):
            if job.status is JobStatus.RUNNING:
                queue.succeed(job, {})
            elif not job.status.ended:
                queue.cancel(job.id)
            queue.remove(job.id)
        for worker in "ab":
            queue.leave(worker)
        left = {key.removeprefix(prefix).partition(":")[0] for key in keys.scan_iter(f"{prefix}*")}
        assert left <= {"format", "place", "earliest", "releases", "removed", "bell", "tally"}


def check_ledgers(keys, prefix, jobs):
    for lane in Lane:
        living = [job for job in jobs if job.lane is lane and not job.status.ended]
        assert set(keys.zrange(f"{prefix}places:{lane}", 0, -1)) == {job.id for job in living}
        at_hand = [job for job in living if job.status is not JobStatus.PAUSED]
        lines = {job.needs.model_dump_json() for job in at_hand}
        assert set(keys.zrange(f"{prefix}lines:{lane}", 0, -1)) == lines
        for needs in lines:
            of_line = [job for job in at_hand if job.needs.model_dump_json() == needs]
            check_line(keys, prefix, f"{lane}:{needs}", of_line)
    for worker in "ab":
        owned = {job.id for job in jobs if job.worker == worker}
        assert keys.smembers(f"{prefix}held:{worker}") == owned


def check_line(keys, prefix, line, jobs):
    """The ledgers of a line hold its jobs and no others."""
    queued = {job.id for job in jobs if job.status is JobStatus.QUEUED}
    running = {job.id for job in jobs if job.status is JobStatus.RUNNING}
    assert set(keys.zrange(f"{prefix}waiting:{line}", 0, -1)) == queued
    stream = f"{prefix}running:{line}"
    assert {fields["job"] for _, fields in keys.xrange(stream)} == running
    if running:
        assert keys.xpending(stream, "workers")["pending"] == len(running)
    lane, _, needs = line.partition(":")
    if lane == Lane.INTERACTIVE:
        assert set(keys.zrange(f"{prefix}unserved:{needs}", 0, -1)) <= queued
