"""Reading an AI-Toolkit configuration: what of it a training here takes over, and what it does not."""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import yaml
from pydantic import Field

from isengard.domain.ai_toolkit import (
    KEEP_ALL,
    NO_CLIPPING,
    QTYPES,
    TARGET_WORDS,
    TIMESTEP_TYPES,
    facts,
)
from isengard.domain.base import Frozen, validated
from isengard.domain.captions import TRIGGER
from isengard.domain.performance import Quantization
from isengard.domain.training import Optimizer, Precision, TimestepSampling, TrainingSpec
from isengard.errors import InvalidSpec

MAX_CHARACTERS = 100_000
MAX_DEPTH = 20


class ImportedSettings(Frozen):
    """What an AI-Toolkit configuration says, in our words."""

    overrides: dict[str, Any] = Field(description="values of `TrainingSpec` by field, each of them valid")
    not_carried: tuple[str, ...] = Field(description="``key: value`` of the rest, some with a reason")


#: Keys whose value becomes that of one field as it is.
FIELDS: Mapping[str, str] = {
    "training_seed": "seed",
    "network.rank": "rank",
    "network.linear": "rank",
    "network.linear_alpha": "alpha",
    "network.alpha": "alpha",
    "save.save_every": "save_every",
    "datasets[0].caption_dropout_rate": "caption_dropout",
    "datasets[0].flip_x": "flip",
    "train.batch_size": "batch_size",
    "train.steps": "steps",
    "train.gradient_accumulation": "gradient_accumulation_steps",
    "train.gradient_checkpointing": "gradient_checkpointing",
    "train.cfg_scale": "guidance_scale",
    "train.optimizer_params.weight_decay": "weight_decay",
    "sample.sample_every": "sample_every",
    "sample.seed": "sample_seed",
    "sample.sample_steps": "sample_steps",
    "sample.guidance_scale": "sample_guidance_scale",
}
#: What a training here does in any case: with one of these values a key needs no mention.
ALWAYS: Mapping[str, tuple[Any, ...]] = {
    "network.type": ("lora",),
    "network.transformer_only": (True,),
    "save.dtype": ("float32",),
    "save.push_to_hub": (False,),
    "datasets[0].caption_ext": ("txt", ".txt"),
    "datasets[0].shuffle_tokens": (False,),
    "datasets[0].token_dropout_rate": (0,),
    "datasets[0].cache_latents_to_disk": (True,),
    "datasets[0].num_workers": (0,),
    "train.gradient_accumulation_steps": (1,),
    "train.train_unet": (True,),
    "train.train_text_encoder": (False,),
    "train.cache_text_embeddings": (True,),
    "train.content_or_style": ("balanced",),
    "train.noise_scheduler": ("flowmatch", "ddpm"),
    "train.optimizer_params.use_bias_correction": (True,),
    "train.skip_first_sample": (False,),
    "model.quantize_te": (False,),
    "sample.sampler": ("flowmatch", "ddpm"),
    "sample.sample_start_step": (0,),
    "sample.neg": ("", False),
    "sample.walk_seed": (True,),
}


def from_yaml(text: str) -> ImportedSettings:
    """Read an AI-Toolkit configuration. What it does not say stays as a preset has it.

    Raises:
        InvalidSpec: not YAML, not such a configuration, not of a LoRA, too large, or made to be hard to read.
    """
    process, rest = _process(_loaded(text))
    leaves = dict(_leaves(process))
    given = _Given(leaves)
    for take in _RULES:
        take(given)
    for key, field in FIELDS.items():
        if leaves.get(key) is not None and field not in given.fields:
            given.put(field, leaves.pop(key), key)
    for key, values in ALWAYS.items():
        if leaves.get(key) in values:
            leaves.pop(key, None)
    overrides, refused = _accepted(given)
    lines = [_line(key, value) for key, value in (*leaves.items(), *rest)]
    return ImportedSettings(overrides=overrides, not_carried=(*refused, *given.remarks, *lines))


def _loaded(text: str) -> Any:
    """Parse without trust: no tags but plain ones, no references, no great size or depth."""
    if len(text) > MAX_CHARACTERS:
        raise InvalidSpec(
            f"the file is too long for a configuration: {len(text):,} characters, at most {MAX_CHARACTERS:,}"
        )
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise InvalidSpec(
                    f"the file uses YAML references (*{event.anchor}), which are not read here: write the values out"
                )
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise InvalidSpec(
                    f"the file is nested deeper than any configuration: more than {MAX_DEPTH} levels"
                )
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidSpec(f"the file is no valid YAML: {' '.join(str(error).split())}") from None
    except ValueError as error:  # a number or date that only looks like one
        raise InvalidSpec(f"the file has a value that cannot be read: {error}") from None


def _process(config: Any) -> tuple[dict[Any, Any], list[tuple[str, Any]]]:
    """Return the first process, and the leaves outside of it. Raises: InvalidSpec when it trains no LoRA."""
    inner = config.get("config") if isinstance(config, dict) else None
    processes = inner.get("process") if isinstance(inner, dict) else None
    if not isinstance(inner, dict) or not isinstance(processes, list) or not processes:
        raise InvalidSpec(
            "this is no AI-Toolkit configuration: it has no list config.process (see config/examples of AI-Toolkit)"
        )
    process = processes[0]
    known = ("isengard", *facts()["values"]["process_types"])
    kind = process.get("type") if isinstance(process, dict) else None
    if not isinstance(process, dict) or kind not in known:
        raise InvalidSpec(
            f"config.process[0].type must be one of {', '.join(known)}, got {_short(kind)}: it is no training"
        )
    if not isinstance(process.get("network"), dict):
        raise InvalidSpec("the configuration has no section 'network': it trains a whole model, not a LoRA")
    outside = {**config, "config": {**inner, "process": [{}, *processes[1:]]}}
    rest = [(key, value) for key, value in _leaves(outside) if (key, value) != ("job", "extension")]
    return {key: value for key, value in process.items() if key != "type"}, rest


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Each value with its path; a list of plain values is one."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _leaves(entry, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(entry, dict | list) for entry in value):
        for number, entry in enumerate(value):
            yield from _leaves(entry, f"{path}[{number}]")
    else:
        yield path, value


class _Given:
    """The leaves not used yet, and the fields found in them with the key that said so."""

    def __init__(self, leaves: dict[str, Any]) -> None:
        self.leaves = leaves
        self.fields: dict[str, tuple[Any, str]] = {}
        self.remarks: list[str] = []

    def put(self, field: str, value: Any, key: str) -> None:
        self.fields[field] = (value, key)

    def choose(self, field: str, key: str, words: Mapping[str, Any]) -> None:
        """Take a key whose value is one of these words, in any case of letters."""
        said = str(self.leaves.get(key)).lower()
        if said in words:
            self.leaves.pop(key)
            self.put(field, words[said], key)

    def remark(self, key: str, value: Any, reason: str) -> None:
        self.remarks.append(f"{_line(key, value)} ({reason})")


def _take_targets(given: _Given) -> None:
    key = "network.network_kwargs.only_if_contains"
    if key not in given.leaves:
        if "network.network_kwargs.ignore_if_contains" not in given.leaves:
            given.put("targets", "all_linear", "network")
        return
    said = given.leaves[key]
    for words in TARGET_WORDS.values():
        for target, parts in words.items():
            if isinstance(said, list) and sorted(map(str, said)) == sorted(parts):
                given.put("targets", target, key)
                given.leaves.pop(key, None)


def _take_alpha(given: _Given) -> None:
    """Without an effect on FLUX there, and so worth a word."""
    leaves = given.leaves
    rank = leaves.get("network.rank", leaves.get("network.linear"))
    key = "network.linear_alpha" if "network.linear_alpha" in leaves else "network.alpha"
    flux = leaves.get("model.is_flux") is True or leaves.get("model.arch") == "flux"
    if flux and key in leaves and leaves[key] != rank:
        given.remark(
            key, leaves[key], f"taken over; AI-Toolkit itself trains FLUX with alpha = rank, {_short(rank)}"
        )


def _take_optimizer(given: _Given) -> None:
    given.choose("optimizer", "train.optimizer", {str(name): str(name) for name in Optimizer})
    prodigy = given.fields.get("optimizer", ("", ""))[0] == Optimizer.PRODIGY
    rate = given.leaves.get("train.lr")
    if rate is not None:
        given.put("learning_rate", given.leaves.pop("train.lr"), "train.lr")
    if prodigy and _number(rate) is not None and float(_number(rate) or 0) < 0.1:
        given.put("learning_rate", 1.0, "train.lr")
        given.remark("train.lr", rate, "AI-Toolkit puts 1 in the place of a rate below 0.1 for prodigy")


def _take_schedule(given: _Given) -> None:
    given.choose(
        "lr_scheduler",
        "train.lr_scheduler",
        {"constant": "constant", "constant_with_warmup": "constant", "cosine": "cosine"},
    )
    key = "train.lr_scheduler_params.num_warmup_steps"
    if given.leaves.get(key) is not None:
        given.put("lr_warmup_steps", given.leaves.pop(key), key)
    elif "lr_scheduler" in given.fields:
        given.put("lr_warmup_steps", 0, "train.lr_scheduler")
    safeguard = "train.optimizer_params.safeguard_warmup"
    if given.leaves.get(safeguard) is (given.fields.get("lr_warmup_steps", (0, ""))[0] != 0):
        given.leaves.pop(safeguard)


def _take_limits(given: _Given) -> None:
    """Values that stand for "off"."""
    clip, kept = (
        _number(given.leaves.get(key)) for key in ("train.max_grad_norm", "save.max_step_saves_to_keep")
    )
    if clip:  # there 0 leaves nothing of the gradient: no such training was meant
        value = 0 if clip >= NO_CLIPPING else given.leaves["train.max_grad_norm"]
        given.put("max_grad_norm", value, "train.max_grad_norm")
        given.leaves.pop("train.max_grad_norm")
    if kept is not None:
        value = given.leaves.pop("save.max_step_saves_to_keep")
        given.put("keep_checkpoints", 0 if kept >= KEEP_ALL else value, "save.max_step_saves_to_keep")


def _take_average(given: _Given) -> None:
    used, decay = (given.leaves.get(f"train.ema_config.{key}") for key in ("use_ema", "ema_decay"))
    if used is False:
        given.leaves.pop("train.ema_config.ema_decay", None)
        decay = 0
    elif used is True:
        given.leaves.pop("train.ema_config.ema_decay", None)
        decay = 0.999 if decay is None else decay
    else:
        return
    given.leaves.pop("train.ema_config.use_ema")
    given.put("ema_decay", decay, "train.ema_config.ema_decay")


def _take_precision(given: _Given) -> None:
    names = {"bf16": Precision.BF16, "bfloat16": Precision.BF16}
    given.choose(
        "precision",
        "train.dtype",
        {**names, **dict.fromkeys(("fp32", "float32", "float", "single"), Precision.FP32)},
    )
    quantize = given.leaves.get("model.quantize")
    kind = given.leaves.get("model.qtype", "qfloat8")
    kinds = {word: quantization for quantization, word in QTYPES.items()}
    kinds |= {"qfloat8": Quantization.FP8, "qint8": Quantization.INT8}
    if quantize is False:
        given.put("quantization", Quantization.NONE, "model.quantize")
    elif quantize is True and str(kind) in kinds:
        given.put("quantization", kinds[str(kind)], "model.qtype")
    else:
        return
    given.leaves.pop("model.quantize")
    given.leaves.pop("model.qtype", None)


def _take_noise(given: _Given) -> None:
    key = "train.timestep_type"
    if given.leaves.get("train.noise_scheduler") == "ddpm":
        given.put("timestep_sampling", TimestepSampling.UNIFORM, "train.noise_scheduler")
        return
    words: dict[str, Any] = {word: sampling for sampling, word in TIMESTEP_TYPES.items()}
    said = given.leaves.get(key)
    if said == "weighted":
        given.remark(key, said, "uniform noise levels; its weighting of the loss is not taken over")
    given.choose(
        "timestep_sampling",
        key,
        {**words, "flux_shift": TimestepSampling.SHIFTED, "weighted": TimestepSampling.UNIFORM},
    )


def _take_resolutions(given: _Given) -> None:
    key = "datasets[0].resolution"
    if given.leaves.get(key) is not None:
        said = given.leaves.pop(key)
        given.put("resolutions", said if isinstance(said, list) else [said], key)


def _take_samples(given: _Given) -> None:
    leaves = given.leaves
    if leaves.get("train.disable_sampling") is True:
        leaves.pop("sample.sample_every", None)
        leaves.pop("train.skip_first_sample", None)
        given.put("sample_every", 0, "train.disable_sampling")
    if isinstance(leaves.get("train.disable_sampling"), bool):
        leaves.pop("train.disable_sampling")
    width, height = leaves.get("sample.width"), leaves.get("sample.height")
    if width is not None and width == height:
        given.put("sample_resolution", leaves.pop("sample.width"), "sample.width")
        leaves.pop("sample.height")
    _take_prompts(given)


def _take_prompts(given: _Given) -> None:
    """From either of two forms, with our placeholder for the trigger word."""
    leaves = given.leaves
    listed = [key for key in leaves if re.fullmatch(r"sample\.samples\[\d+\]\.prompt", key)]
    key = "sample.samples" if listed else "sample.prompts"
    said = [leaves.pop(each) for each in listed] if listed else leaves.pop("sample.prompts", None)
    trigger = next(
        (leaves[each] for each in ("trigger_word", "datasets[0].trigger_word") if leaves.get(each)), ""
    )
    if isinstance(said, list):
        prompts = [" ".join(str(prompt).split()) for prompt in said if prompt is not None]
        if isinstance(trigger, str) and trigger.strip():
            word = rf"(?<!\w){re.escape(trigger.strip())}(?!\w)"
            prompts = [re.sub(word, lambda _: TRIGGER, prompt) for prompt in prompts]
        given.put("sample_prompts", prompts, key)
    elif said is not None:
        leaves[key] = said


_RULES: tuple[Callable[[_Given], None], ...] = (
    _take_targets,
    _take_alpha,
    _take_optimizer,
    _take_schedule,
    _take_limits,
    _take_average,
    _take_precision,
    _take_noise,
    _take_resolutions,
    _take_samples,
)


def _number(value: Any) -> float | None:
    """A number, also one that YAML takes for a text, such as 1e-4."""
    try:
        return None if value is None or isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None


def _accepted(given: _Given) -> tuple[dict[str, Any], list[str]]:
    """The fields whose values a training takes, each together with those before it; and why not the others."""
    taken: dict[str, Any] = {"character": "x", "base_model": "x", "trigger": "x"}
    accepted, refused = {}, []
    for field in TrainingSpec.model_fields:
        if field not in given.fields:
            continue
        value, key = given.fields[field]
        if isinstance(value, bool) and TrainingSpec.model_fields[field].annotation is not bool:
            refused.append(f"{_line(key, value)} ({field} is not a switch)")
            continue
        try:
            spec = validated(TrainingSpec, {**taken, field: value})
        except InvalidSpec as error:
            refused.append(f"{_line(key, value)} ({error})")
            continue
        taken[field] = accepted[field] = spec.model_dump(mode="json")[field]
    return accepted, refused


def _line(key: str, value: Any) -> str:
    return f"{_short(key)}: {_short(value)}"


def _short(value: Any) -> str:
    """A value as YAML would say it, cut where it is long."""
    said = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False, default=str)
    said = " ".join(said.encode("utf-8", "replace").decode().split())
    return said if len(said) < 80 else said[:77] + "..."
