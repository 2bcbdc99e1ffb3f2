"""The registry as the page and the command line see it, and what jobs can have wherever they run."""

import pytest

from isengard.domain.generation import ImageSpec
from isengard.domain.job import JobKind, Needs
from isengard.domain.memory import Corrections
from isengard.domain.worker import WorkerState
from isengard.errors import Conflict, NotFound, QueueUnavailable
from isengard.queue.base import ALIVE_S
from isengard.queue.sqlite import SqliteQueue
from isengard.services.planning import Planning
from isengard.services.workers import LOOK_EVERY_S, NO_WORKER, TAKE_STOCK_EVERY_S, ModelsHere, WorkerService
from isengard.settings import ASSETS, ROOT
from isengard.store.configs import Catalog
from isengard.store.weights import Weights
from tests.clock import Clock
from tests.machines import gpu, processor
from tests.unit.test_planner import CARDS, machine, wishes

HERE = processor(4)


@pytest.fixture
def clock():
    return Clock(1_000_000.0)


@pytest.fixture
def queue(tmp_path, clock):
    return SqliteQueue(tmp_path / "jobs.db", clock=clock)


@pytest.fixture
def service(queue, clock):
    return WorkerService(queue=queue, machine=lambda: HERE, shared=True, clock=clock)


@pytest.fixture
def worker(queue, clock):
    """Announce a worker; the service looks anew from then on."""

    def announced(name, gib=24, **facts):
        clock.now += LOOK_EVERY_S
        has = {"engines": ("native",), "models": ("sdxl",), "machine": gpu(gib, name=name), **facts}
        return queue.announce(WorkerState(name=name, **has))

    return announced


@pytest.fixture
def why(queue, service):
    def waiting(**needs):
        return service.why_waiting(queue.enqueue(JobKind.TRAIN_LORA, {}, needs=Needs(**needs)))

    return waiting


def test_the_living_come_first_each_by_name(service, worker, clock):
    worker("a-dead")
    clock.now += ALIVE_S
    worker("c")
    worker("b")
    assert [known.name for known in service.workers()] == ["b", "c", "a-dead"]


def test_a_worker_is_alive_for_a_while_after_its_last_word(service, worker, clock):
    known = worker("w")
    assert service.is_alive(known)
    clock.now += ALIVE_S
    assert not service.is_alive(known)


def test_a_worker_can_be_drained_and_take_jobs_again(service, worker):
    worker("w")
    assert service.drain("w").draining
    assert not service.take_jobs("w").draining


def test_only_a_worker_that_is_gone_can_be_forgotten(service, worker, clock, queue):
    worker("w")
    with pytest.raises(Conflict, match="workers drain w"):
        service.forget("w")
    clock.now += ALIVE_S
    service.forget("w")
    assert queue.workers() == []


def test_who_is_not_there_cannot_be_forgotten(service):
    with pytest.raises(NotFound, match="'nobody'; `python -m isengard workers list`"):
        service.forget("nobody")


# Why a job waits


def test_a_job_that_will_be_taken_waits_for_nothing(why, worker):
    worker("w")
    assert why(memory_gb=10, engine="native", model="sdxl") == ""


def test_a_job_that_does_not_wait_has_no_reason_to(service, queue):
    job = queue.enqueue(JobKind.TRAIN_LORA, {})
    assert service.why_waiting(queue.claim("w", lease_s=60)) == ""
    assert service.why_waiting(job) == NO_WORKER


def test_dead_workers_are_no_workers(why, worker, clock):
    worker("w")
    clock.now += ALIVE_S
    assert why() == NO_WORKER


def test_a_lacking_engine_is_named_with_the_way_to_get_it(why, worker):
    worker("w")
    said = why(engine="ai-toolkit")
    assert "no running worker has the engine 'ai-toolkit'" in said
    assert "`python -m isengard ai-toolkit install`" in said


def test_a_lacking_model_is_named_with_where_to_get_it(why, worker):
    worker("a")
    worker("b")
    said = why(model="flux1-dev")
    assert "no running worker has the model 'flux1-dev' on its disk" in said
    assert "of a, b with `python -m isengard models download flux1-dev`" in said


def test_a_model_has_to_be_where_the_engine_is(why, worker):
    worker("engine", engines=("native", "ai-toolkit"))
    worker("model", models=("flux1-dev",))
    said = why(engine="ai-toolkit", model="flux1-dev")
    assert "no running worker with its engine has the model" in said
    assert "on the machine of engine with" in said


def test_who_has_the_model_may_be_too_small_while_a_larger_worker_lacks_it(why, worker):
    worker("large", 80, models=())
    worker("small", 12)
    assert "it needs 40 GB of memory, and who could run it otherwise has less: small;" in why(
        memory_gb=40, model="sdxl"
    )


def test_draining_workers_are_named_with_the_way_to_let_them_work(why, worker, queue):
    worker("w")
    queue.drain("w")
    said = why()
    assert "take no more jobs (w)" in said
    assert "`python -m isengard workers resume w`" in said


# What plans are made for, and what jobs can have


def test_plans_are_for_the_largest_worker_that_takes_jobs(service, worker, queue, clock):
    worker("dead", 200)
    clock.now += ALIVE_S
    worker("draining", 80)
    queue.drain("draining")
    worker("small", 12)
    worker("large", 24)
    worker("without a word of its machine", machine=None)
    assert service.facts().name == "large"


def test_a_gpu_goes_before_a_processor_with_more_memory(service, worker):
    worker("gpu", 12)
    worker("processor", machine=processor(500))
    assert service.facts().name == "gpu"


def test_of_processors_the_one_with_most_memory_is_planned_for(service, worker):
    worker("small", machine=processor(8))
    worker("large", machine=processor(500))
    assert service.facts() == processor(500)


def test_without_workers_plans_are_for_this_machine(service):
    assert service.facts() is HERE


def test_the_only_machine_there_is_is_planned_for_whatever_its_worker_says(queue, clock, worker):
    alone = WorkerService(queue=queue, machine=lambda: HERE, shared=False, clock=clock)
    worker("w", engines=("ai-toolkit",))
    assert alone.facts() is HERE
    assert not alone.have_model("sdxl")
    assert alone.absence("ai-toolkit", here=lambda: "not here") == "not here"


def test_a_model_at_a_living_worker_can_be_had(service, worker, clock):
    worker("w")
    assert service.have_model("sdxl")
    assert not service.have_model("flux1-dev")
    clock.now += ALIVE_S
    assert not service.have_model("sdxl")


def test_an_engine_is_lacking_when_no_living_worker_has_it_even_if_it_is_here(service, worker):
    assert service.absence("ai-toolkit", here=lambda: "") == ""
    worker("w")
    assert "no running worker has the engine" in service.absence("ai-toolkit", here=lambda: "")
    worker("other", engines=("ai-toolkit",))
    assert service.absence("ai-toolkit", here=lambda: "not here") == ""


def test_while_the_queue_is_away_workers_are_as_they_were(service, worker, queue, clock, monkeypatch):
    worker("w")
    assert service.facts().name == "w"

    def away():
        raise QueueUnavailable("away")

    monkeypatch.setattr(queue, "workers", away)
    clock.now += ALIVE_S
    assert [service.facts().name, service.facts().name] == ["w", "w"]


def test_the_queue_is_not_asked_at_each_plan(service, worker, queue, monkeypatch):
    worker("w")
    service.facts()
    monkeypatch.setattr(queue, "workers", None)
    assert service.have_model("sdxl")


# The models of a worker


@pytest.fixture
def models(tmp_path, clock):
    def models(*, shared):
        weights = Weights(models_dir=tmp_path / "models", assets_dir=ASSETS, hub_cache=tmp_path / "hub")
        return ModelsHere(catalog=Catalog(ROOT / "configs"), weights=weights, shared=shared, clock=clock)

    return models


def test_beside_others_a_worker_says_which_models_are_on_its_disk(models):
    assert models(shared=True).names() == ("demo",)


def test_the_only_machine_gets_jobs_for_every_model(models):
    assert set(models(shared=False).names()) > {"demo", "sdxl", "flux1-dev"}


def test_a_disk_is_looked_at_now_and_then(models, tmp_path, clock):
    here = models(shared=True)
    assert here.names() == ("demo",)
    tmp_path.joinpath("models").mkdir()
    tmp_path.joinpath("models", "sdxl").symlink_to(ASSETS / "demo-base")
    assert here.names() == ("demo",)
    clock.now += TAKE_STOCK_EVERY_S
    assert here.names() == ("demo", "sdxl")


# What jobs ask of a worker


def planning(gib):
    return Planning(machine=lambda: machine(gib), corrections=Corrections)


def test_a_training_asks_for_the_memory_it_is_planned_with():
    plan = planning(24).training(CARDS["flux1-dev"], wishes())
    needs = planning(24).training_needs(CARDS["flux1-dev"], plan.spec)
    assert needs == Needs(memory_gb=plan.peak_bytes // 2**30, engine="native", model="flux1-dev")
    assert needs.memory_gb > 8


def test_an_image_asks_for_no_more_than_the_smallest_way_to_make_it_takes():
    card, asked = CARDS["flux1-dev"], ImageSpec(base_model="flux1-dev", prompt="-", width=1024, height=1024)
    needs = planning(80).image_needs(card, asked)
    assert (needs.engine, needs.model) == ("", "flux1-dev")
    assert 0 < needs.memory_gb < planning(80).images(card, asked).peak_bytes // 2**30 // 4


def test_a_model_of_unknown_parts_asks_for_no_memory():
    card = CARDS["flux1-dev"].model_copy(update={"parts": None})
    asked = ImageSpec(base_model="flux1-dev", prompt="-")
    needs = (planning(24).training_needs(card, wishes()), planning(24).image_needs(card, asked))
    assert [each.memory_gb for each in needs] == [0, 0]
