"""What is recorded names a commit that holds the code it was measured with."""

import subprocess
from pathlib import Path

import pytest

from benchmarks import harness


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "benchmarks"
    (folder / "results").mkdir(parents=True)
    (folder / "results" / "head.md").write_text("old")
    (tmp_path / "code.py").write_text("1")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    monkeypatch.setattr(harness, "__file__", str(folder / "harness.py"))
    return tmp_path


def test_nothing_is_recorded_from_a_tree_with_changes(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (repository / "code.py").write_text("2")
    with pytest.raises(SystemExit):
        harness.arguments("a benchmark").parse_args(["--record"])
    assert "with changes; commit or stash first" in capsys.readouterr().err
    assert not harness.arguments("a benchmark").parse_args([]).record


def test_one_record_after_the_other_is_written(repository: Path) -> None:
    (repository / "benchmarks" / "results" / "head.md").write_text("new")
    assert harness.arguments("a benchmark").parse_args(["--record"]).record


def test_every_record_names_a_whole_commit() -> None:
    files = sorted((Path(__file__).parents[2] / "benchmarks" / "results").glob("*.md"))
    assert files
    assert [file.name for file in files if harness.CHANGED in file.read_text()] == []
