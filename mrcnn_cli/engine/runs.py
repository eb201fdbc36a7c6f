"""The runs in a folder: what each has come to, read from the files that it leaves."""

import datetime
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mrcnn_cli.engine import stopping
from mrcnn_cli.engine.dump import SUFFIX
from mrcnn_cli.engine.files import is_claimed, read_rows
from mrcnn_cli.engine.optimizer import TrainConfig
from mrcnn_cli.errors import UserError

State = Literal["running", "interrupted", "done", "broken"]
SCORES = ("pq", "keypoint_ap", "mask_ap", "box_ap", "proposal_ar1000")


@dataclass(frozen=True)
class RunSummary:
    """What a run's folder says of it.

    Attributes:
        folder: where it lies.
        recipe: the name of its model.
        state: running: a process trains it; interrupted: it can be gone on with; done; broken: it stopped at a value
            that is not finite, or its recipe cannot be read.
        step: steps done.
        steps: of all; None where the recipe cannot be read.
        scores: the highest of each main metric over its evaluations.
        changed: when it was last written to.
        megabytes: of its files.
    """

    folder: Path
    recipe: str
    state: State
    step: int
    steps: int | None
    scores: dict[str, float]
    changed: datetime.datetime
    megabytes: float


def list_runs(folder: Path) -> list[RunSummary]:
    """The runs in a folder and in those below it, the newest first; a run's own folder is the only one in it.

    Raises:
        UserError: no such folder.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; 'mrcnn train' makes runs/, or name the folder of yours")
    folders = [
        path.parent for path in sorted(folder.glob("**/environment.txt")) if (path.parent / "config.toml").exists()
    ]
    found = {path.resolve(): path for path in folders}
    return sorted(map(summary, found.values()), key=lambda run: run.changed, reverse=True)


def summary(folder: Path) -> RunSummary:
    """What a run's folder says of it."""
    recipe, steps, evaluates = _recipe(folder / "config.toml")
    rows = read_rows(folder / "metrics.jsonl")
    step = max((row["step"] for row in rows if row.get("kind") == "train"), default=0)
    evaluations = [row for row in rows if row.get("kind") == "evaluation"]
    scores = {
        key: max(values)
        for key in SCORES
        if (values := [row[key] for row in evaluations if isinstance(row.get(key), int | float)])
    }
    files = [path for path in folder.iterdir() if path.is_file()]
    finished = (
        steps is not None and step >= steps and (not evaluates or any(row["step"] >= steps for row in evaluations))
    )
    if is_claimed(folder):
        state: State = "running"
    elif steps is None or _broken_at(files) > step:
        state = "broken"
    else:
        state = "done" if finished or _was_enough(folder / "config.toml", evaluations) else "interrupted"
    return RunSummary(
        folder,
        recipe,
        state,
        step,
        steps,
        scores,
        datetime.datetime.fromtimestamp(max(path.stat().st_mtime for path in files)),
        sum(path.stat().st_size for path in files) / 1e6,
    )


def _recipe(path: Path) -> tuple[str, int | None, bool]:
    """The model's name, the number of steps, and whether there are images to evaluate on."""
    try:
        table: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        name = f"{table['model']['name']}, {table['model']['backbone']['name']}"
        return name, int(table["train"]["steps"]), "images" in table.get("data", {}).get("val", {})
    except (OSError, ValueError, KeyError, TypeError):
        return "?", None, False


def _was_enough(path: Path, evaluations: list[dict[str, Any]]) -> bool:
    """Whether training ended before its last step, as the evaluations brought nothing any more (train.patience)."""
    try:
        config = TrainConfig.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))["train"])
    except (OSError, ValueError, KeyError):
        return False
    return stopping.is_over(config, evaluations)


def _broken_at(files: list[Path]) -> int:
    """The last step that was kept because it is not finite, 0 if none was."""
    names = [path.name.removesuffix(SUFFIX) for path in files if path.name.endswith(SUFFIX)]
    return max((int(number) for name in names if (number := name.split("-")[1]).isdigit()), default=0)
