"""Evaluation as training goes on: how good the model is, which checkpoint is the best, and when to stop early."""

from __future__ import annotations

import math
from typing import Any

import torch

from rankmixer.launch.config.config import Config
from rankmixer.launch.job.checkup import Checkup
from rankmixer.launch.job.job import evaluate, managed_rows
from rankmixer.launch.model.build import Build
from rankmixer.launch.ranks.distributed import Ranks
from rankmixer.launch.rows.bad_files import BadFileReport
from rankmixer.pipeline.base.collective import together
from rankmixer.pipeline.journal.journal import Journal, memory_here
from rankmixer.pipeline.metrics.metrics import score
from rankmixer.pipeline.train.loop import Position


class Judge:
    """The evaluations of one run.

    Args:
        config: the run.
        built: the model.
        ranks: this process.
        journal: of rank 0; None on other ranks.
        bad_files: the report of what could not be read.
        checkup: looks at what an evaluation says of the training's health.
        remembered: what `memory` gave when the checkpoint that the run resumes from was saved; {} at the start.
    """

    def __init__(
        self,
        config: Config,
        built: Build,
        ranks: Ranks,
        journal: Journal | None,
        bad_files: BadFileReport,
        checkup: Checkup,
        remembered: dict[str, Any],
    ) -> None:
        self.config, self.built, self.ranks, self.journal = config, built, ranks, journal
        self.bad_files, self.checkup = bad_files, checkup
        self.metrics: dict[str, float] = remembered.get("evaluation", {})
        self.step: int | None = None
        self.best: float = remembered.get("best", -math.inf)
        self.evaluations_since_best: int = remembered.get("evaluations_since_best", 0)

    def memory(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {
            "evaluation": self.metrics,
            "best": self.best,
            "evaluations_since_best": self.evaluations_since_best,
        }

    def evaluate(self, position: Position, paths: str | list[str]) -> bool:
        """Evaluate on `paths`; True when early stopping says that it is enough. Collective."""
        rows = managed_rows(self.config, self.built)
        if rows and self.journal:
            self.journal.event("managed", position.step, **rows)
        evaluation = evaluate(self.config, self.built, self.ranks, paths)
        self.metrics, self.step = evaluation.metrics, position.step
        self.bad_files.tell(position.step, "evaluate", evaluation.bad)
        memory = together("cannot read the memory", memory_here)
        if self.journal:
            self.journal.event("evaluate", position.step, epoch=position.epoch, **self.metrics, **evaluation.details)
            self.journal.note("memory", position.step, ranks=dict(enumerate(memory)))
            self._tell_experts(position, evaluation.load_LTE)
        self.checkup.evaluated(position.step, evaluation)
        score = self.score()
        # A metric that is not defined (nan: one class only) is never the best.
        if score > self.best:
            self.best, self.evaluations_since_best = score, 0
        else:
            self.evaluations_since_best += 1
        return self.has_seen_enough

    @property
    def has_seen_enough(self) -> bool:
        """True if early stopping ends the training here."""
        stopping = self.config.train.early_stopping
        return stopping is not None and self.evaluations_since_best >= stopping.patience

    def score(self) -> float:
        """The selecting metric of the last evaluation, higher is better; the mean over tasks."""
        return score(self.metrics, self.config.metrics.select, self.config.feature_schema.tasks)

    def _tell_experts(self, position: Position, load_LTE: torch.Tensor | None) -> None:
        """Record how the load lies on the experts of a Sparse-MoE."""
        if load_LTE is None or self.journal is None:
            return
        layers = {f"active_ratio/layer_{layer}": load_TE.mean().item() for layer, load_TE in enumerate(load_LTE)}
        self.journal.event("experts", position.step, **layers, load_LTE=load_LTE.tolist())
