"""`rankmixer status`, `compare` and `report`, in this process."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rankmixer.launch.cli import main
from rankmixer.launch.report.show_run import status
from tests.helpers.run_log import a_run, config, write


def json_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert main(list(arguments)) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    return dict(json.loads(printed.out))


def test_status_of_a_finished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write(tmp_path, a_run(["click"]))
    found = json_of(capsys, "status", run, "--json")
    assert (found["state"], found["step"], found["total_steps"], found["restarts"]) == ("finished", 100, 100, 1)
    assert found["metrics"]["test"]["auc"] == 0.625  # type: ignore[index]
    assert found["best_step"] == 40
    assert found["seconds_left"] is None
    assert found["examples_per_second"] == pytest.approx(155)
    assert found["checkpoint"] is None  # the log names some, but they are gone
    assert found["report"] is None
    assert main(["status", run]) == 0
    screen = capsys.readouterr().out
    assert screen.startswith(f"{run}  finished")
    for told in ("100 of 100 (100%)", "2 ranks on node-0, node-1, 1 restart", "none yet", "dead expert of <user>"):
        assert told in screen, told
    assert "\x1b" not in screen
    assert len(screen.splitlines()) < 24


def test_a_run_is_running_as_long_as_it_has_spoken_lately(tmp_path: Path) -> None:
    records = a_run(["click"])[:6]  # a second between two, the last at step 40
    run = write(tmp_path, [{**record, "time": 1000.0 + 50 * number} for number, record in enumerate(records)])
    found = status(run, now=1250.0 + 140)
    assert found["state"] == "running"
    assert found["seconds_silent"] == pytest.approx(140)
    assert found["seconds_left"] == pytest.approx(60 * 5)  # ten steps took 50 s
    assert found["loss"] == pytest.approx(1 / 40)
    assert status(run, now=1250.0 + 160)["state"] == "stopped"  # three times its longest silence, and more
    write(tmp_path, records[:2])
    assert status(run, now=1001.0 + 59)["state"] == "running"
    diverged = {"kind": "diverged", "step": 20, "layers": {}, "checkpoint": "step-00000010"}
    write(tmp_path, [*records, diverged])
    assert status(run)["state"] == "diverged"
    write(tmp_path, [*records, {"kind": "preempted", "step": 40, "signal": "SIGTERM", "checkpoint": "step-00000040"}])
    assert status(run)["state"] == "preempted"
    write(tmp_path, [*records, diverged, {**records[0], "step": 10}])
    assert status(run, now=1010.0)["state"] == "running"  # resumed since


@pytest.mark.parametrize("command", ["status", "compare", "report"])
def test_a_run_that_is_none(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, str(tmp_path / "none")]) == 2
    expected = f"rankmixer: error: {tmp_path}/none: no log.jsonl here; give the run.directory of a training run"
    assert expected in capsys.readouterr().err
    (tmp_path / "log.jsonl").write_text('{"kind": "start", "step"')
    assert main([command, str(tmp_path)]) == 2
    printed = capsys.readouterr()
    assert f"{tmp_path}/log.jsonl: found no record yet, 24 bytes; expected what a training run has" in printed.err
    assert printed.out == ""


def test_comparison_shows_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = a_run(["click"]), a_run(["click"])
    tree = config(["click"], model={"layers": 3, "moe": None}, run={"directory": "runs/b", "checkpoints": "s3://b"})
    tree["feature_schema"]["features"]["age"] = {"kind": "time", "buckets": 9}
    second = [{**record, "config": tree} if record["kind"] == "start" else record for record in second]
    second[-1] |= {"test_auc": 0.75}
    runs = [write(tmp_path / "a", first), write(tmp_path / "b", second), write(tmp_path / "c", first[:1])]
    found = json_of(capsys, "compare", *runs, "--json")
    assert found["differences"] == {
        "feature_schema.features.age": [None, "time", None],
        "model.layers": [2, 3, 2],
        "model.moe.active_ratio": [0.25, None, 0.25],
    }
    assert [run["metrics"].get("test", {}).get("auc") for run in found["runs"]] == [0.625, 0.75, None]  # type: ignore[attr-defined]
    assert main(["compare", *runs]) == 0
    tables = capsys.readouterr().out
    assert "test auc" in tables
    assert "model.layers" in tables
    assert "metrics.select" not in tables
    assert main(["compare", runs[0], runs[2]]) == 0
    assert "configuration: the same" in capsys.readouterr().out


def test_vocabularies_are_compared_by_what_they_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = []
    for name, words in (("a", "Rome\n"), ("b", "Rome\n"), ("c", "Oslo\n")):
        tree = config(["click"])
        path = tmp_path / f"{name}.txt"
        path.write_text(words)
        tree["feature_schema"]["features"]["city"] = {"kind": "id", "vocabulary": str(path)}
        records = [{**record, "config": tree} if record["kind"] == "start" else record for record in a_run(["click"])]
        runs.append(write(tmp_path / name, records))
    assert json_of(capsys, "compare", runs[0], runs[1], "--json")["differences"] == {}
    differing = json_of(capsys, "compare", runs[0], runs[2], "--json")["differences"]
    assert list(differing) == ["feature_schema.features.city.vocabulary"]  # type: ignore[call-overload]
    (tmp_path / "b.txt").unlink()
    assert json_of(capsys, "compare", runs[0], runs[1], "--json")["differences"]


def test_report_writes_the_page_and_tells_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write(tmp_path, a_run(["click", "buy"]))
    assert main(["report", run]) == 0
    printed = capsys.readouterr().out
    assert "best evaluation" in printed
    result = json.loads(printed.splitlines()[-1])
    assert result["test_click/auc"] == 0.625
    assert result["report"] == f"{run}/report.html"
    assert (tmp_path / "report.html").stat().st_size > 1e6
    write(tmp_path, a_run(["click", "buy"])[:3])
    assert main(["report", run]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["state"] == "stopped"
