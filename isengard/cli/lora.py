"""``python -m isengard lora``: the LoRAs there are, what is inside a file, and files for other programs."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from isengard.cli.common import application, err, out, print_json

app = typer.Typer(
    help="LoRAs: what was trained, what is inside a file, and files for other programs.", no_args_is_help=True
)

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Source = Annotated[
    str, typer.Argument(metavar="LORA", help="A LoRA's id, or the path of a .safetensors file.")
]


class Layout(StrEnum):
    """How keys are named in a LoRA file."""

    KOHYA = "kohya"
    DIFFUSERS = "diffusers"


@app.command("list")
def list_(
    context: typer.Context,
    *,
    character: Annotated[str | None, typer.Option(help="Only those of this character.")] = None,
    as_json: AsJson = False,
) -> None:
    """All LoRAs, newest first."""
    found = application(context).images.loras(character=character)
    if as_json:
        print_json([lora.model_dump(mode="json") for lora in found])
        return
    table = Table("Id", "Name", "Trigger", "Class", "Model", "Steps", box=None)
    for lora in found:
        table.add_row(lora.id, lora.name, lora.trigger, lora.class_word, lora.base_model, str(lora.steps))
    out.print(table if found else "no LoRAs yet: python -m isengard train --help")


@app.command()
def show(context: typer.Context, lora: Source, *, as_json: AsJson = False) -> None:
    """What is inside a LoRA file; a file that cannot be used is refused with the reason."""
    from isengard.engines.lora_format import module_count, read_header  # loads torch, so only here

    path = _path(context, lora)
    count, metadata = module_count(path), read_header(path)[1]
    if as_json:
        print_json({"path": path, "modules": count, "metadata": metadata})
        return
    for key, value in {"file": path, "modules": count, **dict(sorted(metadata.items()))}.items():
        out.print(f"{key:>33}  {value}", markup=False)


@app.command()
def convert(
    context: typer.Context,
    lora: Source,
    target: Annotated[Path, typer.Argument(help="The file to write.", dir_okay=False)],
    *,
    to: Annotated[
        Layout, typer.Option(help="kohya is read by ComfyUI and A1111-style programs.")
    ] = Layout.KOHYA,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a LoRA with other key names. Its effect stays the same.

    kohya keys name the layers of the original model. In FLUX's q, k and v are one: three LoRAs become one of three
    times the rank. SDXL's are the same layers.
    """
    from isengard.engines.lora_format import convert as convert_file  # loads torch, so only here

    if target.exists() and not force:
        raise typer.BadParameter(f"{target} exists; use --force to replace it", param_hint="TARGET")
    convert_file(_path(context, lora), target, kohya=to is Layout.KOHYA)
    out.print(str(target), markup=False)


@app.command()
def remove(context: typer.Context, lora_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    """Move a LoRA into the trash folder."""
    application(context).images.remove_lora(lora_id)
    err.print(f"moved to the trash: {lora_id}", markup=False)


def _path(context: typer.Context, lora: str) -> Path:
    path = Path(lora)
    return path if path.is_file() else application(context).images.lora_path(lora)
