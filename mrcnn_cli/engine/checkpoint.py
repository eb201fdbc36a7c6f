"""Files of weights: safetensors with the recipe inside, written aside and renamed, so that a crash loses nothing."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mrcnn_cli import config as recipes
from mrcnn_cli.engine.files import write_bytes
from mrcnn_cli.engine.run import RunConfig
from mrcnn_cli.errors import UserError
from mrcnn_cli.models import build_model

FORMAT = "mrcnn-1"


@dataclass(frozen=True)
class Checkpoint:
    """A trained model and what is needed to use it.

    Attributes:
        model: in evaluation mode.
        config: the run that made it.
        categories: label -> {"id": id in the annotation file, "name": ...}.
        path: the file that it came from.
        step: optimiser steps that it has seen.
    """

    model: nn.Module
    config: RunConfig
    categories: list[dict[str, Any]]
    path: Path
    step: int

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(category["name"] for category in self.categories)

    @property
    def category_ids(self) -> tuple[int, ...]:
        return tuple(category["id"] for category in self.categories)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> None:
    """A safetensors file with `about` as its metadata."""
    dense = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, safetensors.torch.save(dense, metadata={"format": FORMAT, **about}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a safetensors file that we wrote, and its metadata.

    Raises:
        UserError: no such file, damaged, or not ours.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a checkpoint, or damaged ({error}); give a .safetensors file of mrcnn") from None
    if about.get("format") != FORMAT:
        raise UserError(f"{path}: a safetensors file, but not written by mrcnn: its metadata lacks format {FORMAT!r}")
    return tensors, about


def write_weights(path: Path, model: nn.Module, config: RunConfig, categories: list[dict[str, Any]], step: int) -> None:
    """Weights with the resolved recipe, the classes and the step."""
    about = {"config": recipes.dumps(config), "categories": json.dumps(categories), "step": str(step)}
    write_tensors(path, model.state_dict(), about)


def weights_file(path: str | Path) -> Path:
    """The weights that a run folder (its best ones) or a file name stands for."""
    path = Path(path)
    if path.is_dir():
        for name in ("best.safetensors", "last.safetensors"):
            if (path / name).is_file():
                return path / name
        raise UserError(f"{path}: no weights in this folder yet (best.safetensors or last.safetensors)")
    if not path.exists():
        raise UserError(f"{path}: no such run or checkpoint; 'mrcnn train' makes one")
    return path


def load(path: str | Path, device: str | torch.device = "cpu", overrides: Iterable[str] = ()) -> Checkpoint:
    """A model ready to predict, from a run folder or a checkpoint.

    Args:
        path: of either of them.
        device: where the model shall be.
        overrides: of the recipe that is kept with the weights, such as "model.box_head.nms_threshold=0.6".

    Raises:
        UserError: no checkpoint there, a damaged one, or one whose weights do not fit its recipe.
    """
    file = weights_file(path)
    tensors, about = read_tensors(file)
    try:
        table, categories, step = recipes.loads(about["config"]), json.loads(about["categories"]), int(about["step"])
    except (KeyError, ValueError) as error:
        raise UserError(f"{file}: holds no weights to predict with ({error}); give best.safetensors") from None
    config = recipes.validate(RunConfig, recipes.override(table, overrides), str(file))
    model = build_model(config.model, len(categories))
    load_weights(model, tensors, str(file))
    model.to(device).to(memory_format=torch.channels_last).eval()
    return Checkpoint(model, config, categories, file, step)


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy tensors into a model; every name and shape must fit.

    Raises:
        UserError: names the first tensor that is missing, unknown or of another shape.
    """
    wanted = model.state_dict()
    for name, tensor in wanted.items():
        if name not in tensors:
            raise UserError(f"{source}: does not fit the model: it lacks {name} {list(tensor.shape)}")
        if tensors[name].shape != tensor.shape:
            raise UserError(
                f"{source}: does not fit the model: {name} is {list(tensors[name].shape)}, "
                f"the model needs {list(tensor.shape)} (another number of classes or another recipe?)"
            )
    extra = sorted(set(tensors) - set(wanted))
    if extra:
        raise UserError(f"{source}: does not fit the model: it has {extra[0]}, unknown to the model")
    model.load_state_dict(dict(tensors))
