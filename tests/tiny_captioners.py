"""The classes of the models that describe pictures, a few channels wide and with random weights."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    BartConfig,
    CLIPImageProcessorPil,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2TokenizerFast,
    Qwen2VLImageProcessorPil,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from isengard.engines.captioner import ImagesOnlyQwenProcessor

END = "<|endoftext|>"
ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
LAYERS = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
#: What a message holds is a list of parts, as in the template of Qwen-VL.
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}:"
    "{% for part in message.content %}{{ IMAGE if part.type == 'image' else part.text }}{% endfor %}"
    "<|im_end|>{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
)
#: It is a text, to which the template adds the image, as in that of JoyCaption.
CHAT_OF_TEXT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}:"
    "{% if message.role == 'user' %}<image>{{ message.content.replace('<image>', '') }}"
    "{% else %}{{ message.content }}{% endif %}<|im_end|>{% endfor %}<|im_start|>assistant:"
)
#: It is a text, in which the image has its place already.
PLAIN_CHAT = "{% for message in messages %}{{ message.content }}{% endfor %}"


def _tokenizer(special: Mapping[str, str]) -> Qwen2TokenizerFast:
    """One token for each byte, and the ``special`` ones by their names."""
    return Qwen2TokenizerFast(
        vocab={token: number for number, token in enumerate([END, *sorted(ByteLevel.alphabet())])},
        merges=[],
        bos_token=END,
        eos_token=END,
        pad_token=END,
        extra_special_tokens=dict(special),
    )


def _florence() -> tuple[Any, Any]:
    tokenizer = _tokenizer({"image_token": "<image>"})
    text = BartConfig(
        vocab_size=len(tokenizer),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=512,
        decoder_start_token_id=0,
        forced_eos_token_id=0,
        **ENDS,
    )
    vision = {
        "depths": (1, 1, 1, 1),
        "embed_dim": (8, 8, 8, 8),
        "num_heads": (1, 1, 1, 1),
        "num_groups": (1, 1, 1, 1),
        "window_size": 2,
        "projection_dim": 16,
    }
    config = Florence2Config(
        vision_config=vision, text_config=text.to_dict(), image_token_id=tokenizer.image_token_id, **ENDS
    )
    size = {"height": 64, "width": 64}
    images = CLIPImageProcessorPil(size=size, do_center_crop=False)
    images.image_seq_length = 5
    return Florence2ForConditionalGeneration(config), Florence2Processor(images, tokenizer)


def _llava(chat: str) -> tuple[Any, Any]:
    tokenizer = _tokenizer({"image_token": "<image>", "opens": "<|im_start|>", "closes": "<|im_end|>"})
    vision = SiglipVisionConfig(**{**LAYERS, "num_hidden_layers": 2}, image_size=28, patch_size=14)
    config = LlavaConfig(
        vision_config=vision.to_dict(),
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), **LAYERS, **ENDS},
        image_token_index=tokenizer.image_token_id,
        vision_feature_select_strategy="full",
        image_seq_length=4,
    )
    processor = LlavaProcessor(
        SiglipImageProcessorPil(size={"height": 28, "width": 28}),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="full",
        chat_template=chat,
    )
    return LlavaForConditionalGeneration(config), processor


def _qwen() -> tuple[Any, Any]:
    tokenizer = _tokenizer(
        {
            "image_token": "<|image_pad|>",
            "video_token": "<|video_pad|>",
            "before": "<|vision_start|>",
            "behind": "<|vision_end|>",
            "opens": "<|im_start|>",
            "closes": "<|im_end|>",
        }
    )
    number = tokenizer.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    config = Qwen2_5_VLConfig(
        vision_config={
            "depth": 1,
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_heads": 2,
            "out_hidden_size": 16,
            "window_size": 56,
            "fullatt_block_indexes": [0],
        },
        text_config={"vocab_size": len(tokenizer), **LAYERS, "rope_parameters": rope, **ENDS},
        image_token_id=number("<|image_pad|>"),
        video_token_id=number("<|video_pad|>"),
        vision_start_token_id=number("<|vision_start|>"),
        vision_end_token_id=number("<|vision_end|>"),
    )
    processor = ImagesOnlyQwenProcessor(
        Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=56 * 56),
        tokenizer,
        chat_template=CHAT.replace("IMAGE", "'<|vision_start|><|image_pad|><|vision_end|>'"),
    )
    return Qwen2_5_VLForConditionalGeneration(config), processor


KINDS: Mapping[str, Callable[[], tuple[Any, Any]]] = {
    "florence": _florence,
    "llava": partial(_llava, CHAT.replace("IMAGE", "'<image>'")),
    "joycaption": partial(_llava, CHAT_OF_TEXT),
    "plain": partial(_llava, PLAIN_CHAT),
    "qwen": _qwen,
}


def save_tiny_captioner(kind: str, folder: Path) -> None:
    """Save the model of a kind as its repository on the hub looks."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, processor = KINDS[kind]()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
