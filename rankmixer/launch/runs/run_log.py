"""What `log.jsonl` says of a run: read piece by piece as it grows, and kept in bounded memory."""

from __future__ import annotations

import json
import statistics
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from rankmixer.launch.runs.run_events import Events
from rankmixer.launch.runs.thinned import Thinned, thin
from rankmixer.pipeline.journal.journal import LOG
from rankmixer.pipeline.metrics.metrics import score

Record = dict[str, Any]

POINTS = 1000  # of a curve; twice as many are joined by twos
RECENT = 100  # records that say how fast the run is
QUIET_SECONDS = 60.0  # a run that says nothing for so long may still be running,
QUIET_FACTOR = 3.0  # and so may one that is silent for no more than so many times its longest silence
EVALUATIONS = ("evaluate", "arrival")
ENDS = {"finish": "finished", "diverged": "diverged", "preempted": "preempted"}  # an attempt, and what the run then is
WHOLE_BYTES = 16_000_000  # of more that comes at once, only a part of the training records is read
TRAIN = b'{"kind": "train"'
METRICS = ("auc", "gauc", "logloss", "ne", "calibration")
COUNTED = ("ungrouped", "rows")  # of an evaluation, for all tasks together


class RunLog:
    """The story of a run.

    `read` takes in what was added to the log since the last time. Curves are thinned, so a log of a million records
    takes the room of a thousand; and where much is new at once, as when a long run resumes, a part of the training
    records stands for all, so that it takes no more than about a second.

    Args:
        directory: of the run.

    Attributes:
        start: the newest record of that kind: sizes, hosts, plan, configuration, versions.
        training: what the steps did, thinned.
        evaluations: numbers only; kind "evaluate", or "arrival" for rows that a stream brought.
        judged: the newest of them with its diagram and slices.
        memory: what every rank held at the newest of them.
        best: the evaluation that the selecting metric puts first.
        experts: the newest record of that kind, `open_experts` the open share of every layer by evaluation.
        finish: the record of that kind, if no attempt followed.
        checkpoint: the newest record of that kind.
        events: what happened besides.
    """

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self._path = Path(directory, LOG)
        self._clear()

    def _clear(self) -> None:
        self._offset = 0
        self.start: Record = {}
        self.starts = 0
        self.first: Record | None = None
        self.last: Record | None = None
        self.training = Thinned(POINTS)
        self.evaluations: list[Record] = []
        self.judged: Record | None = None
        self.best: Record | None = None
        self._best_score = float("nan")
        self.memory: list[dict[str, int]] = []
        self.experts: Record | None = None
        self.open_experts: list[Record] = []
        self.finish: Record | None = None
        self._ended: str | None = None
        self.checkpoint: Record | None = None
        self.last_step: Record | None = None
        self.events = Events()
        self._earlier_seconds = self._longest_silence = 0.0
        self._recent: deque[tuple[int, float]] = deque(maxlen=RECENT)

    def read(self) -> RunLog:
        """Take in what is new; a torn line (a kill, a full disk) is passed over.

        Raises:
            ValueError: the directory holds no run, or one that has said nothing yet.
        """
        try:
            size = self._path.stat().st_size
        except OSError:
            raise ValueError(
                f"{self.directory}: no {LOG} here; give the run.directory of a training run that has started"
            ) from None
        if size < self._offset:  # an attempt that resumed has rewritten it
            self._clear()
        for record, follows in self._new_records():
            self._take(record, follows)
        if self.last is None:
            raise ValueError(
                f"{self._path}: found no record yet, {size} bytes; expected what a training run has written there. It "
                "may just be starting: look again in a moment"
            )
        return self

    def _new_records(self) -> Iterator[tuple[Record, bool]]:
        """What is new, and whether it follows what came before: nothing between them was skipped."""
        skipped = None
        with self._path.open("rb") as log:
            every = 1 + (log.seek(0, 2) - self._offset) // WHOLE_BYTES
            log.seek(self._offset)
            for number, content in enumerate(log):
                if not content.endswith(b"\n"):
                    break  # half a line may be finished later
                self._offset += len(content)
                if number % every and content.startswith(TRAIN):
                    skipped = content
                    continue
                if skipped is not None and not content.startswith(TRAIN):  # the last one before something else
                    for record in _parsed(skipped):
                        yield record, False
                    skipped = None
                for record in _parsed(content):
                    yield record, skipped is None
                skipped = None
        for record in _parsed(skipped or b""):
            yield record, False

    def _take(self, record: Record, follows: bool) -> None:
        kind = record["kind"]
        if kind == "start":
            self._begin_attempt(record)
        elif self.last is not None and follows:
            self._longest_silence = max(self._longest_silence, record["time"] - self.last["time"])
        self.first, self.last = self.first or record, record
        if kind == "train":
            self.last_step = record
            self.training.add(record)
            self._recent.append((record["step"], record["time"]))
        elif kind in EVALUATIONS:
            self._take_evaluation(record)
        elif kind == "experts":
            self.experts = record
            shares = {name: share for name, share in record.items() if name.startswith("active_ratio/")}
            self.open_experts.append({"step": record["step"], **shares})
            self.open_experts = thin(self.open_experts, POINTS)
        elif kind == "memory":
            self.memory = list(record["ranks"].values())
        elif kind == "checkpoint":
            self.checkpoint = record
        else:
            if kind == "finish":
                self.finish = record
            if kind in ENDS:
                self._ended = ENDS[kind]
            self.events.add(record)

    def _begin_attempt(self, record: Record) -> None:
        self._earlier_seconds = self.seconds
        self._longest_silence = 0.0
        self._recent.clear()
        self.finish = self._ended = None
        self.start, self.starts = record, self.starts + 1

    def _take_evaluation(self, record: Record) -> None:
        self.judged = record
        numbers = {name: value for name, value in record.items() if not isinstance(value, dict)}
        self.evaluations.append(numbers)
        self.evaluations = thin(self.evaluations, POINTS)
        found = score(numbers, self.select, self.tasks) if record["kind"] == "evaluate" else float("nan")
        if found == found and not found <= self._best_score:
            self.best, self._best_score = numbers, found

    @property
    def config(self) -> Record:
        """The configuration of the newest attempt; {} if an older version has written the log."""
        return dict(self.start.get("config", {}))

    @property
    def tasks(self) -> list[str]:
        """The names of the labels."""
        return list(self.config.get("feature_schema", {}).get("labels", ["label"]))

    @property
    def select(self) -> str:
        """The metric that names the best checkpoint."""
        return str(self.config.get("metrics", {}).get("select", "auc"))

    @property
    def step(self) -> int:
        """Steps done."""
        return int(self.last["step"]) if self.last else 0

    @property
    def total_steps(self) -> int | None:
        """Steps to do; None: that is not known."""
        total = self.start.get("total_steps")
        return None if total is None else int(total)

    @property
    def seconds(self) -> float:
        """Time that the attempts took, as far as the log tells."""
        here = self.last["time"] - self.start["time"] if self.last and self.start else 0.0
        return self._earlier_seconds + float(here)

    @property
    def seconds_left(self) -> float | None:
        """At the pace of the last records, evaluations included."""
        if self.total_steps is None or len(self._recent) < 2:
            return None
        (first_step, first_time), (last_step, last_time) = self._recent[0], self._recent[-1]
        if last_step == first_step:
            return None
        return float((self.total_steps - last_step) * (last_time - first_time) / (last_step - first_step))

    def silence(self, now: float | None = None) -> float:
        """Seconds since the last record."""
        return max(0.0, (time.time() if now is None else now) - self.last["time"]) if self.last else 0.0

    def state(self, now: float | None = None) -> str:
        """finished, diverged, preempted, running (it has spoken lately; nobody else is asked) or stopped."""
        if self._ended is not None:
            return self._ended
        limit = max(QUIET_SECONDS, QUIET_FACTOR * self._longest_silence)
        return "running" if self.silence(now) <= limit else "stopped"

    @property
    def examples_per_second(self) -> float | None:
        """The median of the training records."""
        rates = [point["examples_per_second"] for point in self.training.points() if "examples_per_second" in point]
        return statistics.median(rates) if rates else None

    def metric_columns(self) -> list[tuple[str, Record]]:
        """Headings, and metrics by name: of the last evaluation, of the best, and of the test rows."""
        evaluations = [line for line in self.evaluations if line["kind"] == "evaluate"]
        columns = [("last evaluation", evaluations[-1])] if evaluations else []
        if self.best is not None:
            columns.append(("best evaluation", self.best))
        test = {
            key.removeprefix("test_"): value for key, value in (self.finish or {}).items() if key.startswith("test_")
        }
        return [*columns, ("test", test)] if test else columns

    def metric_names(self) -> list[str]:
        """What the columns of metrics have: `auc`, or `click/auc` with several tasks."""
        columns = self.metric_columns()
        return [name for name in (columns[0][1] if columns else {}) if name.split("/")[-1] in (*METRICS, *COUNTED)]


def _parsed(content: bytes) -> Iterator[Record]:
    with suppress(ValueError):
        record = json.loads(content)
        if isinstance(record, dict) and {"kind", "step", "time"} <= record.keys():
            yield record
