"""The components, as TorchX's command line sees them; the scheduler's requests are dry runs."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from torchx.components.component_test_base import ComponentTestCase
from torchx.runner import get_runner
from torchx.schedulers.docker_scheduler import create_scheduler as create_docker
from torchx.specs import AppDef, macros
from torchx.specs.builders import materialize_appdef
from torchx.specs.finder import get_components

from rankmixer.launch import components

CONFIG = {
    "feature_schema": {"features": {"user": {"kind": "id", "range": 10, "dim": 8}}, "labels": {"click": {}}},
    "data": {"train": "elsewhere", "batch_size": 12, "evaluate_batch_size": 12},
}


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return str(path)


def app(config: str, *arguments: str) -> AppDef:
    # An image: the job does not see this machine's files, so the data need not be here.
    return materialize_appdef(components.train, ["--config", config, "--image", "registry/image:1", *arguments])


class TestComponents(ComponentTestCase):
    def test_torchx_accepts_them(self) -> None:
        for name in ("train", "evaluate", "predict"):
            self.validate(components, name)


def test_installed_under_a_short_name_beside_torchxs_own() -> None:
    names = set(get_components())
    assert {"rankmixer.train", "rankmixer.evaluate", "rankmixer.predict", "dist.ddp", "utils.echo"} <= names


def test_the_command_is_torchrun(config: str) -> None:
    job = app(config, "-j", "1x3", "--max_restarts", "2", "--env", "A=1", "--cpu", "6", "--", "train.epochs=2")
    (role,) = job.roles
    words = shlex.split(role.args[1])
    assert words[:7] == ["exec", "env", "A=1", "python", "-m", "rankmixer.launch.ranks.torchrun", "--nnodes"]
    assert words[words.index("--nproc-per-node") + 1] == "3"
    assert words[words.index("--max-restarts") + 1] == "2"
    assert words[words.index("--rdzv-endpoint") + 1] == "localhost:0"
    assert words[-6:] == ["-m", "rankmixer", "train", "--config", config, "train.epochs=2"]
    assert role.env == {
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "LOGLEVEL": "WARNING",
        "OMP_NUM_THREADS": "2",
    }


def test_several_nodes_meet_at_the_first(config: str) -> None:
    (role,) = app(config, "-j", "2x2", "--rdzv_port", "29511", "--max_retries", "3").roles
    assert role.num_replicas == 2
    assert role.max_retries == 3
    assert role.args[1].startswith("first=${rank0_env}; first=$${first//-/_}; exec python ")
    assert "--rdzv-endpoint $${!first:-localhost}:29511 " in role.args[1]
    assert "--rdzv-id '${app_id}'" in role.args[1]


def test_predict_passes_its_own_arguments(config: str) -> None:
    arguments = ["--config", config, "--image", "i", "--data", "in", "--out", "out", "--keys", "a,b", "-j", "1x2"]
    (role,) = materialize_appdef(components.predict, arguments).roles
    tail = "predict --checkpoint best --data in --out out --keys a,b --config "
    assert tail in role.args[1]
    (role,) = materialize_appdef(components.predict, [*arguments, "--logits", "True"]).roles
    assert tail.replace(" --config", " --logits --config") in role.args[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-j", "1x5"], "data.batch_size is 12, which 5 ranks do not divide"),
        (["--", "trian.epochs=2"], "unknown key 'trian'; did you mean 'train'"),
    ],
)
def test_mistakes_end_in_the_launching_process_with_status_2(
    config: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        app(config, *arguments)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


def test_missing_data_is_found_before_anything_starts(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        materialize_appdef(components.train, ["--config", config])
    assert "elsewhere" in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("scheduler", ["local_cwd", "slurm", "kubernetes"])
def test_dry_runs(scheduler: str, config: str) -> None:
    options = {"local_cwd": {}, "slurm": {"partition": "gpu", "time": "60"}, "kubernetes": {"queue": "default"}}
    with get_runner() as runner:
        request = str(runner.dryrun(app(config, "-j", "2x2"), scheduler, options[scheduler]))
    assert "rankmixer.launch.ranks.torchrun" in request
    assert re.search(r"-m\W+rankmixer\W+train", request)
    assert "${rank0_env}" not in request
    if scheduler == "slurm":
        assert "SLURM_JOB_NODELIST_HET_GROUP_0" in request


# What a value of --env may hold: everything that a shell, TorchX's macros, YAML or Slurm's --export might change.
VALUES = {
    "NCCL_SOCKET_IFNAME": "=eth0,eth1",
    "PAIRS": "a=b=c",
    "EMPTY": "",
    "COMMAS": "x,y;z",
    "SPACES": "two  words ",
    "QUOTES": 'it\'s "so"',
    "DOLLARS": "$HOME $$ ${HOME} $(id) `id` \\n %s",
    "GLOB": "* ? [a] ~ # ! & | < >",
}


def start_of(scheduler: str, job: AppDef) -> tuple[list[str], dict[str, str]]:
    """The command and variables that a scheduler of TorchX starts on a node, Kubernetes' last, from its dry run."""
    options = {"slurm": {"partition": "gpu", "time": "60"}, "kubernetes": {"queue": "default"}}
    if scheduler == "local_docker":  # whose dry run asks no Docker engine for anything
        info = create_docker(scheduler)._submit_dryrun(job, {"copy_env": None, "env": {}, "privileged": False})
        container = info.request.containers[0]
        return list(container.command), dict(container.kwargs["environment"])
    with get_runner() as runner:
        request: Any = runner.dryrun(job, scheduler, options.get(scheduler, {})).request
    if scheduler == "local_cwd":
        replica = next(iter(request.role_params.values()))[0]
        return list(replica.args), dict(replica.env)
    if scheduler == "kubernetes":
        container = request.resource["spec"]["tasks"][-1]["template"].spec.containers[0]
        return list(container.command), {one.name: one.value for one in container.env if one.value is not None}
    script = request.materialize()
    words = shlex.split(script[script.index("srun ") : script.index("exitcode=$?")])
    start = words.index("bash")
    (export,) = (word.partition("=")[2] for word in words[:start] if word.startswith("--export="))
    stop = words.index(":", start) if ":" in words[start:] else len(words)
    return words[start:stop], dict(word.partition("=")[::2] for word in export.split(",")[1:])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("shape", ["1x2", "2x2"])
@pytest.mark.parametrize("scheduler", ["local_cwd", "slurm", "kubernetes", "local_docker"])
def test_env_reaches_the_command_to_the_letter(scheduler: str, shape: str, config: str, tmp_path: Path) -> None:
    env = ",".join(f"{name}={value}" for name, value in VALUES.items())
    words, variables = start_of(scheduler, app(config, "-j", shape, "--env", env))
    note = tmp_path / "python"
    note.write_text(f"#!{sys.executable}\nimport json, os, sys\nprint(json.dumps([dict(os.environ), sys.argv]))\n")
    note.chmod(0o755)
    path = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    node = {"SLURM_JOB_NODELIST_HET_GROUP_0": "node-0", "VC_TRAIN_DEFAULT_0_HOSTS": "node-0"}
    started = subprocess.run(words, env={**variables, **path, **node}, capture_output=True, text=True, check=True)
    found, argv = json.loads(started.stdout)
    assert {name: found.get(name) for name in VALUES} == VALUES
    assert argv[1:3] == ["-m", "rankmixer.launch.ranks.torchrun"]
    host = {"kubernetes": "node-0", "slurm": "node-0", "local_docker": variables.get("TORCHX_RANK0_HOST")}.get(
        scheduler
    )
    expected = "localhost:0" if shape == "1x2" else f"{host or 'localhost'}:29500"
    assert argv[argv.index("--rdzv-endpoint") + 1] == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "A"], "--env is 'A': found 'A'; expected NAME=VALUE, e.g. A=1,B=2"),
        (["--env", "A=1,my-var=2"], "found 'my-var=2'; expected NAME=VALUE"),
        (["--env", "A=1,"], "found ''; expected NAME=VALUE"),
        (["--env", "=1"], "found '=1'; expected NAME=VALUE"),
        (["--env", "A=1,B=2,A=3"], "A is given twice; leave one out"),
        (["--mounts", "src=/a"], "--mounts is 'src=/a': type must be specified first; expected e.g. type=bind,src="),
        (["--mounts", "type=bind,src=/a"], "--mounts is 'type=bind,src=/a': dst"),
        (["--mounts", "type=tape,src=/a,dst=/b"], "--mounts is 'type=tape,src=/a,dst=/b': "),
        (["-j", "2"], None),
        (["-j", "2y2"], "-j is '2y2'; expected NODESxPROCESSES, e.g. 2x8"),
        (["-j", "0x2"], "-j is '0x2'; expected NODESxPROCESSES, e.g. 2x8"),
        (["-j", "3:2x2"], "-j is '3:2x2': from 3 to 2 nodes"),
        (["--name", "a_b"], "--name is 'a_b'; expected a letter and up to 23 of a-z, 0-9 and - after it"),
        (["--name", "a" * 25], "expected a letter and up to 23"),
    ],
)
def test_words_that_mean_nothing_end_with_status_2(
    config: str, arguments: list[str], message: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if message is None:
        app(config, *arguments)
        return
    with pytest.raises(SystemExit) as exit_info:
        app(config, *arguments)
    assert exit_info.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("rankmixer: error: ")
    assert message in said


def test_an_option_given_twice_is_refused(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["/bin/torchx", "run", "rankmixer.train", "--env", "A=1", "--env=B=2", "--", "--env", "--env"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit):
        app(config, "--env", "B=2")
    assert "--env is given 2 times; TorchX takes one, as --env A=1,B=2" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["/bin/submit", *words[1:]])
    app(config, "--env", "B=2")  # another program's own arguments


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["--", "run.directory=/shared/runs/ML_1m.v2/"], "train-ml-1m-v2"),
        (["--", "run.directory=runs/a-very-long-name-of-a-run"], "train-a-very-long-name-o"),
        ([], "train-default"),  # run.directory is runs/default
        (["--name", "click-7"], "click-7"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_schedulers_call_the_job_by_its_run(arguments: list[str], name: str, config: str) -> None:
    job = app(config, "-j", "2x2", *arguments)
    assert job.roles[0].name == name
    with get_runner() as runner:
        request = str(runner.dryrun(job, "slurm", {"partition": "gpu", "time": "60"}))
        assert f"#SBATCH --job-name={name}-0 " in request
        assert f'--output=slurm-"$SLURM_JOB_ID"-{name}-1.out' in request.replace("'", "")
        pods = runner.dryrun(job, "kubernetes", {"queue": "default"}).request.resource
    hosts = [f"{pods['metadata']['name']}-{task['name']}-0" for task in pods["spec"]["tasks"]]
    assert hosts[0].endswith(f"-{name}-0-0")
    assert max(map(len, hosts)) <= 63, "Kubernetes takes no longer name for a host"


def test_a_job_whose_configuration_is_not_here_is_called_by_its_file() -> None:
    job = materialize_appdef(components.train, ["--config", "/there/clicks.yaml", "--image", "i"])
    assert job.roles[0].name == "train-clicks"
    override = ["--config", "/there/clicks.yaml", "--image", "i", "--", "run.directory=/there/run-7"]
    assert materialize_appdef(components.train, override).roles[0].name == "train-run-7"


def test_dollars_of_overrides_are_kept_and_macros_filled_in(config: str) -> None:
    (role,) = app(config, "--", "run.directory=runs/$$a-$b-${app_id}").roles
    values = macros.Values(img_root="", app_id="job-1", replica_id="0", rank0_env="HOST")
    words = shlex.split(values.apply(role).args[1])
    assert words[-1] == "run.directory=runs/$$a-$b-job-1"
