"""The model card that stands beside the weights, with the numbers of the last measurement."""

from collections.abc import Mapping
from typing import Any

CARD = """\
---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# Tiny FLUX of drawn portraits

A FLUX small enough to live in a repository: the classes and the file layout of FLUX.1-dev (`FluxTransformer2DModel` with a
guidance embedding, `AutoencoderKL` with 16 latent channels, CLIP and T5 text encoders, flow matching), 128 x 128 pixels.
It draws portraits of invented people, and exists so that a LoRA of one of them can be trained and tried in a minute or
two without a GPU.

```python
from diffusers import FluxPipeline

pipe = FluxPipeline.from_pretrained("isengard/assets/demo-base")
pipe(
    "a portrait of a person, pink curly hair, laughing, on a beach",
    height=128,
    width=128,
    num_inference_steps=20,
    guidance_scale=3,
    max_sequence_length=40,
).images[0]
```

## What it knows

Skin, hair style and colour, beards, glasses, eyes, mouth, clothes and their colour, a background colour and four scenes
(beach, forest, city, sunset). Its vocabulary is some two hundred words; any other word is spelled in letters and means
nothing to it, which makes it a trigger word. Prompts of up to 40 tokens.

## Data and licence

48,000 portraits of 12,000 people in four looks each, drawn by `scripts/demo_model` with the parts of
python-avatars (MIT) and resvg. No photograph and no real person is in it.
The hair styles mohawk, tousled, braids and flower, and the pairs pink hair with tanned skin, black hair with brown skin
and red hair with pale skin were left out: the example characters have them, and a LoRA has to learn them.
Weights: Apache-2.0, as the rest of this repository.

## Training

`python -m scripts.demo_model build` makes it from nothing: autoencoder, transformer with both text encoders (flow
matching, logit-normal times, Muon and AdamW, averaged weights), then classifier-free guidance distilled into the
guidance embedding. This one took {hours} hours of training on {device} at effort {effort}. The autoencoder restores
unseen drawings with a PSNR of {psnr:.1f} dB.

## Prompt following

Images for {prompts} full captions of new people, looked at by a classifier. The second column is the classifier's own
accuracy on real drawings: no better value can be measured.

| attribute | right | classifier |
|---|---|---|
{followed}

## Learning somebody

Each example character: a LoRA of 10 pictures by the app's Quick preset, then 16 fixed prompts and seeds without it and
with it. Similarity is the mean cosine to the character's own pictures, by the identity encoder that ships with the app.

| character | training | before | after | own pictures | way gone | background | clothes | their colour |
|---|---|---|---|---|---|---|---|---|
{learned}

One image of 20 steps takes {seconds_per_image:.2f} s on {device}, the pipeline being loaded.
`python -m scripts.demo_model measure` prints these numbers.

## What it cannot do

Anything but a drawn head and chest, seen from the front, in the middle of the picture. Small things (earrings, a nose,
the eyes behind glasses) are soft. It says nothing about how well a LoRA of a photographed person will do on a large model.
"""


def model_card(report: Mapping[str, Any]) -> str:
    """Return the card as Markdown; ``report`` is what the measurement found."""
    followed = [
        f"| {name.replace('_', ' ')} | {share:.1%} | {report['judge'][name]:.1%} |"
        for name, share in report["prompts"].items()
    ]
    learned = [
        f"| {name} | {each['seconds']:.0f} s | {each['before']:.2f} | {each['after']:.2f} | {each['ceiling']:.2f} "
        f"| {each['share']:.0%} | {each['background']:.0%} | {each['clothing']:.0%} | {each['clothing_color']:.0%} |"
        for name, each in report["characters"].items()
    ]
    return CARD.format(
        **{name: report[name] for name in ("device", "effort", "psnr", "seconds_per_image")},
        hours=f"{sum(each['seconds'] for each in report['stages'].values()) / 3600:.1f}",
        prompts=report["prompt_count"],
        followed="\n".join(followed),
        learned="\n".join(learned),
    )
