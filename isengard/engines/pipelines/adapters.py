"""LoRAs on a pipeline: checked before anything is changed, kept while they are wanted, counted after loading."""

import warnings
from collections.abc import Sequence
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer

from isengard.domain.generation import LocalLora
from isengard.engines.lora_format import component_of, read_pairs, weights_of
from isengard.engines.lora_keys import Pairs
from isengard.errors import LoraRefused


class Adapters:
    """The LoRAs of one pipeline, by the content of their files."""

    def __init__(self, pipeline: Any, *, component: str, model: str) -> None:
        self._pipeline = pipeline
        self._component = component
        self._denoiser = getattr(pipeline, component)
        self._model = model
        self._names: dict[tuple[str, int, int], str] = {}
        self._loads = 0

    @property
    def loads(self) -> int:
        """How many files were loaded so far."""
        return self._loads

    def apply(self, loras: Sequence[LocalLora]) -> None:
        """Make exactly these LoRAs active, each with its strength.

        Raises:
            LoraRefused: a file cannot be used with this model; the pipeline has none of the new LoRAs then.
        """
        files = {_file_key(lora): lora for lora in loras}
        new = {key: self._checked(lora) for key, lora in files.items() if key not in self._names}
        unwanted = [key for key in self._names if key not in files]
        if len(unwanted) == len(self._names) and unwanted:
            self.clear()
        elif unwanted:
            self._pipeline.delete_adapters([self._names.pop(key) for key in unwanted])
        for key, pairs in new.items():
            self._load(key, files[key], pairs)
        if files:
            self._pipeline.set_adapters(
                [self._names[key] for key in files], [lora.strength for lora in files.values()]
            )

    def clear(self) -> None:
        """Give the pipeline its own layers back."""
        self._pipeline.unload_lora_weights()
        self._names.clear()

    def _checked(self, lora: LocalLora) -> Pairs:
        """The file's weights, when each module exists and has the right shape. Raises: LoraRefused."""
        misfit = f"LoRA {lora.name!r} does not fit {self._model}"
        way_out = "use it with the model it was trained on"
        component = component_of(lora.path)
        if component != self._component:
            raise LoraRefused(
                f"{misfit}: it changes a {component} and this model has a {self._component}; {way_out}"
            )
        pairs = read_pairs(lora.path)
        modules = dict(self._denoiser.named_modules())
        for name, (down, up) in pairs.items():
            module = modules.get(name)
            if module is None or not hasattr(module, "in_features"):
                raise LoraRefused(f"{misfit}: the model has no layer {name!r}; {way_out}")
            shape, wanted = (up.shape[0], down.shape[1]), (module.out_features, module.in_features)
            if shape != wanted:
                raise LoraRefused(
                    f"{misfit}: layer {name!r} is {wanted[0]} x {wanted[1]}, the LoRA's is {shape[0]} x {shape[1]};"
                    f" {way_out}"
                )
        return pairs

    def _load(self, key: tuple[str, int, int], lora: LocalLora, pairs: Pairs) -> None:
        name = f"lora_{self._loads}"
        self._loads += 1
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several LoRAs are wanted
            self._denoiser.load_lora_adapter(
                weights_of(pairs, self._component),
                prefix=self._component,
                adapter_name=name,
                _pipeline=self._pipeline,
                low_cpu_mem_usage=True,
            )
        self._names[key] = name
        adapted = sum(
            isinstance(module, BaseTunerLayer) and name in module.lora_A
            for module in self._denoiser.modules()
        )
        if adapted != len(pairs):
            self.clear()
            raise LoraRefused(
                f"LoRA {lora.name!r} adapted {adapted} modules of {self._model}, but its file has {len(pairs)}"
            )


def _file_key(lora: LocalLora) -> tuple[str, int, int]:
    try:
        stat = lora.path.stat()
    except OSError as error:
        raise LoraRefused(f"the file of LoRA {lora.name!r} cannot be read: {error}") from error
    return (str(lora.path), stat.st_mtime_ns, stat.st_size)
