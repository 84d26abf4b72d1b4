from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from launch.learning_curve import plot
from pipeline.journal import Journal


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were saved, to look into."""
    figures: list[Figure] = []
    save = Figure.savefig

    def savefig(self: Figure, *args: object, **kwargs: object) -> None:
        figures.append(self)
        save(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Figure, "savefig", savefig)
    return figures


def lines_of(figure: Figure, axes: int) -> dict[str, tuple[list[float], list[float]]]:
    lines = figure.axes[axes].get_lines()
    return {
        str(line.get_label()): (np.ravel(line.get_xdata()).tolist(), np.ravel(line.get_ydata()).tolist())
        for line in lines
    }


def test_losses_and_aucs_are_drawn_over_steps(tmp_path: Path, drawn: list[Figure]) -> None:
    with Journal(str(tmp_path), quiet=True) as journal:
        journal.event("start", 0, auc=0.1)
        for step, loss in ((10, 0.6), (20, 0.5), (30, math.nan), (40, 0.4)):
            journal.step(step, loss=loss)
        for step, auc in ((20, 0.7), (30, math.nan), (40, 0.75)):
            journal.event("evaluate", step, auc=auc, logloss=1 - auc, gauc=0.1, auc_error_bound=0.1)
        journal.event("finish", 40, auc=0.2, test_auc=0.8125, test_gauc=0.3)
    plot(str(tmp_path), str(tmp_path / "curve.png"))
    losses, aucs = lines_of(drawn[0], 0), lines_of(drawn[0], 1)
    raw, mean = losses["_child0"], losses["training loss (faint) and its running mean"]
    assert raw[0] == mean[0] == [10, 20, 40]
    assert raw[1] == [0.6, 0.5, 0.4]
    assert mean[1] == pytest.approx([0.6, 0.98 / 1.8, 1.184 / 2.44])
    assert losses["evaluation logloss"][1] == pytest.approx([0.3, 0.25])
    assert aucs["evaluation auc, best 0.7500"][0] == [20, 40]
    assert aucs["evaluation auc, best 0.7500"][1] == [0.7, 0.75]
    assert aucs["test auc 0.8125"][1] == [0.8125, 0.8125]
    assert len(losses) == 3
    assert len(aucs) == 2
    loss_axes, auc_axes = drawn[0].axes
    assert loss_axes.get_ylabel() == "loss"
    assert (auc_axes.get_ylabel(), auc_axes.get_xlabel()) == ("AUC", "training step")
    assert imread(tmp_path / "curve.png").shape == (720, 960, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curve.png", "log.jsonl", "tensorboard"]


def test_every_task_has_its_curve(tmp_path: Path, drawn: list[Figure]) -> None:
    with Journal(str(tmp_path), quiet=True) as journal:
        journal.step(10, loss=0.6)
        journal.event("evaluate", 10, **{"click/auc": 0.75, "buy/auc": 0.875, "buy/gauc": 0.5})
        journal.event("finish", 10, **{"test_buy/auc": 0.625})
    plot(str(tmp_path), str(tmp_path / "curve.png"))
    labels = ["evaluation click/auc, best 0.7500", "evaluation buy/auc, best 0.8750", "test buy/auc 0.6250"]
    assert list(lines_of(drawn[0], 1)) == labels


def test_a_run_without_evaluation_says_so(tmp_path: Path, drawn: list[Figure]) -> None:
    with Journal(str(tmp_path), quiet=True) as journal:
        journal.step(10, loss=0.6)
    plot(str(tmp_path), str(tmp_path / "curve.png"))
    assert [text.get_text() for text in drawn[0].axes[1].texts] == ["no evaluation in the log"]


def test_a_log_without_losses_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"log\.jsonl"):
        plot(str(tmp_path), str(tmp_path / "curve.png"))
    with Journal(str(tmp_path), quiet=True) as journal:
        journal.step(10, loss=math.nan)
    with pytest.raises(ValueError, match=r"log\.jsonl: no finite 'loss' in a line of kind 'train' \(found 1 lines"):
        plot(str(tmp_path), str(tmp_path / "curve.png"))
    assert not list(tmp_path.glob("curve*"))


def test_a_drawing_that_fails_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Journal(str(tmp_path), quiet=True) as journal:
        journal.step(10, loss=0.6)
    (tmp_path / "curve.png").write_text("old")

    def fail(self: Figure, path: Path, **_: object) -> None:
        path.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        plot(str(tmp_path), str(tmp_path / "curve.png"))
    assert [path.name for path in tmp_path.glob("curve*")] == ["curve.png"]
    assert (tmp_path / "curve.png").read_text() == "old"
