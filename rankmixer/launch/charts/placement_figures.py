"""Pictures of where things lie: shards and memory on the ranks, load on the experts of a Sparse-MoE."""

from __future__ import annotations

import math
from html import escape
from typing import Any

from rankmixer.launch.charts.figures import Figure, Trace, small
from rankmixer.launch.runs.run_log import RunLog

TABLES_SHOWN = 40  # the largest ones; the others share a line
RANKS_TALL = 40  # from here on bars are thin
SCALE = [[0, "var(--heat0)"], [0.5, "var(--heat1)"], [1, "var(--heat2)"]]
SIZES = ("B", "KiB", "MiB", "GiB", "TiB")


def placement(log: RunLog) -> list[Figure]:
    """The memory of every rank, and which shards of which tables it holds."""
    plan = log.start.get("plan", {})
    if not plan.get("memory"):
        return []
    return [_memory(log, plan["memory"]), *_shards(plan["shards"], len(plan["memory"]))]


def _memory(log: RunLog, ranks: list[dict[str, int]]) -> Figure:
    measured = log.memory
    kind = "cuda_bytes" if measured and "cuda_bytes" in measured[0] else "rss_bytes"
    unit, number = _unit(max(sum(rank.values()) for rank in ranks))
    names = [f"rank {rank}" for rank in range(len(ranks))]
    data: list[Trace] = []
    for colour, key, called in (
        ("var(--c0)", "tables", "tables"),
        ("var(--c4)", "states", "optimizer states of tables, maps"),
        ("var(--c1)", "head", "dense part with gradients and states"),
    ):
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": called,
                "y": names,
                "x": [rank[key] / number for rank in ranks],
                "marker": {"color": colour},
                "customdata": [size(rank[key]) for rank in ranks],
                "hovertemplate": "%{customdata}",
            }
        )
    layout = {
        "barmode": "stack",
        "legend": {"traceorder": "normal"},
        "bargap": 0.35,
        "hovermode": "y unified",
        "xaxis": {"title": {"text": f"{unit}, planned"}, "rangemode": "tozero"},
        "yaxis": {"autorange": "reversed", "type": "category", "showgrid": False},
    }
    note = "Planned, as rankmixer plan counts it."
    if len(measured) == len(ranks):
        most = [rank.get(kind, 0) for rank in measured]
        held = "GPU memory" if kind == "cuda_bytes" else "The whole process held (RSS, libraries included)"
        span = size(max(most)) if min(most) == max(most) else f"{size(min(most))} to {size(max(most))}"
        note += f" {held}: {span} a rank at the last evaluation."
    return Figure("Memory of each rank", note, data, layout, _tall(len(ranks), 120))


def _shards(shards: list[dict[str, Any]], num_ranks: int) -> list[Figure]:
    by_table: dict[str, list[dict[str, Any]]] = {}
    for shard in shards:
        by_table.setdefault(shard["table"], []).append(shard)
    if not by_table:
        return []
    largest = sorted(by_table, key=lambda name: -sum(shard["bytes"] for shard in by_table[name]))
    lines = [(name, by_table[name]) for name in largest[:TABLES_SHOWN]]
    rest = [shard for name in largest[TABLES_SHOWN:] for shard in by_table[name]]
    if rest:
        lines.append((f"{len(largest) - TABLES_SHOWN} smaller tables", rest))
    z: list[list[float | None]] = []
    texts: list[list[str]] = []
    for name, here in lines:
        of_ranks = [[shard for shard in here if shard["rank"] == rank] for rank in range(num_ranks)]
        bytes_R = [sum(shard["bytes"] for shard in held) for held in of_ranks]
        z.append([math.log2(held) if held else None for held in bytes_R])
        texts.append([_told(name, rank, held) for rank, held in enumerate(of_ranks)])
    values = [value for line in z for value in line if value is not None]
    ticks = sorted({min(values), (min(values) + max(values)) / 2, max(values)})
    data = {
        "type": "heatmap",
        "z": z,
        "x": list(range(num_ranks)),
        "y": list(range(len(lines))),
        "text": texts,
        "hovertemplate": "%{text}<extra></extra>",
        "hoverongaps": False,
        "colorscale": SCALE,
        "xgap": 1,
        "ygap": 1,
        "colorbar": {
            "tickvals": ticks,
            "ticktext": [size(2**tick) for tick in ticks],
            "thickness": 10,
            "outlinewidth": 0,
        },
    }
    labels = [f"{escape(name)} {small(_kinds(held))}" for name, held in lines]
    layout = {
        "hovermode": "closest",
        "xaxis": {"title": {"text": "rank"}, "dtick": max(1, num_ranks // 16), "showgrid": False},
        "yaxis": {"tickvals": list(range(len(lines))), "ticktext": labels, "autorange": "reversed", "showgrid": False},
    }
    note = f"{len(by_table)} tables in {len(shards)} shards; colour is the size of the weights."
    return [Figure("Shards of the tables", note, [data], layout, 110 + 22 * len(lines))]


def _kinds(shards: list[dict[str, Any]]) -> str:
    return ", ".join(dict.fromkeys(shard["sharding"].replace("_", "-") for shard in shards))


def _told(name: str, rank: int, shards: list[dict[str, Any]]) -> str:
    lines = [f"<b>{escape(name)}</b> on rank {rank}"]
    for shard in shards[:3]:
        (row, column), (rows, columns) = shard["offset"], shard["size"]
        lines.append(f"rows {row:,} to {row + rows:,}, columns {column} to {column + columns}")
        lines.append(f"{escape(shard['sharding'])}, {escape(shard['kernel'])}: {size(shard['bytes'])}")
    return "<br>".join([*lines, f"and {len(shards) - 3} more"] if len(shards) > 3 else lines)


def experts(log: RunLog) -> list[Figure]:
    """How often each expert was open at the newest evaluation, and the open share of every layer over evaluations."""
    if log.experts is None:
        return []
    load_LTE = log.experts["load_LTE"]
    tokens, num_experts = len(load_LTE[0]), len(load_LTE[0][0])
    # Layers beside each other, a column of nothing between them.
    z = [[share for layer in load_LTE for share in (*layer[token], None)][:-1] for token in range(tokens)]
    texts = [
        [
            text
            for layer, load_TE in enumerate(load_LTE)
            for text in (
                *(
                    f"layer {layer}, token {token}, expert {expert}<br>open for {share:.1%} of the examples"
                    for expert, share in enumerate(load_TE[token])
                ),
                "",
            )
        ][:-1]
        for token in range(tokens)
    ]
    width = num_experts + 1
    load: Trace = {
        **_shares(z, texts),
        "x": list(range(len(z[0]))),
        "y": list(range(tokens)),
    }
    layout = {
        "hovermode": "closest",
        "xaxis": {
            "tickvals": [width * layer + (num_experts - 1) / 2 for layer in range(len(load_LTE))],
            "ticktext": [f"layer {layer}: {num_experts} experts" for layer in range(len(load_LTE))],
            "showgrid": False,
        },
        "yaxis": {"title": {"text": "token"}, "autorange": "reversed", "showgrid": False, "dtick": max(1, tokens // 8)},
    }
    note = f"Evaluation at step {log.experts['step']:,}: share of the examples for which an expert was open; 0 is dead."
    figures = [Figure("Load of the experts", note, [load], layout, 130 + 14 * tokens)]
    return [*figures, *_open(log, len(load_LTE))]


def _open(log: RunLog, layers: int) -> list[Figure]:
    records = log.open_experts
    names = [f"active_ratio/layer_{layer}" for layer in range(layers)]
    z = [[record.get(name) for record in records] for name in names]
    texts = [
        [
            f"layer {layer}, step {record['step']:,}<br>{share:.1%} of the experts open" if share is not None else ""
            for record, share in zip(records, line, strict=True)
        ]
        for layer, line in enumerate(z)
    ]
    # By number, not by step: evaluations of unequal distance are equally wide.
    some = range(0, len(records), max(1, len(records) // 6))
    trace = {**_shares(z, texts), "x": list(range(len(records))), "y": list(range(layers))}
    budget = (log.config.get("model", {}).get("moe") or {}).get("active_ratio")
    layout = {
        "hovermode": "closest",
        "xaxis": {
            "title": {"text": "evaluation at step"},
            "tickvals": list(some),
            "ticktext": [f"{records[number]['step']:,}" for number in some],
            "showgrid": False,
        },
        "yaxis": {"title": {"text": "layer"}, "autorange": "reversed", "dtick": max(1, layers // 8), "showgrid": False},
    }
    note = "Mean over tokens." + (f" The budget is {budget:.1%}." if isinstance(budget, float) else "")
    return [Figure("Open share of the experts", note, [trace], layout, 150 + 26 * layers)]


def _shares(z: list[list[float | None]], texts: list[list[str]]) -> Trace:
    return {
        "type": "heatmap",
        "z": z,
        "text": texts,
        "hovertemplate": "%{text}<extra></extra>",
        "hoverongaps": False,
        "colorscale": SCALE,
        "zmin": 0,
        "zmax": max((share for line in z for share in line if share is not None), default=0) or 1,
        "xgap": 1,
        "ygap": 1,
        "colorbar": {"tickformat": ".0%", "thickness": 10, "outlinewidth": 0},
    }


def size(number: float) -> str:
    """Bytes with a unit.

    >>> size(512), size(386624), size(3 * 2**30)
    ('512 B', '378 KiB', '3 GiB')
    """
    unit, divisor = _unit(number)
    value = number / divisor
    return f"{value:,.0f} {unit}" if value >= 1000 else f"{value:.3g} {unit}"


def _unit(number: float) -> tuple[str, int]:
    power = 0
    while number >= 1024 and power < len(SIZES) - 1:
        number, power = number / 1024, power + 1
    return SIZES[power], 1024**power


def _tall(lines: int, extra: int) -> int:
    return extra + (28 if lines < RANKS_TALL else 10) * lines
