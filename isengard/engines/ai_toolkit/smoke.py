"""``python -m isengard.engines.ai_toolkit.smoke CHECKOUT DEVICE``: two steps of AI-Toolkit on the bundled model.

A process of its own: what AI-Toolkit leaves behind ends with it.
"""

import hashlib
import logging
import sys
import tempfile
from pathlib import Path

from PIL import Image

from isengard.domain.job import Progress, Requests
from isengard.domain.model import Family, LocalModel, ModelCard
from isengard.domain.training import AI_TOOLKIT, Precision, TrainingImage, TrainingSpec
from isengard.engines.ai_toolkit.trainer import AIToolkitTrainer
from isengard.engines.base import TrainedLora
from isengard.engines.device import choose_device
from isengard.engines.native.flux import FluxAdapter
from isengard.settings import ASSETS

STEPS = 2


def smoke(checkout: Path, device: str, folder: Path) -> TrainedLora:
    """Train in ``folder``. Raises: what `LoraTrainer.train` raises."""
    card = ModelCard(
        name="demo",
        title="the bundled model",
        family=Family.FLUX,
        path=Path("demo-base"),
        licence="Apache-2.0",
        licence_url="https://www.apache.org/licenses/LICENSE-2.0",
        resolutions=(64,),
        num_inference_steps=STEPS,
        guidance_scale=3,
        max_sequence_length=40,
    )
    spec = TrainingSpec(
        character="smoke",
        base_model=card.name,
        engine=AI_TOOLKIT,
        trigger="ohwx",
        steps=STEPS,
        rank=4,
        precision=Precision.FP32,
        resolutions=(64,),
        sample_every=0,
        validate_every=0,
        save_every=STEPS,
        sample_steps=1,
        sample_resolution=64,
    )
    trainer = AIToolkitTrainer(
        checkout=checkout, adapters={Family.FLUX: FluxAdapter}, device=choose_device(device)
    )
    return trainer.train(
        spec=spec,
        model=LocalModel(card=card, path=ASSETS / "demo-base"),
        images=[_picture(folder / f"{number}.png", number) for number in range(2)],
        run_dir=folder / "run",
        cache_dir=folder / "cache",
        report=_unheard,
    )


def _picture(path: Path, number: int) -> TrainingImage:
    image = Image.new("RGB", (64, 64), (40 + 90 * number, 80, 120))
    image.save(path)
    digest = hashlib.sha256(image.tobytes()).hexdigest()
    return TrainingImage(
        path=path, sha256=digest, width=64, height=64, caption=f"ohwx person, picture {number}"
    )


def _unheard(_: Progress) -> Requests:
    return Requests()


if __name__ == "__main__":
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        made = smoke(Path(sys.argv[1]), sys.argv[2], Path(name))
    sys.stdout.write(f"{made.steps} steps\n")
