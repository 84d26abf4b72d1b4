"""Commands that run a job, or say what it would take: train, evaluate, predict, plan."""

from __future__ import annotations

import argparse

from rankmixer.launch.commands.grammar import Commands, add_checkpoint, add_config, add_json, columns


def add_jobs(commands: Commands) -> None:
    """`rankmixer train`, `evaluate`, `predict` and `plan`."""
    train = commands.add(
        "train",
        _train,
        "Train in this process; more processes come from torchrun or TorchX.",
        "rankmixer train --config configs/ml-100k.yaml train.epochs=2",
    )
    add_config(train)

    evaluate = commands.add(
        "evaluate",
        _evaluate,
        "Evaluate a checkpoint on data.test, or data.evaluate.",
        "rankmixer evaluate --config configs/ml-100k.yaml --checkpoint best",
    )
    add_config(evaluate)
    add_checkpoint(evaluate)
    add_json(evaluate)

    predict = commands.add(
        "predict",
        _predict,
        "Write key columns and one probability per task for every row, as Parquet.",
        "rankmixer predict --config configs/ml-100k.yaml --data data/ml-100k/test --out scores --keys user_id,item_id",
    )
    add_config(predict)
    add_checkpoint(predict)
    predict.add_argument("--data", required=True, help="Parquet files: path, glob, directory or URL")
    predict.add_argument("--out", required=True, help="directory to write; must not exist")
    predict.add_argument(
        "--keys",
        type=columns,
        action="extend",
        default=[],
        metavar="A,B",
        help="columns to copy to the output, separated by commas",
    )
    predict.add_argument(
        "--logits", action="store_true", help="write TASK_logit too, which keeps rows apart that are all but certain"
    )

    plan = commands.add(
        "plan",
        _plan,
        "Show where tables and head would go on machines that need not exist here.",
        "rankmixer plan --config configs/ml-100k.yaml -j 2x8 --device cuda --hbm-gb 80",
    )
    add_config(plan)
    plan.add_argument("-j", default="1x1", help="NODESxPROCESSES, as for TorchX")
    plan.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    plan.add_argument("--hbm-gb", type=float, help="device memory of a rank; default: plan.hbm_gb, or 80")
    plan.add_argument("--ddr-gb", type=float, help="host memory of a rank; default: plan.ddr_gb, or 64")
    add_json(plan)


def _train(arguments: argparse.Namespace) -> None:
    from rankmixer.launch.config.config import load_config
    from rankmixer.launch.ranks.versions import check_trio
    from rankmixer.launch.rows.paths import check_training

    check_trio()
    config = load_config(arguments.config, arguments.overrides)
    check_training(config)
    from rankmixer.launch.ranks.retries import check_try

    check_try(config)
    from rankmixer.launch.job.train import train

    train(config)


def _evaluate(arguments: argparse.Namespace) -> None:
    from rankmixer.launch.ranks.versions import check_trio

    check_trio()
    from rankmixer.launch.config.config import load_config
    from rankmixer.launch.job.evaluate import evaluate_checkpoint

    config = load_config(arguments.config, arguments.overrides)
    evaluate_checkpoint(config, arguments.checkpoint, as_json=arguments.json)


def _predict(arguments: argparse.Namespace) -> None:
    from rankmixer.launch.ranks.versions import check_trio

    check_trio()
    from rankmixer.launch.config.config import load_config
    from rankmixer.launch.job.evaluate import predict

    config = load_config(arguments.config, arguments.overrides)
    predict(config, arguments.checkpoint, arguments.data, arguments.out, arguments.keys, logits=arguments.logits)


def _plan(arguments: argparse.Namespace) -> None:
    from rankmixer.launch.ranks.versions import check_trio

    check_trio()
    from rankmixer.embeddings.sharding import Cluster
    from rankmixer.launch.config.config import load_config
    from rankmixer.launch.job.plan import show_plan

    nodes, _, processes = arguments.j.partition("x")
    if not (nodes.isdigit() and processes.isdigit() and int(nodes) and int(processes)):
        raise ValueError(f"-j is {arguments.j!r}; expected NODESxPROCESSES, e.g. 2x8")
    if arguments.hbm_gb is not None and arguments.device == "cpu":
        raise ValueError("--hbm-gb is the memory of a GPU, and --device is cpu; give --ddr-gb, or --device cuda")
    config = load_config(arguments.config, arguments.overrides)
    hbm_gb = arguments.hbm_gb or config.plan.hbm_gb or 80.0
    ddr_gb = arguments.ddr_gb or config.plan.ddr_gb or 64.0
    show_plan(
        config,
        Cluster(
            device=arguments.device,
            world_size=int(nodes) * int(processes),
            local_world_size=int(processes),
            hbm_bytes=int(hbm_gb * 2**30) if arguments.device == "cuda" else 0,
            ddr_bytes=int(ddr_gb * 2**30),
        ),
        as_json=arguments.json,
    )
