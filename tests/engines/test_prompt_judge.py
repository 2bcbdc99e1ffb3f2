"""How well prompts are followed, with a tiny random CLIP."""

import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from isengard.equipment import open_judge
from isengard.errors import MissingWeights
from isengard.settings import ASSETS
from tests.unit.character_pictures import picture

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SEEN = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}


@pytest.fixture
def clip(tmp_path):
    tokenizer = CLIPTokenizer.from_pretrained(ASSETS / "demo-base" / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        config = CLIPConfig(
            text_config=SIZES | ends | {"vocab_size": len(tokenizer)},
            vision_config=SIZES | {"image_size": 32, "patch_size": 8},
            projection_dim=8,
        )
        CLIPModel(config).save_pretrained(tmp_path)
    CLIPImageProcessor(**SEEN).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return tmp_path


def test_each_picture_is_held_against_its_own_prompt_whatever_the_batch(clip):
    judge = open_judge(clip)
    pictures = [picture(number) for number in range(9)]
    prompts = [
        f"a portrait of a person, {word}"
        for word in ["smiling", "sad", "red", "blue", "pink", "city", "beach", "a", "of"]
    ]
    together = judge.follow(pictures, prompts)
    alone = [judge.follow([image], [prompt])[0] for image, prompt in zip(pictures, prompts, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert all(-1 <= cosine <= 1 for cosine in together)
    assert len({round(cosine, 4) for cosine in together}) > 1


def test_a_long_prompt_is_cut(clip):
    assert len(open_judge(clip).follow([picture(1)], ["portrait " * 200])) == 1


def test_without_a_clip_and_its_tokenizer_nobody_judges(clip, tmp_path):
    assert open_judge(tmp_path / "nothing") is None
    (clip / "tokenizer_config.json").rename(clip / "away")
    assert open_judge(clip) is None
    (clip / "away").rename(clip / "tokenizer_config.json")
    (clip / "config.json").write_text('{"model_type": "dinov2"}')
    assert open_judge(clip) is None


def test_a_damaged_clip_is_named_with_the_way_out(clip):
    (clip / "model.safetensors").unlink()
    with pytest.raises(MissingWeights, match=r"cannot be loaded .*: download it again"):
        open_judge(clip)
