"""Files that hold a model in one piece, as ComfyUI and Forge folders do: told by their content, never by their name."""

import json
import struct
from pathlib import Path

from isengard.domain.model import Family
from isengard.errors import CheckpointRefused
from isengard.store.weights import is_whole

MAX_HEADER = 100_000_000
#: Components whose weights such a file brings.
BRINGS = {
    Family.FLUX: ("transformer",),
    Family.FLUX2: ("transformer",),
    Family.SDXL: ("unet", "vae", "text_encoder", "text_encoder_2"),
}
#: Beginnings of pickled files: a zip archive of PyTorch's, and pickle's own protocols.
PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def check_single_file(path: Path, family: Family) -> None:
    """Return when this is a whole safetensors file of a model of this family.

    Raises:
        CheckpointRefused: says what it is instead.
    """
    try:
        with path.open("rb") as file:
            beginning = file.read(8)
    except OSError as error:
        raise CheckpointRefused(f"{path} cannot be read ({error.strerror})") from None
    if beginning.startswith(PICKLES):
        raise CheckpointRefused(
            f"{path} is a pickle: opening it could run any program hidden in it, so that it is not read; get the model as"
            " .safetensors"
        )
    if beginning.startswith(b"GGUF"):
        raise CheckpointRefused(
            f"{path} is a GGUF file, which is not read here; get the model as .safetensors"
        )
    if not is_whole(path):
        raise CheckpointRefused(f"{path} is no safetensors file, or is cut off; copy or download it again")
    found = _family(_names(path))
    if found is None:
        raise CheckpointRefused(
            f"{path} holds no FLUX or SDXL model (a LoRA, a VAE or a text encoder alone does not do)"
        )
    if found is not family:
        raise CheckpointRefused(f"{path} holds a model of the family {found}, and {family} is needed")


def _names(path: Path) -> list[str]:
    """The tensors' names of a whole file."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return list(json.loads(file.read(length))) if length < MAX_HEADER else []


def _family(names: list[str]) -> Family | None:
    """By tensors that only this family's transformer or UNet has."""
    bare = {name.removeprefix("model.diffusion_model.") for name in names}
    if "double_stream_modulation_img.lin.weight" in bare:
        return Family.FLUX2
    if "double_blocks.0.img_attn.qkv.weight" in bare:
        return Family.FLUX
    if "label_emb.0.0.weight" in bare and any(name.startswith("conditioner.embedders.1.") for name in names):
        return Family.SDXL
    return None
