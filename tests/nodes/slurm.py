"""A Slurm of two nodes on this machine, for tests: real daemons in namespaces of their own, gone when the test ends."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

PACKAGES = "apt-get install slurm-wlm munge slurmdbd mariadb-server iproute2"
PROGRAMS = "munged mariadbd mariadb-install-db slurmdbd slurmctld slurmd sbatch srun sacct ip unshare nsenter setpriv"
SEARCH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", ""), "/usr/sbin"])
# It dies with the test, even if that is killed.
NAMESPACES = [
    "setpriv",
    "--pdeathsig",
    "KILL",
    "unshare",
    "--mount",
    "--uts",
    "--ipc",
    "--net",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
]

# The nodes claim what the recipe of docs/launch.md asks for; config_overrides makes Slurm believe it.
SLURM_CONF = """\
ClusterName=test
SlurmctldHost=login(10.0.0.254)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld
SlurmdLogFile={folder}/log/slurmd-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=10.0.0.254
AccountingStoragePass={folder}/munge.socket
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=bf_interval=2,sched_min_interval=200000,sched_interval=2
MpiDefault=none
ReturnToService=2
SwitchType=switch/none
SlurmdParameters=config_overrides
KillWait=30
GresTypes=gpu
NodeName=n1 NodeAddr=10.0.0.1 CPUs=64 RealMemory=900000 Gres=gpu:8 State=UNKNOWN
NodeName=n2 NodeAddr=10.0.0.2 CPUs=64 RealMemory=900000 Gres=gpu:8 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=gpu Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=2
"""

SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=login
DbdAddr=10.0.0.254
SlurmUser=root
LogFile={folder}/log/slurmdbd
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
"""

HOSTS = "127.0.0.1 localhost\n10.0.0.254 login\n10.0.0.1 n1\n10.0.0.2 n2\n"

# Process 1 of the namespaces: all else ends with it. Every node has a network and a host name of its own.
START = """\
set -eu
mount --bind hosts /etc/hosts
mount --bind nsswitch.conf /etc/nsswitch.conf
hostname login
ip link set lo up
ip link add bridge type bridge
ip addr add 10.0.0.254/24 dev bridge
ip link set bridge up
munged --foreground --key-file=munge.key --socket=$PWD/munge.socket --pid-file=$PWD/munged.pid \\
    --log-file=$PWD/log/munged --seed-file=$PWD/munge.seed &
mariadb-install-db --no-defaults --user=root --datadir=$PWD/mysql --skip-test-db \\
    --auth-root-authentication-method=normal
mariadbd --no-defaults --user=root --datadir=$PWD/mysql --socket=$PWD/mysql.socket --pid-file=$PWD/mysql.pid \\
    --bind-address=127.0.0.1 --innodb-buffer-pool-size=128M --innodb-lock-wait-timeout=900 --skip-log-bin &
until mariadb-admin --no-defaults -uroot -S mysql.socket ping; do sleep .2; done
mariadb --no-defaults -uroot -S mysql.socket -e "create database slurm;
    create user 'slurm'@'localhost' identified by 'slurm'; grant all on slurm.* to 'slurm'@'localhost';"
for i in 0 1 2 3 4 5 6 7; do mknod gpu$i c 1 3; done  # eight times /dev/null: a GPU must be a device
slurmdbd -D &
until echo >/dev/tcp/10.0.0.254/6819; do sleep .2; done
slurmctld -D -c &
for i in 1 2; do
  unshare --net --uts bash -euc "
    ip link set lo up
    ip link add eth0 type veth peer name node$i netns 1
    nsenter --target 1 --net ip link set node$i master bridge up
    ip addr add 10.0.0.$i/24 dev eth0
    ip link set eth0 up
    hostname n$i
    exec slurmd -D -N n$i" &
done
wait
"""


def missing() -> str | None:
    """Why no Slurm can be started here and what to do about it, or None."""
    absent = [program for program in PROGRAMS.split() if shutil.which(program, path=SEARCH) is None]
    if absent:
        return f"{', '.join(absent)} not found; as root: {PACKAGES}"
    if os.geteuid() != 0:
        return "a Slurm of its own needs root"
    tried = subprocess.run([*NAMESPACES, "true"], capture_output=True, text=True)
    return None if tried.returncode == 0 else f"no namespaces here: {tried.stderr.strip()}"


class Slurm:
    """A running Slurm.

    Args:
        folder: its files.
        init: process 1 of its namespaces, by its number outside.
    """

    def __init__(self, folder: Path, init: int) -> None:
        self.folder, self.init = folder, init

    def command(self, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command on the login node, as someone who has activated this Python environment."""
        enter = ["nsenter", "--target", str(self.init), "--mount", "--uts", "--ipc", "--net", "--pid"]
        return subprocess.run(
            [*enter, f"--wd={cwd or self.folder}", *words],
            env=environment(self.folder),
            capture_output=True,
            text=True,
            timeout=300,
        )

    def output(self, *words: str) -> str:
        """What a command prints; it must succeed."""
        done = self.command(*words)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def states(self, job: str) -> dict[str, tuple[str, str]]:
        """Last state and node of each part of a job, by its number: {"1+0": ("RUNNING", "n1"), "1+1": ...}."""
        lines = self.output(
            "sacct", "--allocations", "--noheader", "--parsable2", "--format=JobID,State,NodeList", "-j", job
        )
        rows = [line.split("|") for line in lines.splitlines()]
        return {part: (state.split()[0], nodes) for part, state, nodes in rows}  # "CANCELLED by 0"

    def processes(self) -> list[str]:
        """The command lines of all that runs for jobs, on either node."""
        found = []
        for process in psutil.Process(self.init).children(recursive=True):
            try:
                if "SLURM_JOB_ID" in process.environ() or process.name() == "slurmstepd":
                    found.append(" ".join(process.cmdline()))
            except psutil.NoSuchProcess:
                continue
        return found

    def logs(self) -> str:
        """The last lines of every daemon, for a test that fails."""
        parts = []
        for path in sorted((self.folder / "log").iterdir()):
            parts += [f"--- {path.name}", *path.read_text(errors="replace").splitlines()[-15:]]
        return "\n".join(parts)


def environment(folder: Path) -> dict[str, str]:
    """The caller's environment without a Slurm that it may know, and with this one."""
    kept = {key: value for key, value in os.environ.items() if not re.match("SLURM|SBATCH|SRUN|TORCHX|SINFO", key)}
    return {**kept, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": SEARCH, "CUDA_VISIBLE_DEVICES": ""}


@contextmanager
def slurm(seconds: float = 120.0) -> Iterator[Slurm]:
    """Start a Slurm of two idle nodes, n1 and n2, each a host with its own network; end it and all its jobs at the end.

    munge, MariaDB, slurmdbd, slurmctld and two slurmd run in namespaces of their own: nothing of them is seen from
    outside, no port is taken, no file outside a temporary folder is written.

    Args:
        seconds: limit on the start.

    Raises:
        RuntimeError: it did not start; holds the daemons' last words.
    """
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))  # short: paths of sockets have a limit
    folder.chmod(0o755)  # munge wants so
    for name in ("log", "state", "spool-n1", "spool-n2", "mysql"):
        (folder / name).mkdir()
    files = {"slurm.conf": SLURM_CONF, "slurmdbd.conf": SLURMDBD_CONF, "hosts": HOSTS, "start": START}
    files |= {
        "gres.conf": "Name=gpu File={folder}/gpu[0-7]\n",
        "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text.replace("{folder}", str(folder)))
    (folder / "slurmdbd.conf").chmod(0o600)
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    with (folder / "log" / "start").open("w") as log:
        # A session of its own: Ctrl-C is for the test, whose end ends this.
        process = subprocess.Popen(
            [*NAMESPACES, "bash", "start"],
            cwd=folder,
            env=environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        yield _wait(folder, process, seconds)
    finally:
        for child in psutil.Process(process.pid).children() if process.poll() is None else []:
            child.kill()  # process 1: the kernel ends what is in the namespaces before this one is gone
        process.wait()
        shutil.rmtree(folder)


def _wait(folder: Path, process: subprocess.Popen[bytes], seconds: float) -> Slurm:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.5)
        children = psutil.Process(process.pid).children()
        if children:
            cluster = Slurm(folder, children[0].pid)
            nodes = cluster.command("sinfo", "--Node", "--noheader", "--format=%N %T").stdout.splitlines()
            if set(nodes) == {"n1 idle", "n2 idle"}:
                return cluster
    raise RuntimeError(f"Slurm did not start in {seconds:.0f} s\n{Slurm(folder, 0).logs()}")
