"""Base models on this machine: where they are, and whether they are whole. Never touches the network."""

import json
import os
import struct
from enum import StrEnum
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HUB_CACHE

from isengard.domain.base import Frozen
from isengard.domain.captioner import CaptionerCard
from isengard.domain.model import LocalModel, ModelCard
from isengard.errors import MissingWeights
from isengard.store import manifest
from isengard.store.own_paths import OwnPaths

WEIGHT_FILES = ("diffusion_pytorch_model.safetensors", "model.safetensors")
#: Inside the repository of a training adapter.
TRAINING_ADAPTER = "pytorch_lora_weights.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
#: A component's configuration, by the end of its class name; a model when none fits.
CONFIG_FILES = {
    "Scheduler": "scheduler_config.json",
    "Tokenizer": "tokenizer_config.json",
    "TokenizerFast": "tokenizer_config.json",
    "Processor": "preprocessor_config.json",
    "FeatureExtractor": "preprocessor_config.json",
}


class Place(StrEnum):
    """Where a base model may be."""

    NOWHERE = ""
    BUNDLED = "bundled"
    OWN_PATH = "own path"
    MODELS_FOLDER = "models folder"
    HUB_CACHE = "Hugging Face cache"


class Presence(Frozen):
    """Where a base model was found, and what it lacks there."""

    path: Path | None
    missing: tuple[str, ...] = ()
    place: Place = Place.NOWHERE

    @property
    def ready(self) -> bool:
        return self.state == "ready"

    @property
    def state(self) -> str:
        """``ready``, ``incomplete`` or ``missing``."""
        if self.path is None:
            return "missing"
        return "incomplete" if self.missing else "ready"


class Weights:
    """Looks for base models: bundled, at the user's own path, in the models folder, in the Hugging Face cache."""

    def __init__(
        self, *, models_dir: Path, assets_dir: Path, hub_cache: Path | None = None, shared: bool = False
    ) -> None:
        """``shared``: jobs are also run on other machines, which is said where a model is missing."""
        self.models_dir = models_dir
        self.assets_dir = assets_dir
        self.hub_cache = hub_cache or Path(HF_HUB_CACHE)
        self._shared = shared
        self.own_paths = OwnPaths(models_dir / "own-paths.json")

    def locate(self, card: ModelCard) -> LocalModel:
        """Find a whole model.

        Raises:
            MissingWeights: says what is missing, where it was looked for, and how to get it.
        """
        return LocalModel(card=card, path=self.locate_files(card))

    def locate_files(self, card: ModelCard | CaptionerCard) -> Path:
        """The folder of a whole model. Raises: MissingWeights, as `locate`."""
        presence = self.status(card)
        if presence.path is None or presence.missing:
            raise MissingWeights(self.advice(card, presence))
        return presence.path

    def locate_to_train(self, card: ModelCard) -> LocalModel:
        """As `locate`, with the training adapter of a distilled model.

        Raises:
            MissingWeights: also when that is not here.
        """
        model = self.locate(card)
        if card.trains or card.training_adapter is None:
            return model
        found = self.training_adapter(card)
        if found is None:
            raise MissingWeights(
                f"{card.title} is trained with its training adapter, which is not on this machine; looked for"
                f" {self.adapter_folder(card) / TRAINING_ADAPTER} and in the Hugging Face cache {self.hub_cache}."
                f" {self._get_it(card)}"
            )
        return model.model_copy(update={"training_adapter": found})

    def training_adapter(self, card: ModelCard) -> Path | None:
        """The file of a card's training adapter, if it is here."""
        folders = (self.adapter_folder(card), *self._cached(str(card.training_adapter)))
        return next(
            (folder / TRAINING_ADAPTER for folder in folders if is_whole(folder / TRAINING_ADAPTER)), None
        )

    def folder(self, card: ModelCard | CaptionerCard) -> Path:
        """Where a download of it goes."""
        return self.models_dir / card.name

    def adapter_folder(self, card: ModelCard | CaptionerCard) -> Path:
        return self.models_dir / f"{card.name}-training-adapter"

    def status(self, card: ModelCard | CaptionerCard) -> Presence:
        """The first whole copy; else the first incomplete one; else none."""
        found = [
            Presence(path=folder, missing=_lacking_in(folder, card), place=place)
            for place, folder in self._candidates(card)
            if folder.is_dir()
        ]
        whole = [presence for presence in found if presence.ready]
        return (whole or found or [Presence(path=None)])[0]

    def _candidates(self, card: ModelCard | CaptionerCard) -> list[tuple[Place, Path]]:
        if isinstance(card, ModelCard) and card.path is not None:
            return [(Place.BUNDLED, self.assets_dir / card.path)]
        own = self.own_paths.get(card.name)
        return [
            *([(Place.OWN_PATH, own)] if own else []),
            (Place.MODELS_FOLDER, self.folder(card)),
            *((Place.HUB_CACHE, folder) for folder in self._cached(str(card.repository))),
        ]

    def _cached(self, repository: str) -> list[Path]:
        """The snapshot that ``refs/main`` of the Hugging Face cache names."""
        folder = self.hub_cache / f"models--{repository.replace('/', '--')}"
        try:
            return [folder / "snapshots" / (folder / "refs" / "main").read_text(encoding="utf-8").strip()]
        except OSError:
            return []

    def advice(self, card: ModelCard | CaptionerCard, presence: Presence) -> str:
        """What is missing, where it was looked for, and how to get it."""
        title = f"{card.title} ({card.name})"
        if isinstance(card, ModelCard) and card.path is not None:
            lacking = ", ".join(presence.missing[:3]) or "the folder"
            return f"{title} is not whole: {lacking} is missing in {self.assets_dir / card.path}; install Isengard again"
        if presence.path is None:
            said = f"{title} is not on this machine; looked in {self.folder(card)} and in the Hugging Face cache {self.hub_cache}."
        else:
            more = f" and {len(presence.missing) - 3} more" if len(presence.missing) > 3 else ""
            said = f"{title} is incomplete in {presence.path}: {', '.join(presence.missing[:3])}{more}."
        if card.gated:
            said += (
                f" Its authors ask you to accept its licence ({card.licence}): do so at"
                f" https://huggingface.co/{card.repository}, then run: python -m isengard models token."
            )
        own = f"python -m isengard models use {card.name} PATH"
        return f"{said} {self._get_it(card)}; files that you have already: {own}. Licence: {card.licence_url}"

    def _get_it(self, card: ModelCard | CaptionerCard) -> str:
        """How to get a card's files."""
        where = 'on the Training tab under "Base models", or with:'
        if self._shared:
            where = "on the machine of a worker, or here if jobs are run here, with:"
        return f"Get it {where} python -m isengard models download {card.name}"


def _lacking_in(folder: Path, card: ModelCard | CaptionerCard) -> tuple[str, ...]:
    """What a model lacks, and what a download of ours has not brought yet."""
    found = missing_files(folder) if isinstance(card, ModelCard) else missing_in_network(folder)
    return (*found, *(path for path in manifest.lacking(folder) if path not in found))


def missing_files(folder: Path) -> tuple[str, ...]:
    """What a pipeline in diffusers' layout lacks, as paths in ``folder``; a cut-off file counts as missing."""
    index = json_object(folder / "model_index.json")
    if index is None:
        return ("model_index.json",)
    missing: list[str] = []
    for component, value in index.items():
        if isinstance(value, list) and all(isinstance(part, str) for part in value):
            missing += [f"{component}/{name}" for name in _lacking(folder / component, class_name=value[-1])]
    return tuple(missing)


def missing_in_network(folder: Path) -> tuple[str, ...]:
    """What a model in transformers' layout lacks, which reads texts and pictures; a cut-off file counts as missing."""
    processors = ("preprocessor_config.json", "processor_config.json")
    lacking = [] if json_object(folder / "config.json") is not None else ["config.json"]
    lacking += _lacking_weights(folder, WEIGHT_FILES[1:])
    lacking += [] if any((folder / name).is_file() for name in TOKENIZER_FILES) else [TOKENIZER_FILES[0]]
    lacking += [] if any((folder / name).is_file() for name in processors) else [processors[0]]
    return tuple(lacking)


def _lacking(component: Path, *, class_name: str) -> list[str]:
    config = next((file for end, file in CONFIG_FILES.items() if class_name.endswith(end)), None)
    lacking = (
        [] if json_object(component / (config or "config.json")) is not None else [config or "config.json"]
    )
    if config is None:
        lacking += _lacking_weights(component)
    elif config == "tokenizer_config.json" and not any(
        (component / name).is_file() for name in TOKENIZER_FILES
    ):
        lacking.append(TOKENIZER_FILES[0])
    return lacking


def _lacking_weights(component: Path, names: tuple[str, ...] = WEIGHT_FILES) -> list[str]:
    """Shards named by the index file that are not whole, or the one weight file."""
    for name in names:
        index = json_object(component / f"{name}.index.json")
        if index is not None:
            shards = sorted(set(index.get("weight_map", {}).values()))
            return [shard for shard in shards if not is_whole(component / shard)]
    present = next((name for name in names if (component / name).exists()), None)
    if present is None:
        return [" (or ".join(names) + ")" * (len(names) - 1)]
    return [] if is_whole(component / present) else [f"{present} (cut off)"]


def is_whole(path: Path) -> bool:
    """Whether a safetensors file has the length its header promises."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            size = os.fstat(file.fileno()).st_size
            header = json.loads(file.read(length)) if length <= size - 8 else {}
    except (OSError, ValueError, struct.error):
        return False
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return bool(ends) and size == 8 + length + max(ends)


def json_object(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file; None when there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
