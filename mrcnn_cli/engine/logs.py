"""Training's steps in other programs' logs: consumers of the generator, so the loop knows nothing of them.

    for step in logged(run, train(run)): ...

TensorBoard, Weights & Biases and MLflow are imported only where `train.log` names them; metrics.jsonl there is always.
"""

import importlib
import importlib.util
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

from mrcnn_cli import config as recipes
from mrcnn_cli.engine.files import make_folder, write_bytes
from mrcnn_cli.engine.run import Run
from mrcnn_cli.engine.train import Step
from mrcnn_cli.errors import UserError

PROJECT = "mrcnn"  # what runs are filed under at Weights & Biases and MLflow
KEPT = "logs.json"  # in the run's folder: what a resumed run is called there


class Log(Protocol):
    """Takes the numbers of a run."""

    PACKAGE: str

    def __init__(self, run: Run): ...

    def add(self, values: dict[str, float], step: int) -> None:
        """Numbers by name, such as "train/loss", of a step."""

    def close(self) -> None:
        """No more will come."""


class TensorBoard:
    """Event files in the run's folder `tensorboard`, for `tensorboard --logdir runs`."""

    PACKAGE = "tensorboard"

    def __init__(self, run: Run):
        self.run = run
        self.writer: Any = None

    def add(self, values: dict[str, float], step: int) -> None:
        if self.writer is None:
            writer = importlib.import_module("torch.utils.tensorboard").SummaryWriter
            # What a resumed run does again takes the place of what was there.
            self.writer = writer(str(self.run.folder / "tensorboard"), purge_step=step)
            self.writer.add_text("recipe", f"```toml\n{recipes.dumps(self.run.config)}```", step)
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


class WeightsAndBiases:
    """A run of the project "mrcnn", online or offline as wandb's own settings (WANDB_MODE, WANDB_PROJECT) say."""

    PACKAGE = "wandb"

    def __init__(self, run: Run):
        wandb = importlib.import_module("wandb")
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.folder.name,
            dir=str(run.folder),
            config=run.config.model_dump(mode="json"),
            id=_kept(run.folder, "wandb"),
            resume="allow",
        )
        _keep(run.folder, "wandb", self.run.id)

    def add(self, values: dict[str, float], step: int) -> None:
        self.run.log(values, step=step)

    def close(self) -> None:
        self.run.finish()


class MLflow:
    """A run of the experiment "mrcnn", where MLflow's own settings (MLFLOW_TRACKING_URI) say."""

    PACKAGE = "mlflow"

    def __init__(self, run: Run):
        self.mlflow = importlib.import_module("mlflow")
        self.mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT))
        number = _kept(run.folder, "mlflow")
        self.run = self.mlflow.start_run(run_id=number, run_name=None if number else run.folder.name)
        if number is None:
            _keep(run.folder, "mlflow", self.run.info.run_id)
            self.mlflow.log_text(recipes.dumps(run.config), "config.toml")

    def add(self, values: dict[str, float], step: int) -> None:
        # What MLflow takes for a name.
        named = {re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII): value for name, value in values.items()}
        self.mlflow.log_metrics(named, step=step)

    def close(self) -> None:
        self.mlflow.end_run()


LOGS: dict[str, type[Log]] = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "mlflow": MLflow}


def logged(run: Run, steps: Iterable[Step]) -> Iterator[Step]:
    """The steps as they come, each also written to the logs that `train.log` names.

    Raises:
        UserError: a log's package is not installed.
    """
    names = run.config.train.log if run.world.is_first else ()
    for name in names:
        package = LOGS[name].PACKAGE
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"train.log: {name} is not installed; run: pip install 'mrcnn-cli[{name}]', or leave it out"
            )
    with ExitStack() as stack:
        if names:
            make_folder(run.folder)
        logs = []
        for name in names:
            log = LOGS[name](run)
            stack.callback(log.close)
            logs.append(log)
        for step in steps:
            values = dict(numbers(step.values, step.kind)) if logs else {}
            for log in logs:
                log.add(values, step.step)
            yield step


def numbers(values: dict[str, Any], name: str) -> Iterator[tuple[str, float]]:
    """The finite numbers in a table of tables, by their names joined with slashes."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from numbers(value, f"{name}/{key}")
        elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            yield f"{name}/{key}", float(value)


def _kept(folder: Path, name: str) -> str | None:
    path = folder / KEPT
    try:
        return json.loads(path.read_text()).get(name) if path.is_file() else None
    except ValueError:
        return None


def _keep(folder: Path, name: str, number: str) -> None:
    path = folder / KEPT
    known = json.loads(path.read_text()) if path.is_file() else {}
    write_bytes(path, json.dumps({**known, name: number}).encode())
