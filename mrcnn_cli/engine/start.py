"""Weights to start training from: of a run, a checkpoint, another system, or a backbone alone.

Whatever fits is kept. What depends on the number of classes begins anew where that differs, and so do parts that the
file does not have; anything else that does not fit is an error, for it means another architecture.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mrcnn_cli import config as recipes
from mrcnn_cli.engine import foreign
from mrcnn_cli.engine.checkpoint import is_foreign, is_optional, read_tensors, weights_file
from mrcnn_cli.engine.foreign.architecture import parts_of
from mrcnn_cli.engine.run import Run, RunConfig
from mrcnn_cli.errors import UserError
from mrcnn_cli.models import build_model

# Layers that have as many outputs as there are classes, or keypoints of one.
CLASS_LAYERS = re.compile(
    r"((box_heads?(\.\d+)?|mask_head|retina_head|semantic_head|keypoint_head)\.(logits|deltas))\."
)
# Parameters that no ImageNet backbone has; they begin at zero.
NEW_LAYERS = re.compile(r"backbone\..*\.offset\.")
# Keys of which no tensor tells whether they are as they were when the weights were trained.
SILENT_KEYS = ("model.pixels.channels", "model.pixels.mean", "model.pixels.deviation", "model.backbone.stride_in_1x1")
# Keys that a model's tensors depend on.
SHAPE_KEYS = re.compile(r"model\.(backbone|fpn|rpn|\w+_head)\.\w+$")


@dataclass
class Source:
    """What a file holds.

    Attributes:
        path: of the file.
        tensors: by our names.
        names: our name -> its name in the file, where they differ.
        unknown: names in the file that are known to no model here.
        keys: of the recipe that the weights were trained with, as far as it can be told: dotted key -> value.
    """

    path: Path
    tensors: dict[str, Tensor]
    names: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    keys: dict[str, Any] = field(default_factory=dict)


def fill(model: nn.Module, config: RunConfig) -> tuple[str, ...]:
    """Fill a model with the weights that the recipe starts from (train.weights), if any.

    Returns:
        What the person should know of it, a sentence each.

    Raises:
        UserError: the file cannot be read, or is of another architecture.
    """
    if config.train.weights is None:
        return ()
    source = _read(config.train.weights)
    fitting, remarks = _fit(source, model.state_dict(), config)
    model.load_state_dict(fitting, strict=False)
    return tuple(remarks)


def remarks(run: Run) -> tuple[str, ...]:
    """What `fill` will say, before any training; a model without memory is enough for it."""
    if run.config.train.weights is None:
        return ()
    with torch.device("meta"):
        model = build_model(run.config.model, len(run.train.classes))
    source = _read(run.config.train.weights)
    return tuple(_fit(source, model.state_dict(), run.config)[1])


def recipe_of(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """A recipe to go on training such weights on other data: their own, without the data that they have seen.

    Raises:
        UserError: a file that cannot be read, or holds no whole model.
    """
    file = weights_file(path)
    if is_foreign(file):
        return foreign.convert(foreign.read(file), overrides).config
    about = read_tensors(file)[1]
    if "config" not in about:
        raise UserError(f"{file}: holds no weights to start from; give best.safetensors or last.safetensors")
    table = recipes.loads(about["config"])
    for part, key in (("model", "num_classes"), ("data", "classes"), ("data", "train"), ("data", "val")):
        table[part].pop(key, None)
    return recipes.validate(RunConfig, recipes.override(table, overrides), str(file))


def _read(path: Path) -> Source:
    file = weights_file(path)
    if not is_foreign(file):
        tensors, about = read_tensors(file)
        if "config" not in about:
            raise UserError(f"{file}: holds no weights to start from; give best.safetensors or last.safetensors")
        return Source(file, tensors, keys=recipes.flat(recipes.loads(about["config"])))
    found = foreign.read(file)
    try:
        table: dict[str, Any] = foreign.told_recipe(found)
    except (ValueError, KeyError):  # of a model that is unknown here: its backbone may still be told
        table = {}
    keys = recipes.flat(table)
    return Source(file, dict(found.tensors), found.renamed.sources, found.renamed.unknown, keys)


def _fit(source: Source, wanted: Mapping[str, Tensor], config: RunConfig) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors to take, and remarks."""
    given, parts = dict(source.tensors), parts_of(source.tensors)
    if parts == {"backbone"} and "box_head.stage.0.conv1.weight" in wanted:  # the C4 form: its head has the last stage
        for name, tensor in source.tensors.items():
            given[name.replace("backbone.stages.3.", "box_head.stage.")] = tensor
    fitting, anew, misfits = {}, [], []
    for name, tensor in wanted.items():
        if name not in given:
            if _part(name) in parts and not is_optional(name) and not NEW_LAYERS.match(name):
                misfits.append(f"it lacks {name} {list(tensor.shape)}")
        elif given[name].shape == tensor.shape:
            fitting[name] = given[name]
        elif found := CLASS_LAYERS.match(name):
            anew.append(found[1])
        else:
            called = f"{name} ({source.names[name]})" if name in source.names else name
            misfits.append(f"{called} is {list(given[name].shape)}, the model needs {list(tensor.shape)}")
    if parts != {"backbone"}:
        surplus = [name for name in given if name not in wanted and not is_optional(name)]
        surplus = [source.names.get(name, name) for name in surplus if _part(name) in parts_of(wanted)]
        misfits += [f"it has {name}, unknown to the model" for name in surplus]
    if misfits or not fitting:
        first = misfits[0] if misfits else "it has none of the model's tensors"
        more = f" (and {len(misfits) - 1} more)" if len(misfits) > 1 else ""
        raise UserError(f"{source.path}: does not fit the recipe: {first}{more}{_what_fits(source, config)}")
    return fitting, list(_remarks(source, wanted, anew, config))


def _part(name: str) -> str:
    return name.partition(".")[0]


def _remarks(source: Source, wanted: Mapping[str, Tensor], anew: list[str], config: RunConfig) -> Iterator[str]:
    given, there, file = parts_of(source.tensors), parts_of(wanted), source.path
    if anew:
        layers = ", ".join(dict.fromkeys(anew))
        yield f"{file}: has another number of classes: {layers} begin anew, all else is kept"
    if there - given:
        yield f"{file}: beginning anew, as the file has no such part: {', '.join(sorted(there - given))}"
    if given - there:
        yield f"{file}: left out, as the recipe has no such part: {', '.join(sorted(given - there))}"
    if source.unknown:
        examples = ", ".join(source.unknown[:3]) + (", ..." if len(source.unknown) > 3 else "")
        yield f"{file}: {len(source.unknown)} tensors are unknown here and left out: {examples}"
    other = _differences(source, config, SILENT_KEYS)
    if other:
        changes = " ".join(f"--set '{key}={json.dumps(value)}'" for key, value in other.items())
        yield f"{file}: was trained in another way than the recipe says; to go on in its way: {changes}"


def _what_fits(source: Source, config: RunConfig) -> str:
    """The keys in which the weights differ from the recipe, as the end of a sentence."""
    shapes = [key for key in source.keys if SHAPE_KEYS.match(key) and key not in SILENT_KEYS]
    differ = [f"{key} = {value}" for key, value in _differences(source, config, shapes).items()]
    return f"; these weights are for {', '.join(differ[:4])}" if differ else ""


def _differences(source: Source, config: RunConfig, keys: Iterable[str]) -> dict[str, Any]:
    """Those of the keys, with the weights' values, that the recipe has too, but otherwise."""
    recipe, told = recipes.flat(config.model_dump(mode="json")), source.keys
    return {key: told[key] for key in keys if key in told and key in recipe and not _same(told[key], recipe[key])}


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, list | tuple) and isinstance(second, list | tuple):
        return len(first) == len(second) and all(map(_same, first, second))
    if isinstance(first, float | int) and isinstance(second, float | int):
        return abs(first - second) <= 1e-3 * max(abs(first), abs(second))
    return bool(first == second)
