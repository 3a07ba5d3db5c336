"""Every setting of the service, read once: `Settings()` reads the environment, tests build their own.

Each is an environment variable `FINETUNED_<NAME>`; `DATABASE_URL`, `REDIS_URL` and `GENERATOR_URL` are
also taken under their customary names. docs/settings.md lists them all.
"""

from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Literal, Self

import platformdirs
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.setting_types import Duration, Label

Integrated = Literal["wandb", "mlflow", "tensorboard", "hub"]
LISTS = ("hub_models", "integrations", "worker_labels", "webhook_allow", "webhook_retries")
GIB = 1024**3
# Without a user's name and password: addresses are written into logs.
ORIGIN = r"^https?://[^\s/?#@]+/?$"


def _customary(name: str) -> AliasChoices:
    return AliasChoices(name, f"FINETUNED_{name.upper()}", name.upper())


class Upstream(BaseModel):
    """Where a model is served instead: `url` ends in /v1, `model` is its name there, `key` a bearer token."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(pattern=r"^https?://[^\s/?#@]+(/[^\s?#]*)?$")
    model: str | None = None
    key: SecretStr | None = None

    @model_validator(mode="before")
    @classmethod
    def _url_alone(cls, value: object) -> object:
        return {"url": value} if isinstance(value, str) else value


class Settings(BaseSettings):
    """Raises pydantic.ValidationError, naming the variable, where a value does not fit its type."""

    model_config = SettingsConfigDict(
        env_prefix="FINETUNED_", frozen=True, extra="ignore", populate_by_name=True, env_ignore_empty=True
    )

    # Where things are
    home: Path = Field(
        default_factory=lambda: platformdirs.user_data_path("finetuned"),
        description="Folder of all that is kept: files, checkpoints, models, the embedded database",
    )
    host: str = Field("127.0.0.1", description="Address the API listens on; loopback only for now")
    port: int = Field(8000, ge=0, le=65535, description="Port the API listens on; 0 takes a free one")
    database_url: SecretStr | None = Field(
        None,
        validation_alias=_customary("database_url"),
        description="PostgreSQL to use instead of the embedded one: postgresql://user:password@host/name",
    )
    redis_url: SecretStr | None = Field(
        None,
        validation_alias=_customary("redis_url"),
        description="Redis or Valkey to use instead of the embedded one: redis://… or unix://:password@/path",
    )
    generator_url: str | None = Field(
        None,
        validation_alias=_customary("generator_url"),
        description="Generators instead of the embedded one: http://host:port or unix:/path, comma separated",
    )
    upstreams: dict[str, Upstream] = Field(
        {},
        description="Models that another OpenAI-compatible server answers for, as JSON: docs/serving.md",
    )
    refuse_root: bool = Field(False, description="Do not start as root; the container image sets it")
    log_level: str = Field("info", description="Least level written to the logs: debug, info, warning, error")
    otlp_endpoint: str | None = Field(
        None,
        validation_alias=AliasChoices(
            "otlp_endpoint", "FINETUNED_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"
        ),
        description="Where traces are sent by OTLP over HTTP: http://host:4318; without it none are made",
    )
    worker_slots: int = Field(1, ge=1, description="Jobs one worker trains at a time: one per GPU")
    worker_labels: Annotated[tuple[Label, ...], NoDecode] = Field(
        (),
        description="What jobs may ask of this worker, comma separated: h100, zone:eu; beside what it knows"
        " of itself (docs/scaling.md)",
    )
    worker_memory_bytes: int | None = Field(
        None,
        gt=0,
        description="What the jobs of one worker may take together, by what is reckoned for each; unset,"
        " their number alone is limited",
    )
    trainer_cell: Literal["auto", "required", "off"] = Field(
        "auto", description="Trainers in a cell: as far as the kernel allows, or else not started, or none"
    )
    trainer_nice: int = Field(
        5, ge=0, le=19, description="How far trainers stand back for other programs on the same processors"
    )
    integrations: Annotated[tuple[Integrated, ...], NoDecode] = Field(
        ("tensorboard",), description="What jobs may be reported to, comma separated"
    )
    organization: str = Field(
        "finetuned", description="`organization_id` of jobs, and the name in `ft:` models"
    )

    # The command line, as a client of a service
    url: str | None = Field(
        None, description="Address of the service that commands talk to; by default the home's"
    )
    api_key: SecretStr | None = Field(
        None, description="API key that commands use; by default the one in the file `key` of the home"
    )

    # An object store instead of the folder
    store: str | None = Field(
        None,
        pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[\w./-]*)?$",
        description="Bucket for files, checkpoints and models: s3://bucket or s3://bucket/prefix; without it"
        " they lie in the home folder",
    )
    store_endpoint: str | None = Field(
        None,
        pattern=ORIGIN,
        description="Where the bucket's service is, https://host or http://host:port; by default Amazon's",
    )
    store_region: str = Field("us-east-1", description="The bucket's region")
    store_key_id: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("store_key_id", "FINETUNED_STORE_KEY_ID", "AWS_ACCESS_KEY_ID"),
        description="Access key of the bucket; also read as AWS_ACCESS_KEY_ID",
    )
    store_secret: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("store_secret", "FINETUNED_STORE_SECRET", "AWS_SECRET_ACCESS_KEY"),
        description="Its secret; also read as AWS_SECRET_ACCESS_KEY",
    )
    store_credentials: Path | None = Field(
        None,
        description="File with both instead, as Amazon's tools have it (`[default]`); with neither, the"
        " machine's or the pod's own role is asked",
    )
    store_public_endpoint: str | None = Field(
        None,
        pattern=ORIGIN,
        description="Where clients reach the bucket's service: downloads are then answered by a link to it"
        " (307), signed for five minutes, instead of the bytes",
    )
    store_cache_bytes: int = Field(
        64 * GIB, gt=0, description="Disk for copies of what lies in the bucket; the least recently used go"
    )

    # Base models
    base_models: Path | None = Field(None, description="Folder of model folders, offered by folder name")
    hub_models: Annotated[tuple[str, ...], NoDecode] = Field(
        ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2"),
        description="Hub models offered under a bare name, comma separated",
    )

    # The job protocol. A lease of many heartbeats: a slow database costs no job its worker.
    lease: Duration = Field(timedelta(seconds=60), description="How long a claim holds without a heartbeat")
    heartbeat: Duration = Field(
        timedelta(seconds=3), description="How often a silent worker reports; how soon a wish reaches it"
    )
    lease_grace: Duration = Field(
        timedelta(seconds=10),
        description="How long past its lease a job is left alone before it is taken away",
    )
    sweep_interval: Duration = Field(
        timedelta(seconds=10), description="How often dead claims are looked for"
    )
    redispatch: Duration = Field(
        timedelta(seconds=30),
        description="After how long a queued job that nobody claimed is announced again",
    )
    stop_grace: Duration = Field(
        timedelta(seconds=30),
        description="How long a trainer may take to save when stopped, before it is killed",
    )
    stall: Duration = Field(
        timedelta(minutes=15), description="A trainer that states nothing for so long is ended as stalled"
    )
    max_offline: Duration = Field(
        timedelta(minutes=30), description="How long a worker trains on without the database before it stops"
    )
    max_attempts: int = Field(
        3, ge=1, description="Crashes in a row, with no new checkpoint between, after which a job fails"
    )
    preempt_after: Duration = Field(
        timedelta(seconds=60),
        description="How long a job trains before one of priority `high` may make it give way",
    )
    retry_delay: Duration = Field(
        timedelta(seconds=30), description="Wait after the first crash; doubled each time up to 15 minutes"
    )

    # Webhooks
    webhook_allow: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = Field(
        (),
        description="Networks that webhooks may reach though they are not public, there by http and on any"
        " port too; comma separated",
    )
    webhook_timeout: Duration = Field(
        timedelta(seconds=5),
        description="How long a webhook may take, from looking up its name to the answer",
    )
    # What Standard Webhooks suggests: 3 days and 4 hours altogether.
    webhook_retries: Annotated[tuple[Duration, ...], NoDecode] = Field(
        tuple(timedelta(seconds=wait) for wait in (5, 300, 1800, 7200, 18000, 36000, 50400, 72000, 86400)),
        description="Waits before a webhook is tried again, comma separated; chance adds up to a fifth",
    )
    webhook_log: Duration = Field(
        timedelta(days=30), description="How long ended deliveries stay in the log of their endpoint"
    )

    # What is kept of ended jobs; models and files are never removed by age
    checkpoint_retention: Duration | None = Field(
        None,
        description="After how long checkpoints of ended jobs go, save pinned, shared and needed ones and, of"
        " a job without a model, the newest and the best; without it they stay",
    )
    event_retention: Duration | None = Field(None, description="After how long ended jobs' events go")
    metric_retention: Duration | None = Field(
        None,
        description="After how long curves of ended jobs are thinned to 500 points and every evaluation;"
        " without it they stay whole",
    )

    # Limits
    max_file_bytes: int = Field(8 * GIB, gt=0, description="Largest file that may be uploaded, in bytes")
    min_free_bytes: int = Field(
        GIB, ge=0, description="With less free disk than this, new files and jobs are refused (507)"
    )
    generator_memory_bytes: int = Field(
        4 * GIB, gt=0, description="Memory for loaded models; the least recently used leave first"
    )
    generator_queue: int = Field(
        256, ge=1, description="Completions waiting or running before 429 is answered"
    )
    generator_precision: Literal["auto", "int8"] = Field(
        "auto", description="auto: float32 on a CPU, exact; bf16 on a GPU. int8: faster on a CPU, not exact"
    )

    @field_validator(*LISTS, mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(filter(None, map(str.strip, value.split(",")))) if isinstance(value, str) else value

    @field_validator("home", "base_models", "store_credentials", mode="after")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return value.expanduser().absolute() if value is not None else None

    @model_validator(mode="after")
    def _whole_key(self) -> Self:
        # Without a store they are nobody's business here: both have AWS's names too, which others set.
        if self.store is not None and (self.store_key_id is None) != (self.store_secret is None):
            raise ValueError("FINETUNED_STORE_KEY_ID and FINETUNED_STORE_SECRET belong together: give both")
        return self

    @property
    def generator_urls(self) -> tuple[str, ...]:
        """Every generator that GENERATOR_URL names."""
        return tuple(url.strip() for url in (self.generator_url or "").split(",") if url.strip())

    @property
    def storage_folder(self) -> Path:
        """Files, checkpoints and models, by key."""
        return self.home / "storage"

    @property
    def copies_folder(self) -> Path:
        """Copies of what lies in a bucket."""
        return self.home / "copies"

    @property
    def address_file(self) -> Path:
        """Holds the API's address while it is up."""
        return self.home / "address"

    @property
    def key_file(self) -> Path:
        """Holds the first API key, mode 0600."""
        return self.home / "key"
