"""Composition root: the only place that names concrete classes."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from isengard.domain.identity import ScorerKind
from isengard.domain.limits import Limits
from isengard.domain.model import Family
from isengard.domain.training import AI_TOOLKIT, NATIVE
from isengard.domain.users import read_users
from isengard.engines.base import IdentityScorer
from isengard.errors import MissingWeights
from isengard.queue.base import JobQueue
from isengard.queue.shared import SharedLedger
from isengard.queue.sqlite import SqliteQueue
from isengard.queue.sqlite_copy import keeping_a_copy, snapshot
from isengard.services.admission import Admission
from isengard.services.ai_toolkit import AiToolkitService
from isengard.services.backup import BackupService
from isengard.services.captioning import CaptioningService
from isengard.services.characters import CharacterService
from isengard.services.checks import Checks
from isengard.services.comparison import ComparisonService
from isengard.services.costs import Costs
from isengard.services.doctor import DoctorService
from isengard.services.footprint import Footprint
from isengard.services.images import ImageService
from isengard.services.jobs import JobService
from isengard.services.likeness import LikenessService
from isengard.services.logins import Logins
from isengard.services.machine import Machine
from isengard.services.model_tasks import ModelTasks
from isengard.services.models import ModelService
from isengard.services.notices import Notices
from isengard.services.planning import Planning
from isengard.services.pod import IdleWatch, Work, idle_message
from isengard.services.report import ReportService
from isengard.services.room import Room
from isengard.services.storage import StorageService
from isengard.services.training import Engine, TrainingService
from isengard.services.upload_folder import UploadFolder
from isengard.services.volume import VolumeService
from isengard.services.workers import WorkerService
from isengard.settings import ASSETS, ROOT, Settings, WorkerMode
from isengard.store import child, looks
from isengard.store.ai_toolkit import Checkout
from isengard.store.artifacts import Images, Loras
from isengard.store.characters import CharacterStore
from isengard.store.closed_sessions import ClosedSessions
from isengard.store.comparisons import Comparisons
from isengard.store.configs import Catalog
from isengard.store.hub import Hub
from isengard.store.memory import Peaks
from isengard.store.outbox import Outbox
from isengard.store.runpod import RunPod
from isengard.store.session_key import session_key
from isengard.store.token import TokenFile
from isengard.store.webhook import Webhook
from isengard.store.weights import Weights

#: What `equip` can make: families by training engine, and families that make images.
TRAINS = {NATIVE: tuple(Family), AI_TOOLKIT: (Family.FLUX, Family.SDXL)}
GENERATES = tuple(Family)


@dataclass(frozen=True)
class Application:
    """The services behind the page and the command line."""

    settings: Settings
    queue: JobQueue
    catalog: Catalog
    weights: Weights
    characters: CharacterService
    likeness: LikenessService
    doctor: DoctorService
    captioning: CaptioningService
    training: TrainingService
    ai_toolkit: AiToolkitService
    images: ImageService
    comparison: ComparisonService
    jobs: JobService
    workers: WorkerService
    machine: Machine
    planning: Planning
    models: ModelService
    model_tasks: ModelTasks
    volume: VolumeService
    storage: StorageService
    room: Room
    reports: ReportService
    checks: Checks
    footprint: Footprint
    notices: Notices
    costs: Costs
    idle: IdleWatch
    admission: Admission
    uploads: UploadFolder


def open_queue(settings: Settings) -> JobQueue:
    """The job list that the settings name. Raises: QueueUnavailable, Conflict."""
    if settings.redis_url is None:
        return SqliteQueue(settings.jobs_db)
    from isengard.queue.redis import RedisQueue  # redis takes 0.1 s to import

    return RedisQueue(settings.redis_url.get_secret_value())


def open_logins(settings: Settings) -> Logins | None:
    """Who may use the page; None for everybody. Hashing takes 0.2 s for each password that is not a hash."""
    if settings.auth is None:
        return None
    users = read_users(settings.auth.get_secret_value())
    return Logins(
        users,
        key=session_key(settings.data_dir / "session.key"),
        closed=ClosedSessions(settings.data_dir / "closed-sessions.json"),
    )


def backups(settings: Settings) -> BackupService:
    """Without the rest of the application: it serves when that cannot start. A job list on a server is not its to copy."""
    return BackupService(
        folder=settings.data_dir,
        snapshot=None if settings.is_shared else partial(snapshot, settings.jobs_db),
        open_list=SqliteQueue,
    )


def check_job_list(settings: Settings) -> None:
    """Read all of a job list that is a file. Raises: QueueUnavailable: it is damaged."""
    if not settings.is_shared:
        snapshot(settings.jobs_db)


def keeping_job_list(settings: Settings) -> AbstractContextManager[None]:
    """While the block runs, there is a copy of the job list against damage; a server keeps its own."""
    return nullcontext() if settings.is_shared else keeping_a_copy(settings.jobs_db)


def build(settings: Settings) -> Application:
    """Wire the services. Imports no engine."""
    queue = open_queue(settings)
    catalog = Catalog(settings.configs_dir)
    weights = Weights(models_dir=settings.models_dir, assets_dir=ASSETS, shared=settings.is_shared)
    store = CharacterStore(
        characters_dir=settings.characters_dir,
        trash_dir=settings.trash_dir / "characters",
        forget=partial(looks.forget, settings.cache_dir),
    )
    storage = StorageService(folder=settings.data_dir, queue=queue, characters=store, quota=settings.quota)
    room = Room(
        queue=queue,
        catalog=catalog,
        folder=settings.data_dir,
        runs_dir=settings.runs_dir,
        quota=settings.quota,
        used=storage.used,
    )
    characters = CharacterService(store=store, check_room=room.check_upload)
    scorers = partial(open_scorer, look=settings.look_folder)
    likeness = LikenessService(
        characters=characters, scorers=scorers, cache_dir=settings.cache_dir / "sightings"
    )
    ai_toolkit = AiToolkitService(checkout=_checkout(settings))
    machine = Machine(device=settings.device)
    workers = WorkerService(queue=queue, machine=machine.facts, shared=settings.is_shared)
    planning = Planning(machine=workers.facts, corrections=peaks_of(settings).read)
    token, jobs = _token(settings), JobService(queue=queue, runs_dir=settings.runs_dir)
    volume = VolumeService(
        folder=settings.data_dir, ledger=queue if isinstance(queue, SharedLedger) else None
    )
    model_tasks = ModelTasks(
        run=partial(child.run, env=settings.child_environment(), cwd=ROOT),
        command=(sys.executable, "-m", "isengard", "models"),
    )
    webhook = None if settings.webhook_url is None else Webhook(settings.webhook_url.get_secret_value())
    work = Work(queue=queue, workers=workers, machine=settings.machine_name, shared=settings.is_shared)
    images = ImageService(
        queue=queue,
        catalog=catalog,
        weights=weights,
        loras=loras_of(settings),
        images=images_of(settings),
        families=GENERATES,
        planning=planning,
        room=room,
        elsewhere=workers.have_model,
        has_photos=lambda name: any(one.id == name and one.images for one in characters.list()),
    )
    return Application(
        settings=settings,
        queue=queue,
        catalog=catalog,
        weights=weights,
        characters=characters,
        likeness=likeness,
        doctor=DoctorService(
            characters=characters, likeness=likeness, scorers=scorers, cache_dir=settings.cache_dir
        ),
        captioning=CaptioningService(
            queue=queue,
            catalog=catalog,
            weights=weights,
            characters=characters,
            elsewhere=workers.have_model,
        ),
        training=TrainingService(
            queue=queue,
            catalog=catalog,
            weights=weights,
            characters=characters,
            engines={
                NATIVE: Engine(TRAINS[NATIVE]),
                AI_TOOLKIT: Engine(
                    TRAINS[AI_TOOLKIT],
                    absence=partial(workers.absence, AI_TOOLKIT, here=ai_toolkit.absence),
                ),
            },
            planning=planning,
            room=room,
            elsewhere=workers.have_model,
            runs_dir=settings.runs_dir,
        ),
        ai_toolkit=ai_toolkit,
        images=images,
        comparison=ComparisonService(
            queue=queue,
            catalog=catalog,
            characters=characters,
            likeness=likeness,
            comparisons=Comparisons(settings.runs_dir),
            planning=planning,
            room=room,
            made_with=images.made_with,
            check_model=images.check_here,
        ),
        jobs=jobs,
        workers=workers,
        machine=machine,
        planning=planning,
        models=ModelService(
            catalog=catalog,
            weights=weights,
            queue=queue,
            hub=Hub(endpoint=settings.hub_endpoint, token=token.get, offline=settings.hub_offline),
            token=token,
            convert=_convert,
            free=room.unpromised,
        ),
        model_tasks=model_tasks,
        volume=volume,
        checks=Checks(
            folder=settings.data_dir,
            jobs=jobs,
            workers=workers,
            volume=volume,
            machine=None if settings.worker is WorkerMode.NONE else machine,
        ),
        storage=storage,
        room=room,
        footprint=Footprint(settings.data_dir),
        reports=reporting(settings, jobs=jobs),
        notices=Notices(
            queue=queue,
            outbox=Outbox(settings.data_dir / "untold"),
            post=webhook.post if webhook else None,
            page=settings.page_url,
        ),
        costs=Costs(per_hour=settings.price_per_hour, jobs=jobs),
        idle=_idle_watch(
            settings,
            busy=lambda: work() or ai_toolkit.installation().running or model_tasks.running(),
            webhook=webhook,
        ),
        admission=Admission(queue=queue, limits=Limits().times(settings.limits)),
        uploads=UploadFolder(settings.upload_folder),
    )


def reporting(settings: Settings, *, jobs: JobService | None) -> ReportService:
    """Reports of problems; without ``jobs`` where the job list is the problem."""
    token = _token(settings)
    return ReportService(
        settings=settings,
        jobs=jobs,
        secrets=lambda: settings.secret_values() | set(filter(None, [token.get()])),
        run=partial(child.run, env=settings.child_environment() | {"COLUMNS": "160"}, cwd=ROOT),
        doctor=(sys.executable, "-m", "isengard", "doctor"),
    )


def open_scorer(kind: ScorerKind, *, look: Path | None = None) -> IdentityScorer:
    """The scorer of a kind, one for the whole process. Imports OpenCV or torch.

    ``look``: the folder of the model that compares whole pictures; the others are bundled. Raises: MissingWeights.
    """
    if kind is not ScorerKind.LOOK:
        return _bundled_scorer(kind)
    if look is None:
        raise MissingWeights("the model that compares whole pictures is not bundled: name its folder")
    return _look_scorer(look)


@cache
def _look_scorer(folder: Path) -> IdentityScorer:
    from isengard.engines.look import LookScorer

    return LookScorer(folder)


@cache
def _bundled_scorer(kind: ScorerKind) -> IdentityScorer:
    if kind is ScorerKind.FACES:
        from isengard.engines.faces import FaceScorer

        return FaceScorer(ASSETS / "faces")
    from isengard.engines.drawn_figures import DrawnFigureScorer

    return DrawnFigureScorer(ASSETS / "figure-encoder.safetensors")


def _convert(file: Path, family: Family, parts: Path) -> None:
    """Turn a single-file checkpoint into diffusers' layout. Imports torch."""
    from isengard.engines.single_file import convert

    convert(file, family=family, parts=parts)


def _idle_watch(settings: Settings, *, busy: Callable[[], bool], webhook: Webhook | None) -> IdleWatch:
    pod, key, minutes = settings.runpod_pod_id, settings.runpod_api_key, settings.stop_when_idle_minutes

    def mention(idle_s: float) -> None:
        if webhook and settings.is_paid_by_the_hour:
            webhook.post(idle_message(idle_s, per_hour=settings.price_per_hour, page=settings.page_url))

    if not (pod and key and minutes):
        return IdleWatch(busy=busy, mention=mention)
    stop = RunPod(pod_id=pod, api_key=key).stop
    return IdleWatch(busy=busy, mention=mention, stop=stop, stop_after_s=60.0 * minutes)


def _checkout(settings: Settings) -> Checkout:
    return Checkout(
        settings.ai_toolkit_dir,
        owned=settings.ai_toolkit is None,
        lock=settings.data_dir / "ai-toolkit.lock",
    )


def _token(settings: Settings) -> TokenFile:
    return TokenFile(settings.data_dir / "hub-token", given=settings.hub_token)


def loras_of(settings: Settings) -> Loras:
    return Loras(
        loras_dir=settings.loras_dir, runs_dir=settings.runs_dir, trash_dir=settings.trash_dir / "loras"
    )


def peaks_of(settings: Settings) -> Peaks:
    return Peaks(settings.data_dir / "memory.json")


def images_of(settings: Settings) -> Images:
    return Images(images_dir=settings.images_dir, trash_dir=settings.trash_dir / "images")
