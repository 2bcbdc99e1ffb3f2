"""The only reader of environment variables."""

import os
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from isengard.errors import InvalidSpec

ROOT = Path(__file__).resolve().parent.parent
#: The demo base model.
ASSETS = ROOT / "isengard" / "assets"
PREFIX = "ISENGARD_"
#: Settings that are shared with other programs have the Hugging Face library's own names.
SHARED = {"hub_token": "HF_TOKEN", "hub_endpoint": "HF_ENDPOINT", "hub_offline": "HF_HUB_OFFLINE"}


#: Never shown. A child inherits the hub's token from the environment, and is given the queue's address.
SECRET = {"auth", "hub_token", "redis_url"}


def variable(field: str) -> str:
    """The environment variable of a setting."""
    return SHARED.get(field, PREFIX + field.upper())


class WorkerMode(StrEnum):
    """Where jobs run."""

    PROCESS = "process"  # one worker process per device, restarted when it dies
    THREAD = "thread"  # inside this process
    NONE = "none"  # elsewhere: python -m isengard worker


class Settings(BaseModel):
    """Everything that can be set from outside. Each field is also the variable that `variable` names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data_dir: Path = Field(Path("data"), description="everything the app writes lies in here")
    configs_dir: Path = Field(ROOT / "configs", description="model cards, presets and templates")
    ai_toolkit: Path | None = Field(None, description="an existing checkout of AI-Toolkit")
    worker: WorkerMode = WorkerMode.PROCESS
    lease_s: float = Field(60.0, ge=1, le=3600, description="a silent worker loses its job after this time")
    redis_url: SecretStr | None = Field(
        None, description="the shared job list on a Redis or Valkey server; without it, a file in data_dir"
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")
    log_level: str = Field("INFO", pattern=r"^(DEBUG|INFO|WARNING|ERROR)$")
    host: str = Field("127.0.0.1", description="address the page listens at; 0.0.0.0 for all of them")
    port: int = Field(7860, ge=1, le=65535)
    share: bool = Field(False, description="also give the page a public gradio.live address")
    auth: SecretStr | None = Field(None, description="name:password the page asks for")
    hub_token: SecretStr | None = Field(None, description="for gated models of the Hugging Face hub")
    hub_endpoint: str = Field("https://huggingface.co", pattern=r"^https?://[^\s/]+(/[^\s]*)?$")
    hub_offline: bool = Field(False, description="ask the Hugging Face hub for nothing")

    @field_validator("auth")
    @classmethod
    def _auth_has_both_parts(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and not all(value.get_secret_value().partition(":")):
            raise ValueError("must be name:password")
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis_url_is_whole(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        way_out = "must be redis://user:password@host:port/0, or rediss:// for TLS"
        try:
            parts = urlsplit(value.get_secret_value())
            complete = bool(parts.hostname) and parts.port != 0
        except ValueError:  # its text may quote the password
            raise ValueError(f"{way_out}; write / # ? @ of a password as %2F %23 %3F %40") from None
        if parts.scheme not in ("redis", "rediss") or not complete:
            raise ValueError(way_out)
        if not parts.path.strip("/").isdecimal() and parts.path.strip("/"):
            raise ValueError(f"{way_out}; the part behind the last / is the number of a database")
        return value

    @classmethod
    def load(cls, environment: Mapping[str, str] | None = None, **options: Any) -> Self:
        """Read the environment; ``options`` that are not None (the command line) win.

        Raises:
            InvalidSpec: names the variable or option, its value and what is allowed.
        """
        environment = os.environ if environment is None else environment
        values: dict[str, Any] = {
            name: environment[variable(name)] for name in cls.model_fields if environment.get(variable(name))
        }
        values |= {name: value for name, value in options.items() if value is not None}
        try:
            settings = cls.model_validate(values)
        except ValidationError as error:
            detail = error.errors()[0]
            name = ".".join(str(part) for part in detail["loc"])
            raise InvalidSpec(
                f"setting {name} ({variable(name)}): {detail['msg']}"
                + (f", got {detail['input']!r}" if name not in SECRET else "")
            ) from None
        folders = {
            name: folder.expanduser().resolve()
            for name in ("data_dir", "configs_dir", "ai_toolkit")
            if (folder := getattr(settings, name)) is not None
        }
        return settings.model_copy(update=folders)

    def child_environment(self) -> dict[str, str]:
        """The environment of this process, with these settings in it: what a child process has to be given.

        OpenMP threads that wait spin for long by default. On 2 cores with one other busy process a training step
        took 3.5 s instead of 0.2 s; with short spinning 0.7 s, and not slower where nothing else runs.
        """
        given = {name: value for name, value in self.model_dump(exclude=SECRET).items() if value is not None}
        if self.redis_url is not None:
            given["redis_url"] = self.redis_url.get_secret_value()
        values = {variable(name): str(value) for name, value in given.items()}
        inherited = {name: value for name, value in os.environ.items() if name != PREFIX + "AUTH"}
        return {"GOMP_SPINCOUNT": "10000", **inherited, **values}

    def prepare_gradio(self) -> None:
        """Set what Gradio reads from the environment when it is imported: where uploads go, and that it stays silent."""
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["GRADIO_TEMP_DIR"] = str(self.cache_dir / "uploads")

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
    def ai_toolkit_dir(self) -> Path:
        """The checkout of AI-Toolkit: the one that was given, else our own, which need not be there."""
        return self.ai_toolkit or self.data_dir / "ai-toolkit"

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
