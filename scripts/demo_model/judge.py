"""Two small networks that look at portraits.

The judge names every attribute and is used to measure how well prompts are followed. The identity encoder tells people
apart, whatever they wear and wherever they are; it ships with the package.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from isengard.engines.drawn_figures import FigureEncoder
from scripts.demo_model import draw
from scripts.demo_model.data import Drawings, Portrait
from scripts.demo_model.draw import Person
from scripts.demo_model.stage import Ema, Stage, batch_of, cosine, in_bfloat16, set_lr
from scripts.demo_model.vae import to_pixels

#: What the judge tells apart, and the words for it.
ATTRIBUTES: Mapping[str, Sequence[str]] = {
    "hair": list(draw.HAIR),
    "hair_color": list(draw.HAIR_COLORS),
    "skin": list(draw.SKINS),
    "glasses": list(draw.GLASSES),
    "facial_hair": list(draw.FACIAL_HAIR),
    "eyes": list(draw.EYES),
    "mouth": list(draw.MOUTHS),
    "clothing": list(draw.CLOTHING),
    "clothing_color": list(draw.CLOTHING_COLORS),
    "background": list(draw.BACKGROUNDS),
    "scene": list(draw.SCENES),
}
#: Label of an attribute that cannot be seen.
UNSEEN = -1
#: People in a batch of the identity encoder: pairs that differ in one trait.
PAIRS, LOOKS = 16, 3


@dataclass(frozen=True)
class Recipe:
    steps: int
    lr: float = 2e-3
    batch: int = 64


def labels(portrait: Portrait) -> list[int]:
    """The index of each attribute's word, in the order of `ATTRIBUTES`."""
    person, look = portrait.person, portrait.look
    hidden = {
        "hair_color": person.hair == "bald" and not person.facial_hair,
        "eyes": "sunglasses" in person.glasses or person.glasses == "eyepatch",
        "clothing_color": not look.clothing_color,
        "hair": person.hair not in draw.HAIR,
    }
    found = []
    for name, words in ATTRIBUTES.items():
        value = getattr(person, name, None)
        value = getattr(look, name) if value is None else value
        found.append(UNSEEN if hidden.get(name) else words.index(value))
    return found


def split(logits: Tensor) -> Sequence[Tensor]:
    """The logits of each attribute."""
    return logits.split([len(words) for words in ATTRIBUTES.values()], dim=1)


def train_judge(
    drawings: Drawings, restored: npt.NDArray[np.uint8], folder: Path, recipe: Recipe, device: torch.device
) -> FigureEncoder:
    """Train on drawings; ``restored`` are the first of them through the autoencoder, shown now and then."""
    torch.manual_seed(1)
    judge = FigureEncoder(sum(len(words) for words in ATTRIBUTES.values())).to(device)
    truth = torch.tensor([labels(each) for each in drawings.portraits])

    def loss_of(number: int) -> Tensor:
        indices, generator = batch_of(number, 5, len(drawings), recipe.batch)
        logits = judge(_augmented(_shown(drawings, restored, indices, generator), generator, device))
        wanted = truth[indices].to(device)
        losses = [
            functional.cross_entropy(each.float(), wanted[:, place], ignore_index=UNSEEN)
            for place, each in enumerate(split(logits))
        ]
        return torch.stack(losses).mean()

    return _fit("judge", judge, loss_of, folder, recipe, device)


def train_identity(
    drawings: Drawings, restored: npt.NDArray[np.uint8], folder: Path, recipe: Recipe, device: torch.device
) -> FigureEncoder:
    """Supervised contrastive learning: pictures of one person together, of any other apart."""
    torch.manual_seed(2)
    encoder = FigureEncoder().to(device)
    names = {key: number for number, key in enumerate({_visible(each.person) for each in drawings.portraits})}
    who = torch.tensor([names[_visible(each.person)] for each in drawings.portraits])
    pairs = drawings.people // 2

    def loss_of(number: int) -> Tensor:
        chosen, generator = batch_of(number, 6, pairs, PAIRS)
        people = torch.stack([2 * chosen, 2 * chosen + 1], dim=1).flatten()
        looks = torch.stack([torch.randperm(drawings.looks, generator=generator)[:LOOKS] for _ in people])
        indices = (people[:, None] * drawings.looks + looks).flatten()
        pixels = _augmented(_shown(drawings, restored, indices, generator), generator, device)
        embeddings = functional.normalize(encoder(pixels).float())
        logits = embeddings @ embeddings.T / 0.1
        itself = torch.eye(len(indices), dtype=torch.bool, device=device)
        identity = who[indices].to(device)
        same = (identity[:, None] == identity[None, :]) & ~itself
        logits = logits - torch.logsumexp(logits.masked_fill(itself, -1e9), dim=1, keepdim=True)
        return -(logits * same).sum(1).div(same.sum(1)).mean()

    return _fit("identity", encoder, loss_of, folder, recipe, device)


def _fit(
    name: str,
    model: FigureEncoder,
    loss_of: Callable[[int], Tensor],
    folder: Path,
    recipe: Recipe,
    device: torch.device,
) -> FigureEncoder:
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=0.02)
    ema = Ema(model, 0.99)

    def step(number: int) -> Mapping[str, Tensor]:
        set_lr(optimizer, cosine(number, recipe.steps, warmup=50))
        with in_bfloat16(device):
            loss = loss_of(number)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.update()
        return {"loss": loss.detach()}

    Stage(name, folder, recipe.steps).run({"model": model, "optimizer": optimizer, "ema": ema}, step)
    ema.copy_to(model)
    return model.eval()


def _visible(person: Person) -> tuple[str, ...]:
    """Whatever of an identity can be seen: the nose is three pixels wide."""
    color = "" if person.hair == "bald" and not person.facial_hair else person.hair_color
    return person.hair, color, person.skin, person.glasses, person.facial_hair


def _shown(
    drawings: Drawings, restored: npt.NDArray[np.uint8], indices: Tensor, generator: torch.Generator
) -> npt.NDArray[np.uint8]:
    images = drawings.images[indices.numpy()]
    for place, index in enumerate(indices.tolist()):
        if index < len(restored) and float(torch.rand((), generator=generator)) < 0.5:
            images[place] = restored[index]
    return images


def _augmented(images: npt.NDArray[np.uint8], generator: torch.Generator, device: torch.device) -> Tensor:
    """Moved by up to 3 pixels, sometimes blurred, a little noisy: what a generator may do to a drawing."""
    pixels = to_pixels(images, device)
    right, down = (torch.randint(-3, 4, (2,), generator=generator)).tolist()
    padded = functional.pad(pixels, (3, 3, 3, 3), mode="replicate")
    size = pixels.shape[-1]
    pixels = padded[..., 3 + down : 3 + down + size, 3 + right : 3 + right + size]
    if float(torch.rand((), generator=generator)) < 0.3:
        pixels = functional.avg_pool2d(functional.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    noise = torch.randn(pixels.shape, generator=generator).to(device)
    return pixels + 0.04 * noise


@torch.inference_mode()
def judged(judge: FigureEncoder, images: npt.NDArray[np.uint8], device: torch.device) -> Tensor:
    """What the judge sees: the index of each attribute's word, (n, attributes)."""
    found = []
    for start in range(0, len(images), 64):
        logits = judge(to_pixels(images[start : start + 64], device))
        found.append(torch.stack([each.argmax(1) for each in split(logits)], dim=1).cpu())
    return torch.cat(found)


def accuracy(seen: Tensor, portraits: Sequence[Portrait]) -> dict[str, float]:
    """The share of images in which each attribute is what it should be, of those where it can be seen."""
    truth = torch.tensor([labels(each) for each in portraits])
    shares = {}
    for place, name in enumerate(ATTRIBUTES):
        visible = truth[:, place] != UNSEEN
        shares[name] = float((seen[visible, place] == truth[visible, place]).float().mean())
    return shares
