"""Other services that a job may be reported to: what a request says of them, and which are offered here."""

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Annotated

from pydantic import Field, model_validator

from app.body import Body
from app.errors import InvalidRequest
from app.settings import Integrated

# What must be installed where workers and API run, and how it is.
PACKAGES: dict[Integrated, tuple[str, str] | None] = {
    "wandb": ("wandb", "pip install 'finetuned[wandb]'"),
    "mlflow": ("mlflow", "pip install 'finetuned[mlflow]'"),
    "hub": ("huggingface_hub", "pip install 'finetuned[gpu]'"),
    "tensorboard": None,
}


class WandbOptions(Body):
    """What a run at Weights & Biases is called."""

    project: str = Field(min_length=1, max_length=128)
    name: str | None = Field(None, max_length=128)
    entity: str | None = Field(None, max_length=128)
    tags: list[Annotated[str, Field(max_length=64)]] = Field([], max_length=50)


class MlflowOptions(Body):
    """What a run at MLflow is called."""

    experiment: str = Field(min_length=1, max_length=128)
    name: str | None = Field(None, max_length=128)


class HubOptions(Body):
    """Where the model goes at the Hugging Face hub."""

    repo_id: str = Field(pattern=r"^[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}$")
    private: bool = Field(True, description="Of a repository that is made for it")


class TensorboardOptions(Body):
    """There is nothing to choose."""


class Integration(Body):
    """Another service to report to, with its options under its own name."""

    type: Integrated
    wandb: WandbOptions | None = None
    mlflow: MlflowOptions | None = None
    hub: HubOptions | None = None
    tensorboard: TensorboardOptions | None = None

    @model_validator(mode="after")
    def _has_its_options(self) -> "Integration":
        if self.type != "tensorboard" and getattr(self, self.type) is None:
            raise ValueError(f"an integration of type `{self.type}` has an object `{self.type}`")
        return self


def check(asked: Sequence[Integration], offered: Sequence[str]) -> None:
    """Raises InvalidRequest for one that is not offered, or cannot be here, and says who can change that; and
    for a second one of a kind, which would be the same run."""
    for number, integration in enumerate(asked):
        kind = integration.type
        if kind in {earlier.type for earlier in asked[:number]}:
            raise InvalidRequest(
                f"There is an integration `{kind}` before this one: a job is reported once to each service.",
                param=f"integrations.{number}.type",
                code="contradictory_value",
            )
        package = PACKAGES[kind]
        why = None
        if kind not in offered:
            why = "is not offered here; whoever runs the service adds it to FINETUNED_INTEGRATIONS."
        elif package is not None and find_spec(package[0]) is None:
            why = f"needs the package {package[0]}, which is not installed: {package[1]}."
        if why is not None:
            raise InvalidRequest(
                f"The integration `{kind}` {why}",
                param=f"integrations.{number}.type",
                code="unsupported_integration",
            )
