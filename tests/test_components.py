"""The components, as TorchX's command line sees them; the scheduler's requests are dry runs."""

import shlex
from pathlib import Path

import pytest
import yaml
from torchx.components.component_test_base import ComponentTestCase
from torchx.runner import get_runner
from torchx.specs import AppDef
from torchx.specs.builders import materialize_appdef
from torchx.specs.finder import get_components

from launch import components

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
    assert words[:5] == ["exec", "python", "-m", "launch.torchrun", "--nnodes"]
    assert words[words.index("--nproc-per-node") + 1] == "3"
    assert words[words.index("--max-restarts") + 1] == "2"
    assert words[words.index("--rdzv-endpoint") + 1] == "localhost:0"
    assert words[-6:] == ["-m", "launch.cli", "train", "--config", config, "train.epochs=2"]
    assert role.env == {
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "LOGLEVEL": "WARNING",
        "OMP_NUM_THREADS": "2",
        "A": "1",
    }


def test_several_nodes_meet_at_the_first(config: str) -> None:
    (role,) = app(config, "-j", "2x2", "--rdzv_port", "29511", "--max_retries", "3").roles
    assert role.num_replicas == 2
    assert role.max_retries == 3
    assert "$${${rank0_env}:=localhost}:29511" in role.args[1]
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
    assert "launch.torchrun" in request
    assert "launch.cli" in request
    assert "${rank0_env}" not in request
    if scheduler == "slurm":
        assert "SLURM_JOB_NODELIST_HET_GROUP_0" in request
