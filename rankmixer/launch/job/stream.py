"""Training on a directory that grows: each portion of new files is judged as it comes, then trained on once."""

from __future__ import annotations

from dataclasses import replace

from rankmixer.launch.job.job import evaluate, training_reader
from rankmixer.launch.job.train import Training
from rankmixer.launch.rows.bad_files import found_bad
from rankmixer.launch.rows.paths import opening
from rankmixer.pipeline.base.collective import on_rank_0
from rankmixer.pipeline.files.locate import urls
from rankmixer.pipeline.files.watch import Watch
from rankmixer.pipeline.journal.journal import read_log
from rankmixer.pipeline.read.arrivals import Arrivals, Portion
from rankmixer.pipeline.read.dataset import ParquetDataset
from rankmixer.pipeline.read.reader import BatchReader
from rankmixer.pipeline.train.loop import Pace, Position


class StreamTraining(Training):
    """A run whose epochs are the portions of a stream; `Position.epoch` is the number of a portion."""

    def open_rows(self, position: Position, set_aside: dict[str, str] | None) -> tuple[BatchReader, int]:
        """The portion that the position is in; the one before, if that has not come yet."""
        stream = self.config.data.stream
        assert stream is not None
        data, schema = self.config.data.train, self.config.feature_schema
        watch = Watch(self.config.read_seconds)
        self.arrivals = Arrivals(
            self.config.run.directory,
            find=lambda: urls(data, watch),
            open_files=lambda files: ParquetDataset(files, schema, **opening(self.config)),
            poll_seconds=stream.poll_seconds,
            idle_seconds=stream.idle_seconds,
            is_told_to_leave=self.ranks.preemption.is_told_to_leave,
        )
        portion = self.arrivals.recorded(position.epoch) or self.arrivals.recorded(position.epoch - 1)
        portion = portion or self.arrivals.wait(position.epoch)
        if portion is None:
            raise ValueError(f"{data}: found no row in {stream.idle_seconds:g} s; expected files that hold some")
        return training_reader(self.config, self.ranks, set_aside, portion.files), portion.number + 1

    def count_steps(self, pace: Pace, position: Position, reader: BatchReader) -> int | None:
        """A stream has no end but `train.max_steps`."""
        return self.config.train.max_steps

    def train_rows(self) -> None:
        """Train on portion after portion, until nothing comes any more."""
        position = self.loop.position
        if position.row == 0 and position.step != self.config.train.max_steps:
            portion = self.arrivals.recorded(position.epoch)
            if portion is not None and not self._is_judged(portion):  # a kill came between its arrival and this
                self._begin(portion)
        while not self.loop.run():
            if self.loop.position.step == self.config.train.max_steps:
                return
            portion = self.arrivals.wait(self.loop.position.epoch)
            if portion is None:
                return
            self._begin(portion)

    def _is_judged(self, portion: Portion) -> bool:
        """Whether the log says so; of the first nobody asks. Collective."""

        def is_told() -> bool:
            lines = read_log(self.config.run.directory)
            return any(line["kind"] == "arrival" and line["portion"] == portion.number for line in lines)

        return portion.number == 0 or bool(on_rank_0("cannot read the log", is_told))

    def _begin(self, portion: Portion) -> None:
        """Judge the model on rows that it has not seen, then let it train on them."""
        self.pipeline.detach()
        evaluation = evaluate(self.config, self.built, self.ranks, portion.files)
        reader = training_reader(self.config, self.ranks, files=portion.files)
        reader.mended = self.loop.reader.mended
        step = self.loop.position.step
        if self.journal:
            count = len(portion.files)
            self.journal.event(
                "arrival", step, portion=portion.number, files=count, **evaluation.metrics, **evaluation.details
            )
        self.record.show()
        self.bad_files.tell(step, f"train, portion {portion.number}", found_bad(reader))
        self.loop.reader, self.loop.pace = reader, replace(self.loop.pace, epochs=portion.number + 1)
