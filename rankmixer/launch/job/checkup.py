"""The health of a training: collects what `rankmixer.launch.health.symptoms` looks at, and tells each symptom once."""

from __future__ import annotations

from collections import deque

import torch

from rankmixer.launch.config.config import Config
from rankmixer.launch.health.symptoms import (
    Symptom,
    in_experts,
    in_gradients,
    in_labels,
    in_metrics,
    in_skew,
    in_unknown_ids,
)
from rankmixer.launch.job.job import Evaluation
from rankmixer.launch.model.ranker import Output
from rankmixer.launch.ranks.distributed import Ranks
from rankmixer.pipeline.journal.journal import Journal
from rankmixer.pipeline.train.rows_seen import RowsSeen

NORMS = 200
WORSE = 2.0


class Checkup:
    """Looks at a training as it goes. Collective, as the reports and evaluations are.

    Of the training rows it sees the batch of every report, `train.log_steps` apart: a sample that costs nothing.

    Args:
        config: the run.
        ranks: this process.
        journal: of rank 0, which is told; None on other ranks.
    """

    def __init__(self, config: Config, ranks: Ranks, journal: Journal | None) -> None:
        self._config, self._ranks, self._journal = config, ranks, journal
        self._sample = RowsSeen(config.feature_schema, ranks.device)
        self._losses: list[float] = []
        self._norms: deque[float] = deque(maxlen=NORMS)
        self._evaluations = 0
        self._load_LTE: torch.Tensor | None = None
        self._told: dict[tuple[str, str], float] = {}

    def look(self, output: Output) -> None:
        """Take the batch of a step that is about to be reported."""
        self._sample.add(output.batch)

    def report(self, step: int, loss: float, grad_norm: float | None) -> None:
        """What a report says."""
        self._losses.append(loss)
        if grad_norm is not None:
            self._norms.append(grad_norm)
            self.tell(step, in_gradients(self._norms))

    def evaluated(self, step: int, evaluation: Evaluation) -> None:
        """What an evaluation says, and how it differs from training since the one before."""
        schema = self._config.feature_schema
        train, rows = self._sample.total(self._ranks.control), evaluation.rows
        is_first = self._evaluations == 0
        load_LTE = evaluation.load_LTE  # a dead expert's bias rises: whether that revives it takes an evaluation more
        symptoms = [
            *in_metrics(evaluation.metrics, schema.tasks, rows, is_first),
            *in_labels(train, "training rows"),
            *in_labels(rows, "evaluation rows"),
            *in_unknown_ids(train, rows),
            *in_experts([] if load_LTE is None or self._load_LTE is None else (load_LTE + self._load_LTE).tolist()),
        ]
        if self._losses:
            loss = sum(self._losses) / len(self._losses)
            symptoms += in_skew(train, rows, loss, self._loss_of(evaluation), is_first)
        self.tell(step, symptoms)
        self._evaluations += 1
        self._load_LTE = load_LTE
        self._losses.clear()
        self._sample = RowsSeen(schema, self._ranks.device)

    def tell(self, step: int, symptoms: list[Symptom]) -> None:
        """Warn of each symptom once, and again when it has become twice as bad."""
        for symptom in symptoms:
            key = symptom.name, symptom.subject
            if key in self._told and symptom.severity < WORSE * self._told[key]:
                continue
            self._told[key] = symptom.severity
            if self._journal:
                self._journal.event("warning", step, name=symptom.name, message=symptom.message)

    def _loss_of(self, evaluation: Evaluation) -> float:
        """What the training loss would be on the evaluation rows."""
        labels = self._config.feature_schema.labels
        keys = {task: "logloss" if len(labels) == 1 else f"{task}/logloss" for task in labels}
        return sum(label.weight * evaluation.metrics[keys[task]] for task, label in labels.items())
