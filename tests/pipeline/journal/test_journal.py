from __future__ import annotations

import io
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rankmixer.pipeline.journal import progress
from rankmixer.pipeline.journal.journal import Journal, read_log


def story(directory: Path) -> list[tuple[str, int]]:
    return [(line["kind"], line["step"]) for line in read_log(directory)]


def test_lines_are_json_whatever_the_values_are(tmp_path: Path) -> None:
    with Journal(str(tmp_path / "new" / "run"), quiet=True) as journal:
        journal.step(7, loss=torch.tensor(0.5), norm=math.nan, rate=math.inf, examples=np.int64(12))
        journal.event(
            "note", 7, text="naïve\nline", shape=(2, torch.tensor(3)), nested={"a": -math.inf}, on=True, no=None
        )
    lines = (tmp_path / "new" / "run" / "log.jsonl").read_text().splitlines()
    assert len(lines) == 2
    train, note = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert list(train)[:3] == ["kind", "step", "time"]
    assert (train["kind"], train["step"]) == ("train", 7)
    assert {name: train[name] for name in ("loss", "norm", "rate", "examples")} == {
        "loss": 0.5,
        "norm": None,
        "rate": None,
        "examples": 12,
    }
    assert train["rss_bytes"] > 2**20
    assert note["time"] >= train["time"]
    values = {name: note[name] for name in ("text", "shape", "nested", "on", "no")}
    assert values == {"text": "naïve\nline", "shape": [2, 3], "nested": {"a": None}, "on": True, "no": None}
    assert read_log(tmp_path / "new" / "run") == [train, note]


def test_a_resumed_run_drops_what_came_after_and_a_torn_line(tmp_path: Path) -> None:
    with Journal(str(tmp_path), quiet=True) as journal:
        for step in (10, 20, 30):
            journal.step(step, loss=float(step))
        journal.event("evaluate", 20, auc=0.7)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"kind": "train", "step": 4')
    assert story(tmp_path) == [("train", 10), ("train", 20), ("train", 30), ("evaluate", 20)]
    with Journal(str(tmp_path), resume_step=20, quiet=True) as journal:
        journal.step(25, loss=2.5)
    assert story(tmp_path) == [("train", 10), ("train", 20), ("evaluate", 20), ("train", 25)]
    scalars = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in scalars.Scalars("train/loss")] == [(10, 10), (20, 20), (25, 2.5)]
    assert [event.step for event in scalars.Scalars("evaluate/auc")] == [20]
    with Journal(str(tmp_path), quiet=True) as journal:
        journal.step(1, loss=1.0)
    assert story(tmp_path) == [("train", 1)], "a run that starts anew starts its log anew"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "tensorboard"]


def test_nested_shares_are_lines_of_the_log_and_a_picture(tmp_path: Path) -> None:
    load_LTE = [[[1.0, 0.5, 0.0], [0.25, 0.0, 1.0]]]
    with Journal(str(tmp_path), quiet=True) as journal:
        journal.event("experts", 3, load_LTE=load_LTE)
    assert read_log(tmp_path)[0]["load_LTE"] == load_LTE
    (image,) = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Images("experts/load_LTE")
    assert (image.step, image.height, image.width) == (3, 2, 3)


def test_dropping_lines_is_atomic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal(str(tmp_path), quiet=True) as journal:
        journal.step(10, loss=1.0)
    before = (tmp_path / "log.jsonl").read_bytes()

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left on device"):
        Journal(str(tmp_path), resume_step=5, quiet=True)
    assert (tmp_path / "log.jsonl").read_bytes() == before


def test_a_kill_loses_nothing_that_was_said(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from rankmixer.pipeline.journal.journal import Journal\n"
        "journal = Journal(sys.argv[1], quiet=True)\n"
        "journal.step(1, loss=0.25)\n"
        "journal.event('evaluate', 1, auc=0.75)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    process = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert process.returncode == -signal.SIGKILL
    assert story(tmp_path) == [("train", 1), ("evaluate", 1)]
    scalars = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.value for event in scalars.Scalars("evaluate/auc")] == [0.75]


def test_a_full_disk_is_warned_of_once_and_later_lines_are_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journal = Journal(str(tmp_path), quiet=True)
    journal.step(1)
    assert journal._log is not None
    disk = journal._log
    with open("/dev/full", "ab", buffering=0) as full:
        journal._log = full
        journal.step(2)
        journal.step(3)
    disk.write(b'{"kind": "tr')  # what a filling disk took of the line
    journal._log = disk
    journal.step(4)
    journal.close()
    journal.close()
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert message == f"warning: {tmp_path}/log.jsonl: [Errno 28] No space left on device; training goes on\n"
    assert story(tmp_path) == [("train", 1), ("train", 4)]


def test_a_log_that_is_removed_begins_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "run"
    with Journal(str(directory), quiet=True) as journal:
        journal.event("evaluate", 1, auc=0.5)
        shutil.rmtree(directory)
        journal.event("evaluate", 2, auc=0.75)
        journal.event("evaluate", 3, auc=0.875)
    assert story(directory) == [("evaluate", 2), ("evaluate", 3)]
    scalars = EventAccumulator(str(directory / "tensorboard")).Reload()
    assert [event.value for event in scalars.Scalars("evaluate/auc")] == [0.75, 0.875]
    assert capsys.readouterr().err == f"warning: {directory}/log.jsonl was removed; it begins again here\n"


def test_a_broken_tensorboard_costs_only_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorboard").write_text("a file where the folder should be")
    with Journal(str(tmp_path), quiet=True) as journal:
        journal.step(1, loss=1.0)
        journal.step(2, loss=1.0)
    message = capsys.readouterr().err
    assert message.startswith(f"warning: {tmp_path}/tensorboard: ")
    assert message.count("\n") == 1
    assert story(tmp_path) == [("train", 1), ("train", 2)]


def test_a_directory_that_cannot_be_made_is_an_error_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(FileExistsError, match="run"):
        Journal(str(tmp_path / "run"))
    with pytest.raises(FileNotFoundError, match=r"log\.jsonl"):
        read_log(tmp_path)


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


def test_plain_lines_come_at_an_interval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(
        "rankmixer.pipeline.journal.journal.memory_here", lambda: {"rss_bytes": 3 * 2**29, "cuda_bytes": 2**31}
    )
    with Journal(None, total_steps=5000) as journal:
        for step in range(1000, 1026):
            journal.step(
                step,
                loss=0.51234,
                epoch=2,
                examples_per_second=54321.4,
                data_wait_share=0.034,
                mfu=0.41,
                lr_sparse=0.02,
                lr_dense=0.003,
                unknown=3.0,
            )
            clock.now += 1
        journal.event("evaluate", 1025, auc=0.812345, gauc=math.nan, rows=77, plan={"not": "shown"}, note="a [b] c")
    first, second, third, last, evaluation = capsys.readouterr().err.splitlines()
    shown = "epoch 2  loss 0.5123  54,321 examples/s  data wait 3%  MFU 41%  RSS 1.5 GiB  CUDA 2.0 GiB"
    shown += "  lr 2.0e-02 sparse  3.0e-03 dense"
    assert first == f"step 1,000/5,000  {shown}"
    assert second == f"step 1,010/5,000  ETA 1:06:30  {shown}"
    assert third == f"step 1,020/5,000  ETA 1:06:20  {shown}"
    assert evaluation == "evaluate at step 1,025  auc 0.81234  gauc nan  rows 77  note a [b] c"
    assert last == f"step 1,025/5,000  ETA 1:06:15  {shown}"


def test_unknown_totals_and_absent_values_are_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    with Journal(None) as journal:
        journal.step(3, loss=math.nan, mfu=None)
    line = capsys.readouterr().err
    assert line.startswith("step 3  loss nan  RSS ")
    assert "MFU" not in line
    assert "ETA" not in line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_one_live_line_with_events_above(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr(progress, "LIVE_SECONDS", 0.0)
    with Journal(None, total_steps=20) as journal:
        for step in (1, 2, 3):
            journal.step(step, epoch=123456789, loss=0.5)
        journal.event("note", 3, text="[red]above")
    output = terminal.getvalue()
    assert output.count("\n") == 2, "one for the event, one when the line is left"
    assert output.count("\x1b[2K") >= 3, "each step clears the line"
    assert "step 1/20  epoch 123456789  l…" in output, "cut at the width of the terminal"
    assert "note at step 3  text [red]above\n" in output, "not cut, and no markup"


def test_quiet_shows_nothing_and_still_records(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Journal(str(tmp_path), quiet=True) as journal:
        journal.step(1, loss=1.0)
        journal.event("note", 1)
    assert capsys.readouterr() == ("", "")
    assert len(read_log(tmp_path)) == 2


def test_a_note_is_recorded_and_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Journal(str(tmp_path)) as journal:
        journal.note("memory", 3, ranks={"0": {"rss_bytes": 5}})
    assert [(line["kind"], line["step"], line["ranks"]) for line in read_log(str(tmp_path))] == [
        ("memory", 3, {"0": {"rss_bytes": 5}})
    ]
    assert "memory" not in capsys.readouterr().err


def test_what_is_shown_has_units_and_no_empty_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Journal(str(tmp_path)) as journal:
        journal.event("checkpoint", 7, name="step-7", seconds=0.5, bytes=2464357, bytes_per_second=4928714.0, of=None)
    assert capsys.readouterr().err == "checkpoint at step 7  name step-7  0.50 s  2.5 MB  5 MB/s\n"
    (line,) = read_log(tmp_path)
    assert (line["bytes"], line["of"]) == (2464357, None)
