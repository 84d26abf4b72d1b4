"""Where only a path of this machine will do, a URL is refused (no folder called `s3:` is made), and `~` expanded."""

from pathlib import Path

import pytest

from rankmixer.launch.cli import main
from rankmixer.launch.config.config import load_config
from rankmixer.pipeline.base.local_path import local_path
from tests.helpers.job import Job

URLS = ["s3://bucket/run", "gs://bucket/run", "file:///shared/run", "s3:/bucket/run", "simplecache::s3://bucket/run"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.mark.parametrize("url", URLS)
def test_a_url_is_refused_and_a_path_is_not(url: str) -> None:
    with pytest.raises(ValueError, match="is a URL; expected a path on this machine or a disk that it mounts: remedy"):
        local_path(url, "remedy")
    for path in ("runs/1", "/shared/run", "./a:b", "runs/lr=0.1:/x", "c:"):
        assert local_path(path) == path


@pytest.mark.parametrize("url", URLS)
def test_run_directory(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = Job(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert main(["train", "--config", str(job.config), f"run.directory={url}"]) == 2
    said = capsys.readouterr().err
    assert f"run.directory: {url!r} is a URL; expected a path on this machine" in said
    assert "run.checkpoints may be a URL" in said
    assert sorted(tmp_path.iterdir()) == before


def test_data_manifests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = Job(tmp_path)
    assert main(["train", "--config", str(job.config), "data.manifests=s3://bucket/manifests"]) == 2
    assert "data.manifests: 's3://bucket/manifests' is a URL; expected a path on" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["data", "csv", "clicks.csv", "--label", "click"],
        ["data", "ml-100k", "--source", "ml-100k.zip"],
        ["data", "ml-1m", "--source", "ml-1m.zip"],
        ["data", "synthetic", "--rows", "100"],
        ["vocab", "--config", "run.yaml", "city"],
    ],
)
def test_commands_that_write_a_folder(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Job(tmp_path)
    (tmp_path / "clicks.csv").write_text("user,click\n1,0\n2,1\n")
    before = sorted(tmp_path.iterdir())
    assert main([*command, "--out", "s3://bucket/out"]) == 2
    assert "'s3://bucket/out' is a URL; expected a path on this machine" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before, "nothing is written"


def test_the_home_directory_is_meant_by_its_sign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = Job(tmp_path)
    assert main(["vocab", "--config", str(job.config), "city", "--out", "~/words"]) == 0
    assert (tmp_path / "home" / "words" / "city.txt").exists()
    assert main(["data", "synthetic", "--rows", "100", "--out", "~/log"]) == 0
    assert (tmp_path / "home" / "log" / "schema.yaml").exists()
    assert load_config(str(job.config), ["run.directory=~/run"]).run.directory == str(tmp_path / "home" / "run")
    assert not (tmp_path / "~").exists()
