"""Storage that refuses, fails, stalls or has no driver, without a server: filesystems that raise what s3fs raises."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from rankmixer.launch.cli import main
from rankmixer.pipeline.base import storage
from rankmixer.pipeline.base.errors import PassingError
from rankmixer.pipeline.base.storage import check_storage, move_directory, open_storage, reading, went_on, write_whole
from rankmixer.pipeline.checkpoint.background import BackgroundSaves
from rankmixer.pipeline.checkpoint.checkpoint import Checkpoints
from rankmixer.pipeline.files.watch import Watch
from tests.helpers.job import Job
from tests.pipeline.checkpoint.test_checkpoint import state


class NoCredentialsError(Exception):
    """As botocore's: no OSError."""


class EndpointConnectionError(Exception):
    """As botocore's: no OSError."""


class Bucket(MemoryFileSystem):
    """Buckets as s3fs has them: a folder is no file to copy; `error` is raised by whatever asks the store."""

    protocol = "bucket"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    error: ClassVar[Exception | None] = None
    copies: ClassVar[int] = 99

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.replace("bucket://", "/", 1))).lstrip("/")

    def _ask(self) -> None:
        if Bucket.error is not None:
            raise Bucket.error

    def ls(self, path: str, detail: bool = True, **keys: Any) -> Any:
        self._ask()
        found = super().ls(path, detail=True, **keys)
        found = [{**entry, "name": entry["name"].lstrip("/")} for entry in found]
        return found if detail else [entry["name"] for entry in found]

    def exists(self, path: str, **keys: Any) -> bool:
        self._ask()
        return bool(super().exists(path, **keys))

    def info(self, path: str, **keys: Any) -> Any:
        self._ask()
        entry = super().info(path, **keys)
        return {**entry, "name": entry["name"].lstrip("/")}

    def cp_file(self, path1: str, path2: str, **keys: Any) -> None:
        if self.isdir(path1):
            raise FileNotFoundError(path1)  # NoSuchKey
        if Bucket.copies == 0:
            raise PermissionError("Forbidden")
        Bucket.copies -= 1
        self.pipe_file(path2, self.cat_file(path1))

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        self._ask()

    def pipe_file(self, path: str, value: bytes, **keys: Any) -> None:
        self._ask()
        self.store[path] = MemoryFile(self, path, value)

    def _open(self, path: str, mode: str = "rb", **keys: Any) -> Any:
        self._ask()
        return super()._open(path, mode, **keys)

    def cat_file(self, path: str, *arguments: Any, **keys: Any) -> bytes:
        with self._open(path) as file:
            return bytes(file.read())

    def _rm(self, path: str) -> None:
        del self.store[path]

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        for file in self.find(path):
            self._rm(file)


fsspec.register_implementation("bucket", Bucket, clobber=True)


@pytest.fixture(autouse=True)
def bucket() -> Iterator[Bucket]:
    """An empty store with the bucket `b`."""
    Bucket.store.clear()
    Bucket.error, Bucket.copies = None, 99
    filesystem = Bucket()
    filesystem.pipe_file("b/.there", b"")
    yield filesystem
    Bucket.error = None


FAILURES = {
    "no access": (PermissionError("Forbidden"), "cannot be read: PermissionError: Forbidden; check the keys"),
    "no keys": (NoCredentialsError("Unable to locate credentials"), "Unable to locate credentials; check the keys"),
    "no answer": (ConnectionError("refused"), "cannot be read: ConnectionError: refused; this may pass"),
    "no connection": (EndpointConnectionError("no\nroute"), "EndpointConnectionError: no route; this may pass"),
    "a timeout": (TimeoutError("30 s"), "cannot be read: TimeoutError: 30 s; this may pass"),
}
COMMANDS = {
    "train": ["train", "--config", "{config}", "run.checkpoints={url}/ck"],
    "evaluate": ["evaluate", "--config", "{config}", "run.checkpoints={url}/ck"],
    "predict": ["predict", "--config", "{config}", "--data", "{folder}/test", "--out", "{url}/scores"],
    "list": ["checkpoint", "list", "{url}/ck"],
    "verify": ["checkpoint", "verify", "{url}/ck/step-00000001"],
    "prune": ["checkpoint", "prune", "{url}/ck", "--keep", "1"],
    "profile": ["data", "profile", "{folder}/train", "--config", "{config}", "--out", "{url}/profile.json"],
    "profile of the store": ["data", "profile", "{url}/train", "--config", "{config}"],
    "warm start": ["train", "--config", "{config}", "run.warm_start={url}/ck"],
    "schema": ["train", "--config", "{config}", "feature_schema={url}/schema.yaml"],
}
READS = {
    "training data": ["train", "--config", "{config}", "data.train={url}/train"],
    "data for evaluation": ["train", "--config", "{config}", "data.evaluate={url}/test"],
    "data to predict": ["predict", "--config", "{config}", "--data", "{url}/test", "--out", "{folder}/scores"],
}


def one_sentence(job: Job, command: str, url: str, capsys: pytest.CaptureFixture[str]) -> str:
    words = [word.format(config=job.config, folder=job.folder, url=url) for word in (COMMANDS | READS)[command]]
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("rankmixer: error: ")
    assert not (job.folder / "run").exists()
    return line


@pytest.mark.filterwarnings("ignore")  # the command silences libraries itself, in a process of its own
@pytest.mark.parametrize("failure", FAILURES)
def test_a_store_that_fails_is_one_sentence(
    failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Bucket.error, expected = FAILURES[failure]
    if not isinstance(Bucket.error, OSError):
        monkeypatch.setattr(type(Bucket.error), "__module__", "botocore.exceptions")
    job = Job(tmp_path)
    for command in COMMANDS:
        line = one_sentence(job, command, "bucket://b", capsys)
        assert "bucket://b" in line or "b/ck" in line
        if command != "profile of the store":
            assert expected in line, command


@pytest.mark.filterwarnings("ignore")
def test_a_bucket_that_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = Job(tmp_path)
    for command in ("train", "evaluate", "predict", "list", "profile"):
        assert "found no bucket other; make it" in one_sentence(job, command, "bucket://other", capsys)
    assert "run.checkpoints bucket://other/ck: found" in one_sentence(job, "train", "bucket://other", capsys)
    assert not Bucket().exists("other")


@pytest.mark.filterwarnings("ignore")
def test_a_driver_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_driver(protocol: str) -> Any:
        if protocol in ("gs", "s3"):
            raise ImportError(f"Install the driver of {protocol}")
        return driver(protocol)

    driver = fsspec.get_filesystem_class
    monkeypatch.setattr("fsspec.core.get_filesystem_class", no_driver)
    job = Job(tmp_path)
    for command in (COMMANDS | READS).keys() - {"schema"}:
        for kind in ("gs", "s3"):  # Arrow has drivers of its own for both, which would try for minutes
            line = one_sentence(job, command, f"{kind}://b", capsys)
            assert f"found no driver for this kind of URL (Install the driver of {kind}); install it" in line, command


def test_a_mistake_of_ours_stays_one() -> None:
    with pytest.raises(TypeError), reading("b"):
        raise TypeError("a mistake")
    with pytest.raises(FileNotFoundError), reading("b"):
        raise FileNotFoundError("b/x")


def test_what_a_store_says_passes_for_a_retry() -> None:
    Bucket.error = ConnectionError("refused")
    with pytest.raises(PassingError, match=r"^--out bucket://b/x cannot be read"):
        check_storage("bucket://b/x", "--out")


def test_who_may_not_ask_for_the_bucket_may_use_a_folder_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> bool:
        raise PermissionError("Forbidden")

    monkeypatch.setattr(Bucket, "exists", refuse)
    check_storage("bucket://other/x")


def test_a_folder_is_moved_file_by_file(bucket: Bucket) -> None:
    for name in ("a", "c/d"):
        bucket.pipe_file(f"b/from/{name}", name.encode())
    with pytest.raises(FileNotFoundError):  # what fsspec does
        bucket.mv("b/from", "b/fsspec", recursive=True)
    bucket.rm("b/fsspec", recursive=True)
    Bucket.copies = 1
    with pytest.raises(PermissionError):
        move_directory(bucket, "b/from", "b/to")
    assert bucket.find("b") == ["b/.there", "b/from/a", "b/from/c/d"]
    Bucket.copies = 99
    move_directory(bucket, "b/from", "b/to")
    assert bucket.find("b") == ["b/.there", "b/to/a", "b/to/c/d"]
    assert bucket.cat_file("b/to/c/d") == b"c/d"


def test_a_damaged_checkpoint_is_set_aside_and_leaves_no_copy(bucket: Bucket) -> None:
    checkpoints = Checkpoints("bucket://b/ck", keep=9)
    for step in (1, 2):
        checkpoints.save(step, state(float(step)), {})
    bucket.pipe_file("b/ck/step-00000002/meta.json", b"other")
    name, damaged = checkpoints.whole("latest")
    assert (name, damaged["step-00000002"].aside) == ("step-00000001", "damaged-step-00000002")
    folders = {file.split("/")[2] for file in bucket.find("b/ck")}
    assert folders == {"step-00000001", "damaged-step-00000002"}


def test_one_that_cannot_be_set_aside_is_left(bucket: Bucket) -> None:
    checkpoints = Checkpoints("bucket://b/ck", keep=9)
    for step in (1, 2):
        checkpoints.save(step, state(float(step)), {})
    bucket.pipe_file("b/ck/step-00000002/meta.json", b"other")
    before, Bucket.copies = bucket.find("b"), 1
    with pytest.warns(UserWarning, match=r"cannot rename the damaged .*: .*PermissionError: Forbidden"):
        assert checkpoints.whole("latest")[0] == "step-00000001"
    assert bucket.find("b") == before


def test_a_file_appears_whole(bucket: Bucket, tmp_path: Path) -> None:
    for url in ("bucket://b/x.json", str(tmp_path / "x.json")):
        filesystem, path = open_storage(url)
        write_whole(filesystem, path, b"{}")
        assert filesystem.cat_file(path) == b"{}"
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize("command", ["vocab", "csv"])
def test_commands_that_write_local_files_refuse_urls(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Job(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.csv").write_text("a,b\n" + "1,x\n0,y\n" * 9)
    words = {
        "vocab": ["vocab", "--config", str(job.config), "city", "--out", "bucket://b/v"],
        "csv": ["data", "csv", "x.csv", "--out", "bucket://b/v", "--label", "a"],
    }
    assert main(words[command]) == 2
    assert "'bucket://b/v' is a URL; expected a path on this machine" in capsys.readouterr().err
    assert not Path("bucket:").exists()


def test_a_wait_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    told = threading.Event()
    lines: list[str] = []

    def tell(path: str, seconds: float) -> None:
        lines.append(path)
        told.set()

    monkeypatch.setattr(storage, "TELL_SECONDS", 0.01)
    monkeypatch.setattr(storage, "tell_of_wait", tell)
    with reading("s3://b/ck"), reading("s3://b/ck/step-00000001"):  # the outer one is told of
        assert told.wait(60)
    assert set(lines) == {"s3://b/ck"}


def test_a_wait_for_data_is_told_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = iter((0.0, 1.0, 9.0, 11.0, 12.0, 60.0, 72.0, 73.0))
    monkeypatch.setattr("rankmixer.pipeline.files.watch.time.monotonic", lambda: next(seconds))
    watch = Watch(seconds=300)
    with watch.reading("s3://b/a.parquet"):
        for _ in range(7):
            assert watch.overdue() is None
    assert capsys.readouterr().err.splitlines() == [
        f"rankmixer: still waiting for s3://b/a.parquet, {waited} s so far" for waited in (11, 72)
    ]


def test_a_checkpoint_that_is_written_in_the_background_tells_of_a_stall(
    monkeypatch: pytest.MonkeyPatch, bucket: Bucket
) -> None:
    told = threading.Event()
    lines: list[str] = []

    def tell(path: str, seconds: float) -> None:
        lines.append(path)
        told.set()

    def pipe_file(self: Bucket, path: str, value: bytes, **keys: Any) -> None:
        assert threading.current_thread().name == "checkpoint"
        assert told.wait(60)
        self.store[path] = MemoryFile(self, path, value)

    monkeypatch.setattr(storage, "TELL_SECONDS", 0.01)
    monkeypatch.setattr(storage, "tell_of_wait", tell)
    monkeypatch.setattr(Bucket, "pipe_file", pipe_file)  # of the manifest
    saves = BackgroundSaves(Checkpoints("bucket://b/ck"))
    saves.save(1, state(1.0), {})
    outcome = saves.wait()
    assert outcome is not None
    assert not outcome.failures
    assert lines[0] == "bucket://b/ck/step-00000001"


def test_what_goes_on_is_no_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    class Ended:
        """4 s go by between two looks; until the fifth the storage is at work."""

        def wait(self, seconds: float) -> bool:
            nonlocal looks
            looks += 1
            if looks <= 5:
                went_on()
            return looks == 9

    lines: list[tuple[int, float]] = []
    monkeypatch.setattr("rankmixer.pipeline.base.storage.time.monotonic", lambda: 4.0 * looks)
    monkeypatch.setattr(storage, "tell_of_wait", lambda path, seconds: lines.append((looks, seconds)))
    wait = storage._Wait("s3://b/ck")
    wait.has_ended = Ended()  # type: ignore[assignment]
    monkeypatch.setattr(storage._here, "wait", wait, raising=False)
    wait.tell()
    assert lines == [(8, 12.0)]
