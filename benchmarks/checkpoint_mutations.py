"""Changes bytes of checkpoints and loads them: never a state other than the one saved, and never without a word.

    python -m benchmarks.checkpoint_mutations [--count 1000] [--seed 0]

Each mutation changes one byte of one file of the newer of two checkpoints, or cuts the file short. It is that of two
ranks: tables sharded by rows and by columns, their optimizer state, dense weights and moments in several dtypes.
Then a run resumes, and the checkpoint is asked for by its name. A mutation is

    detected    resuming names the file and takes the checkpoint before; asking is one error that names the file, and
                nothing was written into the state
    harmless    both load, and state, meta and metric are bit for bit those saved
    silent      anything else
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner
from torch.distributed.checkpoint.default_planner import create_default_global_save_plan
from torch.distributed.checkpoint.planner import WriteItem

from benchmarks.harness import arguments, report
from rankmixer.pipeline.checkpoint.checkpoint import Checkpoints
from rankmixer.pipeline.checkpoint.files import META, CheckpointFiles
from rankmixer.pipeline.checkpoint.plan import decode
from rankmixer.pipeline.checkpoint.safetensors_storage import DTYPE_NAMES, SafetensorsWriter

VERDICTS = ("detected", "harmless", "silent")
METAS = {step: {"position": {"step": step, "row": 37 * step}, "versions": {"torch": "2.13"}} for step in (1, 2)}


class Outcome(NamedTuple):
    """What became of a mutation."""

    file: str
    mutation: str
    verdict: str
    detail: str


def mutate_checkpoints(count: int, seed: int) -> dict[str, int]:
    """Try `count` mutations; how many were tried, and how many came to each verdict.

    >>> mutate_checkpoints(3, seed=0)["silent"]
    0
    """
    verdicts = Counter(outcome.verdict for outcome in mutations(count, seed))
    return {"tried": verdicts.total(), **{verdict: verdicts[verdict] for verdict in VERDICTS}}


def mutations(count: int, seed: int) -> list[Outcome]:
    """What became of each of `count` mutations; the files take turns."""
    random = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        for step in METAS:
            write(CheckpointFiles(folder), step, pieces(step))
        files = sorted(Path(folder, name(2)).iterdir())
        return [mutation(path, random) for path in itertools.islice(itertools.cycle(files), count)]


def mutation(path: Path, random: np.random.Generator) -> Outcome:
    """Damage a file, see what loading says, and mend it."""
    before = path.read_bytes()
    content = bytearray(before)
    place = int(random.integers(len(content)))
    if random.random() < 0.3:
        mutation, content = f"cut to {place} of {len(content)} bytes", content[:place]
    else:
        mutation = f"byte {place}: {content[place]} -> "
        content[place] = (content[place] + int(random.integers(1, 256))) % 256
        mutation += str(content[place])
    path.write_bytes(content)
    try:
        verdict, detail = judge(path)
    finally:
        aside = path.parents[1] / f"damaged-{path.parent.name}"
        if aside.exists():
            aside.rename(path.parent)
        path.write_bytes(before)
    return Outcome(path.name, mutation, verdict, detail)


def judge(path: Path) -> tuple[str, str]:
    """The verdict on a checkpoint of which `path` was changed."""
    newest, folder = path.parent.name, path.parents[1]
    checkpoints = Checkpoints(folder)
    state = empty()
    try:
        meta = checkpoints.load(newest, state)
    except RuntimeError as error:
        return "silent", f"no error for a user: {error}"
    except ValueError as error:
        if str(path) not in str(error):
            return "silent", f"the error names no file: {error}"
        if not same(state, empty()):
            return "silent", "an error, but the state has changed"
        used, damaged = checkpoints.whole("latest")
        if used != name(1) or damaged.get(newest) is None or damaged[newest].file != str(path):
            return "silent", f"an error, but a run resumes from {used}: {damaged}"
        state = empty()
        meta = checkpoints.load(used, state)
        return ("detected", "") if is_saved(1, state, meta) else ("silent", "the checkpoint before is another")
    if not is_saved(2, state, meta):
        return "silent", "loaded, and it is not what was saved"
    if checkpoints.whole("latest") != (newest, {}) or checkpoints.whole("best") != (newest, {}):
        return "silent", "loaded, but no run resumes from it, or it is not the best"
    return "harmless", ""


def name(step: int) -> str:
    """A checkpoint's name."""
    return f"step-{step:08d}"


class Piece(NamedTuple):
    """What a rank holds of a tensor."""

    fqn: str
    offsets: list[int]
    shape: list[int]
    tensor: Tensor


def pieces(step: int) -> list[list[Piece]]:
    """The state of step `step` on two ranks: a part is empty, one is on both ranks."""
    random = torch.Generator().manual_seed(step)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    rows, columns, moments = draw(7, 4), draw(5, 6), draw(10)
    dense = {
        "model.bias": draw(3).half(),
        "optimizer.state.bias.step": torch.tensor(float(step)),
        "model.none": draw(0, 2),
    }
    ids = {"random.cpu": torch.randint(256, (19,), generator=random, dtype=torch.uint8)}
    return [
        [
            Piece("model.rows", [0, 0], [7, 4], rows[:4]),
            Piece("model.columns", [0, 0], [5, 6], columns[:, :2]),
            Piece("optimizer.columns", [0], [10], moments[:5]),
            *(Piece(fqn, [0] * value.ndim, list(value.shape), value) for fqn, value in dense.items()),
        ],
        [
            Piece("model.rows", [4, 0], [7, 4], rows[4:]),
            Piece("model.columns", [0, 2], [5, 6], columns[:, 2:]),
            Piece("optimizer.columns", [5], [10], moments[5:]),
            *(Piece(fqn, [0] * value.ndim, list(value.shape), value) for fqn, value in ids.items()),
        ],
    ]


class Planner(DefaultSavePlanner):
    """Finds the pieces of one rank."""

    def __init__(self, held: list[Piece]) -> None:
        super().__init__()
        self._held = {(piece.fqn, tuple(piece.offsets)): piece.tensor for piece in held}

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        """The tensor that is written."""
        data = write_item.tensor_data
        assert data is not None
        return self._held[write_item.index.fqn, tuple(data.chunk.offsets)]


def write(files: CheckpointFiles, step: int, ranks: list[list[Piece]]) -> None:
    """Write a checkpoint as so many ranks do, in this process."""
    plans = [
        decode(
            [
                [
                    piece.fqn,
                    "SHARD",
                    DTYPE_NAMES[piece.tensor.dtype],
                    piece.offsets,
                    list(piece.tensor.shape),
                    piece.shape,
                ]
                for piece in held
            ]
        )
        for held in ranks
    ]
    plans, metadata = create_default_global_save_plan(plans)
    written: dict[str, dict[str, Any]] = {}
    for rank, held in enumerate(ranks):
        writer = SafetensorsWriter(files.filesystem, files.path(name(step)))
        writer.set_up_storage_writer(is_coordinator=rank == 0)
        writer.write_data(writer.prepare_global_plan(plans)[rank], Planner(held)).wait()
        if rank == len(ranks) - 1:
            from torch.distributed.checkpoint import Metadata

            assert isinstance(metadata, Metadata)
            writer.finish(metadata, [])
        written |= writer.files
    written[META] = files.write_json(files.path(name(step)), META, METAS[step])
    files.write_manifest(name(step), step, step / 10, written)


def saved(step: int) -> dict[str, Tensor]:
    """The tensors of step `step`, whole."""
    whole: dict[str, Tensor] = {}
    for piece in itertools.chain(*pieces(step)):
        target = whole.setdefault(piece.fqn, torch.empty(piece.shape, dtype=piece.tensor.dtype))
        place = tuple(slice(o, o + n) for o, n in zip(piece.offsets, piece.tensor.shape, strict=True))
        target[place] = piece.tensor
    return whole


def empty() -> dict[str, Any]:
    """A state to load into, of zeros."""
    state: dict[str, Any] = {}
    for fqn, value in saved(1).items():
        *parents, last = fqn.split(".")
        inner = state
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = torch.zeros_like(value)
    return state


def flat(state: dict[str, Any], path: str = "") -> dict[str, Tensor]:
    """Tensors by their full name."""
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        found |= flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return found


def same(state: dict[str, Any], other: dict[str, Any]) -> bool:
    """Are two states equal to the bit?"""
    here, there = flat(state), flat(other)
    return here.keys() == there.keys() and all(
        torch.equal(here[fqn].reshape(-1).view(torch.uint8), there[fqn].reshape(-1).view(torch.uint8)) for fqn in here
    )


def is_saved(step: int, state: dict[str, Any], meta: dict[str, Any]) -> bool:
    """Is this what was saved at `step`?"""
    return meta == METAS[step] and same(state, saved(step))


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    started = time.perf_counter()
    outcomes = mutations(args.count, args.seed)
    rows = []
    for file in sorted({outcome.file for outcome in outcomes}):
        counts = Counter(outcome.verdict for outcome in outcomes if outcome.file == file)
        rows.append({"file": file, "tried": counts.total(), **{verdict: counts[verdict] for verdict in VERDICTS}})
    silent = [outcome._asdict() for outcome in outcomes if outcome.verdict == "silent"]
    counts = Counter(outcome.verdict for outcome in outcomes)
    result = {"tried": counts.total(), **{verdict: counts[verdict] for verdict in VERDICTS}}
    title = f"{len(outcomes):,} mutations of a checkpoint, seed {args.seed}, {time.perf_counter() - started:.0f} s"
    report(title, rows, result, record=args.record, further={"Silent": silent} if silent else {})


if __name__ == "__main__":
    main()
