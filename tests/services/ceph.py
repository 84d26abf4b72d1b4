"""An object store of its own for tests: Ceph's RADOS gateway (S3) on loopback, in a folder, gone when the test ends."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

PACKAGES = "apt-get install --no-install-recommends ceph-mon ceph-osd radosgw ceph-common"
PROGRAMS = "ceph ceph-authtool ceph-mon ceph-osd monmaptool radosgw radosgw-admin"
SEARCH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
SECONDS_TO_START = 180.0
DYING = ["setpriv", "--pdeathsig", "KILL"]  # with the test, even if that is killed
KEY, SECRET = "rankmixer", "not-a-secret"

KEYRING = {
    "mon.": "--cap|mon|allow *",
    "client.admin": "--cap|mon|allow *|--cap|osd|allow *|--cap|mgr|allow *",
    "osd.0": "--cap|mon|allow profile osd|--cap|osd|allow *",
}
CEPH_CONF = """\
[global]
fsid = {fsid}
keyring = {folder}/keyring
mon initial members = a
mon host = [v2:127.0.0.1:{mon_v2},v1:127.0.0.1:{mon_v1}]
public network = 127.0.0.0/8
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
mon allow pool size one = true
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 4294967296
osd max object name len = 256
mon data = {folder}/mon
osd data = {folder}/osd
run dir = {folder}/run
admin socket = {folder}/run/$name.asok
log file = {folder}/log/$name
pid file = {folder}/run/$name.pid
mon data avail warn = 1
mon data avail crit = 1

[client.admin]
rgw data = {folder}/rgw
rgw frontends = beast endpoint=127.0.0.1:{rgw}
"""


def missing() -> str | None:
    """Why no gateway can be started here and what to do about it, or None."""
    absent = [program for program in PROGRAMS.split() if shutil.which(program, path=SEARCH) is None]
    return f"{', '.join(absent)} not found; as root: {PACKAGES}" if absent else None


class Ceph:
    """A running gateway.

    Args:
        folder: its files.
        port: of 127.0.0.1.
        daemons: monitor, disk and gateway, in the order in which they were started.
    """

    def __init__(self, folder: Path, port: int, daemons: list[subprocess.Popen[bytes]]) -> None:
        self.folder, self.port, self.daemons = folder, port, daemons
        self.url = f"http://127.0.0.1:{port}"
        self.environment = {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": self.url,
            "AWS_DEFAULT_REGION": "default",
            "AWS_EC2_METADATA_DISABLED": "true",  # nothing outside this machine is asked for keys
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    @contextmanager
    def stalled(self) -> Iterator[None]:
        """Within the block the gateway takes connections and answers nothing."""
        gateway = self.daemons[-1]
        gateway.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            gateway.send_signal(signal.SIGCONT)


@contextmanager
def ceph(folder: Path) -> Iterator[Ceph]:
    """Start monitor, disk (in memory) and gateway in `folder`; end all of them.

    Raises:
        RuntimeError: it has not started in `SECONDS_TO_START`; with the last lines of its logs.
    """
    ports = free_ports(3)
    fsid = str(uuid.uuid4())
    for name in ("mon", "osd", "rgw", "run", "log"):
        (folder / name).mkdir()
    (folder / "ceph.conf").write_text(
        CEPH_CONF.format(folder=folder, fsid=fsid, mon_v1=ports[0], mon_v2=ports[1], rgw=ports[2])
    )
    daemons: list[subprocess.Popen[bytes]] = []
    environment = {**os.environ, "PATH": SEARCH, "CEPH_CONF": str(folder / "ceph.conf")}
    until = time.monotonic() + SECONDS_TO_START

    def run(*words: str) -> None:
        done = subprocess.run(
            words, env=environment, cwd=folder, capture_output=True, text=True, timeout=SECONDS_TO_START
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.stderr[-2000:]}{_logs(folder)}")

    def start(*words: str) -> None:
        with (folder / "log" / words[0]).open("wb") as log:
            daemons.append(
                subprocess.Popen(
                    [*DYING, *words], env=environment, cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL
                )
            )

    try:
        for entity, caps in KEYRING.items():
            run(
                "ceph-authtool",
                "keyring",
                *([] if Path(folder, "keyring").exists() else ["--create-keyring"]),
                "--gen-key",
                "-n",
                entity,
                *caps.split("|"),
            )
        run(
            "monmaptool",
            "--create",
            "--addv",
            "a",
            f"[v2:127.0.0.1:{ports[1]},v1:127.0.0.1:{ports[0]}]",
            "--fsid",
            f"{fsid}",
            "monmap",
        )
        run("ceph-mon", "--mkfs", "-i", "a", "--monmap", "monmap", "--keyring", "keyring")
        start("ceph-mon", "-f", "-i", "a")
        osd = str(uuid.uuid4())
        run("ceph", "osd", "new", osd, "0")
        run("ceph-osd", "-i", "0", "--osd-uuid", osd, "--mkfs")
        start("ceph-osd", "-f", "-i", "0")
        start("radosgw", "-f", "-n", "client.admin", "--keyring", "keyring")
        while not _answers(ports[2]):
            ended = [daemon for daemon in daemons if daemon.poll() is not None]
            if ended or time.monotonic() > until:
                raise RuntimeError(f"Ceph has not started{_logs(folder)}")
            time.sleep(0.2)
        run(
            "radosgw-admin",
            "user",
            "create",
            "--uid=u",
            "--display-name=u",
            f"--access-key={KEY}",
            f"--secret={SECRET}",
        )
        yield Ceph(folder, ports[2], daemons)
    finally:
        for daemon in reversed(daemons):
            with suppress(psutil.NoSuchProcess):
                daemon.send_signal(signal.SIGCONT)
            daemon.kill()  # all it holds is in memory
            daemon.wait()


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as gateway:
        gateway.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return gateway.recv(16).startswith(b"HTTP/")
    return False


def _logs(folder: Path) -> str:
    lines = []
    for path in sorted((folder / "log").iterdir()):
        lines += [f"--- {path.name}", *path.read_text(errors="replace").splitlines()[-10:]]
    return "\n" + "\n".join(lines)
