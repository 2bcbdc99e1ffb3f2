"""The only reader of environment variables."""

import os
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from isengard.errors import InvalidSpec

ROOT = Path(__file__).resolve().parent.parent
#: The demo base model.
ASSETS = ROOT / "isengard" / "assets"
PREFIX = "ISENGARD_"


class WorkerMode(StrEnum):
    """Where jobs run."""

    PROCESS = "process"  # one worker process per device, restarted when it dies
    THREAD = "thread"  # inside this process
    NONE = "none"  # elsewhere: python -m isengard worker


class Settings(BaseModel):
    """Everything that can be set from outside. Each field is also the variable ``ISENGARD_<FIELD>``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_dir: Path = Field(Path("data"), description="everything the app writes lies in here")
    configs_dir: Path = Field(ROOT / "configs", description="model cards, presets and templates")
    worker: WorkerMode = WorkerMode.PROCESS
    lease_s: float = Field(60.0, ge=1, le=3600, description="a silent worker loses its job after this time")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")
    log_level: str = Field("INFO", pattern=r"^(DEBUG|INFO|WARNING|ERROR)$")

    @classmethod
    def load(cls, environment: Mapping[str, str] | None = None, **options: Any) -> Self:
        """Read the environment; ``options`` that are not None (the command line) win.

        Raises:
            InvalidSpec: names the variable or option, its value and what is allowed.
        """
        environment = os.environ if environment is None else environment
        values: dict[str, Any] = {
            name: environment[PREFIX + name.upper()]
            for name in cls.model_fields
            if environment.get(PREFIX + name.upper())
        }
        values |= {name: value for name, value in options.items() if value is not None}
        try:
            settings = cls.model_validate(values)
        except ValidationError as error:
            detail = error.errors()[0]
            name = ".".join(str(part) for part in detail["loc"])
            raise InvalidSpec(
                f"setting {name} ({PREFIX}{name.upper()}): {detail['msg']}, got {detail['input']!r}"
            ) from None
        folders = {
            name: getattr(settings, name).expanduser().resolve() for name in ("data_dir", "configs_dir")
        }
        return settings.model_copy(update=folders)

    def child_environment(self) -> dict[str, str]:
        """The environment of this process, with these settings in it: what a child process has to be given.

        OpenMP threads that wait spin for long by default. On 2 cores with one other busy process a training step
        took 3.5 s instead of 0.2 s; with short spinning 0.7 s, and not slower where nothing else runs.
        """
        values = {PREFIX + name.upper(): str(value) for name, value in self.model_dump().items()}
        return {"GOMP_SPINCOUNT": "10000", **os.environ, **values}

    @property
    def characters_dir(self) -> Path:
        return self.data_dir / "characters"

    @property
    def loras_dir(self) -> Path:
        return self.data_dir / "loras"

    @property
    def images_dir(self) -> Path:
        return self.data_dir / "images"

    @property
    def models_dir(self) -> Path:
        return self.data_dir / "models"

    @property
    def runs_dir(self) -> Path:
        """Checkpoints, samples and metrics of each job, in a folder named by its id."""
        return self.data_dir / "runs"

    @property
    def cache_dir(self) -> Path:
        return self.data_dir / "cache"

    @property
    def trash_dir(self) -> Path:
        return self.data_dir / "trash"

    @property
    def logs_dir(self) -> Path:
        return self.data_dir / "logs"

    @property
    def jobs_db(self) -> Path:
        return self.data_dir / "jobs.db"
