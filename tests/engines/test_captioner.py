"""Descriptions of pictures, by tiny models of the classes that are used."""

import json
from functools import cache

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from isengard.engines import captioner
from isengard.engines.captioner import open_captioner
from isengard.errors import CheckpointRefused, JobCancelled, OutOfMemory
from tests.tiny_captioners import KINDS, save_tiny_captioner
from tests.unit.character_pictures import picture

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """``folder_of("llava")``: a tiny model of that kind."""

    @cache
    def made(kind):
        folder = tmp_path_factory.mktemp("captioners") / kind
        save_tiny_captioner(kind, folder)
        return folder

    return made


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(captioner, "MAX_TOKENS", 6)


def said(folder, *pictures):
    with open_captioner(folder, device=CPU) as opened:
        return list(opened.caption(pictures, instruction="What is it?"))


def copied(folder, target):
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())


@pytest.mark.parametrize("kind", KINDS)
def test_each_picture_gets_a_description_of_its_own(folder_of, kind):
    pictures = [picture(1, (60, 80)), picture(2, (80, 60)).convert("L"), Image.new("RGBA", (1, 90))]
    told = said(folder_of(kind), *pictures)
    assert [type(each) for each in told] == [str] * 3
    assert "endoftext" not in "".join(told)


@pytest.mark.parametrize(
    ("kind", "prompt"),
    [
        ("llava", "<|im_start|>user:<image>What is it?<|im_end|><|im_start|>assistant:"),
        (
            "joycaption",
            "<|im_start|>system:You are a helpful image captioner.<|im_end|><|im_start|>user:<image>What is it?"
            "<|im_end|><|im_start|>assistant:",
        ),
        ("plain", "<image>\nWhat is it?"),
        (
            "qwen",
            "<|im_start|>user:<|vision_start|><|image_pad|><|vision_end|>What is it?<|im_end|><|im_start|>assistant:",
        ),
    ],
)
def test_a_model_that_chats_is_asked_in_the_words_of_its_template(folder_of, kind, prompt):
    with open_captioner(folder_of(kind), device=CPU) as opened:
        assert opened._chat("What is it?") == prompt


def test_a_model_whose_template_has_no_place_for_an_image_is_refused(folder_of, tmp_path):
    copied(folder_of("llava"), tmp_path)
    (tmp_path / "chat_template.jinja").write_text("hello")
    with pytest.raises(CheckpointRefused, match="no chat template for images"):
        said(tmp_path, picture(1, (60, 80)))


def test_a_description_is_the_same_each_time(folder_of):
    one = picture(1, (60, 80))
    assert said(folder_of("llava"), one) == said(folder_of("llava"), one)


def test_what_is_raised_between_two_words_ends_it(folder_of):
    tokens = []

    def cancel():
        tokens.append(1)
        if len(tokens) == 2:
            raise JobCancelled

    with open_captioner(folder_of("llava"), device=CPU) as opened, pytest.raises(JobCancelled):
        list(opened.caption([picture(1, (60, 80))], instruction="?", on_token=cancel))
    assert len(tokens) == 2


def test_a_large_picture_is_made_smaller_first():
    assert captioner._fitted(Image.new("L", (4000, 2000))).size == (1024, 512)


def test_a_model_that_sees_nothing_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(CheckpointRefused, match="no model that describes pictures"):
        said(tmp_path)


def test_a_model_without_all_its_weights_is_refused_by_their_names(folder_of, tmp_path):
    copied(folder_of("llava"), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["language_model.model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointRefused, match=r"model\.norm\.weight"):
        said(tmp_path)


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(folder_of, monkeypatch):
    monkeypatch.setattr(captioner, "free_memory", lambda _device: 1000)
    with pytest.raises(OutOfMemory, match="smaller captioner"):
        said(folder_of("llava"))
