"""Commands about data and configuration files: data, vocab, schema."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import TYPE_CHECKING

from rankmixer.launch.commands.grammar import Commands, add_json, columns

if TYPE_CHECKING:
    from rankmixer.pipeline.learn.build_vocabulary import Written


def add_data(commands: Commands) -> None:
    """`rankmixer data` with its commands, `vocab` and `schema`."""
    data = commands.group(
        "data",
        "Make Parquet data, or see what is in it.",
        "rankmixer data ml-100k --out data/ml-100k",
        metavar="SOURCE",
    )
    ml_100k = data.add(
        "ml-100k",
        _ml_100k,
        "MovieLens-100K, from the RecBole wheel or an official ml-100k.zip",
        "rankmixer data ml-100k --out data/ml-100k",
    )
    _add_movielens(ml_100k, zip_is_required=False)
    ml_1m = data.add(
        "ml-1m",
        _ml_1m,
        "MovieLens-1M, from an official ml-1m.zip",
        "rankmixer data ml-1m --source ml-1m.zip --out data/ml-1m --split time",
    )
    _add_movielens(ml_1m, zip_is_required=True)
    synthetic = data.add(
        "synthetic",
        _synthetic,
        "a seeded log with a planted truth whose AUC is the ceiling",
        "rankmixer data synthetic --rows 100000 --out data/synthetic",
    )
    synthetic.add_argument("--out", required=True, help="directory to write")
    synthetic.add_argument("--rows", type=int, default=1_000_000)
    synthetic.add_argument("--seed", type=int, default=0)
    csv = data.add(
        "csv",
        _csv,
        "turn CSV files into Parquet, and propose a feature schema and a configuration",
        "rankmixer data csv clicks.csv --out data/clicks --label bought --time when",
    )
    csv.add_argument("files", nargs="+", metavar="FILE", help="CSV files: paths, globs, directories or URLs; one table")
    csv.add_argument("--out", required=True, help="directory to write")
    _add_labels(csv)
    csv.add_argument("--like", metavar="DIR", help="no proposals: only Parquet, with the types of this earlier --out")
    _add_csv_options(csv)
    parquet = data.add(
        "parquet",
        _parquet,
        "split Parquet files into training, validation and test, and propose a feature schema and a configuration",
        "rankmixer data parquet 'logs/2024-06-*' --out data/logs --label bought --time when",
    )
    parquet.add_argument("files", nargs="+", help="Parquet files: paths, globs, directories or URLs")
    parquet.add_argument("--out", required=True, help="directory to write")
    _add_labels(parquet)
    parquet.add_argument("--like", metavar="DIR", help="no proposals: new rows, with the types of this earlier --out")
    parquet.add_argument(
        "--no-split", action="store_true", help="only proposals: train on all rows of the files as they lie, copy none"
    )
    profile = data.add(
        "profile",
        _profile,
        "print what Parquet files hold, as the feature schema reads them, and write it as JSON",
        "rankmixer data profile data/day-1 --config my.yaml --against data/day-2 --out day-1.json",
    )
    profile.add_argument("files", nargs="+", help="Parquet files: paths, globs, directories or URLs")
    profile.add_argument("--config", required=True, help="configuration file; only its feature_schema matters")
    profile.add_argument(
        "--against",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILES",
        help="other files, to show the drift to them",
    )
    profile.add_argument("--out", help="JSON file to write; must not exist")
    add_json(profile)

    vocab = commands.add(
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
    add_json(vocab)

    commands.add(
        "schema",
        _schema,
        "Print the JSON Schema of configuration files.",
        "rankmixer schema > rankmixer.schema.json",
    )


def _add_csv_options(parser: argparse.ArgumentParser) -> None:
    how = parser.add_argument_group("how the files are written, where it cannot be found out")
    how.add_argument("--delimiter", help="a character, tab or space; default: , ; tab or | , as the first rows have it")
    how.add_argument("--quote", metavar="CHARACTER", help='around values; none if no character is; default: "')
    how.add_argument("--escape", metavar="CHARACTER", help="before a quote in a value, besides doubling it, such as \\")
    how.add_argument("--encoding", help="such as latin-1 or utf-16-le; default: UTF-8, or as the byte order mark says")
    how.add_argument("--header", choices=("auto", "yes", "no"), default="auto", help="whether the first line has names")
    how.add_argument("--names", type=columns, default=[], metavar="A,B", help="of the columns")
    how.add_argument(
        "--missing", type=columns, default=[], metavar="A,B", help="words that mean no value, in any column"
    )
    how.add_argument("--decimal", choices=(".", ","), help="the decimal mark; default: a point")
    how.add_argument("--time-format", metavar="FORMAT", help="of dates not written as 2024-06-01, such as %%d/%%m/%%Y")


def _add_labels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--label", type=columns, action="extend", default=[], metavar="A,B", help="columns to predict; may be repeated"
    )
    parser.add_argument(
        "--positive",
        action="append",
        default=[],
        metavar="VALUE",
        help="value of the label that counts as 1, if it is not 0 and 1; LABEL=VALUE of several; may be repeated",
    )
    parser.add_argument("--time", metavar="COLUMN", help="test on the newest rows by this column; default: at random")


def _add_movielens(parser: argparse.ArgumentParser, *, zip_is_required: bool) -> None:
    parser.add_argument("--out", required=True, help="directory to write")
    parser.add_argument("--source", required=zip_is_required, help="official zip file")
    parser.add_argument("--split", choices=("random", "time"), default="random")
    parser.add_argument("--seed", type=int, default=0)


def _ml_100k(arguments: argparse.Namespace) -> None:
    from rankmixer.pipeline.sources.movielens import write_ml_100k

    write_ml_100k(arguments.out, source=arguments.source, split=arguments.split, seed=arguments.seed)


def _ml_1m(arguments: argparse.Namespace) -> None:
    from rankmixer.pipeline.sources.movielens import write_ml_1m

    write_ml_1m(arguments.out, source=arguments.source, split=arguments.split, seed=arguments.seed)


def _synthetic(arguments: argparse.Namespace) -> None:
    from rankmixer.pipeline.sources.synthetic import write_synthetic

    write_synthetic(arguments.out, arguments.rows, arguments.seed)


def _csv(arguments: argparse.Namespace) -> None:
    from rankmixer.pipeline.csv.dialect import CsvOptions
    from rankmixer.pipeline.sources.csv_import import import_csv
    from rankmixer.pipeline.sources.csv_like import import_like

    files, out = arguments.files, arguments.out
    options = CsvOptions(
        delimiter=arguments.delimiter,
        quote=arguments.quote,
        escape=arguments.escape,
        encoding=arguments.encoding,
        header=arguments.header,
        names=tuple(arguments.names),
        missing=tuple(arguments.missing),
        decimal=arguments.decimal,
        time_format=arguments.time_format,
    )
    if arguments.like is None:
        labels, positive = arguments.label, arguments.positive
        import_csv(files, out, labels=labels, positive=positive, time=arguments.time, options=options)
    elif arguments.label or arguments.positive or arguments.time:
        raise ValueError(
            "--like takes labels and parts as they were; leave out --label, --positive and --time, or --like"
        )
    else:
        import_like(files, out, arguments.like, options=options)


def _parquet(arguments: argparse.Namespace) -> None:
    from rankmixer.pipeline.sources.parquet_import import import_parquet, import_parquet_like

    files, out, labels, positive, time = (
        getattr(arguments, name) for name in ("files", "out", "label", "positive", "time")
    )
    if arguments.like is None:
        import_parquet(files, out, labels=labels, positive=positive, time=time, split=not arguments.no_split)
    elif labels or positive or time or arguments.no_split:
        raise ValueError(
            "--like takes labels and rows as they are: leave out --label, --positive, --time and --no-split, or --like"
        )
    else:
        import_parquet_like(files, out, arguments.like)


def _profile(arguments: argparse.Namespace) -> None:
    from rankmixer.launch.commands.show_profile import show_profile
    from rankmixer.launch.config.config import load_config

    schema = load_config(arguments.config).feature_schema
    show_profile(arguments.files, schema, arguments.against, arguments.out, as_json=arguments.json)


def _vocab(arguments: argparse.Namespace) -> None:
    from rankmixer.launch.config.config import load_config
    from rankmixer.launch.report.output import show
    from rankmixer.pipeline.learn.build_vocabulary import build_vocabularies

    overrides = [word for word in arguments.features if "=" in word]
    names = [word for word in arguments.features if "=" not in word]
    config = load_config(arguments.config, overrides, vocabularies_to_be_written=True)
    schema, files = config.feature_schema, config.data.train
    written = build_vocabularies(schema, files, names, out=arguments.out, min_count=arguments.min_count)
    found = {"vocabularies": [{**asdict(file), "path": str(file.path)} for file in written]}
    show(found, *map(_sentence, written), as_json=arguments.json)


def _sentence(file: Written) -> str:
    broken = f"; {file.broken:,} occurrences with a line break left out" if file.broken else ""
    return (
        f"{file.path}: {file.words:,} words of {file.values:,} values, {file.covered:.2%} of "
        f"{file.occurrences:,} occurrences{broken}"
    )


def _schema(_: argparse.Namespace) -> None:
    from rankmixer.launch.config.config import json_schema

    print(json_schema())
