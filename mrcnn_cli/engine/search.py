"""Before training: the learning rate at which the loss falls fastest, and the largest batch that fits into memory."""

import gc
import math
import multiprocessing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection

import numpy as np
import torch

from mrcnn_cli.data.loader import Pictures, stream, training_batches, training_images
from mrcnn_cli.engine.memory import free_memory_mb, keep_freed_memory, peak_memory_mb
from mrcnn_cli.engine.run import Run
from mrcnn_cli.engine.train import Trainer, memory_mb, training_step
from mrcnn_cli.errors import UserError
from mrcnn_cli.structures import ImageBatch, Targets

SMOOTHING = 0.9  # of the losses of a range test, per step
DIVERGED = 4.0  # times the lowest loss: the rate is too high
ROOM = 0.9  # of the memory that is free; the rest is for what a trial does not see, such as larger augmented pictures
TRIAL_STEPS = 2  # the second one has what the optimiser keeps


@dataclass(frozen=True)
class RateTrial:
    """One step of a range test.

    Attributes:
        rate: the learning rate of the step.
        loss: before the step.
        smoothed: exponential mean of the losses so far.
    """

    rate: float
    loss: float
    smoothed: float


def rate_trials(run: Run, lowest: float = 1e-6, highest: float = 1.0, steps: int = 100) -> Iterator[RateTrial]:
    """The range test of "Cyclical Learning Rates for Training Neural Networks" (Smith, 2017), section 3.3.

    Each step has a higher learning rate than the one before, by the same factor; it ends when the loss is no longer
    finite or four times the lowest. Nothing is written.
    """
    trainer = Trainer(run)
    config = run.config.train
    batches = training_batches(run.train, run.config.data, batch_size=config.batch_size, seed=config.seed, steps=steps)
    mean = weight = 0.0
    best = math.inf
    try:
        for number, (images, targets) in enumerate(batches):
            rate = lowest * (highest / lowest) ** (number / max(steps - 1, 1))
            try:
                values = training_step(
                    trainer, images.to(run.device), [target.to(run.device) for target in targets], rate
                )
            except UserError:  # a loss that is not finite
                if number == 0:
                    raise
                return
            mean = SMOOTHING * mean + (1 - SMOOTHING) * values["loss"]
            weight = SMOOTHING * weight + (1 - SMOOTHING)
            yield RateTrial(rate, values["loss"], mean / weight)
            best = min(best, mean / weight)
            if mean / weight > DIVERGED * best:
                return
    finally:
        batches.close()


def best_rate(trials: Sequence[RateTrial]) -> float:
    """A learning rate to train with: a tenth of the one at which the smoothed loss is lowest.

    That is well below where the loss begins to rise, and less at the mercy of noise than the steepest place.

    Raises:
        UserError: the loss did not fall at any rate.
    """
    lowest = min(range(len(trials)), key=lambda place: trials[place].smoothed)
    if lowest < 2:
        raise UserError("the loss falls at none of the learning rates; is the data right? see 'mrcnn data check'")
    return trials[lowest].rate / 10


@dataclass(frozen=True)
class BatchTrial:
    """What a batch took.

    Attributes:
        images: in the batch.
        memory_mb: at most; None: it did not fit.
        measured: False where it follows from smaller batches.
    """

    images: int
    memory_mb: float | None
    measured: bool = True


def batch_trials(run: Run) -> Iterator[BatchTrial]:
    """Trials of ever larger batches, of the largest pictures of the data set; see `largest_batch`.

    On a GPU a batch that does not fit is simply tried. On the CPU, where the system would end the process, each trial
    runs in a process of its own, and one that would not fit by the line through the smaller ones is not begun.
    """
    most = len(training_images(run.train, run.config.data))
    limit = free_memory_mb(run.device) * ROOM
    done: list[BatchTrial] = []

    def tried(images: int) -> BatchTrial:
        expected = _expected(done, images)
        if run.device.type == "cpu" and expected is not None and expected > limit:
            done.append(BatchTrial(images, None, measured=False))
        else:
            memory = _on_gpu(run, images) if run.device.type == "cuda" else _in_process(run, images)
            done.append(BatchTrial(images, memory if memory is not None and memory <= limit else None))
        return done[-1]

    fits, too_many = 0, most + 1
    while fits < most and too_many == most + 1:
        trial = tried(min(max(2 * fits, 1), most))
        yield trial
        if trial.memory_mb is None:
            too_many = trial.images
        else:
            fits = trial.images
    while too_many - fits > max(1, fits // 16):  # to six per cent
        expected = _capacity(done, limit) if run.device.type == "cpu" else None
        middle = (fits + too_many) // 2
        trial = tried(min(max(expected, fits + 1), too_many - 1) if expected is not None else middle)
        yield trial
        if trial.memory_mb is None:
            too_many = trial.images
        else:
            fits = trial.images
            if expected is not None:
                return


def largest_batch(trials: Sequence[BatchTrial]) -> int:
    """The most images that fitted.

    Raises:
        UserError: not even one did.
    """
    fitted = [trial.images for trial in trials if trial.memory_mb is not None]
    if not fitted:
        raise UserError("not even one picture fits into memory; take smaller images (data.resize) or a smaller model")
    return max(fitted)


def _expected(done: Sequence[BatchTrial], images: int) -> float | None:
    """What a batch will take by the line through the two largest that were measured."""
    measured = sorted({trial.images: trial.memory_mb for trial in done if trial.memory_mb is not None}.items())
    if len(measured) < 2:
        return None
    (few, less), (many, more) = measured[-2:]
    return more + (images - many) * max(more - less, 0.0) / (many - few)


def _capacity(done: Sequence[BatchTrial], limit: float) -> int | None:
    """How many images fit by the same line."""
    measured = [trial.images for trial in done if trial.memory_mb is not None]
    sizes = range(max(measured, default=1), 2 * max(measured, default=1) + 1)
    expected = {images: _expected(done, images) for images in sizes}
    fitting = [images for images, memory in expected.items() if memory is not None and memory <= limit]
    return max(fitting, default=None)


def _trial(run: Run, images: int) -> float:
    """The memory that training steps with the largest pictures of the data set take."""
    trainer = Trainer(run)
    for number in range(TRIAL_STEPS):
        batch, targets = _largest_pictures(run, images, number)
        training_step(trainer, batch.to(run.device), [target.to(run.device) for target in targets])
    return memory_mb(run.device)


def _largest_pictures(run: Run, count: int, number: int) -> tuple[ImageBatch, list[Targets]]:
    config, dataset = run.config.data, run.train
    chosen = training_images(dataset, config)
    sizes = [config.resize.size(dataset.images[i].height, dataset.images[i].width) for i in chosen]
    order = sorted(range(len(chosen)), key=lambda place: -sizes[place][0] * sizes[place][1])
    pictures = Pictures(dataset, config)
    samples, originals = [], []
    for k in range(count):
        index = int(chosen[order[k % len(order)]])
        seed = stream(run.config.train.seed, "trial", number, k)
        pixels, targets = pictures.varied(index, np.random.Generator(np.random.PCG64(seed)))
        samples.append((pixels, replace(targets, seed=seed)))
        originals.append((dataset.images[index].height, dataset.images[index].width))
    images, truths = zip(*samples, strict=True)
    return ImageBatch.collate(images, originals, config.size_divisor), list(truths)


def _on_gpu(run: Run, images: int) -> float | None:
    try:
        torch.cuda.reset_peak_memory_stats(run.device)
        return _trial(run, images)
    except torch.OutOfMemoryError:
        return None
    finally:
        gc.collect()
        torch.cuda.empty_cache()


def _in_process(run: Run, images: int) -> float | None:
    context = multiprocessing.get_context("spawn")  # a forked one would hang in the threads that it does not have
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_measure, args=(run, images, sending), daemon=True)
    process.start()
    sending.close()
    try:
        result = receiving.recv()
    except EOFError:  # killed, as a system does that has no memory left
        return None
    finally:
        process.join()
    if isinstance(result, UserError):
        raise result
    return float(result)


def _measure(run: Run, images: int, sending: Connection) -> None:
    keep_freed_memory()
    try:
        _trial(run, images)
        sending.send(peak_memory_mb())
    except UserError as error:
        sending.send(error)
