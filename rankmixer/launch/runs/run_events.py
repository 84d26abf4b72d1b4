"""What happened to a run, as sentences: restarts, warnings, files set aside, values mended, divergence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Record = dict[str, Any]

KEPT = 200  # events; of more the oldest go
# Of these every record repeats the one before and adds to it: the newest says all.
CUMULATIVE = ("mended", "managed", "bad_files")


def _started(record: Record) -> str:
    ranks = record.get("world_size", 1)
    where = f"on {ranks} rank{'s' * (ranks != 1)} ({record.get('hosts', 'host unknown')})"
    resumed = record.get("resumed_from")
    return f"resumed from {resumed} {where}" if resumed else f"started {where}"


def _set_aside(record: Record) -> str:
    count = record.get("count", 0)
    parts = "file or row group" if count == 1 else "files and row groups"
    return f"{count:,} {parts} of {record.get('data')} set aside, see bad_files.jsonl; the last: {record.get('last')}"


def _taken(record: Record) -> str:
    tables = [name.removesuffix("/rows_taken") for name in record if name.endswith("/rows_taken")]
    parts = [f"{name} {record[f'{name}/rows_taken']:,} of {record.get(f'{name}/rows_to_take', 0):,}" for name in tables]
    return f"rows of managed tables given to ids: {', '.join(parts)}"


def _diverged(record: Record) -> str:
    if "message" in record:
        return str(record["message"])
    broken = [f"{name} ({found})" for name, found in record.get("layers", {}).items() if "not finite" in found]
    where = f"weights not finite in {', '.join(broken[:4])}{', ...' if len(broken) > 4 else ''}" if broken else ""
    kept = record.get("checkpoint")
    return "; ".join(
        part for part in ("diverged", where, f"last good checkpoint {kept}" if kept else "no checkpoint yet") if part
    )


def _damaged(record: Record) -> str:
    used = f"{record['used']} was used instead" if record.get("used") else "the weights of the last step were used"
    kept = f", it is kept as {record['aside']}" if record.get("aside") else ""
    return f"checkpoint {record.get('checkpoint')} was damaged ({record.get('file')}){kept}; {used}"


def _preempted(record: Record) -> str:
    kept = record.get("checkpoint")
    return f"preempted by {record.get('signal')}; {f'{kept} is saved' if kept else 'there was nothing to save yet'}"


SENTENCES: dict[str, Callable[[Record], str]] = {
    "start": _started,
    "bad_files": _set_aside,
    "managed": _taken,
    "diverged": _diverged,
    "warning": lambda record: str(record.get("message", "")),
    "rollback": lambda record: f"rolled back: {record.get('message', '')}",
    "damaged": _damaged,
    "preempted": _preempted,
    "trace": lambda record: f"trace of steps written to {record.get('path')}",
    "warm_start": lambda record: f"started from the weights of {record.get('source')}, see {record.get('report')}",
    "mended": lambda record: f"values mended in the training rows: {_named(record)}",
    "finish": lambda record: f"finished after {record['step']:,} steps",
}
TROUBLE = ("warning", "diverged", "bad_files", "damaged", "rollback")


class Events:
    """The events of a run, each with `sentence` and `count`: what is said again is counted, not repeated.

    >>> events = Events()
    >>> for step in (10, 20):
    ...     events.add({"kind": "warning", "step": step, "time": 0.0, "message": "2 experts are dead"})
    >>> [(event["step"], event["sentence"], event["count"]) for event in events.all()]
    [(20, '2 experts are dead', 2)]
    """

    def __init__(self) -> None:
        self._events: dict[tuple[Any, ...], Record] = {}

    def add(self, record: Record) -> None:
        """Take a record of any kind; one that nobody knows is told by its values."""
        kind, said = record["kind"], sentence(record)
        if kind in CUMULATIVE:
            key: tuple[Any, ...] = (kind, record.get("data"))
        else:
            key = (kind, said, record["time"]) if kind == "start" else (kind, said)
        known = self._events.pop(key, {"count": 0})
        count = 1 if kind in CUMULATIVE else known["count"] + 1
        event = {"kind": kind, "step": record["step"], "time": record["time"], "sentence": said, "count": count}
        self._events[key] = event
        if len(self._events) > KEPT:
            del self._events[next(iter(self._events))]

    def all(self) -> list[Record]:
        """The events by time."""
        return sorted(self._events.values(), key=lambda event: float(event["time"]))

    def trouble(self) -> list[Record]:
        """Those that the owner should know of."""
        return [event for event in self.all() if event["kind"] in TROUBLE or event["kind"] not in SENTENCES]


def sentence(record: Record) -> str:
    """What a record says, for people.

    >>> sentence({"kind": "visit", "step": 7, "time": 0.0, "by": "a colleague"})
    'visit: by a colleague'
    """
    known = SENTENCES.get(record["kind"])
    return known(record) if known else f"{record['kind']}: {_named(record)}"


def _named(record: Record) -> str:
    values = {name: value for name, value in record.items() if name not in ("kind", "step", "time")}
    shown = [f"{name} {value:,}" if isinstance(value, int) else f"{name} {value}" for name, value in values.items()]
    return ", ".join(shown)
