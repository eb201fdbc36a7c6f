"""The three calls of the library: train, load, predict."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mrcnn_cli.engine import predict as prediction
from mrcnn_cli.engine import train as training
from mrcnn_cli.engine.checkpoint import Checkpoint
from mrcnn_cli.engine.checkpoint import load as load_checkpoint
from mrcnn_cli.engine.distributed import joined
from mrcnn_cli.engine.logs import logged
from mrcnn_cli.engine.run import choose_device, new_folder, prepare, read_config
from mrcnn_cli.structures import Detections


def train(
    recipe: str | Path,
    overrides: Mapping[str, Any] | Iterable[str] = (),
    *,
    out: str | Path | None = None,
    device: str = "auto",
) -> Iterator[training.Step]:
    """The steps of a training run, as they are done; in a script that torchrun starts, in each process.

    Args:
        recipe: a shipped recipe's name or a TOML file.
        overrides: {"train.steps": 600} or ["train.steps=600"].
        out: the run's folder; None: runs/<date>-<recipe>.
        device: auto, cpu, cuda, cuda:N.

    Raises:
        UserError: a faulty recipe or faulty data, before the first step; see `engine.train.train` for later ones.
    """
    with joined(device) as world:
        config = read_config(recipe, overrides)
        folder = str(new_folder(str(recipe), Path(out) if out is not None else None)) if world.is_first else ""
        run = prepare(config, Path(world.tell(folder)), device, world)
        steps = training.train(run)
        yield from logged(run, steps) if world.is_first else steps


def load(path: str | Path, device: str = "auto") -> Checkpoint:
    """A trained model, ready to predict.

    Args:
        path: a run's folder (its best weights) or a .safetensors file.
        device: auto, cpu, cuda, cuda:N.

    Raises:
        UserError: nothing there that can be loaded.
    """
    return load_checkpoint(path, choose_device(device))


def predict(
    model: Checkpoint,
    images: Iterable[Any],
    score_threshold: float | None = None,
    proposals: Iterable[np.ndarray] | None = None,
) -> list[Detections]:
    """What is in each picture, best first, in its own pixels.

    Args:
        model: from `load`.
        images: paths, arrays [H, W, 3] or [H, W] uint8, or PIL images.
        score_threshold: lowest score; None: the recipe's predict.score_threshold.
        proposals: per picture [P_i, 4] x1, y1, x2, y2 in its pixels, best first, for Fast R-CNN.

    Raises:
        UserError: a path that is no readable image, an array that is none.
    """
    return prediction.predict(model, images, score_threshold, proposals)
