"""Signs that a training is sick: what is seen, what it likely comes from, and what to do about it.

Every function takes numbers and names the symptoms in them; job/checkup.py collects the numbers. The thresholds are
far from what healthy runs show (docs/health.md): a warning that comes without a reason is not read the next time.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rankmixer.pipeline.train.rows_seen import LEAST_ROWS, Rows

LEAST_REPORTS = 20
EXPLODING = 100.0
LARGEST_WEIGHT = 1e4
MOSTLY = 0.5
SKEW = 1.5
CALIBRATION = 0.25
OVERFITTING = 1.25


class Symptom(NamedTuple):
    """One sign.

    Args:
        name: what to look for in docs/health.md.
        subject: what shows it: a task, a feature; "" for the model.
        seen: the numbers, in words.
        cause: what it likely comes from.
        remedy: what to do.
        severity: the higher, the worse; compared with earlier ones of the same name and subject.
    """

    name: str
    subject: str
    seen: str
    cause: str
    remedy: str
    severity: float

    @property
    def message(self) -> str:
        """All of it as one sentence."""
        return f"{self.seen}; likely {self.cause}. {self.remedy}"


def in_gradients(norms: Sequence[float]) -> list[Symptom]:
    """In the norms of the dense gradients, oldest first.

    >>> [symptom.name for symptom in in_gradients([1.0, 1.2] * 10 + [150.0])]
    ['exploding gradients']
    >>> in_gradients([1.0] * 5 + [150.0])  # too early to know what is usual
    []
    """
    *before, now = norms
    if len(before) < LEAST_REPORTS or now <= EXPLODING * (usual := statistics.median(before)):
        return []
    return [
        Symptom(
            "exploding gradients",
            "",
            f"the gradient norm is {now:.3g}, {now / max(usual, 1e-30):,.0f} times its median of {usual:.3g}",
            "a learning rate that is too high, or huge numbers in a dense feature",
            "Set optimizer.clip_norm, lower optimizer.dense.lr, or `transform` the feature",
            now / max(usual, 1e-30),
        )
    ]


def in_weights(largest: float) -> list[Symptom]:
    """In the largest absolute weight.

    >>> in_weights(3.0), in_weights(2e5)[0].name
    ([], 'exploding weights')
    """
    if largest < LARGEST_WEIGHT:
        return []
    return [
        Symptom(
            "exploding weights",
            "",
            f"the largest weight is {largest:.3g}",
            "a learning rate that is too high, or no bound on the gradients",
            "Lower optimizer.dense.lr or optimizer.sparse.lr, or set optimizer.clip_norm",
            largest,
        )
    ]


def in_labels(rows: Rows, what: str) -> list[Symptom]:
    """In the labels of some rows, which `what` names: the training rows, the evaluation rows.

    >>> [s.subject for s in in_labels(Rows({"click": 0.0, "like": 7.0}, 500.0, {}), "evaluation rows")]
    ['click in the evaluation rows']
    """
    symptoms = []
    for task in rows.positives:
        rate = rows.rate(task)
        if rows.weight >= LEAST_ROWS and not 0 < rate < 1:
            symptoms.append(
                Symptom(
                    "one class",
                    f"{task} in the {what}",
                    f"every label {task} of the {what} is {rate:g}",
                    "a filter before the data was written, a wrong column, or labels that have not arrived yet",
                    "Look at the label's column: `rankmixer data profile`",
                    1.0,
                )
            )
    return symptoms


def in_unknown_ids(train: Rows, evaluated: Rows) -> list[Symptom]:
    """In the shares of unknown ids.

    >>> known, lost = Rows({}, 500.0, {"city": (5, 500)}), Rows({}, 500.0, {"city": (400, 500)})
    >>> [symptom.name for symptom in in_unknown_ids(lost, lost)], [s.name for s in in_unknown_ids(known, lost)]
    (['unknown ids'], ['unknown ids'])
    >>> in_unknown_ids(known, known)
    []
    """
    symptoms = []
    for feature in evaluated.unknown:
        there, here = train.unknown_share(feature), evaluated.unknown_share(feature)
        if max(there, here) < MOSTLY and here < there + MOSTLY / 2:
            continue
        symptoms.append(
            Symptom(
                "unknown ids",
                feature,
                f"{here:.0%} of the lookups of {feature} in the evaluation rows are of unknown ids, {there:.0%} in the "
                "training rows",
                "a vocabulary or range that is older than the data, or ids written in another way",
                "Build the vocabulary again (`rankmixer vocab`), widen the range, or use buckets or managed ids",
                max(there, here),
            )
        )
    return symptoms


def in_skew(train: Rows, evaluated: Rows, train_loss: float, evaluated_loss: float, first: bool) -> list[Symptom]:
    """In what differs between training and evaluation; losses from the second evaluation on.

    >>> rows = Rows({"click": 100.0}, 1000.0, {})
    >>> in_skew(rows, rows, 0.5, 0.55, first=False)
    []
    >>> [s.name for s in in_skew(rows, Rows({"click": 300.0}, 1000.0, {}), 0.5, 0.9, first=False)]
    ['label skew', 'overfitting']
    """
    symptoms = []
    for task in evaluated.positives:
        there, here = train.rate(task), evaluated.rate(task)
        if not (0 < there < 1 and 0 < here < 1):
            continue
        ratio = max(here / there, there / here, (1 - here) / (1 - there), (1 - there) / (1 - here))
        noise = math.sqrt(there * (1 - there) * (1 / train.weight + 1 / evaluated.weight))
        if ratio > SKEW and abs(here - there) > 6 * noise:
            symptoms.append(
                Symptom(
                    "label skew",
                    task,
                    f"the mean of {task} is {there:.4g} in the training rows and {here:.4g} in the evaluation rows",
                    "rows chosen otherwise, negatives left out of one of them, or another time",
                    "Choose both alike; leave negatives out by data.sample, which corrects the weights",
                    ratio,
                )
            )
    if not first and evaluated_loss > OVERFITTING * train_loss:
        symptoms.append(
            Symptom(
                "overfitting",
                "",
                f"the loss is {train_loss:.4g} in training and {evaluated_loss:.4g} in evaluation",
                "rows learnt by heart, or a feature that tells the label in training alone",
                "Set train.early_stopping, train fewer epochs, or give tables of rare ids fewer rows",
                evaluated_loss / train_loss,
            )
        )
    return symptoms


def in_metrics(metrics: Mapping[str, float], tasks: Sequence[str], rows: Rows, first: bool) -> list[Symptom]:
    """In the metrics of an evaluation; from the second one on, but for constant predictions.

    >>> rows = Rows({"click": 250.0}, 1000.0, {})
    >>> [s.name for s in in_metrics({"auc": 0.5, "ne": 1.2, "calibration": 2.0}, ["click"], rows, first=False)]
    ['constant predictions']
    >>> [s.name for s in in_metrics({"auc": 0.6, "ne": 1.2, "calibration": 2.0}, ["click"], rows, first=False)]
    ['no better than the mean', 'calibration']
    >>> in_metrics({"auc": 0.7, "ne": 0.9, "calibration": 1.02}, ["click"], rows, first=False)
    []
    """
    symptoms = []
    for task in tasks:
        auc, ne, calibration = (
            metrics[name if len(tasks) == 1 else f"{task}/{name}"] for name in ("auc", "ne", "calibration")
        )
        soft = metrics.get("soft_labels" if len(tasks) == 1 else f"{task}/soft_labels")
        if soft:
            undefined = "; none has, so that it is not defined" if math.isnan(auc) else ""
            symptoms.append(
                Symptom(
                    "soft labels",
                    task,
                    f"{soft:,.0f} labels of {task} lie between 0 and 1: AUC is over rows that have 0 or 1{undefined}",
                    "labels that are shares or probabilities",
                    "Set metrics.select=logloss or ne, which count every row",
                    1.0,
                )
            )
        if auc == 0.5:
            symptoms.append(
                Symptom(
                    "constant predictions",
                    task,
                    f"all evaluation rows get one prediction of {task} (AUC 0.5)",
                    "a head that died of a learning rate that is too high, or features that are all empty",
                    "Lower optimizer.dense.lr, and look at the features: `rankmixer data profile`",
                    1.0,
                )
            )
            continue
        if first:
            continue
        if ne >= 1:
            symptoms.append(
                Symptom(
                    "no better than the mean",
                    task,
                    f"the normalised entropy of {task} is {ne:.4f}: the mean label predicts as well",
                    "features that say nothing of the label, too few steps, or rows learnt by heart",
                    "Look at the learning curve, and at early stopping or the learning rates",
                    ne,
                )
            )
        noise = 6 / math.sqrt(max(1.0, rows.positives[task]))
        if calibration > (1 + CALIBRATION) * (1 + noise) or calibration < (1 - CALIBRATION) / (1 + noise):
            symptoms.append(
                Symptom(
                    "calibration",
                    task,
                    f"the mean prediction of {task} is {calibration:.3g} times its mean label in the evaluation rows",
                    "negatives left out of the training rows only, or rows of another time",
                    "Leave negatives out by data.sample, or calibrate the scores before they are used",
                    max(calibration, 1 / max(calibration, 1e-9)),
                )
            )
    return symptoms


def in_experts(load_LTE: Sequence[Sequence[Sequence[float]]]) -> list[Symptom]:
    """In the shares of the examples that open each expert, of two evaluations together.

    >>> in_experts([[[0.5, 0.0]]])[0].seen
    '1 of 2 experts are dead, no example opens them: layer 0 token 0 expert 1'
    """
    places = [
        (f"layer {layer} token {token} expert {expert}", load)
        for layer, load_TE in enumerate(load_LTE)
        for token, load_E in enumerate(load_TE)
        for expert, load in enumerate(load_E)
    ]
    dead = [place for place, load in places if load == 0]
    if not dead:
        return []
    return [
        Symptom(
            "dead experts",
            "",
            f"{len(dead)} of {len(places)} experts are dead, no example opens them: "
            f"{', '.join(dead[:4])}{', ...' if len(dead) > 4 else ''}",
            "more experts than the data needs, or a penalty that closes them",
            "Lower model.moe.experts or raise model.moe.active_ratio",
            float(len(dead)),
        )
    ]
