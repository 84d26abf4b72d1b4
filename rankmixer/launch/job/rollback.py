"""`train.on_divergence: rollback`: back to the last checkpoint, and on without the batch that spoiled the weights."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rankmixer.launch.config.config import Config
from rankmixer.launch.job.job import training_reader
from rankmixer.launch.ranks.distributed import Ranks
from rankmixer.pipeline.base.collective import on_rank_0, together
from rankmixer.pipeline.encode.rows import LOCATION
from rankmixer.pipeline.files.parquet_file import ParquetFile
from rankmixer.pipeline.train.loop import DivergedError

MOST = 3
SET_ASIDE = "set_aside"
_LIST = "batches.json"


@dataclass
class BatchSetAside:
    """A global batch that training leaves out: where it begins in the order of the rows, and what it did."""

    epoch: int
    row: int
    rows: int
    step: int
    reason: str


class Rollbacks:
    """The rollbacks of a run. Its directory remembers them, so that a run that is killed and resumed does.

    The first time that something is not finite, training goes back to the last checkpoint (or to the start) and takes
    the same steps again, looking at loss and weights after each: that finds the batch. Its rows go to
    `RUN/set_aside/`, as Parquet with the file, row group and row of each; then training goes back once more and passes
    over it. What does not come again when the steps are taken again was no batch's doing; it counts as a rollback too.

    Args:
        config: the run.
        ranks: this process. Collective.
    """

    def __init__(self, config: Config, ranks: Ranks) -> None:
        self._config, self._ranks = config, ranks
        self._directory = Path(config.run.directory, SET_ASIDE)
        known = on_rank_0(f"cannot read {self._directory / _LIST}", self._read)
        self.batches = [BatchSetAside(**entry) for entry in known["batches"]]
        self._count: int = known["count"]
        self.careful_until: int = known.get("careful_until", 0)  # a search that was cut off goes on
        """The step up to which loss and weights are looked at after each."""
        self.news: dict[str, Any] | None = None
        """What the log has to be told of the last one."""

    @property
    def starts(self) -> list[tuple[int, int]]:
        """(epoch, row) of the batches to pass over."""
        return [(batch.epoch, batch.row) for batch in self.batches]

    def result(self) -> dict[str, int]:
        """What the result of the run says of them."""
        rows = sum(batch.rows for batch in self.batches)
        return {"rollbacks": self._count, "rows_set_aside": rows} if self._count else {}

    def follow(self, error: DivergedError) -> None:
        """Make ready to go back. Collective.

        Raises:
            DivergedError: `error`, with what has been tried, because the run is to stop here.
        """
        if self._config.train.on_divergence == "stop":
            raise error
        if error.batch is None or error.step > self.careful_until:
            if self._count == MOST:
                told = (
                    f"{error}. Rolled back {MOST} times before, and left out the batches that did it "
                    f"({self._directory}): it is not single batches"
                )
                raise DivergedError(error.what, error.step, error.batch, told)
            self._count += 1
            self.careful_until = error.step
            self.news = {"batch": None, "message": f"{error.what}; the steps are taken again to find the batch"}
        else:
            self._set_aside(error)
        on_rank_0(f"cannot write {self._directory / _LIST}", self._write)

    def _set_aside(self, error: DivergedError) -> None:
        """Write the rows of the batch, each rank its own, and pass over them from now on."""
        assert error.batch is not None
        epoch, row = error.batch
        file = self._directory / f"epoch-{epoch}-row-{row}-rank-{self._ranks.rank}.parquet"
        reader = training_reader(self._config, self._ranks, located=True)

        def write() -> int:
            with closing(reader.epoch(epoch, row, steps=1)) as batches:
                places = next(batches).keys
            assert places is not None
            self._directory.mkdir(parents=True, exist_ok=True)
            pq.write_table(rows_at(reader.dataset.files.files, places), file)
            return len(places)

        rows = sum(together(f"cannot set aside the batch at row {row} of epoch {epoch}", write))
        self.batches.append(BatchSetAside(epoch, row, rows, error.step, error.what))
        self.careful_until = 0
        self.news = {
            "batch": asdict(self.batches[-1]),
            "message": f"{error.what}; the {rows} rows of this batch are set aside in {self._directory}",
        }

    def _read(self) -> dict[str, Any]:
        file = self._directory / _LIST
        return json.loads(file.read_text()) if file.exists() else {"count": 0, "careful_until": 0, "batches": []}

    def _write(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        new = self._directory / f".{_LIST}.new"
        batches = [asdict(batch) for batch in self.batches]
        new.write_text(json.dumps({"count": self._count, "careful_until": self.careful_until, "batches": batches}))
        new.replace(self._directory / _LIST)


def rows_at(files: Sequence[ParquetFile], places: pa.Table) -> pa.Table:
    """All columns of some rows, as they are in their files, behind where they lie.

    Args:
        files: those that the places name.
        places: columns of encode.rows.LOCATION; rows that cannot be read are null there, and left out.
    """
    places = places.drop_null()
    parts = []
    for file in files:
        here = places.filter(pa.compute.equal(places["file"], file.path))
        for group in here["row_group"].unique().to_pylist():
            some = here.filter(pa.compute.equal(here["row_group"], group))
            within = pa.compute.subtract(some["row"], sum(file.row_groups[:group]))
            with file.open() as opened:
                rows = opened.read_row_group(group).take(within)
            located = some.rename_columns([f"_{name}" for name in LOCATION.names])
            parts.append(
                pa.table(
                    {
                        **dict(zip(located.column_names, located.columns, strict=True)),
                        **dict(zip(rows.column_names, rows.columns, strict=True)),
                    }
                )
            )
    return pa.concat_tables(parts, promote_options="permissive") if parts else places
