"""A finished LoRA: what is known of it beside its file."""

from typing import Any

from pydantic import Field

from isengard.domain.base import Frozen


class Lora(Frozen):
    """One LoRA a user can make images with. Its id is that of the job that trained it."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    name: str
    character: str = Field(description="character id")
    trigger: str
    class_word: str
    base_model: str = Field(description="name of the model card it was trained on")
    steps: int = Field(description="optimizer steps it was trained for")
    filename: str = Field(
        pattern=r"^[a-z0-9-]+\.safetensors$", description="of its file, in the folder of this record"
    )
    created_at: float
    details: dict[str, Any] = Field(default_factory=dict, description="losses, verification, ...")
