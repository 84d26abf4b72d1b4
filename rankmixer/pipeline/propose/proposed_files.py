"""schema.yaml, run.yaml and vocabularies as `rankmixer data csv` and `data parquet` write them."""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from rankmixer.pipeline.propose.column_facts import Column
from rankmixer.pipeline.propose.propose import Proposer, group_column, suggest_batch_size
from rankmixer.pipeline.propose.split import PARTS
from rankmixer.pipeline.schema.vocabulary import write_vocabulary

SCHEMA_HEADER = """\
# Proposed by `{command}` from {file} ({rows:,} rows, {train:,} of which train; what is said below is of these).
# Check every line:
# - delete what is not known before the label is, such as a rating or the time of the purchase
# - a quantity that stands as `kind: id`, such as a price in cents, is better as `kind: number`
# - `group:` puts features of one thing (user, item, context) together
# - ids not seen here: with `buckets` every value has a place; with `vocabulary`, and with `range` and `reserve`, they
#   share one
"""
CONFIG_HEADER = """\
# Proposed by `{command}` from {file}; paths are relative to where you run the commands. Try other values as
# `section.key=value` at the end of a command; `rankmixer schema` prints all keys.
"""


def write_proposal(
    folder: Path,
    source: tuple[str, str],
    columns: Mapping[str, Column],
    labels: Mapping[str, tuple[float, Sequence[str]]],
    absent: tuple[Mapping[str, str], Mapping[str, str]],
    asked: Collection[str],
    rows: tuple[int, int],
) -> list[str]:
    """Write the schema and its vocabularies into `folder`; what there is to say about them.

    Args:
        source: the command and the name of the data.
        columns: what could be a feature.
        labels: of each the share of ones, and the values that count as such.
        absent: columns that cannot be read, and why; and those that tell the label, and which.
        asked: columns of which the user was asked already what their text is meant as.
        rows: all, and those that train.
    """
    proposer = Proposer()
    for column in columns.values():
        proposer.add(column, absent[1].get(column.name), is_asked=column.name in asked)
    for name, reason in absent[0].items():
        proposer.leave_out(name, reason)
    lines = [proposer.add_label(label, *known) for label, known in labels.items()]
    made = proposer.made
    header = SCHEMA_HEADER.format(command=source[0], file=source[1], rows=rows[0], train=rows[1]).splitlines()
    text = "\n".join([*header, "features:", *made.lines, "labels:", *lines]) + "\n"
    (folder / "schema.yaml").write_text(text, encoding="utf-8")
    for path, words in made.vocabularies.items():
        (folder / path).parent.mkdir(exist_ok=True)
        with open(folder / path, "wb") as file:
            write_vocabulary(file, map(str, words.to_pylist()))
    if made.vocabularies:
        total = sum(len(words) for words in made.vocabularies.values())
        names = ", ".join(Path(path).stem for path in made.vocabularies)
        made.notes.insert(0, f"vocabularies of the training rows, {total:,} values: {names}")
    return made.notes


def config_text(
    source: tuple[str, str], out: str, columns: Sequence[Column], rows: Sequence[int], data: Sequence[str] = ()
) -> str:
    """The configuration as YAML: sizes that suit `rows`, the numbers of training, evaluation and test rows.

    Args:
        source: the command and the name of the data.
        data: the training files, where none are written.
    """
    group = group_column(columns)
    if data:
        files = [f"  train: {json.dumps(list(data))}  # {rows[0]:,} rows", "  # evaluate: files that tell when to stop"]
        epochs = ["  epochs: 1"]
    else:
        said = ("rows", "rows, after each epoch", "rows, once, at the end")
        parts = zip(("train", "evaluate", "test"), PARTS, rows, said, strict=True)
        files = [f"  {key}: {json.dumps(f'{out}/{part}')}  # {count:,} {what}" for key, part, count, what in parts]
        epochs = [
            "  epochs: 10",
            "  early_stopping: {patience: 2}  # epochs without a better AUC; the best one is kept",
        ]
    lines = [
        *CONFIG_HEADER.format(command=source[0], file=source[1]).splitlines(),
        f"feature_schema: {json.dumps(f'{out}/schema.yaml')}",
        "",
        "data:",
        *files,
        f"  batch_size: {suggest_batch_size(rows[0])}",
        "",
        "train:",
        *epochs,
        "",
        # A section that holds but a comment would be null.
        f"metrics: {{group: {json.dumps(group)}}}  # also AUC within each of its values (GAUC)"
        if group is not None
        else "# metrics: {group: user_id}  # a column: also AUC within each of its values (GAUC)",
        "",
        "run:",
        f"  directory: {json.dumps(f'runs/{Path(out).name}')}",
    ]
    return "\n".join(lines) + "\n"
