"""`rankmixer vocab`: the values that occur in the training rows, as the files that the schema's vocabularies name."""

from __future__ import annotations

import difflib
import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rankmixer.pipeline.base.local_path import local_path
from rankmixer.pipeline.base.prefetch import prefetch
from rankmixer.pipeline.encode.ids import plain, split_lists
from rankmixer.pipeline.files.files import ParquetFiles, RowGroup
from rankmixer.pipeline.learn.word_counts import MEMORY_BYTES, WordCounts, summed
from rankmixer.pipeline.read.dataset import ParquetDataset
from rankmixer.pipeline.schema.features import IdList, Ids
from rankmixer.pipeline.schema.schema import Schema
from rankmixer.pipeline.schema.vocabulary import write_vocabulary

PIECE_ROWS = 1 << 17
THREADS = 2


@dataclass(frozen=True)
class Written:
    """A vocabulary that was written: its words, of how many values, and the share of all occurrences that they are.

    `broken` counts the occurrences of values that hold a line break, which a text file cannot say.
    """

    path: Path
    words: int
    values: int
    covered: float
    occurrences: int
    broken: int


def build_vocabularies(
    schema: Schema,
    files: ParquetFiles | str | Sequence[str],
    names: Sequence[str] = (),
    *,
    out: str | None = None,
    min_count: int = 1,
    memory_bytes: int = MEMORY_BYTES,
) -> list[Written]:
    """Count the values of features and write them, the most frequent first; all files or none.

    Features that share a vocabulary, or a table, are counted together. The result depends on the rows alone.

    Args:
        schema: its vocabularies need not exist yet (`vocabularies_to_be_written`).
        files: the training files, or the paths, globs, directories or URLs to open.
        names: features; by default all that have a `vocabulary`.
        out: folder for the files; by default each goes where the schema expects it.
        min_count: leave out values that occur less often.
        memory_bytes: of counts held in memory; more are spilled to disk beside the result.

    Raises:
        ValueError: a name that is no id feature, a file that exists, or no value that occurs often enough.
        DataError: a file that does not fit the schema.
    """
    if min_count < 1:
        raise ValueError(f"min_count is {min_count}; expected at least 1")
    targets = _targets(schema, names, out)
    for path in targets:
        if path.exists():
            raise ValueError(f"{path} exists and would be overwritten; remove it, or name another folder with --out")
    asked = {name: _hashed(name, schema.features[name]) for group in targets.values() for name in group}
    dataset = ParquetDataset(files, Schema(features=asked, labels=schema.labels), labels=False)
    with ExitStack() as stack:
        counts, folders = {}, {}
        for path in targets:
            path.parent.mkdir(parents=True, exist_ok=True)
            folders[path] = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".vocab-", dir=path.parent)))
            counts[path] = WordCounts(folders[path], memory_bytes)
        broken: Counter[Path] = Counter()
        calls = (partial(_count, dataset, group, targets) for group in dataset.files.row_groups)
        for found in prefetch(calls, THREADS, ahead=THREADS):
            for path, table, breaks in found:
                counts[path].add(table)
                broken[path] += breaks
        written = [_write(path, folders[path], counts[path], min_count, broken[path]) for path in targets]
        for path in targets:
            os.rename(folders[path] / "words", path)
    return written


def _targets(schema: Schema, names: Sequence[str], out: str | None) -> dict[Path, list[str]]:
    """File to write -> the features that are counted for it."""
    features = {name: feature for name, feature in schema.features.items() if isinstance(feature, Ids)}
    for name in names:
        if name not in features:
            near = difflib.get_close_matches(name, features, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ValueError(f"{name!r} is no id feature; {hint}The schema has {', '.join(features) or 'none'}")
    chosen = list(names) or [name for name, feature in features.items() if feature.vocabulary is not None]
    if not chosen:
        raise ValueError("no feature of the schema has a `vocabulary`; name features, and a folder with --out")
    targets: dict[Path, list[str]] = {}
    for name in chosen:
        path, table = features[name].vocabulary, features[name].table
        if path is None and out is None:
            raise ValueError(f"features.{name} names no vocabulary; add `vocabulary: {name}.txt`, or give --out")
        if out is None and "://" in str(path):
            raise ValueError(f"features.{name}: {path} is not on this machine; give a folder with --out, and copy it")
        file = os.path.expanduser(path or f"{table}.txt")
        target = Path(file) if out is None else Path(local_path(out), os.path.basename(file))
        key = "table" if path is None else "vocabulary"
        same = [other for other in features if getattr(features[other], key) == getattr(features[name], key)]
        targets[target] = list(dict.fromkeys([*targets.get(target, []), *same]))
    return targets


def _hashed(name: str, feature: object) -> Ids:
    """The feature as one that takes any integers or strings, and needs no vocabulary."""
    assert isinstance(feature, Ids)
    update = {"vocabulary": None, "buckets": 1, "range": None, "on_bad": None, "default": None, "table": name}
    return feature.model_copy(update=update | ({"weights": None} if isinstance(feature, IdList) else {}))


def _count(
    dataset: ParquetDataset, group: RowGroup, targets: dict[Path, list[str]]
) -> list[tuple[Path, pa.Table, int]]:
    """The values of a row group: for each file to write their counts, and how many occurrences hold a line break."""
    found: dict[Path, list[pa.Table]] = {path: [] for path in targets}
    broken: Counter[Path] = Counter()
    file = dataset.files.files[group.file]
    for piece in dataset.decoder.stream(file, group.index, PIECE_ROWS):
        for path, names in targets.items():
            as_text = any(dataset.encoders[name].strings for name in names)
            for name in names:
                feature = dataset.schema.features[name]
                assert isinstance(feature, Ids)
                table = summed(*_values(piece[feature.column], feature, as_text))
                if as_text:
                    breaks = pc.match_substring_regex(table["value"], "[\r\n]")
                    broken[path] += pc.sum(table.filter(breaks)["count"]).as_py() or 0
                    table = table.filter(pc.invert(breaks))
                found[path].append(table)
    return [(path, pa.concat_tables(tables), broken[path]) for path, tables in found.items()]


def _values(array: pa.Array, feature: Ids, as_text: bool) -> tuple[pa.Array, np.ndarray]:
    """Values as the encoder sees them, without nulls, and how often each occurs; a value may stand several times."""
    separator = feature.separator if isinstance(feature, IdList) else None
    if isinstance(feature, IdList) and separator is None:
        array = split_lists(array)[1]
    if pa.types.is_dictionary(array.type):
        indices = array.indices.drop_null().to_numpy()
        array, counts = array.dictionary, np.bincount(indices, minlength=len(array.dictionary))
    else:
        counts = np.ones(len(array), np.int64)
    array, bad = plain(array, as_text)
    if bad is not None:
        array, counts = array.filter(pa.array(~bad)), counts[~bad]
    if separator is not None:
        offsets, array, _ = split_lists(pc.split_pattern(array, separator))
        counts = np.repeat(counts, np.diff(offsets))
    kept = array.is_valid() if separator is None else pc.fill_null(pc.not_equal(array, ""), False)
    array, counts = array.filter(kept), counts[kept.to_numpy(zero_copy_only=False)]
    return array.cast(pa.large_string()) if as_text else array, counts


def _write(path: Path, folder: Path, counts: WordCounts, min_count: int, broken: int) -> Written:
    """Write the words into `folder`."""
    covered = words = 0

    def ordered() -> Iterator[str]:
        nonlocal covered, words
        for word, count in counts.ordered(min_count):
            covered, words = covered + count, words + 1
            yield str(word)

    with open(folder / "words", "wb") as file:
        write_vocabulary(file, ordered())
    if not words:
        found = f"{counts.distinct} different values in {counts.total} occurrences"
        raise ValueError(f"{path}: found {found}, none of which occurs {min_count} times; lower --min-count")
    return Written(path, words, counts.distinct, covered / counts.total, counts.total, broken)
