"""Batches: of training, in an order that depends on the seed alone; of evaluation, in the data's order; of pictures.

The k-th image of a run (k = step * batch_size + place in the batch, whichever process takes it) is number k % n of the
n images in the order drawn for epoch k // n. Each random choice has a stream of its own, named by words and numbers,
see `stream`: ("order", epoch), ("augment", k), ("instead", k) and, for the model's own draws, ("targets", k). So
nothing depends on the number of processes or workers or on the step at which a run was resumed.
"""

import hashlib
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from mrcnn_cli.config import Config
from mrcnn_cli.data.annotations import ImageAnnotations, ImageRecord
from mrcnn_cli.data.coco import Dataset
from mrcnn_cli.data.composition import Sample
from mrcnn_cli.data.image import Normalization, normalize
from mrcnn_cli.data.keypoints import KeypointsConfig
from mrcnn_cli.data.tiff import MOST_CHANNELS
from mrcnn_cli.data.transforms import Augment, Resize, inference, resized_proposals, training
from mrcnn_cli.data.workers import in_workers
from mrcnn_cli.errors import UserError
from mrcnn_cli.structures import ImageBatch, Targets

SAMPLE = Path(__file__).parent / "sample"
MOST_FAULTS = 100  # images that are passed over for one batch, before the folder must be what is broken


class SplitConfig(Config):
    """A folder of images and its COCO file; neither: the embedded sample, or no such split."""

    images: Path | None = None
    annotations: Path | None = None  # of objects, or in the panoptic format with its PNG files in a folder beside it
    semantic: Path | None = None  # for a file of objects: a folder of label maps, 0 things, 1.. `stuff`, 255 neither
    proposals: Path | None = None  # a file of them, for models that do not find their own (see docs/proposals.md)

    @model_validator(mode="after")
    def _check(self) -> "SplitConfig":
        if (self.images is None) != (self.annotations is None):
            missing, given = ("annotations", "images") if self.annotations is None else ("images", "annotations")
            raise ValueError(f"has {given} but no {missing}: give both or neither")
        if self.semantic is not None and self.images is None:
            raise ValueError("has semantic maps but no images: give images and annotations too")
        if self.proposals is not None and self.images is None:
            raise ValueError("has proposals but no images and annotations: give them too")
        return self


class DataConfig(Config):
    train: SplitConfig = SplitConfig()
    val: SplitConfig = SplitConfig()
    classes: tuple[str, ...] | None = None  # in label order; by default the training file's, by category id
    keypoints: KeypointsConfig = KeypointsConfig()  # of the models that learn them
    stuff: tuple[str, ...] | None = None  # the same for the classes of stuff of panoptic models
    channels: int | None = Field(None, ge=1, le=MOST_CHANNELS)  # of a picture; None: as many as the first one has
    normalize: Normalization = "none"
    resize: Resize = Resize()
    augment: Augment = Augment()
    size_divisor: int = Field(32, ge=0)  # batches are padded to a multiple of it; the largest stride of the backbone
    workers: int = Field(1, ge=0)  # processes that prepare batches; 0: in the training process itself
    cache_mb: int = Field(256, ge=0)  # of pictures that each worker keeps decoded while they fit; 0: none
    skip_broken: bool = False  # train with another picture where one cannot be read; else that ends training

    @model_validator(mode="after")
    def _check(self) -> "DataConfig":
        if self.augment.short_sides and self.resize.short_side is None:
            given = "scale" if self.resize.scale is not None else "fixed"
            raise ValueError(f"augment.short_sides needs resize.short_side, not resize.{given}: leave one out")
        if self.classes is not None and len(set(self.classes)) != len(self.classes):
            raise ValueError("classes has a name twice: leave one out")
        if self.stuff is not None and len(set(self.stuff)) != len(self.stuff):
            raise ValueError("stuff has a name twice: leave one out")
        if self.stuff is None and (self.train.semantic or self.val.semantic):
            raise ValueError("semantic maps need the names of their labels from 1 on: give stuff = ['sky', ...]")
        return self


def sample_split(name: Literal["train", "val"]) -> SplitConfig:
    """Where a split of the embedded sample lies (fluorescent nuclei, CC0; see data/sample/SOURCE.txt)."""
    return SplitConfig(images=SAMPLE / name, annotations=SAMPLE / f"{name}.json")


def stream(seed: int, *name: str | int) -> int:
    """The seed, 0..2**63 - 1, of the stream of random numbers of that name: BLAKE2b of the words, joined by slashes."""
    text = "/".join(map(str, (seed, *name)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def share(numbers: range, part: int, parts: int) -> range:
    """The numbers of one of so many parts, which follow each other; their lengths differ by one at most."""
    return numbers[len(numbers) * part // parts : len(numbers) * (part + 1) // parts]


def training_batches(
    dataset: Dataset,
    config: DataConfig,
    *,
    batch_size: int,
    seed: int,
    steps: int,
    first_step: int = 0,
    part: int = 0,
    parts: int = 1,
    skipped: Callable[[str], None] = lambda fault: None,
) -> Generator[tuple[ImageBatch, list[Targets]], None, None]:
    """The batches of steps `first_step` to `steps` - 1 of a run, the same ones however the run is cut into parts.

    Args:
        dataset: the images.
        config: how they are prepared.
        batch_size: images of a step, of all processes together.
        seed: of the run.
        steps: the step to end before.
        first_step: the step to begin with.
        part: whose share of each step is given, 0..parts - 1: the rank of a process.
        parts: among how many a step is shared, at most batch_size.
        skipped: called with what is wrong with an image that was left out of the next batch (`skip_broken`).

    Raises:
        UserError: an image that cannot be read.
    """
    pictures, chosen = Pictures(dataset, config), training_images(dataset, config)

    def batch(step: int) -> tuple[ImageBatch, list[Targets], list[str]]:
        samples, sizes = [], []
        for k in share(range(step * batch_size, (step + 1) * batch_size), part, parts):
            index, (pixels, targets) = _sample(pictures, chosen, seed, k)
            samples.append((pixels, replace(targets, seed=stream(seed, "targets", k))))
            sizes.append((dataset.images[index].height, dataset.images[index].width))
        images, truths = zip(*samples, strict=True)
        return ImageBatch.collate(images, sizes, config.size_divisor), list(truths), pictures.take_faults()

    return _reported(in_workers(batch, range(first_step, steps), config.workers), skipped)


def _reported(
    batches: Generator[tuple[ImageBatch, list[Targets], list[str]], None, None], skipped: Callable[[str], None]
) -> Generator[tuple[ImageBatch, list[Targets]], None, None]:
    with closing(batches):
        for images, targets, faults in batches:
            for fault in faults:
                skipped(fault)
            yield images, targets


def training_images(dataset: Dataset, config: DataConfig) -> np.ndarray:
    """The places of the images that are trained on: all, but for those with too few keypoints to learn."""
    if dataset.keypoints is None:
        return np.arange(len(dataset))
    return np.flatnonzero(dataset.annotations.labelled_keypoints() >= config.keypoints.min_labelled)


def sources(
    dataset: Dataset, config: DataConfig, targets: Sequence[Targets], *, batch_size: int, seed: int, step: int
) -> list[list[int]]:
    """Of each image of a batch of `training_batches` the pictures of the data set it is made of, its own first.

    They are composed once more, so this takes as long as a batch. An image that no step of this run gives has none.

    Args:
        dataset: as the batches were made with; so are `config`, `batch_size` and `seed`.
        targets: of the batch, or of a part of it.
        step: the batch's, counted from 0.
    """
    numbers = {stream(seed, "targets", k): k for k in range(step * batch_size, (step + 1) * batch_size)}
    chosen = training_images(dataset, config)
    found: list[list[int]] = []
    for target in targets:
        pictures = _Recorded(dataset, config)
        k = numbers.get(target.seed)
        if k is not None:
            _sample(pictures, chosen, seed, k)
        found.append(list(dict.fromkeys(pictures.read)))
    return found


def validation_batches(
    dataset: Dataset, config: DataConfig, *, batch_size: int, seed: int, part: int = 0, parts: int = 1
) -> Generator[tuple[ImageBatch, list[Targets]], None, None]:
    """All images once, in the order of the data set and not varied, with what training would learn of them.

    What the model draws for them is the same each time: ("validation", k) for the k-th image. Whole batches are shared
    among the parts.

    Raises:
        UserError: an image that cannot be read.
    """
    as_they_are = config.model_copy(update={"augment": Augment(flip=0.0), "cache_mb": 0})
    pictures, chosen = Pictures(dataset, as_they_are), training_images(dataset, config)

    def batch(number: int) -> tuple[ImageBatch, list[Targets]]:
        samples, sizes = [], []
        for k in range(number * batch_size, min((number + 1) * batch_size, len(chosen))):
            index = int(chosen[k])
            pixels, targets = pictures.varied(index, np.random.Generator(np.random.PCG64(k)))
            samples.append((pixels, replace(targets, seed=stream(seed, "validation", k))))
            sizes.append((dataset.images[index].height, dataset.images[index].width))
        images, truths = zip(*samples, strict=True)
        return ImageBatch.collate(images, sizes, config.size_divisor), list(truths)

    return in_workers(batch, share(range(-(-len(chosen) // batch_size)), part, parts), config.workers)


def evaluation_batches(
    dataset: Dataset, config: DataConfig, *, batch_size: int = 1, part: int = 0, parts: int = 1
) -> Generator[tuple[ImageBatch, list[ImageRecord]], None, None]:
    """All images once, in the order of the data set, as prediction sees them; or one process's share of the batches.

    Raises:
        UserError: an image that cannot be read.
    """

    def batch(number: int) -> tuple[ImageBatch, list[ImageRecord]]:
        indices = range(number * batch_size, min((number + 1) * batch_size, len(dataset)))
        images = [dataset.read_image(index, config.channels) for index in indices]
        proposals = None if dataset.proposals is None else [dataset.proposals[index] for index in indices]
        return images_batch(images, config, proposals), [dataset.images[index] for index in indices]

    return in_workers(batch, share(range(-(-len(dataset) // batch_size)), part, parts), config.workers)


def images_batch(
    images: Sequence[np.ndarray], config: DataConfig, proposals: Sequence[np.ndarray] | None = None
) -> ImageBatch:
    """Pictures [H, W, C] as one batch, as the network sees them outside of training.

    Args:
        images: of any sizes.
        config: how they are normalised and resized.
        proposals: per picture [P_i, 4] in its pixels, for a model that does not find its own.
    """
    resized = [inference(normalize(image, config.normalize), config.resize) for image in images]
    originals = [(image.shape[0], image.shape[1]) for image in images]
    batch = ImageBatch.collate(resized, originals, config.size_divisor)
    if proposals is None:
        return batch
    given = zip(proposals, originals, batch.sizes, strict=True)
    return replace(batch, proposals=[resized_proposals(boxes, original, size) for boxes, original, size in given])


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64(stream(seed, "order", epoch))).permutation(count)


def _sample(pictures: "Pictures", chosen: np.ndarray, seed: int, k: int) -> tuple[int, Sample]:
    """The k-th image of a run, and its place in the data set; `chosen` are the places of those that are trained on.

    Where it cannot be read and `skip_broken` is set, images drawn from the stream ("instead", k) are tried.
    """
    count = len(chosen)
    index = int(chosen[_order(count, seed, k // count)[k % count]])
    instead = np.random.Generator(np.random.PCG64(stream(seed, "instead", k)))
    while True:
        generator = np.random.Generator(np.random.PCG64(stream(seed, "augment", k)))
        try:
            return index, pictures.varied(index, generator)
        except UserError as fault:
            pictures.pass_over(fault)
            index = int(chosen[instead.integers(count)])


class Pictures:
    """A data set's pictures, normalized; kept in memory as long as they fit, for reading costs most of a sample."""

    def __init__(self, dataset: Dataset, config: DataConfig):
        self.dataset, self.config = dataset, config
        self.room = config.cache_mb * 2**20
        self.kept: dict[int, np.ndarray] = {}
        self.faults: list[str] = []  # of images that were passed over

    def __getitem__(self, index: int) -> np.ndarray:
        image = self.kept.get(index)
        if image is None:
            image = normalize(self.dataset.read_image(index, self.config.channels), self.config.normalize)
            if image.nbytes <= self.room:  # nothing is evicted: in shuffled epochs each picture is as good as another
                self.room -= image.nbytes
                self.kept[index] = image
        return image

    def varied(self, index: int, generator: np.random.Generator) -> Sample:
        """One picture and its objects as training sees them, varied as the generator draws.

        Raises:
            UserError: it, or another one that is drawn for a mosaic or for objects to paste, cannot be read.
        """
        image, objects, mirror = self[index], self.dataset.objects(index), self.dataset.mirror
        return training(image, objects, self.config.resize, self.config.augment, generator, mirror, self._another)

    def _another(self, generator: np.random.Generator) -> tuple[np.ndarray, ImageAnnotations]:
        while True:
            index = int(generator.integers(len(self.dataset)))
            try:
                return self[index], self.dataset.objects(index)
            except UserError as fault:
                self.pass_over(fault)

    def pass_over(self, fault: UserError) -> None:
        """Notes what is wrong with an image for which another one is taken.

        Raises:
            UserError: that is not wanted, or there are too many of them.
        """
        if not self.config.skip_broken:
            raise UserError(f"{fault}; or train without it: --set data.skip_broken=true")
        self.faults.append(str(fault))
        if len(self.faults) > MOST_FAULTS:
            raise UserError(f"data.skip_broken: {MOST_FAULTS} images in a row cannot be read; the last one: {fault}")

    def take_faults(self) -> list[str]:
        """What was noted since this was last asked for."""
        faults, self.faults = self.faults, []
        return faults


class _Recorded(Pictures):
    """Pictures that remember which were read."""

    def __init__(self, dataset: Dataset, config: DataConfig):
        super().__init__(dataset, config)
        self.read: list[int] = []

    def __getitem__(self, index: int) -> np.ndarray:
        image = super().__getitem__(index)
        self.read.append(index)
        return image
