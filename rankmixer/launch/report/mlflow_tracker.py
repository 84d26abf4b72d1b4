"""A tracker for MLflow: configuration as parameters, curves as metrics with their steps, a status at the end.

TorchX's own (`torchx.tracker.mlflow`) writes everything as tags, has no steps, uploads what a path names with all that
lies below it, and says FINISHED whatever happened. This one is named `rankmixer_mlflow` and needs nothing but MLflow's
own variables: MLFLOW_TRACKING_URI, and MLFLOW_EXPERIMENT_NAME if `rankmixer` is not the one.
"""

from __future__ import annotations

import json
import os
import re
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

KEPT = "mlflow.json"  # in the run's directory: which MLflow run a resumed job goes on with
METRICS_HELD = 100_000  # while the server does not answer; older ones go
METRICS_AT_ONCE, PARAMETERS_AT_ONCE = 1000, 100  # what a server takes in one request
KEY_LENGTH, TAG_LENGTH, PARAMETER_LENGTH = 250, 5000, 6000  # and of what length
DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Its own, 120 s and seven tries, would have a server that stalls named after the end of the job.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
}


class MLflowTracker:
    """One job's run on an MLflow server. Calls raise what the client raises; metrics are then kept for the next call.

    A job that resumes in the same directory goes on with the same MLflow run. Parameters cannot change there: one that
    is another now becomes a tag, `resumed.STEP.KEY`. Steps that are trained again have two values.
    """

    def __init__(self) -> None:
        for name, value in DEFAULTS.items():
            os.environ.setdefault(name, value)
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            raise ValueError("MLFLOW_TRACKING_URI is not set; expected the server's address, http://HOST:PORT")
        from mlflow import MlflowClient

        self._client: MlflowClient = MlflowClient()
        self._metrics: deque[Metric] = deque(maxlen=METRICS_HELD)
        self._tags: dict[str, Any] = {}
        self._run_id: str | None = None
        self._known: dict[str, str] = {}  # parameters that the run has of a job before
        self._is_told = False  # its parameters
        self._begun: dict[str, Any] = {}
        self._resumed_from: str | None = None
        self._first_step: int | None = None  # None: there was no event

    def begin(self, directory: str, parameters: dict[str, Any], tags: dict[str, str]) -> None:
        """What the run is; it is opened after its first event, which says whether it resumes.

        Args:
            directory: of the run.
            parameters: by dotted key.
            tags: further ones.
        """
        self._begun = {"directory": directory, "parameters": parameters}
        self._tags |= tags

    def event(self, kind: str, step: int, time: float, values: dict[str, Any]) -> None:
        """Numbers become metrics `kind/name` of the step, words tags `kind.name`; of the start all are tags.

        Args:
            time: seconds since 1970.
        """
        from mlflow.entities import Metric

        if self._first_step is None:
            self._first_step, self._resumed_from = step, values.get("resumed_from")
        for name, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and kind != "start":
                self._metrics.append(Metric(_key(f"{kind}/{name}"), value, int(time * 1000), step))
            elif kind == "start" or isinstance(value, str):
                self._tags[f"{kind}.{name}"] = value

    def flush(self) -> None:
        """Send what waits."""
        if not self._metrics and (not self._tags or self._first_step is None):
            return
        run_id = self._open()
        while self._metrics:
            some = [self._metrics[index] for index in range(min(METRICS_AT_ONCE, len(self._metrics)))]
            self._client.log_batch(run_id, metrics=some)
            for _ in some:
                self._metrics.popleft()
        while self._tags:
            name, value = next(iter(self._tags.items()))
            self._client.set_tag(run_id, _key(name), cut(value, TAG_LENGTH))
            del self._tags[name]

    def artifact(self, path: str) -> None:
        """Upload a file."""
        self._client.log_artifact(self._open(), path)

    def close(self, status: str) -> None:
        """End the run: FINISHED, FAILED or KILLED."""
        if self._first_step is None:
            return
        run_id = self._open()
        try:
            self.flush()
        finally:
            self._client.set_terminated(run_id, status)

    def _open(self) -> str:
        """The MLflow run: that of the job that this one resumes, or a new one; one only, however often a call fails."""
        if self._run_id is None:
            path = Path(self._begun["directory"], KEPT)
            run_id, self._known = self._resumed(path) if self._resumed_from else (None, {})
            self._run_id = run_id or self._create()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"tracking_uri": os.environ["MLFLOW_TRACKING_URI"], "run_id": self._run_id}))
        if not self._is_told:
            self._log_parameters(self._run_id, self._known)
            self._is_told = True
        return self._run_id

    def _resumed(self, path: Path) -> tuple[str | None, dict[str, str]]:
        """The run that an earlier job has kept, running again, and its parameters; none where it is gone."""
        from mlflow.exceptions import RestException

        with suppress(OSError, ValueError, KeyError, RestException):
            kept = json.loads(path.read_text())
            if kept["tracking_uri"] == os.environ["MLFLOW_TRACKING_URI"]:
                run = self._client.get_run(kept["run_id"])
                self._client.update_run(kept["run_id"], status="RUNNING")  # of one that was deleted it is refused
                return str(kept["run_id"]), dict(run.data.params)
        return None, {}

    def _create(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "rankmixer")
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
        run_name = os.path.basename(self._begun["directory"].rstrip("/"))
        return str(self._client.create_run(experiment_id, run_name=run_name).info.run_id)

    def _log_parameters(self, run_id: str, known: dict[str, str]) -> None:
        from mlflow.entities import Param

        told = {_key(key): cut(value, PARAMETER_LENGTH) for key, value in self._begun["parameters"].items()}
        new = [Param(key, value) for key, value in told.items() if key not in known]
        for first in range(0, len(new), PARAMETERS_AT_ONCE):
            self._client.log_batch(run_id, params=new[first : first + PARAMETERS_AT_ONCE])
        for key, value in told.items():
            if known.get(key, value) != value:
                self._tags[f"resumed.{self._first_step}.{key}"] = value
        # Whole, whatever was cut.
        self._client.log_text(run_id, json.dumps(self._begun["parameters"], indent=1), "config.json")


def create(config: str | None = None) -> MLflowTracker:
    """The factory that TorchX's group of entry points `torchx.tracker` names; `config` says nothing here."""
    return MLflowTracker()


def cut(value: Any, length: int) -> str:
    """A value as text, of at most so many characters; one that was cut says so.

    >>> cut(0.5, 9), cut([1] * 9, 25)
    ('0.5', '[1, 1... (27 characters)')
    """
    text = value if isinstance(value, str) else json.dumps(value)
    if len(text) <= length:
        return text
    mark = f"... ({len(text)} characters)"
    return text[: length - len(mark)] + mark


def _key(name: str) -> str:
    return re.sub(r"[^/\w.\- :]", "_", name)[:KEY_LENGTH]
