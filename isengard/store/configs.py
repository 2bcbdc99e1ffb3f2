"""Model cards, training presets and generation templates, read from ``configs/``."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import yaml

from isengard.domain.base import Frozen, validated
from isengard.domain.captioner import CaptionerCard
from isengard.domain.generation import GenerationTemplate, ImageSpec
from isengard.domain.model import ModelCard
from isengard.domain.presets import resolve_spec
from isengard.domain.training import NATIVE, TrainingPreset
from isengard.errors import InvalidSpec, NotFound
from isengard.files import stamp

Model = TypeVar("Model", bound=Frozen)


class _Named(Protocol):
    @property
    def name(self) -> str: ...


Named = TypeVar("Named", bound=_Named)


class Catalog:
    """What the YAML files of one folder say. They are read again when one has changed, so an edit needs no restart.

    Every method raises `InvalidSpec` with the file's name when a file is wrong, and `NotFound` with the known
    names when there is no such entry.
    """

    def __init__(self, configs_dir: Path) -> None:
        self.configs_dir = configs_dir
        self._read: dict[str, tuple[Any, tuple[Any, ...]]] = {}

    def models(self) -> tuple[ModelCard, ...]:
        """All base models, in the order of ``models.yaml``."""
        path = self.configs_dir / "models.yaml"
        if not path.is_file():
            raise NotFound(f"there is no {path}; point ISENGARD_CONFIGS_DIR at the folder that holds it")
        return self._once("models", [path], partial(self._read_models, path))

    def _read_models(self, path: Path) -> tuple[ModelCard, ...]:
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

    def captioners(self) -> tuple[CaptionerCard, ...]:
        """All models that describe pictures, in the order of ``captioners.yaml``; none where that is not."""
        path = self.configs_dir / "captioners.yaml"
        if not path.is_file():
            return ()
        return self._once("captioners", [path], partial(_read_captioners, path))

    def captioner(self, name: str) -> CaptionerCard:
        return _pick("captioner", name, self.captioners())

    def cards(self) -> tuple[ModelCard | CaptionerCard, ...]:
        """All that can be on a machine: base models, then captioners."""
        return (*self.models(), *self.captioners())

    def card(self, name: str) -> ModelCard | CaptionerCard:
        """Whatever model has this name."""
        captioners = {card.name: card for card in self.captioners()}
        return captioners[name] if name in captioners else self.model(name)

    def presets(self) -> tuple[TrainingPreset, ...]:
        """All training presets, quickest first; each was tried on every model that trains."""
        paths = sorted((self.configs_dir / "training").glob("*.yaml"))
        cards = self.models()
        sources = [*paths, self.configs_dir / "models.yaml"]
        return self._once("presets", sources, partial(self._read_presets, paths, cards))

    def _read_presets(
        self, paths: Sequence[Path], cards: tuple[ModelCard, ...]
    ) -> tuple[TrainingPreset, ...]:
        presets = [_loaded(TrainingPreset, path, path.stem, _mapping(path)) for path in paths]
        for path, preset in zip(paths, presets, strict=True):
            _try_preset(path, preset, cards)
        return tuple(sorted(presets, key=lambda preset: (preset.steps_per_image, preset.name)))

    def preset(self, name: str) -> TrainingPreset:
        return _pick("training preset", name, self.presets())

    def templates(self) -> tuple[GenerationTemplate, ...]:
        """All generation templates, by name; the settings of each make a valid `ImageSpec`."""
        paths = sorted((self.configs_dir / "generation").glob("*.yaml"))
        return self._once("templates", paths, partial(self._read_templates, paths))

    def _read_templates(self, paths: Sequence[Path]) -> tuple[GenerationTemplate, ...]:
        templates = [_loaded(GenerationTemplate, path, path.stem, _mapping(path)) for path in paths]
        for path, template in zip(paths, templates, strict=True):
            with _naming(path):
                validated(ImageSpec, {"prompt": "x", "base_model": "x", **template.settings})
        return tuple(templates)

    def template(self, name: str) -> GenerationTemplate:
        return _pick("generation template", name, self.templates())

    def _once(
        self, what: str, paths: Sequence[Path], read: Callable[[], tuple[Model, ...]]
    ) -> tuple[Model, ...]:
        """What ``read`` gave when the files were last as they are: pages ask for it all the time, and parsing takes 20 ms."""
        state = [(path, stamp(path.stat())) for path in paths]
        known = self._read.get(what)
        if known is None or known[0] != state:
            known = self._read[what] = (state, read())
        return known[1]


def _read_captioners(path: Path) -> tuple[CaptionerCard, ...]:
    return tuple(_loaded(CaptionerCard, path, name, values) for name, values in _mapping(path).items())


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
