"""A stream: files that arrive while a run goes on, taken up portion by portion, each once."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rankmixer.pipeline.base.collective import on_rank_0, together
from rankmixer.pipeline.base.errors import DataError, Preempted, data_error
from rankmixer.pipeline.read.dataset import ParquetDataset

RECORD = "arrivals.jsonl"


@dataclass(frozen=True)
class Portion:
    """The files that were new at one look, in the order of their paths, and their rows. It is epoch `number`."""

    number: int
    files: list[str]
    rows: int


class Arrivals:
    """Looks for files that no portion has had yet. Rank 0 looks, all ranks hear.

    `arrivals.jsonl` in the run's directory has a line for each portion, written before its first row is trained on: a
    run that is resumed reads the same portions again. A file belongs to the portion that found it; one that comes late
    or out of order is in the next. It must appear whole: write it under a name that starts with `_` or `.`, and rename.

    Args:
        directory: of the run.
        find: the files that are there now.
        open_files: checks some of them against the schema.
        poll_seconds: between two looks.
        idle_seconds: how long to look in vain; None: for ever.
        is_told_to_leave: asked while nothing comes; True on any rank ends the wait of all.
    """

    def __init__(
        self,
        directory: str,
        find: Callable[[], list[str]],
        open_files: Callable[[list[str]], ParquetDataset],
        poll_seconds: float,
        idle_seconds: float | None,
        is_told_to_leave: Callable[[], bool] = lambda: False,
    ) -> None:
        self._path = Path(directory, RECORD)
        self._find, self._open_files = find, open_files
        self._poll_seconds, self._idle_seconds = poll_seconds, idle_seconds
        self._is_told_to_leave = is_told_to_leave
        self._portions: list[Portion] | None = None
        self._known: set[str] = set()
        self._strings: list[str] | None = None

    def recorded(self, number: int) -> Portion | None:
        """A portion that has come already. Collective."""

        def look() -> dict[str, Any] | None:
            portions = self._read()
            return asdict(portions[number]) if 0 <= number < len(portions) else None

        return _portion(on_rank_0("cannot read what has arrived", look))

    def wait(self, number: int) -> Portion | None:
        """The portion of that number, as soon as it has come; None if none comes in time. Collective.

        Raises:
            ValueError: a file that does not agree with the schema, or with the types of the first portion.
            Preempted: the job was told to leave.
        """
        portion = self.recorded(number)
        waited = 0.0
        while portion is None:
            portion = _portion(on_rank_0("cannot take up new files", lambda: self._look(number)))
            if portion is None:
                if self._idle_seconds is not None and waited >= self._idle_seconds:
                    return None
                self._sleep()
                waited += self._poll_seconds
        return portion

    def _sleep(self) -> None:
        """Until the next look, or until the job is told to leave. Collective."""
        end = time.monotonic() + self._poll_seconds
        while (left := end - time.monotonic()) > 0 and not self._is_told_to_leave():
            time.sleep(min(left, 0.5))
        if any(together("cannot ask whether to leave", self._is_told_to_leave)):
            raise Preempted

    def _look(self, number: int) -> dict[str, Any] | None:
        """On rank 0: the files that are new, as a portion, recorded."""
        portions = self._read()
        assert number == len(portions)
        new = [file for file in self._find() if file not in self._known]
        if not new:
            return None
        try:
            dataset = self._open_files(new)
        except DataError:
            raise
        except ValueError as error:  # no row in any of them
            self._known.update(new)
            print(f"warning: {error}; looking for others", file=sys.stderr, flush=True)
            return None
        self._check_types(dataset)
        portion = Portion(number, new, dataset.files.num_rows)
        with self._path.open("a") as record:
            record.write(json.dumps({**asdict(portion), "strings": self._strings}) + "\n")
            record.flush()
            os.fsync(record.fileno())
        portions.append(portion)
        self._known.update(new)
        return asdict(portion)

    def _check_types(self, dataset: ParquetDataset) -> None:
        """What was text must stay text: integers have other hashes."""
        strings = sorted(name for name, encoder in dataset.encoders.items() if encoder.strings)
        if self._strings is None:
            self._strings = strings
        for name in set(strings) ^ set(self._strings):
            kinds = ("strings", "integers") if name in strings else ("integers", "strings")
            raise data_error(
                dataset.files.files[0].path,
                column=dataset.schema.features[name].reads[0],
                found=kinds[0],
                expected=f"{kinds[1]}, as in the files that came before",
                do="Write all files with one type.",
            )

    def _read(self) -> list[Portion]:
        """The record; a line that a kill has cut off is taken out of it."""
        if self._portions is None:
            lines = self._path.read_text().splitlines(keepends=True) if self._path.exists() else []
            whole: list[dict[str, Any]] = []
            for line in lines:
                with suppress(ValueError):
                    whole.append(json.loads(line))
            if len(whole) < len(lines) or (lines and not lines[-1].endswith("\n")):
                temporary = self._path.with_suffix(".tmp")
                temporary.write_text("".join(json.dumps(line) + "\n" for line in whole))
                temporary.replace(self._path)
            if whole:
                self._strings = whole[0]["strings"]
            self._portions = [Portion(line["number"], line["files"], line["rows"]) for line in whole]
            self._known = {file for portion in self._portions for file in portion.files}
        return self._portions


def _portion(found: dict[str, Any] | None) -> Portion | None:
    return None if found is None else Portion(**found)
