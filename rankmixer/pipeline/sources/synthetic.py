"""A seeded log of any size whose truth is known, and with it the best AUC that any model can reach."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from rankmixer.pipeline.base.atomic import new_directory
from rankmixer.pipeline.metrics.metrics import Metrics

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

CHUNK_ROWS = 65_536  # rows made at a time, and rows of a row group
FILES = {"train": 4, "validation": 1, "test": 1}
AUC_BINS = 1 << 16
MAX_HISTORY = 8
AGES = (18, 25, 35, 45, 55)


class Truth:
    """The planted model: p(click) = sigmoid(logit), from what a row shows and from nothing else.

    logit = -1 + user bias + item bias + (user + mean of history's items) . item + price * user's sensitivity + age

    Users, items and the items of a history follow Zipf's law. Latent vectors are drawn once, from the seed;
    N is the number of users, items or age groups.
    """

    def __init__(self, users: int, items: int, seed: int, dim: int = 4) -> None:
        self.users, self.items, self.seed, self.dim = users, items, seed, dim
        random = np.random.default_rng([seed, 0])
        self.user_N = random.normal(0, 0.5, users)
        self.user_ND = random.normal(0, dim**-0.5, (users, dim))
        self.sensitivity_N = random.normal(0, 0.4, users)
        self.item_N = random.normal(0, 0.7, items)
        self.item_ND = random.normal(0, 1, (items, dim))
        self.age_N = random.normal(0, 0.3, len(AGES) + 1)

    def draw(self, rows: int, part: int, chunk: int) -> tuple[pa.Table, Floats]:
        """Rows of one chunk and their logits; a pure function of (seed, part, chunk)."""
        random = np.random.default_rng([self.seed, 1, part, chunk])
        user_B = _zipf(random, self.users, rows)
        item_B = _zipf(random, self.items, rows)
        lengths_B = random.integers(0, MAX_HISTORY + 1, rows)
        history = _zipf(random, self.items, int(lengths_B.sum()))
        price_B = random.lognormal(2.0, 1.0, rows)
        age_B = random.integers(12, 80, rows)
        logit_B = self._logit(user_B, item_B, lengths_B, history, price_B, age_B)
        click_B = random.random(rows) < 1 / (1 + np.exp(-logit_B))
        offsets = np.concatenate([[0], lengths_B.cumsum()]).astype(np.int32)
        columns = {
            "user": pa.array(user_B),
            "age": pa.array(age_B.astype(np.int32)),
            "history": pa.ListArray.from_arrays(pa.array(offsets), pa.array(_names(history))),
            "item": pa.array(_names(item_B)),
            "price": pa.array(price_B),
            "click": pa.array(click_B.astype(np.int8)),
        }
        return pa.table(columns), logit_B

    def _logit(
        self,
        user_B: Integers,
        item_B: Integers,
        lengths_B: Integers,
        history: Integers,
        price_B: Floats,
        age_B: Integers,
    ) -> Floats:
        sums_BD = np.zeros((len(user_B), self.dim))
        np.add.at(sums_BD, np.repeat(np.arange(len(user_B)), lengths_B), self.item_ND[history])
        taste_BD = self.user_ND[user_B] + sums_BD / np.maximum(lengths_B, 1)[:, None]
        return np.asarray(
            -1.0
            + self.user_N[user_B]
            + self.item_N[item_B]
            + (taste_BD * self.item_ND[item_B]).sum(1)
            + (np.log1p(price_B) - 2.0) * self.sensitivity_N[user_B]
            + self.age_N[np.searchsorted(AGES, age_B, side="right")]
        )


def write_synthetic(out: str, rows: int, seed: int = 0, *, users: int = 10_000, items: int = 5_000) -> dict[str, float]:
    """Write a planted log under `out`: train/, validation/, test/ (80 : 10 : 10), schema.yaml and truth.json.

    Columns: integer `user`, string `item`, `history` (a list of items), `price`, `age`, and the label `click`. Memory
    does not grow with `rows`. Prints, writes to truth.json and returns the metrics of the planted truth itself on the
    test rows: its `auc` is the ceiling, but for chance.

    Raises:
        ValueError: fewer than 100 rows, a negative seed, no users or items, or `out` exists.
    """
    for name, value, least in (("rows", rows, 100), ("seed", seed, 0), ("users", users, 1), ("items", items, 1)):
        if value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
    truth = Truth(users, items, seed)
    tenth = rows // 10
    counts = {"train": rows - 2 * tenth, "validation": tenth, "test": tenth}
    metrics = Metrics(["click"], auc_bins=AUC_BINS)
    with new_directory(out) as folder:
        for part, (name, count) in enumerate(counts.items()):
            _write_part(truth, folder / name, count, part, metrics if name == "test" else None)
        values = metrics.compute()
        record = {"seed": seed, "users": users, "items": items, "rows": counts, "test": values}
        (folder / "truth.json").write_text(json.dumps(record, indent=2) + "\n")
        (folder / "schema.yaml").write_text(_schema(users, items))
    print(
        f"synthetic, seed {seed}: {' + '.join(f'{count} {name}' for name, count in counts.items())} rows; in {out}\n"
        f"the planted truth has on test an AUC of {values['auc']:.4f}, the ceiling, and a log loss of "
        f"{values['logloss']:.4f}"
    )
    return values


def _write_part(truth: Truth, folder: Path, rows: int, part: int, metrics: Metrics | None) -> None:
    folder.mkdir()
    chunk_rows = min(CHUNK_ROWS, -(-rows // FILES[folder.name]))  # a small log has several files all the same
    chunks = [min(chunk_rows, rows - start) for start in range(0, rows, chunk_rows)]
    for file, indices in enumerate(np.array_split(np.arange(len(chunks)), min(FILES[folder.name], len(chunks)))):
        names = truth.draw(0, part, 0)[0].schema
        with pq.ParquetWriter(folder / f"part-{file:05d}.parquet", names, write_page_checksum=True) as writer:
            for chunk in indices.tolist():
                table, logit_B = truth.draw(chunks[chunk], part, chunk)
                writer.write_table(table, row_group_size=CHUNK_ROWS)
                if metrics is not None:
                    logits_BK = torch.from_numpy(logit_B)[:, None]
                    labels_BK = torch.tensor(table["click"].to_numpy())[:, None]
                    metrics.update(logits_BK, labels_BK, torch.ones(len(table)))


def _zipf(random: np.random.Generator, size: int, count: int) -> Integers:
    """Ids 0..size-1 with p(id) about 1 / (id + 1): the inverse of the continuous distribution, no table needed."""
    return np.asarray((size + 1.0) ** random.random(count) - 1, dtype=np.int64).clip(0, size - 1)


def _names(items: Integers) -> NDArray[np.str_]:
    return np.char.add("item-", items.astype(str))


def _schema(users: int, items: int) -> str:
    buckets = 1 << (4 * items - 1).bit_length()
    return f"""\
features:
  user: {{kind: id, range: {users}, dim: 16, group: user}}
  age: {{kind: number, boundaries: {list(AGES)}, dim: 8, group: user}}
  history: {{kind: id_list, buckets: {buckets}, table: item, pooling: mean, dim: 16, group: history}}
  item: {{kind: id, buckets: {buckets}, table: item, dim: 16, group: item}}
  price: {{kind: number, transform: log1p, standardise: [2.0, 1.0], group: item}}
labels:
  click: {{}}
"""
