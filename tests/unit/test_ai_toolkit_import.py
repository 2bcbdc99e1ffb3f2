"""Reading AI-Toolkit configurations, those of others and our own."""

import copy

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from isengard.domain.ai_toolkit import to_yaml
from isengard.domain.ai_toolkit_import import MAX_CHARACTERS, from_yaml
from isengard.domain.captions import resolve_caption
from isengard.domain.model import Family
from isengard.domain.presets import IDENTITY_FIELDS
from isengard.domain.training import TARGETS, TrainingSpec
from isengard.errors import InvalidSpec

#: Written as people write it: numbers with exponents, mixed cases, keys of no interest here.
TEXT = """
job: extension
config:
  name: ada
  process:
    - type: sd_trainer
      network: {type: lora, linear: 8, linear_alpha: 8}
      datasets:
        - folder_path: /data/ada
          resolution: [512, 768]
      train:
        steps: 700
        optimizer: AdamW8bit
        lr: 1e-4
        do_cfg: true
meta: {version: "2"}
"""
CONFIG = yaml.safe_load(TEXT)
#: Said nowhere in an AI-Toolkit configuration.
OURS = IDENTITY_FIELDS | {
    "engine", "loss_weighting", "max_upscale", "validate_every",
    "streamed_blocks", "text_encoders", "attention", "compile", "devices",
    "stop_early", "compare_when_done",
}  # fmt: skip


def read(process=None, **sections):
    """Import the configuration above with keys of its process added."""
    config = copy.deepcopy(CONFIG)
    target = config["config"]["process"][0]
    target |= process or {}
    for section, values in sections.items():
        held = target.setdefault(section, [{}] if section == "datasets" else {})
        (held[0] if section == "datasets" else held).update(values)
    return from_yaml(yaml.safe_dump(config))


def test_what_it_says_becomes_ours_and_the_rest_stays_unsaid():
    assert from_yaml(TEXT).overrides == {
        "steps": 700,
        "rank": 8,
        "alpha": 8.0,
        "targets": "all_linear",
        "optimizer": "adamw8bit",
        "learning_rate": 1e-4,
        "resolutions": [512, 768],
    }


def test_every_key_that_is_not_carried_over_is_named_with_its_value():
    assert from_yaml(TEXT).not_carried == (
        "datasets[0].folder_path: /data/ada",
        "train.do_cfg: true",
        "config.name: ada",
        "meta.version: 2",
    )


@pytest.mark.parametrize(
    ("sections", "field", "value"),
    [
        ({"train": {"lr_scheduler": "constant_with_warmup", "lr_scheduler_params": {"num_warmup_steps": 9}}},
         "lr_warmup_steps", 9),
        ({"train": {"lr_scheduler": "cosine"}}, "lr_warmup_steps", 0),
        ({"train": {"max_grad_norm": 0.5}}, "max_grad_norm", 0.5),
        ({"save": {"max_step_saves_to_keep": 4}}, "keep_checkpoints", 4),
        ({"train": {"ema_config": {"use_ema": True}}}, "ema_decay", 0.999),
        ({"train": {"ema_config": {"use_ema": False, "ema_decay": 0.5}}}, "ema_decay", 0.0),
        ({"train": {"dtype": "bfloat16"}}, "precision", "bf16"),
        ({"train": {"dtype": "float"}}, "precision", "fp32"),
        ({"model": {"quantize": True}}, "quantization", "fp8"),
        ({"model": {"quantize": True, "qtype": "qint8"}}, "quantization", "int8"),
        ({"model": {"quantize": False, "qtype": "uint3"}}, "quantization", "none"),
        ({"train": {"timestep_type": "flux_shift"}}, "timestep_sampling", "shifted"),
        ({"train": {"timestep_type": "weighted"}}, "timestep_sampling", "uniform"),
        ({"train": {"noise_scheduler": "ddpm"}}, "timestep_sampling", "uniform"),
        ({"train": {"disable_sampling": True}, "sample": {"sample_every": 5}}, "sample_every", 0),
        ({"sample": {"width": 768, "height": 768}}, "sample_resolution", 768),
        ({"sample": {"prompts": ["one\n two"]}}, "sample_prompts", ["one two"]),
        ({"sample": {"samples": [{"prompt": "one"}, {"prompt": "two", "seed": 3}]}}, "sample_prompts", ["one", "two"]),
        ({"datasets": {"resolution": 1024}}, "resolutions", [1024]),
        ({"datasets": {"flip_x": True}}, "flip", True),
        ({"network": {"rank": 32}}, "rank", 32),
        ({"network": {"network_kwargs": {"only_if_contains": [".attn."]}}}, "targets", "attention"),
        ({"network": {"network_kwargs": {"only_if_contains": [".attn1.", ".attn2."]}}}, "targets", "attention"),
    ],
)  # fmt: skip
def test_their_words_become_ours(sections, field, value):
    assert read(**sections).overrides[field] == value


@pytest.mark.parametrize(
    ("sections", "field", "line"),
    [
        ({"train": {"optimizer": "adafactor"}}, "optimizer", "train.optimizer: adafactor"),
        ({"train": {"lr_scheduler": "step"}}, "lr_scheduler", "train.lr_scheduler: step"),
        ({"train": {"dtype": "fp16"}}, "precision", "train.dtype: fp16"),
        ({"train": {"timestep_type": "next_sample"}}, "timestep_sampling", "train.timestep_type: next_sample"),
        ({"train": {"max_grad_norm": 0}}, "max_grad_norm", "train.max_grad_norm: 0"),
        ({"train": {"max_grad_norm": "much"}}, "max_grad_norm", "train.max_grad_norm: much"),
        ({"train": {"ema_config": {"ema_decay": 0.9}}}, "ema_decay", "train.ema_config.ema_decay: 0.9"),
        ({"train": {"gradient_accumulation_steps": 4}}, "gradient_accumulation_steps",
         "train.gradient_accumulation_steps: 4"),
        ({"train": {"batch_size": None}}, "batch_size", "train.batch_size: null"),
        ({"model": {"quantize": True, "qtype": "uint3"}}, "quantization", "model.qtype: uint3"),
        ({"network": {"network_kwargs": {"only_if_contains": ["x"]}}}, "targets",
         'network.network_kwargs.only_if_contains: ["x"]'),
        ({"network": {"network_kwargs": {"ignore_if_contains": ["x"]}}}, "targets",
         'network.network_kwargs.ignore_if_contains: ["x"]'),
        ({"sample": {"width": 512, "height": 768}}, "sample_resolution", "sample.height: 768"),
        ({"sample": {"prompts": "one"}}, "sample_prompts", "sample.prompts: one"),
        ({"sample": {"samples": [{"prompt": "one", "seed": 3}]}}, "sample_seed", "sample.samples[0].seed: 3"),
        ({"network": {"type": "lokr"}}, "engine", "network.type: lokr"),
    ],
)  # fmt: skip
def test_what_has_no_counterpart_is_listed(sections, field, line):
    found = read(**sections)
    assert field not in found.overrides
    assert line in found.not_carried


@pytest.mark.parametrize(
    ("sections", "field", "line"),
    [
        ({"network": {"linear_alpha": 0}}, "alpha", r"network.linear_alpha: 0 (alpha: must be greater than 0, got 0)"),
        ({"datasets": {"resolution": [500]}}, "resolutions", "datasets[0].resolution: [500] (resolutions.0: "),
        ({"train": {"steps": "many"}}, "steps", "train.steps: many (steps: must be a valid integer"),
        ({"train": {"steps": True}}, "steps", "train.steps: true (steps is not a switch)"),
        ({"train": {"lr": float("nan")}}, "learning_rate", "train.lr: NaN (learning_rate: "),
        ({"train": {"steps": 5, "lr_scheduler": "constant", "lr_scheduler_params": {"num_warmup_steps": 9}}},
         "lr_warmup_steps", "train.lr_scheduler_params.num_warmup_steps: 9 (lr_warmup_steps (9) must be smaller"),
        ({"network": {"linear": {"a": [1]}}}, "rank", "network.linear.a: [1]"),
    ],
)  # fmt: skip
def test_what_a_training_refuses_is_listed_with_the_reason(sections, field, line):
    found = read(**sections)
    assert field not in found.overrides
    assert any(said.startswith(line) for said in found.not_carried), found.not_carried


def test_the_trigger_word_becomes_our_placeholder_in_prompts():
    found = read({"trigger_word": "p3r"}, sample={"prompts": ["p3r at sea", "p3rson", "[trigger]"]})
    assert found.overrides["sample_prompts"] == ["[trigger] at sea", "p3rson", "[trigger]"]
    assert "trigger_word: p3r" in found.not_carried


def test_an_alpha_that_has_no_effect_on_flux_is_mentioned():
    found = read(model={"is_flux": True}, network={"linear_alpha": 4})
    assert found.overrides["alpha"] == 4
    assert found.not_carried[0].startswith("network.linear_alpha: 4 (taken over; AI-Toolkit itself")


@pytest.mark.parametrize(("rate", "taken", "mentioned"), [(1e-4, 1.0, True), (0.5, 0.5, False)])
def test_prodigys_rate_is_read_as_ai_toolkit_reads_it(rate, taken, mentioned):
    found = read(train={"optimizer": "prodigy", "lr": rate})
    assert found.overrides["learning_rate"] == taken
    assert any("for prodigy" in line for line in found.not_carried) is mentioned


def test_further_datasets_and_processes_are_listed():
    config = copy.deepcopy(CONFIG)
    config["config"]["process"][0]["datasets"].append({"resolution": 64})
    config["config"]["process"].append({"type": "other"})
    lines = from_yaml(yaml.safe_dump(config)).not_carried
    assert {"datasets[1].resolution: 64", "config.process[1].type: other"} <= set(lines)


BOMB = "a: &a [x]\nb: &b [*a, *a]\nc: [*b, *b]"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no AI-Toolkit configuration"),
        ("[1, 2]", "no AI-Toolkit configuration"),
        ("config: {process: []}", "no AI-Toolkit configuration"),
        ("config: {process: [1]}", "type must be one of .*got null"),
        ("config: {process: [{type: slider, network: {}}]}", "type must be one of .*got slider"),
        ("config: {process: [{type: sd_trainer}]}", "no section 'network'"),
        ("a: [1", "no valid YAML"),
        ("a: !!python/object/apply:os.system [ls]", "no valid YAML: could not determine a constructor"),
        ("a: 2024-99-99", "a value that cannot be read"),
        (f"a: {'1' * 5000}", "a value that cannot be read"),
        (BOMB, r"references \(\*a\)"),
        ("a: " + "[" * 50 + "]" * 50, "nested deeper"),
        ("#" * (MAX_CHARACTERS + 1), "too long for a configuration: 100,001 characters"),
    ],
)
def test_a_file_that_is_no_lora_configuration_is_refused_with_the_reason(text, words):
    with pytest.raises(InvalidSpec, match=words):
        from_yaml(text)


def test_strange_characters_do_not_harm():
    found = from_yaml(TEXT + '"k\\ud800": "\\ud800"')
    assert "k?: ?" in found.not_carried


def test_long_values_are_cut():
    assert max(len(line) for line in read({"x": "word " * 99}).not_carried) < 100


@st.composite
def specs(draw):
    """Trainings that AI-Toolkit can do."""
    optimizer = draw(st.sampled_from(["adamw", "adamw8bit", "prodigy"]))
    schedule = draw(st.sampled_from(["constant", "cosine"]))
    steps = draw(st.integers(2, 100_000))
    size = st.integers(4, 128).map(lambda number: number * 16)
    whole = st.floats(0, 1, exclude_min=True)
    return TrainingSpec(
        character="mira",
        base_model="flux1-dev",
        trigger="ohwx",
        steps=steps,
        batch_size=draw(st.integers(1, 64)),
        gradient_accumulation_steps=draw(st.integers(1, 64)),
        seed=draw(st.integers(0, 2**32 - 1)),
        rank=draw(st.integers(1, 256)),
        alpha=draw(st.floats(0, 512, exclude_min=True)),
        targets=draw(st.sampled_from(TARGETS)),
        optimizer=optimizer,
        learning_rate=draw(st.floats(0.1, 10) if optimizer == "prodigy" else whole),
        weight_decay=draw(st.floats(0, 1)),
        lr_scheduler=schedule,
        lr_warmup_steps=0 if schedule == "cosine" else draw(st.integers(0, steps - 1)),
        max_grad_norm=draw(st.floats(0, 1e6)),
        ema_decay=draw(st.floats(0, 1, exclude_max=True)),
        precision=draw(st.sampled_from(["bf16", "fp32"])),
        quantization=draw(st.sampled_from(["none", "int8", "fp8"])),
        gradient_checkpointing=draw(st.booleans()),
        resolutions=tuple(draw(st.lists(size, min_size=1, max_size=4, unique=True))),
        flip=draw(st.booleans()),
        caption_dropout=draw(st.floats(0, 1)),
        timestep_sampling=draw(st.sampled_from(["uniform", "sigmoid", "shifted"])),
        guidance_scale=draw(st.floats(0, 100)),
        save_every=draw(st.integers(1, 10_000)),
        keep_checkpoints=draw(st.integers(0, 1000)),
        sample_every=draw(st.integers(0, 10_000)),
        sample_prompts=tuple(draw(st.lists(st.text("ab1:-#'\"[]{}é*&", max_size=20), max_size=4))),
        sample_seed=draw(st.integers(0, 2**32 - 1)),
        sample_steps=draw(st.integers(1, 200)),
        sample_guidance_scale=draw(st.floats(0, 100)),
        sample_resolution=draw(size),
    )


@given(specs())
def test_an_exported_training_comes_back_the_same(spec):
    found = from_yaml(to_yaml(spec, family=Family.FLUX, repository="owner/model", name="mira"))
    wanted = spec.model_dump(mode="json", exclude=OURS)
    wanted["sample_prompts"] = [
        resolve_caption(prompt, spec.trigger, spec.class_word) for prompt in spec.sample_prompts
    ]
    assert found.overrides == wanted
    assert {line.partition(":")[0] for line in found.not_carried} <= {
        "config.name", "training_folder", "device", "datasets[0].folder_path", "model.name_or_path", "model.arch",
        "network.linear_alpha",
    }  # fmt: skip


def test_an_exported_training_of_sdxl_comes_back_the_same():
    spec = TrainingSpec(
        character="mira", base_model="sdxl", trigger="ohwx", targets="attention_mlp", alpha=4, timestep_sampling="uniform"
    )  # fmt: skip
    found = from_yaml(to_yaml(spec, family=Family.SDXL, repository=None, name="mira")).overrides
    wanted = spec.model_dump(mode="json", exclude=OURS)
    assert found | {"sample_prompts": wanted["sample_prompts"]} == wanted
