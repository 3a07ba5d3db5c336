"""Where a job is reported to: one class for each service, all with the same three verbs.

Each runs in a thread of its own of the reporting process (worker/integrations/__main__.py); what it raises
ends this integration for this job and nothing else. Credentials are the worker's: each library finds its own.
"""

import time
from pathlib import Path
from typing import Any, Protocol

Json = dict[str, Any]
MOST_PARAMETERS = 100  # that MLflow takes in one call


class Sink(Protocol):
    """`begin` with the job, `log` for each step, `end` with the job's status and its model, if it has one."""

    def begin(self, job: Json) -> None: ...
    def log(self, step: int, values: dict[str, float]) -> None: ...
    def end(self, status: str, model: Path | None) -> str | None:
        """Where it can be seen, if it can."""


class Wandb:
    """A run whose id is the job's: later attempts go on with it."""

    def __init__(self, options: Json) -> None:
        self._options = options
        self._run: Any = None

    def begin(self, job: Json) -> None:
        import wandb

        self._run = wandb.init(
            project=self._options["project"],
            entity=self._options.get("entity"),
            name=self._options.get("name") or job["name"],
            tags=self._options.get("tags") or None,
            id=job["id"],
            resume="allow",
            config=job["recipe"] | {"model": job["model"]},
            settings=wandb.Settings(console="off", silent=True, x_disable_stats=True, save_code=False),
        )

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def end(self, status: str, model: Path | None) -> str | None:
        self._run.summary["status"] = status
        url = self._run.url
        self._run.finish(exit_code=1 if status == "failed" else 0)
        return str(url) if url else None


class Mlflow:
    """A run with the job's id as a tag, by which later attempts find it again."""

    def __init__(self, options: Json) -> None:
        self._options = options
        self._client: Any = None
        self._run = ""

    def begin(self, job: Json) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        experiment = self._experiment(self._options["experiment"])
        runs = self._client.search_runs([experiment], f"tags.finetuned_job = '{job['id']}'", max_results=1)
        if runs:
            self._run = runs[0].info.run_id
            return
        tags = {"finetuned_job": job["id"], "finetuned_model": job["name"]}
        run = self._client.create_run(
            experiment, tags=tags, run_name=self._options.get("name") or job["name"]
        )
        self._run = run.info.run_id
        given = {**job["recipe"], "model": job["model"]}
        said = [Param(key, str(value)[:500]) for key, value in given.items() if value is not None]
        for at in range(0, len(said), MOST_PARAMETERS):
            self._client.log_batch(self._run, params=said[at : at + MOST_PARAMETERS])

    def _experiment(self, name: str) -> str:
        """Its id. Of two jobs that make the same new one at once, the second finds it there."""
        from mlflow.exceptions import MlflowException

        for last in (False, True):
            if found := self._client.get_experiment_by_name(name):
                return str(found.experiment_id)
            try:
                return str(self._client.create_experiment(name))
            except MlflowException as error:
                if last or error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
        raise AssertionError

    def log(self, step: int, values: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run, [Metric(name, value, now, step) for name, value in values.items()])

    def end(self, status: str, model: Path | None) -> str | None:
        ends = {"succeeded": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}
        if status in ends:  # else a later attempt goes on with it
            self._client.set_terminated(self._run, ends[status])
        return None


class Hub:
    """The model with its card, once it is there."""

    def __init__(self, options: Json) -> None:
        self._options = options
        self._name = ""

    def begin(self, job: Json) -> None:
        self._name = job["name"]

    def log(self, step: int, values: dict[str, float]) -> None:
        """Nothing: the hub keeps models."""

    def end(self, status: str, model: Path | None) -> str | None:
        if model is None:
            if status == "succeeded":
                raise FileNotFoundError("the model could not be read; was it deleted?")
            return None
        from huggingface_hub import HfApi

        api = HfApi()
        repository = self._options["repo_id"]
        made = api.create_repo(repository, private=self._options.get("private", True), exist_ok=True)
        api.upload_folder(repo_id=repository, folder_path=model, commit_message=f"{self._name}, by finetuned")
        return str(made)


SINKS: dict[str, type[Wandb | Mlflow | Hub]] = {"wandb": Wandb, "mlflow": Mlflow, "hub": Hub}
ADVICE = {
    "wandb": "Set WANDB_API_KEY where the worker runs, or WANDB_MODE=offline; is the project yours?",
    "mlflow": "Set MLFLOW_TRACKING_URI, and what it wants for credentials, where the worker runs.",
    "hub": "Set HF_TOKEN with write access to that name where the worker runs.",
}
