"""``python -m scripts.demo_model build``: the demo model from nothing.

Each stage keeps its result in the build folder and is skipped when it is there; a stage that was killed goes on from
its last saved state. A result is a pure function of the code and the effort.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from isengard.engines.device import choose_device
from isengard.engines.drawn_figures import DrawnFigureScorer, FigureEncoder
from isengard.files import replacing, write_text
from isengard.settings import ASSETS, ROOT
from scripts.demo_model import evaluate, examples, faulty_loras, flux, judge, painting, vae
from scripts.demo_model.data import Drawings
from scripts.demo_model.model_card import model_card
from scripts.demo_model.stage import history

MODEL = ASSETS / "demo-base"
LORAS = ROOT / "tests" / "assets" / "loras"
ENCODER = ASSETS / "figure-encoder.safetensors"
#: Drawings that the judges are shown as the autoencoder restores them.
RESTORED = 8000
GUIDANCE = 3.0
PEOPLE = 12_000
STAGES = ("autoencoder", "judge", "identity", "transformer", "finish", "guidance")

app = typer.Typer(add_completion=False, help=__doc__)
Build = Annotated[Path, typer.Option("--build", help="Where the data, states and results are kept.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, mps")]


class Workshop:
    """The stages, each made from the ones before it."""

    def __init__(self, build: Path, device: str, effort: float, people: int) -> None:
        self.build, self.device, self._effort = build, choose_device(device), effort
        self.drawings = Drawings(build / "drawings", seed=1, people=people, looks=4)
        self.validation = Drawings(build / "validation", seed=2, people=min(256, people), looks=2)

    def steps(self, count: int) -> int:
        return max(1, round(count * self._effort))

    def draw(self) -> None:
        self.drawings.draw()
        self.validation.draw()

    def autoencoder(self) -> vae.AutoencoderKL:
        """Trained, with the scale of its latents; they are written beside it."""
        recipe = replace(vae.Recipe(), steps=self.steps(vae.Recipe.steps))
        model = vae.train(self.drawings, self.build / "autoencoder", recipe, self.device)
        file = self._latents
        if not file.exists():
            with replacing(file) as temporary:
                save_file({"latents": vae.encode_all(model, self.drawings, self.device)}, temporary)
        painting.scaled(model, load_file(file)["latents"])
        return model

    def latents(self, model: vae.AutoencoderKL) -> Tensor:
        return painting.scaled(model, load_file(self._latents)["latents"])

    def restored(self, model: vae.AutoencoderKL) -> np.ndarray:
        file = self.build / "restored.npy"
        if not file.exists():
            with replacing(file) as temporary, temporary.open("wb") as opened:
                np.save(opened, vae.restore(model, self.drawings.images[:RESTORED], self.device))
        return np.load(file)

    def judge(self, model: vae.AutoencoderKL) -> FigureEncoder:
        recipe = judge.Recipe(steps=self.steps(1200))
        return judge.train_judge(
            self.drawings, self.restored(model), self.build / "judge", recipe, self.device
        )

    def identity(self, model: vae.AutoencoderKL) -> FigureEncoder:
        recipe = judge.Recipe(steps=self.steps(700))
        return judge.train_identity(
            self.drawings, self.restored(model), self.build / "identity", recipe, self.device
        )

    def painter(self, model: vae.AutoencoderKL) -> flux.Painter:
        default = flux.Recipe()
        recipe = replace(
            default,
            steps=self.steps(default.steps),
            finish_steps=self.steps(default.finish_steps),
            distill_steps=self.steps(default.distill_steps),
        )
        batches = flux.Batches(self.drawings, self.latents(model), recipe.batch, self.device)
        painter = flux.train(batches, self.build / "transformer", recipe, self.device)
        painter = flux.finish(painter, batches, self.build / "finish", recipe, self.device)
        return flux.distill(painter, batches, self.build / "guidance", recipe, self.device)

    @property
    def _latents(self) -> Path:
        return self.build / "latents.safetensors"


@app.command()
def build(
    *,
    build: Build = Path("build/demo-model"),
    device: Device = "auto",
    effort: Annotated[float, typer.Option(help="Multiplies the steps of each training.")] = 1.0,
    people: Annotated[int, typer.Option(min=32, help="In the training data, each in four looks.")] = PEOPLE,
    install: Annotated[bool, typer.Option(help="Write the result into the package, and measure it.")] = False,
) -> None:
    """Draw the data, train the autoencoder, the judges and the transformer, and measure the result."""
    shop = Workshop(build, device, effort, people)
    shop.draw()
    autoencoder = shop.autoencoder()
    sharpness = vae.psnr(autoencoder, shop.validation, shop.device)
    print(f"autoencoder: PSNR {sharpness:.1f} dB on {len(shop.validation)} new drawings")
    judge_model, identity = shop.judge(autoencoder), shop.identity(autoencoder)
    painter = shop.painter(autoencoder)
    painting.export(painter, autoencoder, build / "model")
    with replacing(build / ENCODER.name) as temporary:
        save_file({name: value.half() for name, value in identity.state_dict().items()}, temporary)
    save_file(judge_model.state_dict(), build / "judge.safetensors")
    about = {
        "psnr": sharpness,
        "effort": effort,
        "device": _device_name(shop.device),
        "stages": {name: history(build / name) for name in STAGES},
    }
    write_text(build / "about.json", json.dumps(about, indent=2) + "\n")
    if install:
        _install(build)
        measure(build=build, device=device)


@app.command()
def measure(*, build: Build = Path("build/demo-model"), device: Device = "auto") -> None:
    """Measure the built model and write ``report.json``, a contact sheet, and the model card into the package."""
    shop = Workshop(build, device, 1.0, PEOPLE)
    shop.draw()
    pipe = painting.load(MODEL, shop.device)
    judging = FigureEncoder(sum(map(len, judge.ATTRIBUTES.values())))
    judging.load_state_dict(load_file(build / "judge.safetensors"))
    judging.to(shop.device).eval()
    own = evaluate.judge_on_drawings(judging, shop.validation, shop.device)
    followed, captions, images = evaluate.prompt_following(pipe, judging, shop.device, guidance=GUIDANCE)
    seconds = evaluate.seconds_per_image(pipe, guidance=GUIDANCE)
    learned = evaluate.learn_examples(build / "app", judging, DrawnFigureScorer(ENCODER), shop.device)
    pictures = {name: found.pop("pictures") for name, found in learned.items()}
    report = {
        **json.loads((build / "about.json").read_text(encoding="utf-8")),
        "judge": own,
        "prompt_count": len(captions),
        "prompts": followed,
        "seconds_per_image": seconds,
        "characters": learned,
    }
    write_text(build / "report.json", json.dumps(report, indent=2) + "\n")
    drawn = [Image.fromarray(image) for image in images[:64]]
    evaluate.sheet([drawn[start : start + 16] for start in range(0, 64, 16)], build / "contact-sheet.png")
    evaluate.sheet([row for each in pictures.values() for row in each.values()], build / "characters.png")
    write_text(MODEL / "README.md", model_card(report))
    print(json.dumps(report, indent=2))


@app.command(name="examples")
def write_examples() -> None:
    """Draw the example characters that ship with the package."""
    for example in examples.EXAMPLES:
        examples.write(example, example.folder)
        print(f"{examples.IMAGES} images in {example.folder}")


@app.command()
def loras(*, folder: Annotated[Path, typer.Argument(help="Where they are written.")] = LORAS) -> None:
    """Train a good, an over-cooked and a copying LoRA, for the tests."""
    faulty_loras.write(folder)


def _install(build: Path) -> None:
    with replacing(MODEL) as temporary:
        shutil.copytree(build / "model", temporary)
    with replacing(ENCODER) as temporary:
        shutil.copyfile(build / ENCODER.name, temporary)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads"


if __name__ == "__main__":
    app()
