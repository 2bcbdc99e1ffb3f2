"""The whole application on a real FLUX of one block of each kind: a training takes seconds on a CPU."""

from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from isengard.settings import Settings
from isengard.wiring import Application, build

#: Six steps with a checkpoint every second, validation and samples on the way.
QUICK: dict[str, Any] = {
    "steps": 6,
    "batch_size": 2,
    "rank": 4,
    "alpha": 4,
    "targets": "all_linear",
    "learning_rate": 1e-2,
    "precision": "fp32",
    "resolutions": [64],
    "save_every": 2,
    "validate_every": 3,
    "sample_every": 3,
    "sample_prompts": ["a portrait of [trigger]"],
    "sample_resolution": 64,
    "sample_steps": 2,
}


def tiny_settings(data_dir: Path, model_dir: Path, **options: Any) -> Settings:
    """Settings with one model card, ``tiny``, and one preset, ``quick``, in a folder of configs of their own."""
    configs = data_dir / "configs"
    (configs / "training").mkdir(parents=True)
    card = {
        "title": "Tiny FLUX",
        "family": "flux",
        "path": str(model_dir),
        "licence": "none",
        "licence_url": "https://example.org",
        "resolutions": [64],
        "num_inference_steps": 2,
        "guidance_scale": 3.5,
        "max_sequence_length": 16,
    }
    (configs / "models.yaml").write_text(yaml.safe_dump({"tiny": card}))
    preset = {
        "title": "Quick",
        "description": "For tests.",
        "steps_per_image": 1,
        "min_steps": 1,
        "max_steps": 10,
        "settings": QUICK,
    }
    (configs / "training" / "quick.yaml").write_text(yaml.safe_dump(preset))
    return Settings(data_dir=data_dir / "data", configs_dir=configs, device="cpu", **options)


def tiny_app(data_dir: Path, model_dir: Path, **options: Any) -> Application:
    """The services, with a character ``mira`` of nine pictures of noise."""
    app = build(tiny_settings(data_dir, model_dir, **options))
    app.characters.create("Mira", trigger="ohwx")
    pictures = data_dir / "pictures"
    pictures.mkdir()
    for number in range(9):
        pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"{number}.png")
        (pictures / f"{number}.txt").write_text(f"[trigger] [class], picture {number}")
    assert len(list(app.characters.add_files("mira", sorted(pictures.iterdir())))) == 9
    return app


def submit_training(app: Application, **overrides: Any) -> str:
    """Enqueue a training of ``mira`` on ``tiny``; its job id."""
    job = app.training.submit(character_id="mira", base_model="tiny", preset="quick", overrides=overrides)
    return job.id
