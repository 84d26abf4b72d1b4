"""report.html: charts that plotly takes, text that is escaped, a page that is whole and bounded."""

from __future__ import annotations

import html.parser
import json
import re
from pathlib import Path
from typing import Any

import pytest

from rankmixer.launch.report.run_page import RunPage, page, write_page
from rankmixer.launch.runs.run_log import POINTS, RunLog
from rankmixer.launch.runs.thinned import Thinned
from tests.helpers.run_log import a_run, write

EVIL = "</script><img src=x onerror=alert(1)>&\"'"


class Reader(html.parser.HTMLParser):
    """The elements and the text of a page, and what its scripts hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self.charts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] == ["h3"]:
            self.charts.append(data)
        (self.scripts if self.tags[-1:] == ["script"] else self.text).append(data)


def read(text: str) -> tuple[Reader, list[dict[str, Any]]]:
    found = Reader(text)
    return found, json.loads(found.scripts[0])


def in_black(figures: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The charts with a colour for each name of one, as the page's script puts them in."""
    coloured = json.loads(re.sub(r'"var\(--\w+\)"', '"#000000"', json.dumps(figures)))
    assert "var(" not in json.dumps(coloured)
    return list(coloured)


@pytest.mark.parametrize("tasks", [["click"], ["click", "buy"]])
def test_plotly_takes_every_chart_of_a_whole_run(tasks: list[str], tmp_path: Path) -> None:
    from plotly.graph_objects import Figure  # raises for a property that plotly.js does not have

    found, figures = read(page(RunLog(write(tmp_path, a_run(tasks))).read()))
    for figure in in_black(figures):
        Figure(data=figure["data"], layout=figure["layout"])
    text = " ".join(found.text)
    assert found.charts == [
        *("Loss", "AUC", "GAUC", "Normalised entropy", "Reliability", "AUC by user", "Throughput", "Data wait", "MFU"),
        *("Load of the experts", "Open share of the experts", "Memory of each rank", "Shards of the tables"),
    ]
    for told in ("finished", "2 ranks on node-0, node-1", "1 restart", "resumed from step-00000040", "0.6250"):
        assert told in text, told
    assert "dead expert of <user> (2 times)" in text
    assert "model.layers" in found.text
    by_title = dict(zip(found.charts, figures, strict=True))
    lines = by_title["AUC"]["data"]
    assert [(line["x"], line["y"]) for line in lines[:1]] == [([40, 80], [0.8, 0.6])]
    assert len(lines) == 2 * len(tasks)  # evaluation and test
    assert by_title["Load of the experts"]["data"][0]["z"][0] == [0.0, 0.5, 0.25, None, 0.0, 0.5, 0.25]
    assert by_title["Reliability"]["data"][1]["y"] == [0.2] * 3
    assert "(RSS, libraries included): 1 GiB to 2 GiB a rank" in text
    memory = by_title["Memory of each rank"]["data"]
    assert [trace["x"][0] for trace in memory] == [1600 / 1024, 1600 / 1024, 100_000 / 1024]


def test_what_users_and_data_name_is_text_everywhere(tmp_path: Path) -> None:
    records = a_run([EVIL, "buy"], EVIL)
    records[0] |= {"hosts": EVIL, "versions": {"torch": EVIL}}
    records += [{"kind": EVIL, "step": 100, EVIL: EVIL}, {**records[0], "step": 100, "resumed_from": EVIL}]
    plain, _ = read(page(RunLog(write(tmp_path / "plain", a_run(["click", "buy"]))).read()))
    directory = tmp_path / "<b onclick=x>"
    found, figures = read(page(RunLog(write(directory, records)).read()))
    assert set(found.tags) == set(plain.tags) - {"img"}
    assert set(found.attributes) == set(plain.attributes)
    assert any(EVIL in text for text in found.text)
    assert len(found.scripts) == len(plain.scripts)
    told = json.dumps([[figure["data"], figure["layout"]] for figure in figures])
    assert "&lt;img" in told
    assert "<img" not in told  # plotly.js reads tags in text


@pytest.mark.parametrize("count", [1, 2, 9])
def test_a_run_has_a_page_from_its_first_record_on(count: int, tmp_path: Path) -> None:
    found, _ = read(page(RunLog(write(tmp_path, a_run(["click"])[:count])).read(), "running"))
    assert "stopped" in found.text  # its records are of 1970
    bare, figures = read(page(RunLog(write(tmp_path, [{"kind": "train", "step": 5, "loss": None}])).read()))
    assert "5" in bare.text
    assert figures == []


def test_rows_without_a_group_are_told(tmp_path: Path) -> None:
    records = [record | ({"ungrouped": 0.125} if record["kind"] == "evaluate" else {}) for record in a_run(["click"])]
    found, _ = read(page(RunLog(write(tmp_path, records)).read()))
    text = " ".join(found.text)
    assert "AUC within each user, averaged; 12.50% of the evaluated rows have none and are left out." in text
    assert "ungrouped 0.125" in text
    assert "left out" not in " ".join(read(page(RunLog(write(tmp_path, a_run(["click"]))).read()))[0].text)


def test_a_diverged_run_says_what_broke(tmp_path: Path) -> None:
    layers = {"head.blocks.0.ffn": "2 of 9 not finite", "head.heads": "up to 1"}
    diverged = {"kind": "diverged", "step": 10, "layers": layers, "checkpoint": None}
    found, _ = read(page(RunLog(write(tmp_path, [*a_run(["click"])[:2], diverged])).read()))
    assert "diverged" in found.text
    assert "⚠ diverged; weights not finite in head.blocks.0.ffn (2 of 9 not finite); no checkpoint yet" in found.text


def test_the_page_is_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = RunLog(write(tmp_path, a_run(["click"]))).read()
    before = write_page(log).read_text()
    assert before.rstrip().endswith("</html>")
    assert "http://" not in re.sub(r"<script>.*?</script>", "", before, flags=re.S).replace("http://www.w3.org", "")

    def fail(self: Path, target: Path) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        write_page(log)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "report.html"]
    assert (tmp_path / "report.html").read_text() == before


def test_refreshing_reads_what_is_new_and_rests_afterwards(tmp_path: Path) -> None:
    records = a_run(["click"])
    run = RunPage(write(tmp_path, records[:3]))
    run.refresh()
    first = (tmp_path / "report.html").read_text()
    write(tmp_path, records)
    run.refresh()
    assert (tmp_path / "report.html").read_text() == first  # it has just been written
    run.refresh(has_ended=True)
    assert "finished" in read((tmp_path / "report.html").read_text())[0].text


def test_a_log_of_any_length_keeps_its_size(tmp_path: Path) -> None:
    thinned = Thinned(POINTS)
    for step in range(1, 10 * POINTS + 4):
        thinned.add({"kind": "train", "step": step, "loss": float(step)})
    points = thinned.points()
    assert POINTS <= len(points) <= 2 * POINTS
    assert points[-1]["step"] == 10 * POINTS + 3
    assert points[0]["loss"] == pytest.approx((1 + points[0]["step"]) / 2)
    evaluations = [{"kind": "evaluate", "step": step, "auc": 0.5} for step in range(3 * POINTS)]
    evaluations[7] |= {"auc": 0.75}
    warnings = [{"kind": "warning", "step": step, "message": f"warning {step}"} for step in range(500)]
    log = RunLog(write(tmp_path, [*a_run(["click"])[:1], *evaluations, *warnings])).read()
    assert len(log.evaluations) < 2 * POINTS
    assert log.evaluations[-1]["step"] == 3 * POINTS - 1
    assert log.best is not None
    assert log.best["step"] == 7
    assert len(log.events.all()) == 200


def test_an_attempt_that_resumed_has_rewritten_the_log(tmp_path: Path) -> None:
    records = a_run(["click"])
    log = RunLog(write(tmp_path, records)).read()
    assert (log.step, log.starts, log.state()) == (100, 2, "finished")
    write(tmp_path, records[:2])
    assert (log.read().step, log.starts) == (10, 1)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 20, "ti')
    assert log.read().step == 10
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('me": 2000.0}\nnot JSON\n[1]\n')
    assert log.read().step == 20


def test_of_a_huge_log_a_part_is_read_that_tells_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = a_run(["click"])
    middle = [{**records[1], "step": 10 + number} for number in range(1000)]
    whole = RunLog(write(tmp_path, [records[0], *middle, *records[2:]])).read()
    monkeypatch.setattr("rankmixer.launch.runs.run_log.WHOLE_BYTES", 20_000)
    part = RunLog(str(tmp_path)).read()
    assert len(part.training.points()) < len(whole.training.points()) / 5
    for name in ("step", "state", "starts", "best", "last_step", "finish", "judged", "seconds", "_longest_silence"):
        one, other = getattr(part, name), getattr(whole, name)
        assert (one() if callable(one) else one) == (other() if callable(other) else other), name
    assert part.events.all() == whole.events.all()
