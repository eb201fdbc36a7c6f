"""One recipe trained with several seeds: where each run lies, and how far apart they end."""

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mrcnn_cli.engine.files import read_rows, write_bytes
from mrcnn_cli.engine.run import Run
from mrcnn_cli.errors import UserError


def first_of(group: Path) -> Path:
    """The folder of the lowest seed among the runs that lie in a folder.

    Raises:
        UserError: none lie there.
    """
    seeds = {path.parent: path.parent.name.removeprefix("seed-") for path in group.glob("seed-*/config.toml")}
    found = [path for path, seed in seeds.items() if seed.isdigit()]
    if not found:
        raise UserError(f"{group}: no runs to go on with: there is no seed-N/config.toml in it; leave --resume out")
    return min(found, key=lambda path: int(seeds[path]))


def repeats_of(run: Run, group: Path, count: int) -> list[Run]:
    """The run with its seed and the next ones, each in the folder seed-N of the group."""
    seeds = range(run.config.train.seed, run.config.train.seed + count)
    runs = []
    for seed in seeds:
        train = run.config.train.model_copy(update={"seed": seed})
        config = run.config.model_copy(update={"train": train})
        runs.append(dataclasses.replace(run, config=config, folder=group / f"seed-{seed}"))
    return runs


def summary(folders: Sequence[Path]) -> dict[str, dict[str, float | None]]:
    """Of every metric in the runs' last evaluations: mean, standard deviation (of a sample), lowest and highest."""
    last = [
        [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "evaluation"][-1:] for folder in folders
    ]
    rows = [found[0] for found in last if found]
    names = [
        name for name in (rows[0] if rows else {}) if name != "step" and all(_is_number(row, name) for row in rows)
    ]
    spreads: dict[str, dict[str, float | None]] = {}
    for name in names:
        values = [float(row[name]) for row in rows]
        spreads[name] = {
            "mean": statistics.fmean(values),
            "deviation": statistics.stdev(values) if len(values) > 1 else None,
            "lowest": min(values),
            "highest": max(values),
        }
    return spreads


def write_summary(group: Path, spreads: dict[str, dict[str, float | None]], seeds: Sequence[int]) -> None:
    """repeats.json in the group's folder."""
    write_bytes(group / "repeats.json", json.dumps({"seeds": list(seeds), "metrics": spreads}, indent=1).encode())


def _is_number(row: dict[str, Any], name: str) -> bool:
    """Whether a row has a metric that can be averaged; counts of what was evaluated cannot."""
    value = row.get(name)
    return isinstance(value, float) and math.isfinite(value)
