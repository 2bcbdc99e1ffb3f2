"""Model cards, training presets and generation templates, read from ``configs/``."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import yaml

from isengard.domain.base import Frozen, validated
from isengard.domain.generation import GenerationTemplate, ImageSpec
from isengard.domain.model import ModelCard
from isengard.domain.presets import resolve_spec
from isengard.domain.training import NATIVE, TrainingPreset
from isengard.errors import InvalidSpec, NotFound

Model = TypeVar("Model", bound=Frozen)


class _Named(Protocol):
    @property
    def name(self) -> str: ...


Named = TypeVar("Named", bound=_Named)


class Catalog:
    """What the YAML files of one folder say. They are read at each call, so an edit needs no restart.

    Every method raises `InvalidSpec` with the file's name when a file is wrong, and `NotFound` with the known
    names when there is no such entry.
    """

    def __init__(self, configs_dir: Path) -> None:
        self.configs_dir = configs_dir

    def models(self) -> tuple[ModelCard, ...]:
        """All base models, in the order of ``models.yaml``."""
        path = self.configs_dir / "models.yaml"
        if not path.is_file():
            raise NotFound(f"there is no {path}; point ISENGARD_CONFIGS_DIR at the folder that holds it")
        cards = tuple(_loaded(ModelCard, path, name, values) for name, values in _mapping(path).items())
        known = {card.name for card in cards}
        for card in cards:
            if card.generates_with and card.generates_with not in known:
                raise InvalidSpec(
                    f"{path}: {card.name}: generates_with: there is no model {card.generates_with!r}"
                    f" (known: {', '.join(sorted(known))})"
                )
        return cards

    def model(self, name: str) -> ModelCard:
        return _pick("base model", name, self.models())

    def presets(self) -> tuple[TrainingPreset, ...]:
        """All training presets, quickest first; each was tried on every model that trains."""
        paths = sorted((self.configs_dir / "training").glob("*.yaml"))
        presets = [_loaded(TrainingPreset, path, path.stem, _mapping(path)) for path in paths]
        cards = self.models()
        for path, preset in zip(paths, presets, strict=True):
            _try_preset(path, preset, cards)
        return tuple(sorted(presets, key=lambda preset: (preset.steps_per_image, preset.name)))

    def preset(self, name: str) -> TrainingPreset:
        return _pick("training preset", name, self.presets())

    def templates(self) -> tuple[GenerationTemplate, ...]:
        """All generation templates, by name; the settings of each make a valid `ImageSpec`."""
        paths = sorted((self.configs_dir / "generation").glob("*.yaml"))
        templates = [_loaded(GenerationTemplate, path, path.stem, _mapping(path)) for path in paths]
        for path, template in zip(paths, templates, strict=True):
            with _naming(path):
                validated(ImageSpec, {"prompt": "x", "base_model": "x", **template.settings})
        return tuple(templates)

    def template(self, name: str) -> GenerationTemplate:
        return _pick("generation template", name, self.templates())


def _pick(what: str, name: str, entries: Iterable[Named]) -> Named:
    by_name = {entry.name: entry for entry in entries}
    if name not in by_name:
        raise NotFound(f"there is no {what} {name!r} (known: {', '.join(by_name)})")
    return by_name[name]


def _try_preset(path: Path, preset: TrainingPreset, cards: tuple[ModelCard, ...]) -> None:
    if unknown := sorted(preset.models.keys() - {card.name for card in cards}):
        raise InvalidSpec(f"{path}: models: there is no base model {unknown[0]!r} in models.yaml")
    for card in cards:
        if card.trainable:
            with _naming(path):
                resolve_spec(
                    preset,
                    card,
                    character="x",
                    trigger="x",
                    class_word="x",
                    image_count=10,
                    engine=NATIVE,
                    overrides={},
                )


def _loaded(model: type[Model], path: Path, name: str, values: Any) -> Model:
    if not isinstance(values, dict):
        raise InvalidSpec(f"{path}: {name} must hold settings, one `key: value` a line, got {values!r}")
    if "name" in values:
        raise InvalidSpec(f"{path}: {name}: remove the setting 'name'; the name is {name!r} already")
    with _naming(path):
        return validated(model, {"name": name, **values})


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Put the file's name in front of what is wrong in it."""
    try:
        yield
    except InvalidSpec as error:
        raise InvalidSpec(f"{path}: {error}") from None


def _mapping(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)  # noqa: S506  # a SafeLoader
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidSpec(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InvalidSpec(f"{path} must hold settings, one `key: value` a line")
    return content


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice, where YAML silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002  # the library's signature
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep=deep)
