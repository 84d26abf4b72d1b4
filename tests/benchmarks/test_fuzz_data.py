"""Two hundred damaged files; and that the fuzzer sees what it is there to see."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from benchmarks.fuzz_data import __main__ as fuzz_data
from benchmarks.fuzz_data.__main__ import SECONDS, VERDICTS, Fuzzer, Outcome, Worker, fuzz
from rankmixer.pipeline.files.files import ParquetFile


def test_two_hundred_damaged_files() -> None:
    outcomes = fuzz(range(200), seed=0, processes=1)
    assert [outcome.case for outcome in outcomes] == list(range(200))
    assert [outcome for outcome in outcomes if outcome.verdict == "failure"] == []
    assert {outcome.verdict for outcome in outcomes} == set(VERDICTS) - {"failure"}


def test_crashes_and_hangs_are_seen_and_the_other_cases_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_: Fuzzer, case: int) -> Outcome:
        if case == 1:
            os.abort()
        if case == 3:
            time.sleep(60)
        return Outcome(case, "", "", "harmless", "")

    ended: list[int] = []
    end = Worker.end

    def counting(worker: Worker) -> Outcome | None:
        outcome = end(worker)
        ended.extend([outcome.case] if outcome else [])
        return outcome

    monkeypatch.setattr(Fuzzer, "run", run)
    monkeypatch.setattr(Worker, "end", counting)
    # A clock that stands still until only the case that hangs is left: no machine is too slow for the others.
    monkeypatch.setattr(fuzz_data, "time", SimpleNamespace(monotonic=lambda: 0.0 if len(ended) < 5 else SECONDS))
    outcomes = fuzz(range(6), seed=0, processes=2)
    assert [outcome.verdict for outcome in outcomes] == [
        "harmless",
        "failure",
        "harmless",
        "failure",
        *["harmless"] * 2,
    ]
    assert outcomes[1].detail == "crash: status -6"
    assert outcomes[3].detail == "hang: no end after 20 s"


@pytest.mark.parametrize(
    ("broken", "detail"),
    [
        (lambda file, _=(): pq.ParquetFile(file.path, metadata=file.metadata), "silent"),
        (lambda file, _=(): {}[file.path], "traceback: KeyError"),
    ],
)
def test_silent_numbers_and_tracebacks_are_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: object, detail: str
) -> None:
    fuzzer = Fuzzer(tmp_path, seed=0)
    cases = [case for case in range(0, 160, 8) if fuzzer.run(case).damage.startswith("pages ")]
    monkeypatch.setattr(ParquetFile, "open", broken)
    monkeypatch.setattr("rankmixer.pipeline.files.decode._reason", lambda file, row_group, error: error)
    found = {fuzzer.run(case).detail.partition(":")[0] for case in cases}
    assert detail.partition(":")[0] in found
