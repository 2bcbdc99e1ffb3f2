"""The only reader of environment variables."""

import os
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from isengard.errors import InvalidSpec

ROOT = Path(__file__).resolve().parent.parent
#: The demo base model.
ASSETS = ROOT / "isengard" / "assets"
PREFIX = "ISENGARD_"
#: Settings that are shared with other programs have the names that the Hugging Face library and RunPod gave them.
SHARED = {
    "hub_token": "HF_TOKEN",
    "hub_endpoint": "HF_ENDPOINT",
    "hub_offline": "HF_HUB_OFFLINE",
    "runpod_pod_id": "RUNPOD_POD_ID",
    "runpod_api_key": "RUNPOD_API_KEY",
}
LOOPBACK = "127.0.0.1,::1"
WITHOUT_PUBLIC_ADDRESS = "10.0.0.0/8,100.64.0.0/10,172.16.0.0/12,192.168.0.0/16"

#: Variables whose values are secrets, whoever reads them.
_SECRET_NAME = re.compile(
    r"(?:.*_)?(?:TOKENS?|KEYS?|SECRETS?|PASSWORDS?|PASSWD|AUTH|CREDENTIALS?)", re.IGNORECASE
)
#: What is shorter stands in too many other words to be replaced wherever it is found.
_SHORTEST_SECRET = 4

#: Never shown. A child inherits the hub's token from the environment, and is given the two addresses.
SECRET = {"auth", "hub_token", "redis_url", "webhook_url", "runpod_api_key"}
#: Of the environment, what only the page needs.
NOT_FOR_A_CHILD = {"ISENGARD_AUTH", "RUNPOD_API_KEY"}
#: Where RunPod mounts a pod's volume disk or network volume.
RUNPOD_VOLUMES = (Path("/workspace"), Path("/runpod-volume"))


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
    look_model: Path | None = Field(
        None, description="folder of a DINO or CLIP model that compares whole pictures"
    )
    worker: WorkerMode = WorkerMode.PROCESS
    lease_s: float = Field(60.0, ge=1, le=3600, description="a silent worker loses its job after this time")
    redis_url: SecretStr | None = Field(
        None, description="the shared job list on a Redis or Valkey server; without it, a file in data_dir"
    )
    machine: str | None = Field(
        None,
        pattern=r"^[\w.-]{1,64}$",
        description="names this machine's workers and logs, where two have the same host name",
    )
    quota_gb: float | None = Field(
        None, gt=0, description="how much data_dir may hold, as disks are sold (10^9 bytes)"
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")
    log_level: str = Field("INFO", pattern=r"^(DEBUG|INFO|WARNING|ERROR)$")
    host: str = Field("127.0.0.1", description="address the page listens at; 0.0.0.0 for all of them")
    port: int = Field(7860, ge=1, le=65535)
    share: bool = Field(False, description="also give the page a public gradio.live address")
    auth: SecretStr | None = Field(
        None, description="who may use the page: name:password, several with commas"
    )
    no_auth: bool = Field(False, description="let everybody in who reaches the page, even from everywhere")
    limits: float = Field(
        1.0,
        ge=0.1,
        le=1000,
        description="times the usual limits of one address: rates, waiting jobs, requests",
    )
    hub_token: SecretStr | None = Field(None, description="for gated models of the Hugging Face hub")
    hub_endpoint: str = Field("https://huggingface.co", pattern=r"^https?://[^\s/]+(/[^\s]*)?$")
    hub_offline: bool = Field(False, description="ask the Hugging Face hub for nothing")
    webhook_url: SecretStr | None = Field(None, description="told of each run that ends")
    price_per_hour: float | None = Field(
        None, gt=0, le=1000, description="dollars that this machine costs per hour"
    )
    stop_when_idle_minutes: int | None = Field(
        None, ge=1, le=10_080, description="stop the RunPod pod when nothing happened for so long"
    )
    runpod_pod_id: str | None = Field(
        None,
        pattern=r"^[\w-]{1,64}$",
        description="RunPod's name for this pod; set by RunPod in each of its pods",
    )
    runpod_api_key: SecretStr | None = Field(None, description="may stop the pod; RunPod gives each pod one")

    @field_validator("redis_url")
    @classmethod
    def _redis_url_is_whole(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        way_out = (
            "must be redis://user:password@host:port/0, or rediss:// for TLS;"
            " write / # ? @ of a password as %2F %23 %3F %40"
        )
        try:
            parts = urlsplit(value.get_secret_value())
            complete = bool(parts.hostname) and parts.port != 0
        except ValueError:  # its text may quote the password
            raise ValueError(way_out) from None
        if parts.scheme not in ("redis", "rediss") or not complete:
            raise ValueError(way_out)
        if not parts.path.strip("/").isdecimal() and parts.path.strip("/"):
            raise ValueError(f"{way_out}; the part behind the last / is the number of a database")
        return value

    @field_validator("webhook_url")
    @classmethod
    def _webhook_url_is_of_the_web(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None:
            return None
        try:
            parts = urlsplit(value.get_secret_value())
            whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # its text may quote the address
            whole = False
        if not whole:
            raise ValueError("must be an address that begins with https:// or http://")
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
        if values.get("runpod_pod_id") and "data_dir" not in values:
            values |= on_a_volume(RUNPOD_VOLUMES)
        try:
            settings = cls.model_validate(values)
        except ValidationError as error:
            detail = error.errors()[0]
            name = ".".join(str(part) for part in detail["loc"])
            raise InvalidSpec(
                f"setting {name} ({variable(name)}): {detail['msg'].removeprefix('Value error, ')}"
                + (f", got {detail['input']!r}" if name not in SECRET else "")
            ) from None
        folders = {
            name: folder.expanduser().resolve()
            for name in ("data_dir", "configs_dir", "ai_toolkit", "look_model")
            if (folder := getattr(settings, name)) is not None
        }
        return settings.model_copy(update=folders)

    def child_environment(self) -> dict[str, str]:
        """The environment of this process, with these settings in it: what a child process has to be given.

        OpenMP threads that wait spin for long by default. On 2 cores with one other busy process a training step
        took 3.5 s instead of 0.2 s; with short spinning 0.7 s, and not slower where nothing else runs.
        """
        given = {name: value for name, value in self.model_dump(exclude=SECRET).items() if value is not None}
        for name in ("redis_url", "webhook_url"):
            if (secret := getattr(self, name)) is not None:
                given[name] = secret.get_secret_value()
        values = {variable(name): str(value) for name, value in given.items()}
        inherited = {name: value for name, value in os.environ.items() if name not in NOT_FOR_A_CHILD}
        return {"GOMP_SPINCOUNT": "10000", **inherited, **values}

    def without_login(self) -> Self:
        """These settings without passwords, and without them in the environment of what is started from here on."""
        os.environ.pop(variable("auth"), None)
        return self.model_copy(update={"auth": None})

    def public(self) -> dict[str, Any]:
        """All settings as JSON values; of a secret only whether there is one."""
        shown = self.model_dump(mode="json", exclude=SECRET)
        return shown | {name: "set" if getattr(self, name) else None for name in sorted(SECRET)}

    def secret_values(self, environment: Mapping[str, str] | None = None) -> set[str]:
        """What must be in nothing that is handed on: secrets of these settings and of the environment, whole and in parts."""
        environment = os.environ if environment is None else environment
        known = {value for name, value in environment.items() if _SECRET_NAME.fullmatch(name)}
        known |= {secret.get_secret_value() for name in SECRET if (secret := getattr(self, name)) is not None}
        known |= {part for value in known for part in _parts(value)}
        return {value for value in known if len(value) >= _SHORTEST_SECRET}

    def prepare_gradio(self) -> None:
        """Set what Gradio and its server read from the environment when they are imported.

        Gradio also makes a table of the last 10,000 events after each event, for a page that we do not open.
        """
        os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "10"
        os.environ["GRADIO_ANALYTICS_CACHE_FREQUENCY"] = str(2**60)
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["GRADIO_TEMP_DIR"] = str(self.upload_folder)
        os.environ.setdefault("FORWARDED_ALLOW_IPS", self.trusted_proxies)

    @property
    def trusted_proxies(self) -> str:
        """The peers whose ``X-Forwarded-For`` counts, unless ``FORWARDED_ALLOW_IPS`` names others.

        What reaches a pod from no public address is RunPod's own proxy. Elsewhere such a peer may be anybody.
        """
        return f"{LOOPBACK},{WITHOUT_PUBLIC_ADDRESS}" if self.runpod_pod_id else LOOPBACK

    @property
    def is_shared(self) -> bool:
        """Whether workers may be on other machines."""
        return self.redis_url is not None

    @property
    def quota(self) -> int | None:
        """Bytes that the data folder may hold."""
        return None if self.quota_gb is None else int(self.quota_gb * 1e9)

    @property
    def is_paid_by_the_hour(self) -> bool:
        return self.runpod_pod_id is not None or self.price_per_hour is not None

    @property
    def page_url(self) -> str | None:
        """The page as others reach it; None where that is not known. Source: RunPod's docs, "Expose ports"."""
        return f"https://{self.runpod_pod_id}-{self.port}.proxy.runpod.net" if self.runpod_pod_id else None

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
    def look_folder(self) -> Path:
        """The model that compares whole pictures: the one that was given, else ours, which need not be there."""
        return self.look_model or self.models_dir / "look"

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
    def pictures_dir(self) -> Path:
        """Small copies of pictures for the page."""
        return self.cache_dir / "pictures"

    @property
    def exports_dir(self) -> Path:
        """Archives until they are downloaded, each in a folder whose name cannot be guessed."""
        return self.cache_dir / "exports"

    @property
    def upload_folder(self) -> Path:
        """Gradio's own folder: uploads on their way, and what is handed out."""
        return self.cache_dir / "uploads"

    @property
    def trash_dir(self) -> Path:
        return self.data_dir / "trash"

    @property
    def logs_dir(self) -> Path:
        return self.data_dir / "logs"

    @property
    def machine_name(self) -> str:
        return self.machine or platform.node()

    def log_file(self, kind: str, *, machine: str | None = None) -> Path:
        """Where pages, workers or commands (``kind``) of this or another machine write their log.

        Machines that share the job list have a file each: on a network file system, appending is no turn-taking.
        """
        if self.redis_url is None:
            return self.logs_dir / f"{kind}.jsonl"
        return self.logs_dir / f"{kind}-{re.sub(r'[^A-Za-z0-9_.-]', '_', machine or self.machine_name)}.jsonl"

    @property
    def jobs_db(self) -> Path:
        return self.data_dir / "jobs.db"


def _parts(value: str) -> Iterator[str]:
    """The passwords in an address, and in a list of logins."""
    if "://" in value:
        password = urlsplit(value).password or ""
        yield from (password, unquote(password))
        return
    for login in re.split(r"[\s,;]+", value):
        name, _, password = login.partition(":")
        yield password if name else ""


def on_a_volume(volumes: Sequence[Path]) -> dict[str, Path]:
    """The data folder on the first of these that is mounted, as a setting; nothing when none is."""
    return next(({"data_dir": volume / "isengard"} for volume in volumes if volume.is_mount()), {})
