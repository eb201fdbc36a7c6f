"""Files of weights: safetensors with the recipe inside, written aside and renamed, so that a crash loses nothing."""

import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from mrcnn_cli import config as recipes
from mrcnn_cli.engine import foreign
from mrcnn_cli.engine.files import write_bytes
from mrcnn_cli.engine.run import RunConfig
from mrcnn_cli.errors import UserError
from mrcnn_cli.models import build_model

FORMAT = "mrcnn-1"
# The names that safetensors gives to types.
TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Checkpoint:
    """A trained model and what is needed to use it.

    Attributes:
        model: in evaluation mode.
        config: the run that made it.
        categories: label -> {"id": id in the annotation file, "name": ...}; of things alone.
        stuff: the same for the classes of stuff of a panoptic model; their labels follow those of the things.
        path: the file that it came from.
        step: optimiser steps that it has seen, 0 for a file of another system.
        origin: the system that the weights come from, empty for our own.
        left_out: tensors of another system's file that are not needed, and why.
    """

    model: nn.Module
    config: RunConfig
    categories: list[dict[str, Any]]
    path: Path
    step: int
    origin: str = ""
    stuff: Sequence[dict[str, Any]] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def provenance(self) -> str:
        """Where the weights come from, in two words."""
        return f"from {self.origin}" if self.origin else f"step {self.step}"

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(category["name"] for category in self.categories)

    @property
    def category_ids(self) -> tuple[int, ...]:
        return tuple(category["id"] for category in self.categories)

    @property
    def stuff_classes(self) -> tuple[str, ...] | None:
        """Names of the classes of stuff, in label order; None of a model without any."""
        return tuple(category["name"] for category in self.stuff) or None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str], former: Path | None = None
) -> None:
    """A safetensors file with `about` as its metadata, of the same bytes for the same content, and a checksum of them.

    The package's own writer puts the metadata into another order each time.

    Args:
        path: the file.
        tensors: by name.
        about: what else shall be known of them.
        former: what the file that lay there before shall be called from now on.
    """
    pieces = _pieces(tensors)
    entries: dict[str, Any] = {
        "__metadata__": dict(sorted({"format": FORMAT, "crc32": f"{_checksum(pieces):08x}", **about}.items()))
    }
    end = 0
    for name, piece in pieces.items():
        start, end = end, end + len(piece)
        tensor = tensors[name]
        entries[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)  # so that the numbers lie where processors read them fastest
    write_bytes(path, [len(header).to_bytes(8, "little"), header, *pieces.values()], former=former)


def _pieces(tensors: Mapping[str, Tensor]) -> dict[str, memoryview]:
    """The bytes of each tensor in the order of the file: the widest numbers first, then by name."""
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    dense = {name: tensors[name].detach().cpu().contiguous().reshape(-1) for name in order}
    return {name: memoryview(tensor.view(torch.uint8).numpy()) for name, tensor in dense.items()}  # type: ignore[arg-type]


def _checksum(pieces: Mapping[str, memoryview]) -> int:
    value = 0
    for piece in pieces.values():
        value = zlib.crc32(piece, value)
    return value


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
    if "crc32" in about and int(about["crc32"], 16) != _checksum(_pieces(tensors)):
        raise UserError(f"{path}: damaged: its content is not what was written (by its checksum); take another copy")
    return tensors, about


def step_of(path: Path) -> int | None:
    """The step that a file of ours says it is of; None: there is none, or it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return int((file.metadata() or {})["step"])
    except (SafetensorError, OSError, KeyError, ValueError):
        return None


def write_weights(
    path: Path,
    model: nn.Module,
    config: RunConfig,
    categories: list[dict[str, Any]],
    step: int,
    origin: str = "",
    former: Path | None = None,
) -> None:
    """Weights with the resolved recipe, the classes, the step and, if not trained here, the system they come from.

    What lay at `path` is called `former` from now on, if that is given.
    """
    about = {"config": recipes.dumps(config), "categories": json.dumps(categories), "step": str(step)}
    if origin:
        about["origin"] = origin
    write_tensors(path, model.state_dict(), about, former)


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


def is_foreign(path: Path) -> bool:
    """Whether a file comes from another system: it is no safetensors, or lacks the mark of ours."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format") != FORMAT
    except (SafetensorError, OSError):
        return path.suffix != ".safetensors"


def load(
    path: str | Path, device: str | torch.device = "cpu", overrides: Iterable[str] = (), recipe: str | None = None
) -> Checkpoint:
    """A model ready to predict, from a run folder, a checkpoint, or a file of another system.

    Args:
        path: of one of them.
        device: where the model shall be.
        overrides: of the recipe that is kept with the weights, such as "model.box_head.nms_threshold=0.6".
        recipe: of a file of another system, in place of the one that its tensors tell.

    Raises:
        UserError: no checkpoint there, a damaged one, or one whose weights do not fit its recipe.
    """
    file = weights_file(path)
    if is_foreign(file):
        read = foreign.read(file)
        converted = foreign.convert(read, overrides, recipe)
        config, categories, renamed = converted.config, converted.categories, read.renamed
        step, origin = 0, read.system.NAME
    else:
        tensors, about = read_tensors(file)
        renamed, origin = foreign.Renamed(tensors), about.get("origin", "")
        try:
            table, categories, step = (
                recipes.loads(about["config"]),
                json.loads(about["categories"]),
                int(about["step"]),
            )
        except (KeyError, ValueError) as error:
            raise UserError(f"{file}: holds no weights to predict with ({error}); give best.safetensors") from None
        config = recipes.validate(RunConfig, recipes.override(table, overrides), str(file))
    stuff = [category for category in categories if not category.get("isthing", 1)]
    categories = [category for category in categories if category.get("isthing", 1)]
    if config.data.channels is None:  # as in checkpoints of before it was kept: as many as the weights take
        data = config.data.model_copy(update={"channels": len(config.model.pixels.mean)})
        config = config.model_copy(update={"data": data})
    model = build_model(config.model, len(categories))
    load_weights(model, renamed.tensors, str(file), renamed.sources)
    model.to(device).to(memory_format=torch.channels_last).eval()
    return Checkpoint(model, config, categories, file, step, origin, stuff, renamed.left_out)


def load_weights(
    model: nn.Module, tensors: Mapping[str, Tensor], source: str, theirs: Mapping[str, str] | None = None
) -> None:
    """Copy tensors into a model; every name and shape must fit.

    What changes nothing but how training goes on (see `is_optional`) may be missing or too much, so that weights fit a
    recipe whether it freezes their batch norms or not.

    Args:
        model: to be filled.
        tensors: by the model's names.
        source: what to call them in an error.
        theirs: what a tensor was called in the file, where it was called otherwise.

    Raises:
        UserError: names the first tensor that is missing, unknown or of another shape.
    """

    def called(name: str) -> str:
        return f"{name} ({theirs[name]})" if theirs and name in theirs else name

    wanted = model.state_dict()
    filled = {name: tensor for name, tensor in tensors.items() if name in wanted or not is_optional(name)}
    filled |= {name: tensor for name, tensor in wanted.items() if name not in filled and is_optional(name)}
    for name, tensor in wanted.items():
        if name not in filled:
            raise UserError(f"{source}: does not fit the model: it lacks {name} {list(tensor.shape)}")
        if filled[name].shape != tensor.shape:
            raise UserError(
                f"{source}: does not fit the model: {called(name)} is {list(filled[name].shape)}, "
                f"the model needs {list(tensor.shape)} (another number of classes or another recipe?)"
            )
    extra = sorted(set(filled) - set(wanted))
    if extra:
        raise UserError(f"{source}: does not fit the model: it has {called(extra[0])}, unknown to the model")
    model.load_state_dict(filled)


def is_optional(name: str) -> bool:
    """Whether prediction does without a tensor: batch norms' counters of batches, RetinaNet's running average."""
    return name.endswith((".num_batches_tracked", ".loss_normalizer"))
