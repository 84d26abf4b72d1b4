"""The command `rankmixer`."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence

from launch.errors import run_reporting_errors

Command = Callable[[argparse.Namespace], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; return the exit status: 0, 2 for the user's mistake, 1 for anything else."""
    parsed = parser().parse_args(arguments)
    _quiet_libraries()
    status = run_reporting_errors(lambda: parsed.command(parsed))
    # Gloo joins a group's threads when the last reference to the group goes, and models and tracebacks refer to theirs
    # in cycles. A thread that lets a tensor go while Python shuts down ends a finished job with SIGABRT.
    gc.collect()
    if "pipeline.prefetch" in sys.modules and sys.modules["pipeline.prefetch"].left_behind():
        # A thread waits for a file system that does not answer; so would Arrow's threads, joined when a process ends.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def parser() -> argparse.ArgumentParser:
    """The grammar of the command line."""
    root = argparse.ArgumentParser(
        prog="rankmixer", description="RankMixer on TorchRec: train, evaluate, predict, plan."
    )
    commands = root.add_subparsers(required=True, metavar="COMMAND", dest="name")

    def add(name: str, command: Command, summary: str, example: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=f"example: {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.set_defaults(command=command)
        return sub

    train = add(
        "train",
        _train,
        "Train in this process; more processes come from torchrun or TorchX.",
        "rankmixer train --config configs/ml-100k.yaml train.epochs=2",
    )
    _add_config(train)

    evaluate = add(
        "evaluate",
        _evaluate,
        "Evaluate a checkpoint on data.test, or data.evaluate.",
        "rankmixer evaluate --config configs/ml-100k.yaml --checkpoint best",
    )
    _add_config(evaluate)
    _add_checkpoint(evaluate)

    predict = add(
        "predict",
        _predict,
        "Write key columns and one probability per task for every row, as Parquet.",
        "rankmixer predict --config configs/ml-100k.yaml --data data/ml-100k/test --out scores --keys user_id,item_id",
    )
    _add_config(predict)
    _add_checkpoint(predict)
    predict.add_argument("--data", required=True, help="Parquet files: path, glob, directory or URL")
    predict.add_argument("--out", required=True, help="directory to write; must not exist")
    predict.add_argument(
        "--keys", type=_columns, default=[], metavar="A,B", help="columns to copy to the output, separated by commas"
    )

    report = add(
        "report",
        _report,
        "Print a run's metrics as a table and as JSON, and draw its learning curve.",
        "rankmixer report runs/ml-100k",
    )
    report.add_argument("run", help="run.directory of a training run that has finished")

    plan = add(
        "plan",
        _plan,
        "Show where tables and head would go on machines that need not exist here.",
        "rankmixer plan --config configs/ml-100k.yaml -j 2x8 --device cuda --hbm-gb 80",
    )
    _add_config(plan)
    plan.add_argument("-j", default="1x1", help="NODESxPROCESSES, as for TorchX")
    plan.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    plan.add_argument("--hbm-gb", type=float, default=80.0, help="device memory of a rank")
    plan.add_argument("--ddr-gb", type=float, default=64.0, help="host memory of a rank")

    vocab = add(
        "vocab",
        _vocab,
        "Write the vocabularies of features: the values in data.train, the most frequent first.",
        "rankmixer vocab --config my.yaml city genres --min-count 5",
    )
    vocab.add_argument("--config", required=True, help="configuration file")
    vocab.add_argument(
        "features", nargs="*", help="features (default: all that have a vocabulary), and section.key=value overrides"
    )
    vocab.add_argument("--min-count", type=int, default=1, help="leave out values that occur less often")
    vocab.add_argument("--out", help="folder to write to; default: where the feature schema expects the files")

    add(
        "schema",
        _schema,
        "Print the JSON Schema of configuration files.",
        "rankmixer schema > rankmixer.schema.json",
    )
    _add_data(commands)
    return root


def _columns(text: str) -> list[str]:
    return [column for column in text.split(",") if column]


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, help="configuration file")
    parser.add_argument("overrides", nargs="*", help="section.key=value, overriding the configuration")


def _add_checkpoint(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", default="best", help="best (default), latest or a name")


def _add_data(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    summary = "Make Parquet data, or see what is in it."
    data = commands.add_parser("data", help=summary, description=summary)
    sources = data.add_subparsers(required=True, metavar="SOURCE", dest="source_kind")
    for name, summary in (
        ("ml-100k", "MovieLens-100K, from the RecBole wheel or an official ml-100k.zip"),
        ("ml-1m", "MovieLens-1M, from an official ml-1m.zip"),
    ):
        source = sources.add_parser(name, help=summary, description=summary)
        source.add_argument("--out", required=True, help="directory to write")
        source.add_argument("--source", required=name == "ml-1m", help="official zip file")
        source.add_argument("--split", choices=("random", "time"), default="random")
        source.add_argument("--seed", type=int, default=0)
    synthetic = sources.add_parser("synthetic", help="a seeded log with a planted truth whose AUC is the ceiling")
    synthetic.add_argument("--out", required=True, help="directory to write")
    synthetic.add_argument("--rows", type=int, default=1_000_000)
    synthetic.add_argument("--seed", type=int, default=0)
    summary = "turn a CSV file into Parquet, and propose a feature schema and a configuration"
    csv = sources.add_parser(
        "csv",
        help=summary,
        description=summary,
        epilog="example: rankmixer data csv clicks.csv --out data/clicks --label bought --time when",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    csv.add_argument("file", help="CSV file with a header line, .gz too")
    csv.add_argument("--out", required=True, help="directory to write")
    csv.add_argument("--label", type=_columns, default=[], metavar="A,B", help="columns of 0 and 1 to predict")
    csv.add_argument("--time", metavar="COLUMN", help="test on the newest rows by this column; default: at random")
    csv.add_argument("--like", metavar="DIR", help="no proposals: only Parquet, with the types of this earlier --out")
    csv.add_argument("--delimiter", help="default: the one of , ; tab | that the header has most of")
    data.set_defaults(command=_data)
    summary = "print what Parquet files hold, as the feature schema reads them, and write it as JSON"
    profile = sources.add_parser(
        "profile",
        help=summary,
        description=summary,
        epilog="example: rankmixer data profile data/day-1 --config my.yaml --against data/day-2 --out day-1.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    profile.add_argument("files", nargs="+", help="Parquet files: paths, globs, directories or URLs")
    profile.add_argument("--config", required=True, help="configuration file; only its feature_schema matters")
    profile.add_argument(
        "--against", nargs="+", default=[], metavar="FILES", help="other files, to show the drift to them"
    )
    profile.add_argument("--out", help="JSON file to write; must not exist")


def _train(arguments: argparse.Namespace) -> None:
    _check_versions()
    from launch.config import load_config
    from launch.paths import check_training

    config = load_config(arguments.config, arguments.overrides)
    check_training(config)
    from launch.train import train

    train(config)


def _evaluate(arguments: argparse.Namespace) -> None:
    _check_versions()
    from launch.config import load_config
    from launch.evaluate import evaluate_checkpoint

    evaluate_checkpoint(load_config(arguments.config, arguments.overrides), arguments.checkpoint)


def _predict(arguments: argparse.Namespace) -> None:
    _check_versions()
    from launch.config import load_config
    from launch.evaluate import predict

    config = load_config(arguments.config, arguments.overrides)
    predict(config, arguments.checkpoint, arguments.data, arguments.out, arguments.keys)


def _report(arguments: argparse.Namespace) -> None:
    _check_versions()
    from launch.report import report

    report(arguments.run)


def _plan(arguments: argparse.Namespace) -> None:
    _check_versions()
    from embeddings.sharding import Cluster
    from launch.config import load_config
    from launch.plan import show_plan

    nodes, _, processes = arguments.j.partition("x")
    if not (nodes.isdigit() and processes.isdigit() and int(nodes) and int(processes)):
        raise ValueError(f"-j is {arguments.j!r}; expected NODESxPROCESSES, e.g. 2x8")
    config = load_config(arguments.config, arguments.overrides)
    show_plan(
        config,
        Cluster(
            device=arguments.device,
            world_size=int(nodes) * int(processes),
            local_world_size=int(processes),
            hbm_bytes=int(arguments.hbm_gb * 2**30) if arguments.device == "cuda" else 0,
            ddr_bytes=int(arguments.ddr_gb * 2**30),
        ),
    )


def _vocab(arguments: argparse.Namespace) -> None:
    from launch.config import load_config
    from pipeline.build_vocabulary import build_vocabularies

    overrides = [word for word in arguments.features if "=" in word]
    names = [word for word in arguments.features if "=" not in word]
    config = load_config(arguments.config, overrides, vocabularies_to_be_written=True)
    schema, files = config.feature_schema, config.data.train
    for file in build_vocabularies(schema, files, names, out=arguments.out, min_count=arguments.min_count):
        broken = f"; {file.broken:,} occurrences with a line break left out" if file.broken else ""
        print(
            f"{file.path}: {file.words:,} words of {file.values:,} values, {file.covered:.2%} of "
            f"{file.occurrences:,} occurrences{broken}"
        )


def _schema(_: argparse.Namespace) -> None:
    from launch.config import json_schema

    print(json_schema())


def _data(arguments: argparse.Namespace) -> None:
    if arguments.source_kind == "csv":
        from pipeline.csv_import import import_csv, import_like

        file, out, delimiter = arguments.file, arguments.out, arguments.delimiter
        if arguments.like is None:
            import_csv(file, out, labels=arguments.label, time=arguments.time, delimiter=delimiter)
        elif arguments.label or arguments.time:
            raise ValueError("--like writes no labels and parts of its own; leave out --label and --time, or --like")
        else:
            import_like(file, out, arguments.like, delimiter=delimiter)
    elif arguments.source_kind == "synthetic":
        from pipeline.synthetic import write_synthetic

        write_synthetic(arguments.out, arguments.rows, arguments.seed)
    elif arguments.source_kind == "profile":
        from launch.config import load_config
        from launch.show_profile import show_profile

        schema = load_config(arguments.config).feature_schema
        show_profile(arguments.files, schema, arguments.against, arguments.out)
    else:
        from pipeline.movielens import write_ml_1m, write_ml_100k

        write = write_ml_100k if arguments.source_kind == "ml-100k" else write_ml_1m
        write(arguments.out, source=arguments.source, split=arguments.split, seed=arguments.seed)


def _check_versions() -> None:
    from launch.versions import check_trio

    check_trio()


def _quiet_libraries() -> None:
    """Silence what TorchRec and torch say at every start about things that are in order here, and what torch's stores
    and gloo say of a rank that fails, which launch/roll_call.py says better.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read when torch is imported
    for name in ("torchrec", "torch.distributed", "torch.fx"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(torch|torchrec|fbgemm_gpu)\b.*")


if __name__ == "__main__":
    sys.exit(main())
