"""What follows from the evaluations so far: which weights are best, whether the rate falls, whether it is enough.

Everything here is a function of the recorded evaluations, so a run that was stopped and goes on decides alike.
"""

import math
from collections.abc import Sequence
from typing import Any

from mrcnn_cli.engine.optimizer import TrainConfig
from mrcnn_cli.errors import UserError

Row = dict[str, Any]  # of metrics.jsonl: "step" and the metrics
# What the best weights are best in, the first that there is: panoptic quality, AP of keypoints, masks or boxes; of a
# region proposal network alone, recall.
METRICS = ("pq", "keypoint_ap", "mask_ap", "box_ap", "proposal_ar1000")


def check_metric(config: TrainConfig, row: Row) -> None:
    """UserError if an evaluation lacks the metric that counts."""
    if config.best_by is not None and config.best_by not in row:
        known = ", ".join(key for key, value in row.items() if isinstance(value, float))
        raise UserError(
            f"train.best_by = {config.best_by!r}: no such metric of this model; it has {known}; "
            "go on with --resume and --set train.best_by=METRIC"
        )


def metric_of(config: TrainConfig, row: Row) -> str:
    """The metric that counts (train.best_by)."""
    return config.best_by or next((key for key in METRICS if key in row), METRICS[-1])


def score(config: TrainConfig, row: Row) -> float:
    """How good an evaluation is, more being better: of a loss the negative; minus infinity where there is no value."""
    name = metric_of(config, row)
    value = row.get(name)  # may be missing where train.best_by was changed on the way
    if value is None or not math.isfinite(value):
        return -math.inf
    return -float(value) if name.startswith("loss") else float(value)


def ranking(config: TrainConfig, rows: Sequence[Row]) -> list[int]:
    """The steps of the evaluations, the best first; of equal ones the earlier."""
    return [row["step"] for row in sorted(rows, key=lambda row: (-score(config, row), row["step"]))]


def decays(config: TrainConfig, rows: Sequence[Row]) -> int:
    """How often the learning rate has fallen by schedule = "plateau"."""
    if config.schedule != "plateau":
        return 0
    count, waited = 0, 0
    for gained in _gains(config, rows):
        waited = 0 if gained else waited + 1
        if waited == config.plateau_patience:
            count, waited = count + 1, 0
    return count


def is_over(config: TrainConfig, rows: Sequence[Row]) -> bool:
    """Whether the last train.patience evaluations brought nothing."""
    return config.patience is not None and _since_gain(config, rows) >= config.patience


def verdict(config: TrainConfig, rows: Sequence[Row]) -> str:
    """In words, why training is over before its last step."""
    best = max(rows, key=lambda row: score(config, row))
    name = metric_of(config, best)
    value = "none" if best.get(name) is None else f"{best[name]:.4g}"
    return (
        f"{name} has not become better in {_since_gain(config, rows)} evaluations (train.patience); the best is "
        f"{value}, after step {best['step']}"
    )


def _since_gain(config: TrainConfig, rows: Sequence[Row]) -> int:
    waited = 0
    for gained in _gains(config, rows):
        waited = 0 if gained else waited + 1
    return waited


def _gains(config: TrainConfig, rows: Sequence[Row]) -> list[bool]:
    """Whether each evaluation was better than all before it, by train.least_gain at least."""
    best, gains = -math.inf, []
    for row in rows:
        value = score(config, row)
        gained = value > best if best == -math.inf or not config.least_gain else value - best >= config.least_gain
        gains.append(gained)
        best = value if gained else best
    return gains
