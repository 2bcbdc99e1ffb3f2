"""FLUX.2 [klein] a few channels wide, with a tokenizer of bytes and a chat template."""

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2TokenizerFast, Qwen3Config, Qwen3ForCausalLM

#: Ends every prompt with the same tokens and knows ``enable_thinking``, as Qwen3's does.
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>a{% if enable_thinking is false %}<think>{% endif %}{% endif %}"
)
END = "<|endoftext|>"


def tiny_tokenizer() -> Qwen2TokenizerFast:
    """One token for each byte."""
    tokenizer = Qwen2TokenizerFast(
        vocab={token: number for number, token in enumerate([END, *sorted(ByteLevel.alphabet())])},
        merges=[],
        extra_special_tokens=["<|im_start|>", "<|im_end|>", "<think>"],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save_tiny_flux2(folder: Path, *, distilled: bool, shard: str = "5GB") -> None:
    """Save the pipeline in diffusers' layout, in files of at most ``shard``."""
    tokenizer = tiny_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        text_encoder = Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=len(tokenizer),
                hidden_size=8,
                intermediate_size=16,
                num_hidden_layers=28,  # the pipeline reads the 27th
                num_attention_heads=2,
                num_key_value_heads=1,
                head_dim=4,
            )
        )
        vae = AutoencoderKLFlux2(
            block_out_channels=(4, 4, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=2
        )
        vae.bn.running_mean.uniform_(-1, 1)
        vae.bn.running_var.uniform_(0.5, 2)
        transformer = Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=24,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=False,
        )
    Flux2KleinPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=transformer,
        is_distilled=distilled,
    ).save_pretrained(folder, max_shard_size=shard)
