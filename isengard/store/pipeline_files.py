"""Which files of a repository a pipeline or a single network needs, of the same weights in several formats and precisions."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from isengard.errors import DownloadFailed
from isengard.store.manifest import RemoteFile

INDEX = "model_index.json"
#: Settings, vocabularies and templates; weights come as safetensors only.
TEXTS = (".json", ".txt", ".model", ".jinja")
COMPONENT = re.compile(r"^[A-Za-z0-9_]+$")
WEIGHTS = re.compile(r"^(diffusion_pytorch_model|model)(-\d+-of-\d+)?\.safetensors$")
SHARDS_INDEX = re.compile(r"^(diffusion_pytorch_model|model)\.safetensors\.index\.json$")


def components(index: Mapping[str, Any]) -> dict[str, str]:
    """The parts that a ``model_index.json`` names, with their class."""
    return {
        name: value[-1]
        for name, value in index.items()
        if isinstance(value, list)
        and value
        and all(isinstance(part, str) for part in value)
        and COMPONENT.fullmatch(name)
    }


def needed(
    files: Iterable[RemoteFile], index: Mapping[str, Any], *, without_weights: Iterable[str] = ()
) -> tuple[RemoteFile, ...]:
    """What a pipeline needs: the index and, of each component it names, settings and one set of weights.

    Args:
        files: What the repository holds.
        index: Its ``model_index.json``.
        without_weights: Components whose weights come from elsewhere.

    Raises:
        DownloadFailed: the weights are there in other formats only.
    """
    files, spared = tuple(files), set(without_weights)
    chosen = [file for file in files if file.path == INDEX]
    for component in components(index):
        own = {
            name: file
            for file in files
            for folder, _, name in [file.path.partition("/")]
            if folder == component and "/" not in name
        }
        weights = [] if component in spared else _weights(own)
        if not weights and component not in spared and any(_holds_weights(name) for name in own):
            raise DownloadFailed(f"{component} comes without safetensors; other formats are not read")
        chosen += [own[name] for name in sorted({*weights, *filter(_is_text, own)})]
    return tuple(chosen)


def needed_of_network(files: Iterable[RemoteFile]) -> tuple[RemoteFile, ...]:
    """What a model in transformers' layout needs: settings, vocabularies and one set of weights.

    Raises:
        DownloadFailed: it has no weights as safetensors.
    """
    own = {file.path: file for file in files if "/" not in file.path}
    weights = _weights(own)
    if not weights or "config.json" not in own:
        raise DownloadFailed(
            "the repository holds no config.json with safetensors; other formats are not read"
        )
    return tuple(own[name] for name in sorted({*weights, *filter(_is_text, own)}))


def _weights(names: Iterable[str]) -> list[str]:
    """The shards and their index when there is one; else the single file."""
    names = set(names)
    index = next((name for name in sorted(names) if SHARDS_INDEX.fullmatch(name)), None)
    fitting = [(name, match[2]) for name in sorted(names) if (match := WEIGHTS.fullmatch(name))]
    if index is None:
        return [name for name, shard in fitting if shard is None]
    return [index, *(name for name, shard in fitting if shard is not None)]


def _is_text(name: str) -> bool:
    return name.endswith(TEXTS) and ".index." not in name


def _holds_weights(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".msgpack", ".onnx", ".pt", ".ckpt"))
