"""A training in AI-Toolkit's words."""

import pytest
import yaml

from isengard.domain.ai_toolkit import KEEP_ALL, NO_CLIPPING, check_keys, to_config, to_yaml
from isengard.domain.model import Family
from isengard.domain.training import TrainingSpec
from isengard.errors import InvalidSpec


def spec_of(**values):
    return TrainingSpec(**{"character": "mira", "base_model": "flux1-dev", "trigger": "ohwx", **values})


def process_of(family=Family.FLUX, *, places=None, **values):
    given = {
        "model_path": "weights",
        "dataset_dir": "images",
        "training_dir": "runs",
        "name": "mira",
        "device": "cuda:0",
    }
    config = to_config(spec_of(**values), family=family, **given, **(places or {}))
    assert (config["job"], config["config"]["name"]) == ("extension", "mira")
    (process,) = config["config"]["process"]
    return process


def test_the_adapters_process_saves_and_samples_by_itself():
    process = process_of(steps=100, save_every=10, sample_every=10)
    assert process["type"] == "isengard"
    assert process["save"]["save_every"] == 101
    assert (process["train"]["disable_sampling"], process["train"]["skip_first_sample"]) == (True, True)


def test_an_exported_file_saves_and_samples_as_asked():
    process = process_of(save_every=10, sample_every=20, places={"process_type": "sd_trainer"})
    assert (process["save"]["save_every"], process["sample"]["sample_every"]) == (10, 20)
    assert process["train"]["disable_sampling"] is False


def test_the_places_are_those_given():
    process = process_of(places={"assistant_lora_path": "assistant"})
    assert (process["training_folder"], process["device"]) == ("runs", "cuda:0")
    assert process["datasets"][0]["folder_path"] == "images"
    assert process["model"] == {
        "name_or_path": "weights",
        "arch": "flux",
        "quantize": False,
        "quantize_te": False,
        "assistant_lora_path": "assistant",
    }


def test_a_trigger_word_is_never_set_and_prompts_are_resolved():
    process = process_of(sample_prompts=("a photo of [trigger] [class]",))
    assert "trigger_word" not in process
    assert process["sample"]["prompts"] == ["a photo of ohwx person"]


def test_accumulation_counts_optimizer_steps():
    train = process_of(gradient_accumulation_steps=4)["train"]
    assert train["gradient_accumulation"] == 4
    assert "gradient_accumulation_steps" not in train


def test_off_is_a_limit_that_nothing_reaches():
    process = process_of(max_grad_norm=0, keep_checkpoints=0, places={"process_type": "sd_trainer"})
    assert process["train"]["max_grad_norm"] == NO_CLIPPING
    assert process["save"]["max_step_saves_to_keep"] == KEEP_ALL


@pytest.mark.parametrize(
    ("values", "key", "said"),
    [
        ({"timestep_sampling": "sigmoid"}, "timestep_type", "sigmoid"),
        ({"timestep_sampling": "uniform"}, "timestep_type", "linear"),
        ({"timestep_sampling": "shifted"}, "timestep_type", "shift"),
        ({"lr_warmup_steps": 5}, "lr_scheduler", "constant_with_warmup"),
        ({"lr_warmup_steps": 5}, "lr_scheduler_params", {"num_warmup_steps": 5}),
        ({"lr_scheduler": "cosine"}, "lr_scheduler", "cosine"),
        ({"ema_decay": 0.9}, "ema_config", {"use_ema": True, "ema_decay": 0.9}),
        ({"ema_decay": 0}, "ema_config", {"use_ema": False}),
        ({"precision": "fp32"}, "dtype", "fp32"),
        ({"guidance_scale": 2}, "cfg_scale", 2),
        (
            {"optimizer": "prodigy", "learning_rate": 1, "weight_decay": 0.5, "lr_warmup_steps": 2},
            "optimizer_params",
            {"weight_decay": 0.5, "use_bias_correction": True, "safeguard_warmup": True},
        ),
    ],
)
def test_a_setting_is_said_in_their_words(values, key, said):
    assert process_of(**values)["train"][key] == said


@pytest.mark.parametrize(("quantization", "qtype"), [("int8", "int8"), ("fp8", "float8")])
def test_a_quantized_base_leaves_the_text_encoders_whole(quantization, qtype):
    model = process_of(quantization=quantization)["model"]
    assert (model["quantize"], model["qtype"], model["quantize_te"]) == (True, qtype, False)


def test_sdxl_has_its_own_noise_and_no_timestep_type():
    process = process_of(Family.SDXL, timestep_sampling="uniform")
    assert (process["train"]["noise_scheduler"], process["sample"]["sampler"]) == ("ddpm", "ddpm")
    assert "timestep_type" not in process["train"]
    assert process["model"]["arch"] == "sdxl"


@pytest.mark.parametrize(
    ("family", "values", "words"),
    [
        (Family.FLUX2, {}, "base_model: .*flux, sdxl.* family flux2"),
        (Family.FLUX, {"targets": r".*to_q"}, "targets: .*no regular expression.*attention_mlp"),
        (Family.FLUX, {"loss_weighting": "cosmap"}, "loss_weighting: .*'cosmap'; choose 'none'"),
        (Family.FLUX, {"lr_scheduler": "cosine", "lr_warmup_steps": 9}, "lr_warmup_steps: .*got 9; set it to 0"),
        (Family.FLUX, {"optimizer": "prodigy"}, "learning_rate: .*got 0.0001; set it to 1"),
        (Family.FLUX, {"quantization": "nf4"}, "quantization: .*int8, fp8 alone, got 'nf4'; choose one"),
        (Family.FLUX, {"attention": "cudnn", "compile": True}, "attention, compile: .*native engine"),
        (Family.SDXL, {}, "timestep_sampling: .*got 'sigmoid'; choose 'uniform'"),
        (
            Family.SDXL,
            {"timestep_sampling": "uniform", "quantization": "fp8"},
            "quantization: .*got 'fp8'; choose 'none'",
        ),
    ],
)  # fmt: skip
def test_what_ai_toolkit_cannot_do_is_refused_with_a_way_out(family, values, words):
    with pytest.raises(InvalidSpec, match=words):
        process_of(family, **values)


@pytest.mark.parametrize(
    ("section", "key", "words"),
    [
        ("train", "learnin_rate", "'config.process.train.learnin_rate'"),
        ("save", "save_evry", r"save_evry' \(did you mean 'save_every'\?\)"),
        ("network", "zzz", r"'config.process.network.zzz'$"),
    ],
)
def test_a_key_that_does_not_exist_is_named(section, key, words):
    process = process_of()
    process[section][key] = 1
    with pytest.raises(InvalidSpec, match=words):
        check_keys({"job": "extension", "config": {"name": "x", "process": [process]}})


def test_keys_in_lists_are_checked_too():
    process = process_of()
    process["datasets"][0]["capton_ext"] = "txt"
    with pytest.raises(InvalidSpec, match=r"datasets\.capton_ext.*caption_ext"):
        check_keys({"job": "extension", "config": {"name": "x", "process": [process]}})


def exported(repository="owner/model", family=Family.FLUX, **values):
    return to_yaml(spec_of(**values), family=family, repository=repository, name="mira")


def test_an_exported_file_is_valid_yaml_for_their_trainer():
    process = yaml.safe_load(exported())["config"]["process"][0]
    assert (process["type"], process["model"]["name_or_path"]) == ("sd_trainer", "owner/model")


def test_its_head_says_what_has_to_be_edited():
    head, _, _ = exported(repository=None).partition("---")
    assert "datasets.folder_path (/path/to/the/images)" in head
    assert "model.name_or_path (/path/to/the/model)" in head
    assert "model.name_or_path" not in exported().partition("---")[0]


def test_its_head_says_what_differs_there():
    head, _, _ = exported(
        alpha=4,
        max_upscale=2,
        timestep_sampling="shifted",
        validate_every=10,
        attention="cudnn",
        compare_when_done=True,
    ).partition("---")
    for words in (
        "alpha 4 has no effect",
        "max_upscale 2 is lost",
        "type shift moves",
        "no validation",
        "attention: Isen",
        "compare_when_done: nobody there looks",
    ):
        assert words in head


def test_without_a_difference_its_head_says_none():
    assert "Not quite" not in exported(validate_every=0)
    sdxl = exported(family=Family.SDXL, alpha=4, timestep_sampling="uniform", validate_every=0)
    assert "Not quite" not in sdxl
