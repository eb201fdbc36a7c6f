"""A step whose losses or gradients are not finite, kept in one file with all that it takes to take it again.

The file is safetensors, so reading it runs nothing. Its tensors:

    model.*, average.*, optimizer.*   as in state.safetensors, before the step
    random.cpu, random.cuda           states of torch's generators
    batch.pixels                      [N, C, H, W]
    batch.sizes, .original_sizes      [N, 2]
    target.<n>.<attribute>            of `structures.Targets`; masks as the bytes of a JSON text

Its metadata: "step", "recipe" and "categories"; "frozen", the parameters without a gradient; "clue", what was found;
"pictures", for each image of the batch the files that it is made of and the ids of their annotations; "environment".
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mrcnn_cli import config as recipes
from mrcnn_cli.data.loader import sources
from mrcnn_cli.engine import layers, numerics
from mrcnn_cli.engine.accumulation import divided
from mrcnn_cli.engine.checkpoint import load_weights, read_tensors, write_tensors
from mrcnn_cli.engine.detective import Clue, Losses, Rewind, forward, investigate, random_state, set_random_state
from mrcnn_cli.engine.distributed import EndedByOther
from mrcnn_cli.engine.run import Run, RunConfig, environment
from mrcnn_cli.errors import UserError
from mrcnn_cli.models import build_model
from mrcnn_cli.models.sync_batch_norm import SyncBatchNorm
from mrcnn_cli.structures import ImageBatch, Masks, Targets

SUFFIX = ".nonfinite.safetensors"
NAMED = 3  # files and annotations that an error names


@dataclass(frozen=True)
class Picture:
    """A file that an image of a batch is made of, and the ids of the objects annotated in it."""

    path: str
    annotations: tuple[int, ...]


def dump_path(folder: Path, step: int, rank: int | None = None) -> Path:
    """Where a step of a run, counted from 1, is kept; by a process of several, its share of it."""
    return folder / f"step-{step}{'' if rank is None else f'-rank-{rank}'}{SUFFIX}"


def stop(
    run: Run,
    model: torch.nn.Module,
    rewind: Rewind,
    state: Mapping[str, Tensor],
    images: ImageBatch,
    targets: Sequence[Targets],
    step: int,
) -> Exception:
    """Finds out why a step is not finite and keeps it beside the run's other files; the error to stop with.

    A step that is done in several parts and processes is taken again part by part, each process for itself; the first
    part that is not finite is kept.

    Args:
        run: it is a step of this.
        model: with its parameters as they were before the step.
        rewind: kept before the step.
        state: tensors by their names in state.safetensors; those of the model are views of it.
        images: this process's share of the batch.
        targets: the truth about it.
        step: counted from 0.
    """
    world = run.world
    images = images.padded(*world.largest(*images.pixels.shape[-2:]))
    # Batch norms that exchange their statistics would wait for processes that look at another part.
    alone = world.size == 1 or not any(isinstance(module, SyncBatchNorm) for module in model.modules())
    clue, part = Clue({}), (images, targets)
    for part in divided(images, targets, run.config.train.accumulate) if alone else ():
        rewind.restore()
        clue = investigate(model, *part, _losses_of(run.config, run.device))
        if clue.symptom:
            break
    images, targets = part
    # Of several that see it the first one keeps and tells it; where none does any more, the first of all.
    teller = -world.largest(-world.rank if clue.symptom else -world.size)[0] % world.size
    if teller != world.rank:
        return EndedByOther()
    rewind.restore()
    pictures = _pictures(run, targets, step)
    path = dump_path(run.folder, step + 1, world.rank if world.size > 1 else None)
    tensors = {**state, **{f"random.{name}": tensor for name, tensor in random_state(run.device).items()}}
    tensors |= _of_batch(images, targets)
    about = {
        "step": str(step + 1),
        "recipe": recipes.dumps(run.config),
        "categories": json.dumps(run.categories),
        "classes": str(len(run.train.classes)),
        "frozen": json.dumps([name for name, p in model.named_parameters() if not p.requires_grad]),
        "clue": json.dumps(dataclasses.asdict(clue)),
        "pictures": json.dumps([[dataclasses.asdict(file) for file in files] for files in pictures]),
        "environment": environment(run.device),
    }
    try:
        write_tensors(path, tensors, about)
        kept = f"see it again with: mrcnn replay {path}"
    except UserError as error:  # a full disk must not hide what this is about
        kept = f"the step could not be kept ({error})"
    return UserError(
        f"step {step + 1}: {describe(clue, pictures)}; training stopped, what was saved is kept; "
        f"{advice(clue, pictures, run.config)}; {kept}"
    )


def describe(clue: Clue, pictures: Sequence[Sequence[Picture]]) -> str:
    """What is not finite, where that comes from, and which files and annotations took part, in words."""
    vague = "a value that was not finite is finite when the step is taken again"
    symptom = clue.symptom or (vague if clue.losses else "a loss or a gradient is not finite")
    parts = [symptom, *([clue.origin] if clue.origin else []), *([_gradients(clue)] if clue.gradients else [])]
    # Where the values tell the images of the batch apart, only those are to blame.
    blamed = clue.pictures or clue.boxes or (() if clue.weights else clue.images) or range(len(pictures))
    files = [file for place in blamed if place < len(pictures) for file in pictures[place]]
    if files:
        ids = [number for file in files for number in file.annotations]
        parts.append(f"in {_some([file.path for file in files])} with the annotations {_some(ids) or 'none'}")
    return ", ".join(parts)


def advice(clue: Clue, pictures: Sequence[Sequence[Picture]], config: RunConfig) -> str:
    """What to do about it."""
    if clue.pictures and pictures:
        return "correct the picture's values or leave it out"
    if clue.boxes:
        return "correct the annotations"
    rate = f"take a smaller train.learning_rate (now {config.train.learning_rate:g}) or train.clip_norm"
    return f"start from other weights, or {rate}" if clue.weights else rate


@dataclass(frozen=True)
class Replay:
    """A kept step, taken again.

    Attributes:
        step: counted from 1.
        recorded: what was found when it was kept.
        found: what was found now.
        pictures: of each image of the batch, its files.
        environment: where it was kept, a fact a line.
        config: its run's recipe.
    """

    step: int
    recorded: Clue
    found: Clue
    pictures: list[list[Picture]]
    environment: str
    config: RunConfig

    @property
    def is_same(self) -> bool:
        """Whether the same values are not finite, in the same layer."""
        one, other = self.recorded, self.found
        return bool(other.symptom) and all(
            getattr(one, key) == getattr(other, key) for key in ("terms", "weights", "layer", "gradients", "behind")
        )


def replay(path: Path, device: torch.device) -> Replay:
    """Takes a kept step again.

    Raises:
        UserError: no such file, or not of such a step.
    """
    tensors, about = read_tensors(path)
    try:
        config = recipes.validate(RunConfig, recipes.loads(about["recipe"]), str(path))
        recorded, pictures = _clue(json.loads(about["clue"])), json.loads(about["pictures"])
        step, classes, frozen = int(about["step"]), int(about["classes"]), set(json.loads(about["frozen"]))
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{path}: holds no step to take again ({error}); give a step-N{SUFFIX} of a run's folder"
        ) from None
    model = build_model(config.model, classes)
    resting = layers.restrict(model, config.train.layers)
    load_weights(model, _part(tensors, "model."), str(path))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    model.to(device).to(memory_format=torch.channels_last).train()
    for norm in resting:
        norm.eval()
    images, targets = _batch(tensors)
    set_random_state(_part(tensors, "random."), device)
    batch = (images.to(device), [target.to(device) for target in targets])
    found = investigate(model, *batch, _losses_of(config, device))
    files = [[Picture(file["path"], tuple(file["annotations"])) for file in image] for image in pictures]
    return Replay(step, recorded, found, files, about.get("environment", ""), config)


def _losses_of(config: RunConfig, device: torch.device) -> Losses:
    """The losses in the precision of the run."""

    def losses(model: torch.nn.Module, images: ImageBatch, targets: Sequence[Targets]) -> dict[str, Tensor]:
        with numerics.autocast(config.train.precision, device):
            return forward(model, images, targets)

    return losses


def _pictures(run: Run, targets: Sequence[Targets], step: int) -> list[list[Picture]]:
    config, train = run.config, run.train
    try:
        made_of = sources(
            train, config.data, targets, batch_size=config.train.batch_size, seed=config.train.seed, step=step
        )
    except UserError:  # a file that has gone since must not hide what this is about
        return []
    first = train.annotations.first
    return [
        [
            Picture(str(train.images[i].path), tuple(train.annotations.ids[first[i] : first[i + 1]].tolist()))
            for i in indices
        ]
        for indices in made_of
    ]


def _of_batch(images: ImageBatch, targets: Sequence[Targets]) -> dict[str, Tensor]:
    """The tensors of a batch by their names in the file."""
    tensors = {
        "batch.pixels": images.pixels,
        "batch.sizes": torch.tensor(images.sizes),
        "batch.original_sizes": torch.tensor(images.original_sizes),
    }
    for number, target in enumerate(targets):
        for field in fields(target):
            value = getattr(target, field.name)
            if isinstance(value, Masks):
                text = json.dumps({"segmentations": value.segmentations}, default=bytes.decode).encode()
                tensors[f"target.{number}.masks"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
                tensors[f"target.{number}.matrix"] = value.matrix
            elif value is not None:
                tensors[f"target.{number}.{field.name}"] = torch.as_tensor(value)
    return tensors


def _batch(tensors: Mapping[str, Tensor]) -> tuple[ImageBatch, list[Targets]]:
    pixels = tensors["batch.pixels"].contiguous(memory_format=torch.channels_last)
    sizes, originals = (
        [(height, width) for height, width in tensors[f"batch.{name}"].tolist()] for name in ("sizes", "original_sizes")
    )
    targets = []
    for number in range(len(sizes)):
        values: dict[str, Any] = _part(tensors, f"target.{number}.")
        values |= {name: int(values[name]) for name in ("image_id", "seed")}
        matrix = values.pop("matrix", None)
        if matrix is not None:
            text = bytes(values["masks"].tolist())
            values["masks"] = Masks(json.loads(text)["segmentations"], matrix)
        targets.append(Targets(**values))
    return ImageBatch(pixels, sizes, originals), targets


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _clue(table: dict[str, Any]) -> Clue:
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    return Clue(**values)


def _gradients(clue: Clue) -> str:
    return f"{len(clue.gradients)} gradient{'s' if len(clue.gradients) > 1 else ''} (first: {clue.gradients[0]})"


def _some(values: Sequence[Any]) -> str:
    more = f" and {len(values) - NAMED} more" if len(values) > NAMED else ""
    return ", ".join(map(str, values[:NAMED])) + more
