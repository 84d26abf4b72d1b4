"""TorchX components: `torchx run -s local_cwd launch/components.py:train -j 1x2 --config my.yaml`.

A component only writes down a command line of ranks/torchrun.py; typed by hand it runs the same job. TorchX 0.7 reads
this file's syntax: plain annotations, `Optional` and `List` by their bare names, and no future annotations.
"""

import shlex
import sys
from typing import List, Optional, Tuple

from torchx import specs
from torchx.specs import macros

from rankmixer.launch.component_words import check_given_once, environment, job_name, literal, mounts_of, shape
from rankmixer.launch.preflight import check_job, run_directory
from rankmixer.launch.ranks.errors import is_user_error

# With a shared store, restarted workers would read the addresses of the attempt before.
ENVIRONMENT = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "LOGLEVEL": "WARNING"}

# Seconds between SIGTERM and SIGKILL for the processes of a node that is told to stop.
SHUTDOWN_SECONDS = 60


def train(
    *overrides: str,
    config: str,
    j: str = "1x2",
    name: str = "",
    image: str = "",
    h: Optional[str] = None,
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 4096,
    env: str = "",
    mounts: Optional[List[str]] = None,
    max_retries: int = 0,
    max_restarts: int = 0,
    rdzv_port: int = 29500,
) -> specs.AppDef:
    """Train a RankMixer over sharded tables; evaluates, checkpoints and resumes.

    Args:
        overrides: section.key=value, overriding the configuration; after --
        config: configuration file, as the job sees it
        j: NODESxPROCESSES, processes on each node
        name: what schedulers call the job; default: the command and the last part of run.directory
        image: container image; none on local_cwd and slurm
        h: named resource of a node, instead of cpu, gpu and memMB
        cpu: cores of a node
        gpu: GPUs of a node
        memMB: memory of a node
        env: environment variables, A=1,B=2; a value may hold = and, where no NAME= follows, commas
        mounts: mounts, type=bind,src=/host,dst=/job
        max_retries: times the scheduler may start the job again
        max_restarts: times torchrun may restart the processes; they resume from the last checkpoint
        rdzv_port: port of the rendezvous on the first node, if there are several
    """
    resource = specs.resource(cpu=cpu, gpu=gpu, memMB=memMB, h=h)
    return _job(
        ["train"], config, overrides, j, name, image, resource, env, mounts, max_retries, max_restarts, rdzv_port
    )


def evaluate(
    *overrides: str,
    config: str,
    checkpoint: str = "best",
    j: str = "1x2",
    name: str = "",
    image: str = "",
    h: Optional[str] = None,
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 4096,
    env: str = "",
    mounts: Optional[List[str]] = None,
    max_retries: int = 0,
    max_restarts: int = 0,
    rdzv_port: int = 29500,
) -> specs.AppDef:
    """Evaluate a checkpoint of a run on the rows of data.test, or data.evaluate if there is none.

    Args:
        overrides: section.key=value, overriding the configuration; after --
        config: configuration file, as the job sees it
        checkpoint: best, latest or a name
        j: NODESxPROCESSES, processes on each node
        name: what schedulers call the job; default: the command and the last part of run.directory
        image: container image; none on local_cwd and slurm
        h: named resource of a node, instead of cpu, gpu and memMB
        cpu: cores of a node
        gpu: GPUs of a node
        memMB: memory of a node
        env: environment variables, A=1,B=2; a value may hold = and, where no NAME= follows, commas
        mounts: mounts, type=bind,src=/host,dst=/job
        max_retries: times the scheduler may start the job again
        max_restarts: times torchrun may restart the processes
        rdzv_port: port of the rendezvous on the first node, if there are several
    """
    resource = specs.resource(cpu=cpu, gpu=gpu, memMB=memMB, h=h)
    return _job(
        ["evaluate", "--checkpoint", checkpoint],
        config,
        overrides,
        j,
        name,
        image,
        resource,
        env,
        mounts,
        max_retries,
        max_restarts,
        rdzv_port,
    )


def predict(
    *overrides: str,
    config: str,
    data: str,
    out: str,
    keys: str = "",
    logits: bool = False,
    checkpoint: str = "best",
    j: str = "1x2",
    name: str = "",
    image: str = "",
    h: Optional[str] = None,
    cpu: int = 2,
    gpu: int = 0,
    memMB: int = 4096,
    env: str = "",
    mounts: Optional[List[str]] = None,
    max_retries: int = 0,
    max_restarts: int = 0,
    rdzv_port: int = 29500,
) -> specs.AppDef:
    """Write key columns and one probability per task for every input row, as Parquet.

    Args:
        overrides: section.key=value, overriding the configuration; after --
        config: configuration file, as the job sees it
        data: Parquet files to predict: path, glob, directory or URL
        out: directory to write, which must not exist yet
        keys: columns to copy to the output, separated by commas
        logits: write TASK_logit too, which keeps rows apart that are all but certain
        checkpoint: best, latest or a name
        j: NODESxPROCESSES, processes on each node
        name: what schedulers call the job; default: the command and the last part of run.directory
        image: container image; none on local_cwd and slurm
        h: named resource of a node, instead of cpu, gpu and memMB
        cpu: cores of a node
        gpu: GPUs of a node
        memMB: memory of a node
        env: environment variables, A=1,B=2; a value may hold = and, where no NAME= follows, commas
        mounts: mounts, type=bind,src=/host,dst=/job
        max_retries: times the scheduler may start the job again
        max_restarts: times torchrun may restart the processes
        rdzv_port: port of the rendezvous on the first node, if there are several
    """
    resource = specs.resource(cpu=cpu, gpu=gpu, memMB=memMB, h=h)
    command = ["predict", "--checkpoint", checkpoint, "--data", data, "--out", out]
    command += ["--keys", keys] if keys else []
    command += ["--logits"] if logits else []
    return _job(command, config, overrides, j, name, image, resource, env, mounts, max_retries, max_restarts, rdzv_port)


def _job(
    command: List[str],
    config: str,
    overrides: Tuple[str, ...],
    j: str,
    name: str,
    image: str,
    resource: specs.Resource,
    env: str,
    mounts: Optional[List[str]],
    max_retries: int,
    max_restarts: int,
    rdzv_port: int,
) -> specs.AppDef:
    """One role: torchrun on every node, the command line's module under it."""
    arguments = [*command, "--config", config, *overrides]
    try:
        check_given_once(sys.argv)
        min_nodes, nodes, processes, nodes_argument = shape(j)
        variables, mounted = environment(env), mounts_of(mounts)
        # Without an image the job sees this machine's files: everything can be checked before it starts.
        problem = check_job(arguments, nodes * processes, files_are_here=not image)
        called = "" if problem else job_name(name, command[0], run_directory(config, overrides))
    except ValueError as error:
        if not is_user_error(error):
            raise
        problem = f"rankmixer: error: {error}"
    if problem:
        print(problem, file=sys.stderr)
        raise SystemExit(2)
    threads = max(1, int(resource.cpu) // processes)
    # The scheduler names the variable that holds the first node's host; some leave it empty on that node itself, and
    # TorchX keeps a hyphen of the role in it, where Volcano has an underscore.
    find_first = f"first={macros.rank0_env}; first=$${{first//-/_}}; " if nodes > 1 else ""
    endpoint = f"$${{!first:-localhost}}:{rdzv_port}" if nodes > 1 else "localhost:0"
    torchrun = [
        "python",
        "-m",
        "rankmixer.launch.ranks.torchrun",
        "--nnodes",
        nodes_argument,
        "--nproc-per-node",
        str(processes),
    ]
    torchrun += ["--rdzv-backend", "c10d", "--rdzv-id", macros.app_id, "--rdzv-endpoint"]
    rest = ["--max-restarts", str(max_restarts), "--shutdown-timeout", str(SHUTDOWN_SECONDS)]
    rest += ["-m", "rankmixer", *(literal(word) for word in arguments)]
    if variables:
        torchrun = ["env", *(literal(f"{key}={value}") for key, value in variables.items()), *torchrun]
    # exec: signals of the scheduler reach torchrun, not a shell.
    shell = f"{find_first}exec {shlex.join(torchrun)} {endpoint} {shlex.join(rest)}"
    return specs.AppDef(
        name=f"rankmixer-{command[0]}",
        roles=[
            specs.Role(
                name=called,
                image=image,
                min_replicas=min_nodes,
                num_replicas=nodes,
                entrypoint="bash",
                args=["-c", shell],
                env={**ENVIRONMENT, "OMP_NUM_THREADS": str(threads)},
                resource=resource,
                port_map={"c10d": rdzv_port},
                max_retries=max_retries,
                mounts=mounted,
            )
        ],
    )
