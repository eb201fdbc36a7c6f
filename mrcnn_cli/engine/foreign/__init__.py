"""Weights of other systems: read without running their code, and brought into our form.

Each system has a module with NAME; NAMES, one readable table of what its tensors are called here; CONVENTIONS and
`special_conventions`, the keys of a recipe that its weights take for granted; `categories`, the classes for their
number. `complete`, where there is one, sees to what goes beyond a single tensor.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mrcnn_cli import config as recipes
from mrcnn_cli.engine.foreign import detectron, detectron2, mmdetection, torchvision
from mrcnn_cli.engine.foreign.architecture import (
    HEADS,
    backbone_table,
    model_table,
    number_of_classes,
    number_of_stuff,
    parts_of,
)
from mrcnn_cli.engine.foreign.categories import named, with_stuff
from mrcnn_cli.engine.foreign.names import Renamed, known, rename
from mrcnn_cli.engine.foreign.pickles import read_weights
from mrcnn_cli.engine.run import RunConfig
from mrcnn_cli.errors import UserError

# The share of its names from which on a file is taken for one of a system, of a model that may be unknown here.
FAMILIAR = 0.05

SYSTEMS = (detectron2, torchvision, detectron, mmdetection)


@dataclass(frozen=True)
class Foreign:
    """A file of another system, by our names.

    Attributes:
        path: of the file.
        system: the module of this package that knows it.
        renamed: its tensors, and those that are not needed or not known.
        about: what else the file says of itself.
    """

    path: Path
    system: Any
    renamed: Renamed
    about: dict[str, Any]

    @property
    def tensors(self) -> dict[str, Tensor]:
        return self.renamed.tensors

    @property
    def is_backbone(self) -> bool:
        """Whether there is a backbone alone, to start training from."""
        return parts_of(self.tensors) == {"backbone"}


@dataclass(frozen=True)
class Converted:
    """What a whole model of another system is used with: a recipe that gives its numbers, and its classes."""

    config: RunConfig
    categories: list[dict[str, Any]]


def read(path: Path) -> Foreign:
    """The tensors of a file by our names.

    Raises:
        UserError: not readable, not safe, or of no system that we know.
    """
    tensors, about = read_weights(path)
    names = list(tensors)
    system = max(SYSTEMS, key=lambda system: known(names, system.NAMES))
    if known(names, system.NAMES) < FAMILIAR * len(names):
        raise UserError(
            f"{path}: its tensors ({', '.join(names[:3])}, ...) are named as in none of the systems that can be read: "
            f"{', '.join(system.NAME for system in SYSTEMS)}"
        )
    renamed = rename(tensors, system.NAMES)
    if hasattr(system, "complete"):
        system.complete(renamed)
    return Foreign(path, system, renamed, about)


def convert(foreign: Foreign, overrides: Iterable[str] = (), recipe: str | None = None) -> Converted:
    """A whole model with the recipe that its names, shapes and origin tell.

    Args:
        foreign: from `read`.
        overrides: of that recipe, such as "model.backbone.stride_in_1x1=false".
        recipe: the name or file of a recipe that takes the place of the one told.

    Raises:
        UserError: no whole model, or parts that no model here has.
    """
    path, system = foreign.path, foreign.system
    if foreign.is_backbone:
        raise UserError(f"{path}: a backbone alone, from {system.NAME}; train with it: mrcnn train --weights {path}")
    if foreign.renamed.unknown:
        unknown = foreign.renamed.unknown
        raise UserError(
            f"{path}: from {system.NAME}, but {len(unknown)} of its tensors are known to no model here: "
            f"{', '.join(unknown[:3])}{', ...' if len(unknown) > 3 else ''}"
        )
    try:
        table = recipes.read(recipes.find(recipe)) if recipe else told_recipe(foreign)
        classes = number_of_classes(foreign.tensors)
    except (ValueError, KeyError) as error:
        raise UserError(f"{path}: from {system.NAME}, but {error.args[0]}") from None
    config = recipes.validate(RunConfig, recipes.override(table, overrides), recipe or str(path))
    categories = system.categories(classes, config.model.name)
    kept = _classes_kept(foreign.about)
    if len(kept) == classes:
        categories = named(kept)
    if config.data.classes is not None:
        if len(config.data.classes) != classes:
            raise UserError(f"{path}: has {classes} classes, but data.classes names {len(config.data.classes)}")
        categories = named(config.data.classes)
    stuff, names = number_of_stuff(foreign.tensors), config.data.stuff
    if names is not None and len(names) != stuff:
        raise UserError(f"{path}: has {stuff} classes of stuff, but data.stuff names {len(names)}")
    if stuff:
        categories = with_stuff(categories, stuff, names)
    return Converted(config, categories)


def _classes_kept(about: dict[str, Any]) -> tuple[str, ...]:
    """The classes that the file itself names, as those of MMDetection do; none: it names none."""
    meta = about.get("meta")
    tables = [meta, meta.get("dataset_meta") if isinstance(meta, dict) else None]
    for table in tables:
        for key in ("CLASSES", "classes"):
            if isinstance(table, dict) and isinstance(table.get(key), list | tuple):
                return tuple(map(str, table[key]))
    return ()


def told_recipe(foreign: Foreign) -> dict[str, Any]:
    """The tables of a recipe for these weights; of a backbone alone, what is known of models that begin with it.

    Raises:
        ValueError: no model here has these parts, or they are of no known shape.
    """
    system = foreign.system
    model = backbone_table(foreign.tensors) if foreign.is_backbone else model_table(foreign.tensors)
    conventions = {**system.CONVENTIONS, **system.special_conventions(model)}
    # Of heads that the model does not have, nothing is said.
    fitting = {key: value for key, value in conventions.items() if _part(key) in model or _part(key) not in HEADS}
    return recipes.override({"model": model}, fitting)


def _part(key: str) -> str:
    """The second word of a key such as "model.mask_head.roi.aligned"."""
    return key.split(".")[1]
