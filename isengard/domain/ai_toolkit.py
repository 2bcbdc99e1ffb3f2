"""A training in the words of AI-Toolkit (github.com/ostris/ai-toolkit); docs/ai-toolkit.md says what differs."""

import functools
import json
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

import yaml

from isengard.domain.captions import resolve_caption
from isengard.domain.model import Family
from isengard.domain.performance import Quantization
from isengard.domain.training import (
    TARGETS,
    LossWeighting,
    LrScheduler,
    Optimizer,
    TimestepSampling,
    TrainingSpec,
)
from isengard.errors import InvalidSpec
from isengard.settings import ASSETS

#: The type of our own process, which AI-Toolkit runs inside this application; the exported file names AI-Toolkit's.
IN_PROCESS = "isengard"
EXPORTED = "sd_trainer"
#: AI-Toolkit knows no "off" for these two: a limit nothing reaches stands for it.
NO_CLIPPING = 1e9
KEEP_ALL = 1_000_000

ARCHITECTURES = {Family.FLUX: "flux", Family.SDXL: "sdxl"}
NOISE_SCHEDULERS = {Family.FLUX: "flowmatch", Family.SDXL: "ddpm"}
TIMESTEP_TYPES = {
    TimestepSampling.SIGMOID: "sigmoid",
    TimestepSampling.UNIFORM: "linear",
    TimestepSampling.SHIFTED: "shift",
}
QTYPES = {Quantization.INT8: "int8", Quantization.FP8: "float8"}

_FLUX_MLP = ("ff.net.", "ff_context.net.", "proj_mlp", "proj_out")
#: Parts of module names, one of which a linear layer inside a block must have to be adapted.
TARGET_WORDS: Mapping[Family, Mapping[str, tuple[str, ...]]] = {
    Family.FLUX: {
        "attention": (".attn.",),
        "attention_mlp": (".attn.", *_FLUX_MLP),
        "all_linear": ("transformer_blocks.",),
    },
    Family.SDXL: {
        "attention": (".attn1.", ".attn2."),
        "attention_mlp": (".attn1.", ".attn2.", ".ff.net."),
        "all_linear": (".attentions.",),
    },
}


def to_config(  # noqa: PLR0913  # each is a place the file names
    spec: TrainingSpec,
    *,
    family: Family,
    model_path: str,
    dataset_dir: str,
    training_dir: str,
    name: str,
    device: str,
    assistant_lora_path: str | None = None,
    process_type: str = IN_PROCESS,
) -> dict[str, Any]:
    """Return the whole configuration, as AI-Toolkit reads it from a file.

    ``trigger_word`` is not set: captions and prompts are resolved here, and with a trigger word AI-Toolkit would drop a
    caption to that word instead of to nothing. In process, saving and sampling are the adapter's: AI-Toolkit's are off.
    ``device`` is there because every file has it; AI-Toolkit's trainer takes the device that accelerate chooses.

    Raises:
        InvalidSpec: names the field that AI-Toolkit has no counterpart for, and the way out.
    """
    _refuse_what_it_cannot(spec, family)
    in_process = process_type == IN_PROCESS
    if in_process and (lost := list(_ours_alone(spec))):
        raise InvalidSpec(
            f"{', '.join(lost)}: AI-Toolkit has no such setting; leave it at its default, or choose the native engine"
        )
    process = {
        "type": process_type,
        "training_folder": training_dir,
        "device": device,
        "training_seed": spec.seed,
        "network": _network(spec, family),
        "save": {
            "dtype": "float32",
            "save_every": spec.steps + 1 if in_process else spec.save_every,
            "max_step_saves_to_keep": KEEP_ALL if in_process else spec.keep_checkpoints or KEEP_ALL,
            "push_to_hub": False,
        },
        "datasets": [_dataset(spec, dataset_dir)],
        "train": _train(spec, family, disable_sampling=in_process or spec.sample_every == 0),
        "model": _model(spec, family, model_path, assistant_lora_path),
        "sample": _sample(spec, family),
    }
    config = {"job": "extension", "config": {"name": name, "process": [process]}}
    check_keys(config)
    return config


def _refuse_what_it_cannot(spec: TrainingSpec, family: Family) -> None:
    if family not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise InvalidSpec(
            f"base_model: Isengard trains the families {known} with AI-Toolkit, and this one is of the family {family};"
            " use the native engine"
        )
    if spec.targets not in TARGETS:
        raise InvalidSpec(
            f"targets: AI-Toolkit takes no regular expression, got {spec.targets!r};"
            f" choose one of {', '.join(TARGETS)}, or the native engine"
        )
    if spec.loss_weighting is not LossWeighting.NONE:
        raise InvalidSpec(
            f"loss_weighting: AI-Toolkit has no {spec.loss_weighting.value!r}; choose 'none', or the native engine"
        )
    if spec.lr_scheduler is LrScheduler.COSINE and spec.lr_warmup_steps:
        raise InvalidSpec(
            f"lr_warmup_steps: AI-Toolkit's cosine has no warm-up, got {spec.lr_warmup_steps};"
            " set it to 0, choose the constant schedule, or the native engine"
        )
    if spec.optimizer is Optimizer.PRODIGY and spec.learning_rate < 0.1:
        raise InvalidSpec(
            "learning_rate: AI-Toolkit puts 1 in the place of a rate below 0.1 for prodigy,"
            f" got {spec.learning_rate:g}; set it to 1"
        )
    if spec.quantization not in (Quantization.NONE, *QTYPES):
        raise InvalidSpec(
            f"quantization: Isengard gives AI-Toolkit {', '.join(QTYPES)} alone, got {spec.quantization.value!r};"
            " choose one of them, or the native engine"
        )
    if family is Family.SDXL:
        _refuse_for_sdxl(spec)


def _ours_alone(spec: TrainingSpec) -> Iterator[str]:
    """The fields about speed and memory that are set and that AI-Toolkit has no counterpart for."""
    for name in ("streamed_blocks", "text_encoders", "attention", "compile", "devices"):
        if getattr(spec, name) != TrainingSpec.model_fields[name].default:
            yield name


def _refuse_for_sdxl(spec: TrainingSpec) -> None:
    if spec.timestep_sampling is not TimestepSampling.UNIFORM:
        raise InvalidSpec(
            "timestep_sampling: AI-Toolkit draws the noise levels of SDXL uniformly,"
            f" got {spec.timestep_sampling.value!r}; choose 'uniform'"
        )
    if spec.quantization is not Quantization.NONE:
        raise InvalidSpec(
            f"quantization: AI-Toolkit does not quantize SDXL, got {spec.quantization.value!r}; choose 'none'"
        )


def _network(spec: TrainingSpec, family: Family) -> dict[str, Any]:
    return {
        "type": "lora",
        "linear": spec.rank,
        "linear_alpha": spec.alpha,
        "transformer_only": True,
        "network_kwargs": {"only_if_contains": list(TARGET_WORDS[family][spec.targets])},
    }


def _dataset(spec: TrainingSpec, folder: str) -> dict[str, Any]:
    return {
        "folder_path": folder,
        "caption_ext": "txt",
        "caption_dropout_rate": spec.caption_dropout,
        "shuffle_tokens": False,
        "cache_latents_to_disk": True,
        "resolution": list(spec.resolutions),
        "flip_x": spec.flip,
        "num_workers": 0,
    }


def _train(spec: TrainingSpec, family: Family, *, disable_sampling: bool) -> dict[str, Any]:
    scheduler, scheduler_params = spec.lr_scheduler.value, {}
    if spec.lr_warmup_steps:
        scheduler, scheduler_params = "constant_with_warmup", {"num_warmup_steps": spec.lr_warmup_steps}
    optimizer_params: dict[str, Any] = {"weight_decay": spec.weight_decay}
    if spec.optimizer is Optimizer.PRODIGY:
        optimizer_params |= {"use_bias_correction": True, "safeguard_warmup": spec.lr_warmup_steps > 0}
    flow = {"timestep_type": TIMESTEP_TYPES[spec.timestep_sampling]} if family is Family.FLUX else {}
    return {
        "batch_size": spec.batch_size,
        "steps": spec.steps,
        "gradient_accumulation": spec.gradient_accumulation_steps,
        "gradient_checkpointing": spec.gradient_checkpointing,
        "train_unet": True,
        "train_text_encoder": False,
        "cache_text_embeddings": True,
        "noise_scheduler": NOISE_SCHEDULERS[family],
        **flow,
        "cfg_scale": spec.guidance_scale,
        "optimizer": spec.optimizer.value,
        "lr": spec.learning_rate,
        "optimizer_params": optimizer_params,
        "lr_scheduler": scheduler,
        "lr_scheduler_params": scheduler_params,
        "max_grad_norm": spec.max_grad_norm or NO_CLIPPING,
        "ema_config": {"use_ema": True, "ema_decay": spec.ema_decay}
        if spec.ema_decay
        else {"use_ema": False},
        "dtype": spec.precision.value,
        "disable_sampling": disable_sampling,
        "skip_first_sample": disable_sampling,
    }


def _model(spec: TrainingSpec, family: Family, path: str, assistant_lora_path: str | None) -> dict[str, Any]:
    quantized = spec.quantization is not Quantization.NONE
    return {
        "name_or_path": path,
        "arch": ARCHITECTURES[family],
        "quantize": quantized,
        "quantize_te": False,
        **({"qtype": QTYPES[spec.quantization]} if quantized else {}),
        **({"assistant_lora_path": assistant_lora_path} if assistant_lora_path else {}),
    }


def _sample(spec: TrainingSpec, family: Family) -> dict[str, Any]:
    return {
        "sampler": NOISE_SCHEDULERS[family],
        "sample_every": spec.sample_every,
        "width": spec.sample_resolution,
        "height": spec.sample_resolution,
        "prompts": [resolve_caption(prompt, spec.trigger, spec.class_word) for prompt in spec.sample_prompts],
        "neg": "",
        "seed": spec.sample_seed,
        "walk_seed": True,
        "guidance_scale": spec.sample_guidance_scale,
        "sample_steps": spec.sample_steps,
    }


def check_keys(config: Mapping[str, Any]) -> None:
    """See that AI-Toolkit knows every key: it ignores a misspelt one without a word.

    Raises:
        InvalidSpec: names the key and the nearest one that exists.
    """
    known, unread = facts()["keys"], facts()["unread"]
    for path, key, section in _keys(config):
        if section in known and key not in (*known[section], *unread.get(section, ())):
            close = get_close_matches(key, known[section], n=1)
            raise InvalidSpec(
                f"AI-Toolkit has no setting {path!r}" + (f" (did you mean {close[0]!r}?)" if close else "")
            )


def _keys(config: Mapping[str, Any], section: str = "job", path: str = "") -> Iterator[tuple[str, str, str]]:
    """Each key with the way to it and the section it is in."""
    for key, value in config.items():
        yield f"{path}{key}", str(key), section
        for entry in value if isinstance(value, list) else [value]:
            if isinstance(entry, Mapping):
                yield from _keys(entry, str(key), f"{path}{key}.")


@functools.cache
def facts() -> dict[str, Any]:
    """What is known of AI-Toolkit at one commit; a test compares it with a checkout."""
    found: dict[str, Any] = json.loads((ASSETS / "ai-toolkit.json").read_text(encoding="utf-8"))
    return found


#: What the reader of an exported file puts in the place of what this machine has.
DATASET_FOLDER = "/path/to/the/images"
MODEL_FOLDER = "/path/to/the/model"


def to_yaml(spec: TrainingSpec, *, family: Family, repository: str | None, name: str) -> str:
    """Return a file for AI-Toolkit elsewhere, with no path of this machine in it.

    Args:
        spec: The training.
        family: Of its base model.
        repository: Of the base model on the Hugging Face hub, if it has one.
        name: Of the training; AI-Toolkit names its files by it.

    Raises:
        InvalidSpec: as `to_config`.
    """
    config = to_config(
        spec,
        family=family,
        model_path=repository or MODEL_FOLDER,
        dataset_dir=DATASET_FOLDER,
        training_dir="output",
        name=name,
        device="cuda:0",
        process_type=EXPORTED,
    )
    head = [
        f"A training of {spec.character!r}, written by Isengard for AI-Toolkit {facts()['repository']}",
        f"(commit {facts()['commit'][:8]}).",
        "",
        f"Edit datasets.folder_path ({DATASET_FOLDER}): a folder of images, each with its caption in a .txt file.",
        "Isengard writes one: Characters, Export, with the placeholders resolved.",
        *([] if repository else [f"Edit model.name_or_path ({MODEL_FOLDER}): this base model is on no hub."]),
        *_differences(spec, family),
    ]
    body = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=1000)
    return "".join(f"# {line}".rstrip() + "\n" for line in head) + "---\n" + body


def _differences(spec: TrainingSpec, family: Family) -> list[str]:
    """What the exported training will not do as asked, for those who read the file."""
    found = []
    if family is Family.FLUX and spec.alpha != spec.rank:
        found.append(
            f"- alpha {spec.alpha:g} has no effect: AI-Toolkit trains FLUX with alpha = rank ({spec.rank})"
        )
    if spec.timestep_sampling is TimestepSampling.SHIFTED:
        found.append("- timestep_type shift moves uniform noise levels; Isengard moves those of sigmoid")
    if spec.max_upscale > 1:
        found.append(f"- max_upscale {spec.max_upscale:g} is lost: AI-Toolkit never enlarges an image")
    if lost := list(_ours_alone(spec)):
        found.append(f"- {', '.join(lost)}: Isengard's own, lost there")
    if looked := [name for name in ("stop_early", "compare_when_done") if getattr(spec, name)]:
        found.append(f"- {', '.join(looked)}: nobody there looks at how alike the pictures are")
    if spec.validate_every:
        found.append("- AI-Toolkit validates on images of their own, so there is no validation here")
    return ["", "Not quite the same there:", *found] if found else []
