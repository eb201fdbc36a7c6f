"""Files of weights as plain facts, and those of other systems written in our form."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mrcnn_cli import config as recipes
from mrcnn_cli.engine import foreign
from mrcnn_cli.engine.checkpoint import Checkpoint, is_foreign, load, read_tensors, weights_file, write_weights
from mrcnn_cli.engine.run import RunConfig
from mrcnn_cli.errors import UserError


def convert(
    source: str | Path, destination: Path, overrides: Iterable[str] = (), recipe: str | None = None
) -> Checkpoint:
    """Write a model of another system as a checkpoint, with its recipe and classes inside; returns what was read.

    Args:
        source: the file.
        destination: a .safetensors file, written whole or not at all.
        overrides: of the recipe that the tensors tell.
        recipe: the name or file of a recipe that takes its place.

    Raises:
        UserError: a file that cannot be read or converted, or is ours already; a destination of another kind.
    """
    if destination.suffix != ".safetensors":
        raise UserError(f"{destination}: checkpoints are .safetensors files; give it that ending")
    file = weights_file(source)
    if not is_foreign(file):
        raise UserError(f"{file}: is a checkpoint of mrcnn already; use it as it is")
    checkpoint = load(file, overrides=overrides, recipe=recipe)
    categories = [*checkpoint.categories, *checkpoint.stuff]
    write_weights(destination, checkpoint.model, checkpoint.config, categories, 0, checkpoint.origin)
    return checkpoint


def describe(path: str | Path) -> dict[str, Any]:
    """What a file of weights is.

    Args:
        path: a checkpoint, a run's folder, or a file of another system.

    Returns:
        `facts`, name -> words, in the order to be shown; `classes`, names or None; `parts`, each with its number of
        tensors, parameters and bytes; `tensors`, each with its name here and in the file, shape and type; `left_out`,
        name in the file -> why it is not used.

    Raises:
        UserError: a file that cannot be read.
    """
    file = weights_file(path)
    facts: dict[str, str] = {"file": str(file), "size": f"{file.stat().st_size / 1e6:,.1f} MB"}
    config, categories, left_out, sources = None, None, {}, {}
    if is_foreign(file):
        found = foreign.read(file)
        tensors, sources = found.tensors, found.renamed.sources
        left_out = found.renamed.left_out | dict.fromkeys(found.renamed.unknown, "is known to no model here")
        facts["system"] = found.system.NAME
        try:
            converted = foreign.convert(found)
            config, categories = converted.config, converted.categories
        except UserError as error:
            facts["model"] = str(error).removeprefix(f"{file}: ")
    else:
        tensors, about = read_tensors(file)
        origin = about.get("origin")
        facts["system"] = f"mrcnn, converted from {origin}" if origin else "mrcnn"
        facts["steps"] = f"{int(about['step']):,}"
        if "config" in about:
            config = recipes.validate(RunConfig, recipes.loads(about["config"]), str(file))
            categories = json.loads(about["categories"])
        else:
            facts["model"] = "the state of a run: its model, its optimiser and the average of its weights"
    if config is not None:
        facts |= _facts(config)
    classes = None
    if categories is not None:
        classes = [category["name"] for category in categories if category.get("isthing", 1)]
    if classes is not None:
        facts["classes"] = f"{len(classes)}: {', '.join(classes[:8])}{', ...' if len(classes) > 8 else ''}"
    return {
        "facts": facts,
        "classes": classes,
        "parts": _parts(tensors),
        "tensors": [
            {"name": name, "source": sources.get(name, name), "shape": list(tensor.shape), "type": _type(tensor)}
            for name, tensor in tensors.items()
        ],
        "left_out": left_out,
    }


def _facts(config: RunConfig) -> dict[str, str]:
    backbone, pixels, resize = config.model.backbone, config.model.pixels, config.data.resize
    numbers = (", ".join(f"{value:g}" for value in values) for values in (pixels.mean, pixels.deviation))
    size = f"scale {resize.scale:g}" if resize.scale is not None else f"short side {resize.short_side}"
    return {
        "model": f"{config.model.name}, {backbone.name}, {backbone.norm}",
        "pixels": "{}, mean {}, deviation {}".format(pixels.channels, *numbers),
        "resize": f"{size}, long side {resize.long_side or 'unlimited'}, {resize.method}",
        "padding": f"to multiples of {config.data.size_divisor}" if config.data.size_divisor else "none",
    }


def _parts(tensors: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    parts: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        parts.setdefault(name.partition(".")[0], []).append(tensor)
    return [
        {
            "part": part,
            "tensors": len(members),
            "parameters": sum(tensor.numel() for tensor in members),
            "bytes": sum(tensor.numel() * tensor.element_size() for tensor in members),
        }
        for part, members in parts.items()
    ]


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
