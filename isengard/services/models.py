"""What the page and the command line may do with models: see, get, check and remove them."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from isengard.domain.base import Frozen
from isengard.domain.captioner import CaptionerCard
from isengard.domain.job import Job, JobStatus
from isengard.domain.model import Family, ModelCard
from isengard.errors import CheckpointRefused, Conflict, DiskFull, HubRefused, MissingWeights, NotFound
from isengard.queue.base import JobQueue
from isengard.store import manifest
from isengard.store.configs import Catalog
from isengard.store.download import Downloader, Meter, Report, Source, come, locked
from isengard.store.hub import Hub
from isengard.store.single_file import BRINGS, check_single_file
from isengard.store.token import TokenFile, fitting
from isengard.store.weights import (
    TRAINING_ADAPTER,
    Place,
    Presence,
    Weights,
    json_object,
    missing_files,
    missing_in_network,
)

UNENDED = (JobStatus.RUNNING, JobStatus.QUEUED, JobStatus.PAUSED)
#: What a pipeline of a family calls itself.
PIPELINES = {Family.FLUX: "Flux", Family.FLUX2: "Flux2", Family.SDXL: "StableDiffusionXL"}


class ModelState(Frozen):
    """A base model or a captioner as it is on this machine."""

    card: ModelCard | CaptionerCard
    state: str
    place: Place = Place.NOWHERE
    path: Path | None = None
    missing: tuple[str, ...] = ()
    size_bytes: int = 0
    begun_bytes: int = 0
    promised_bytes: int = 0
    lacks_adapter: bool = False
    partner: str = ""
    """The card to make images with, where it is another and is not here."""
    advice: str = ""


class TokenAnswer(Frozen):
    """What the hub says of a token: whose it is, and for each gated model why it may not be had (empty: it may)."""

    user: str
    refusals: dict[str, str]

    @property
    def sentence(self) -> str:
        """For a user, with the page to go to."""
        refused = [why for why in self.refusals.values() if why]
        if not refused:
            models = f" and may have {', '.join(self.refusals)}" if self.refusals else ""
            return f"All is well: the token of {self.user} is known{models}."
        return f"The token of {self.user} is known. " + " ".join(
            f"{why[0].upper()}{why[1:]}." for why in refused
        )


class ModelService:
    """Base models, their downloads, and the token. Names are looked up first: `NotFound` names the known ones."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        weights: Weights,
        queue: JobQueue,
        hub: Hub,
        token: TokenFile,
        convert: Callable[[Path, Family, Path], None],
        free: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free,
    ) -> None:
        self._catalog, self.weights, self._queue, self._hub = catalog, weights, queue, hub
        self.token, self._convert, self._free = token, convert, free

    def list(self) -> tuple[ModelState, ...]:
        """All base models, then all captioners, in the order of the cards."""
        return tuple(self._state(card) for card in self._catalog.cards())

    def get(self, name: str) -> ModelState:
        return self._state(self._catalog.card(name))

    @property
    def offline(self) -> bool:
        """Whether nothing may be asked of the hub."""
        return self._hub.offline

    def version(self) -> tuple[int, str]:
        """Another value when a model's folder came or went, or a token was set; cheap to ask for."""
        try:
            changed = self.weights.models_dir.stat().st_mtime_ns
        except OSError:
            changed = 0
        return changed, self.token.origin

    def download(self, name: str, report: Report, *, for_checkpoint: bool = False) -> ModelState:
        """Fetch what is missing of a model and of its training adapter.

        Raises: as `Downloader.download`; Conflict for a model that has no repository.
        """
        card = self._catalog.card(name)
        if card.repository is None:
            raise Conflict(f"{card.title} comes with Isengard; there is nothing to download")
        sources = self._sources(card, for_checkpoint=for_checkpoint)
        if sources:
            Downloader(hub=self._hub, free=self._free).download(sources, report)
        return self._state(card)

    def verify(self, name: str, report: Report) -> tuple[str, ...]:
        """Read a model's files and name those that are damaged; ours are thrown away, so that a download mends them.

        What was downloaded here is compared with the hub's hashes; of any other copy only the lengths can be.

        Raises:
            MissingWeights: it is not here.
            Conflict: it is being downloaded.
        """
        card = self._catalog.card(name)
        presence = self.weights.status(card)
        if presence.path is None:
            raise MissingWeights(self.weights.advice(card, presence))
        folders = [
            folder
            for folder in (presence.path, self.weights.adapter_folder(card))
            if manifest.read(folder) is not None
        ]
        if not folders:
            return presence.missing
        with locked(folders):
            damaged = [path for folder in folders for path in _damaged(folder, report)]
        return tuple(damaged)

    def remove(self, name: str) -> int:
        """Delete what was downloaded of a model, also what has begun; the bytes that are free again.

        Raises:
            Conflict: a job uses it, it is being downloaded, or it is not ours to delete.
        """
        card = self._catalog.card(name)
        if job := self._user_of(card):
            raise Conflict(
                f"{card.title} is used by job {job.id} ({job.status}); wait for its end, or cancel it first"
            )
        folders = [
            folder
            for folder in (self.weights.folder(card), self.weights.adapter_folder(card))
            if folder.is_dir()
        ]
        if not folders:
            raise Conflict(self._why_not_removed(card, self.weights.status(card)))
        with locked(folders):
            size = sum(_size(folder) for folder in folders)
            for folder in folders:
                doomed = folder.with_name(f".{folder.name}.removed")
                folder.rename(doomed)
                shutil.rmtree(doomed)
        return size

    def use(self, name: str, path: Path) -> ModelState:
        """Take a folder in diffusers' layout as it is, or turn a single-file checkpoint into one.

        Raises:
            CheckpointRefused: names what it lacks, or is.
            MissingWeights, DiskFull: what a checkpoint needs beside it.
        """
        card = self._catalog.card(name)
        path = path.expanduser().resolve()
        if card.repository is None:
            raise Conflict(f"{card.title} comes with Isengard and is not replaced")
        if path.is_dir():
            _check_folder(path, card)
            self.weights.own_paths.set(name, path)
        elif isinstance(card, CaptionerCard):
            raise CheckpointRefused(
                f"{path} is no folder; {card.title} is used from one in transformers' layout"
            )
        else:
            self._take_checkpoint(card, path)
        return self._state(card)

    def forget(self, name: str) -> None:
        """Use the user's own folder no longer; the folder itself stays."""
        if self.weights.own_paths.get(self._catalog.card(name).name) is None:
            raise NotFound(f"no own folder is used for {name}")
        self.weights.own_paths.set(name, None)

    def keep_token(self, token: str) -> TokenAnswer:
        """Try a token and keep it when the hub knows it, also when a licence is still to be accepted.

        Raises:
            InvalidSpec, HubRefused, HubUnreachable: it is not kept.
        """
        token = fitting(token)
        user = self._hub.user(token)
        refusals = {card.title: self._refusal(card, token) for card in self._catalog.cards() if card.gated}
        self.token.keep(token)
        return TokenAnswer(user=user, refusals=refusals)

    def _refusal(self, card: ModelCard | CaptionerCard, token: str) -> str:
        try:
            self._hub.check_access(str(card.repository), token)
        except HubRefused as error:
            return str(error)
        return ""

    def _state(self, card: ModelCard | CaptionerCard) -> ModelState:
        presence = self.weights.status(card)
        begun, promised = come(self.weights.folder(card))
        return ModelState(
            card=card,
            state=presence.state,
            place=presence.place,
            path=presence.path,
            missing=presence.missing,
            size_bytes=_size(presence.path) if presence.path else 0,
            begun_bytes=begun,
            promised_bytes=promised,
            lacks_adapter=self._lacks_adapter(card),
            partner=self._partner(card),
            advice="" if presence.ready else self.weights.advice(card, presence),
        )

    def _lacks_adapter(self, card: ModelCard | CaptionerCard) -> bool:
        if isinstance(card, CaptionerCard) or card.training_adapter is None:
            return False
        return self.weights.training_adapter(card) is None

    def _partner(self, card: ModelCard | CaptionerCard) -> str:
        if isinstance(card, CaptionerCard) or card.generates_with is None or card.generates_with == card.name:
            return ""
        partner = self._catalog.model(card.generates_with)
        return "" if self.weights.status(partner).ready else partner.name

    def _sources(self, card: ModelCard | CaptionerCard, *, for_checkpoint: bool) -> Sequence[Source]:
        if isinstance(card, CaptionerCard):
            source = Source(card.repository, self.weights.folder(card), is_network=True)
            return () if self.weights.status(card).ready else (source,)
        spared = BRINGS[card.family] if for_checkpoint else ()
        found = []
        if not self.weights.status(card).ready:
            found.append(Source(str(card.repository), self.weights.folder(card), without_weights=spared))
        if card.training_adapter and self.weights.training_adapter(card) is None:
            found.append(
                Source(card.training_adapter, self.weights.adapter_folder(card), only=TRAINING_ADAPTER)
            )
        return found

    def _user_of(self, card: ModelCard | CaptionerCard) -> Job | None:
        jobs = self._queue.jobs(statuses=UNENDED, limit=1000)
        used = (
            (job, job.payload.get("spec", {}).get("base_model"), job.payload.get("captioner")) for job in jobs
        )
        return next((job for job, *names in used if card.name in names), None)

    def _why_not_removed(self, card: ModelCard | CaptionerCard, presence: Presence) -> str:
        if presence.path is None:
            return f"{card.title} is not on this machine"
        way = {
            Place.BUNDLED: "it comes with Isengard",
            Place.OWN_PATH: f"it is your own folder; to use it no longer: python -m isengard models use {card.name} --forget",
            Place.HUB_CACHE: "other programs share it; to free its space: hf cache rm",
        }[presence.place]
        return f"{card.title} is not removed from {presence.path}: {way}"

    def _take_checkpoint(self, card: ModelCard, file: Path) -> None:
        check_single_file(file, card.family)
        parts, brings = self.weights.folder(card), BRINGS[card.family]
        weights_of_it = tuple(f"{name}/" for name in brings)
        lacking = [
            each
            for each in missing_files(parts)
            if not (each.startswith(weights_of_it) and "safetensors" in each)
        ]
        if lacking:
            raise CheckpointRefused(
                f"{file} holds the weights of {', '.join(brings)}; {parts} still lacks {', '.join(lacking[:4])}"
                f"{' and more' if len(lacking) > 4 else ''}. Get the rest, without those weights, with: python -m isengard"
                f" models download {card.name} --for-checkpoint, and then use the file again"
            )
        size, free = file.stat().st_size, self._free(parts)
        if size > free:
            raise DiskFull(
                f"the copy in {parts} needs {size / 1e9:.1f} GB, and the disk has {free / 1e9:.1f} GB free"
            )
        with locked([parts]):
            self._convert(file, card.family, parts)


def _check_folder(folder: Path, card: ModelCard | CaptionerCard) -> None:
    pipeline = isinstance(card, ModelCard)
    missing = missing_files(folder) if pipeline else missing_in_network(folder)
    if missing:
        layout = "diffusers'" if pipeline else "transformers'"
        raise CheckpointRefused(
            f"{folder} is not a whole model in {layout} layout: {', '.join(missing[:4])} is missing"
        )
    if program := next(folder.rglob("*.py"), None):
        raise CheckpointRefused(
            f"{program} is a program; a model needs none, and a loader might run it. Remove it, or use another copy"
        )
    if isinstance(card, CaptionerCard):
        config = json_object(folder / "config.json") or {}
        if "vision_config" not in config:
            kind = config.get("model_type", "model without a type")
            raise CheckpointRefused(
                f"{folder} holds a {kind}, which sees no images, and {card.title} describes them"
            )
        return
    kind = str((json_object(folder / "model_index.json") or {}).get("_class_name", ""))
    wanted = PIPELINES[card.family]
    if kind.removeprefix(wanted)[:1].isdigit() or not kind.startswith(wanted):
        raise CheckpointRefused(
            f"{folder} holds a {kind or 'model without a class'}, and {card.title} is a {wanted}Pipeline"
        )


def _damaged(folder: Path, report: Report) -> list[str]:
    """Read every promised file; the paths of those that are missing or wrong, which are removed."""
    snapshot = manifest.read(folder)
    files = snapshot.files if snapshot else ()
    damaged = []
    meter = Meter(total=sum(file.size for file in files), done=0, report=report)
    for file in files:
        path, meter.file = folder / file.path, file.path
        right = manifest.length(path) == file.size
        if right and manifest.digest_of(path, file, read_bytes=meter.add).fits:
            continue
        path.unlink(missing_ok=True)
        damaged.append(file.path)
    meter.tell("complete")
    return damaged


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
