"""Batches depend on the seed alone: not on workers, resumption or what else the process draws."""

import itertools
import multiprocessing
import os
import signal
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mrcnn_cli import config as recipes
from mrcnn_cli.data.coco import Dataset
from mrcnn_cli.data.image import normalize, read_image
from mrcnn_cli.data.loader import (
    DataConfig,
    evaluation_batches,
    images_batch,
    sample_split,
    sources,
    stream,
    training_batches,
)
from mrcnn_cli.data.transforms import Augment, Resize
from mrcnn_cli.errors import UserError

AUGMENT = Augment(
    vertical_flip=0.5, quarter_turns=True, scale=(0.8, 1.3), crop=48, gamma=(0.8, 1.25), brightness=(0.9, 1.1)
)


def recipe(**more) -> DataConfig:
    return DataConfig(
        **{"normalize": "percentile", "resize": Resize(scale=2.0), "augment": AUGMENT, "workers": 0} | more
    )


def same(first, second) -> bool:
    (images, targets), (other_images, other_targets) = first, second
    return (
        torch.equal(images.pixels, other_images.pixels)
        and images.sizes == other_images.sizes
        and images.original_sizes == other_images.original_sizes
        and len(targets) == len(other_targets)
        and all(
            torch.equal(a.boxes, b.boxes)
            and torch.equal(a.labels, b.labels)
            and torch.equal(a.crowds, b.crowds)
            and torch.equal(a.masks.matrix, b.masks.matrix)
            and a.masks.segmentations == b.masks.segmentations
            and (a.image_id, a.seed) == (b.image_id, b.seed)
            for a, b in zip(targets, other_targets, strict=True)
        )
    )


def test_the_same_seed_gives_the_same_batches_with_any_number_of_workers(files):
    dataset = files.read()
    expected = list(training_batches(dataset, recipe(), batch_size=2, seed=3, steps=6))
    assert len(expected) == 6
    for more in ({"workers": 1}, {"workers": 2}, {"cache_mb": 0}):
        batches = list(training_batches(dataset, recipe(**more), batch_size=2, seed=3, steps=6))
        assert all(itertools.starmap(same, zip(batches, expected, strict=True)))
    other = list(training_batches(dataset, recipe(), batch_size=2, seed=4, steps=6))
    assert not any(itertools.starmap(same, zip(other, expected, strict=True)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_sees_the_batches_that_it_would_have_seen(files, workers):
    dataset = files.read()
    expected = list(training_batches(dataset, recipe(), batch_size=2, seed=3, steps=7))
    rest = training_batches(dataset, recipe(workers=workers), batch_size=2, seed=3, first_step=4, steps=7)
    assert all(itertools.starmap(same, zip(rest, expected[4:], strict=True)))
    assert list(training_batches(dataset, recipe(workers=workers), batch_size=2, seed=3, first_step=7, steps=7)) == []


def test_each_epoch_shows_each_image_once_in_an_order_of_its_own(files):
    batches = training_batches(files.read(), recipe(), batch_size=2, seed=0, steps=30)
    shown = [target.image_id for _, targets in batches for target in targets]
    epochs = [tuple(shown[start : start + 3]) for start in range(0, 60, 3)]
    assert all(set(epoch) == {1, 2, 5} for epoch in epochs)
    assert len(set(epochs)) == 6


def test_an_image_is_varied_anew_each_time(files):
    batches = training_batches(files.read(), recipe(), batch_size=3, seed=0, steps=8)
    matrices = [target.masks.matrix.tolist() for _, targets in batches for target in targets if target.image_id == 1]
    assert len(matrices) == 8
    assert all(a != b for a, b in itertools.combinations(matrices, 2))


def test_the_seeds_of_targets_are_those_of_the_documented_stream(files):
    batches = training_batches(files.read(), recipe(), batch_size=2, seed=5, steps=3)
    seeds = [target.seed for _, targets in batches for target in targets]
    assert seeds == [stream(5, "targets", k) for k in range(6)]
    assert len(set(seeds)) == 6


def test_streams_are_pinned():
    """Runs of an older release must resume to the bit: these numbers are part of the format."""
    assert stream(0, "augment", 0) == 8_936_930_414_410_450_683
    assert stream(0, "targets", 0) != stream(0, "augment", 0)
    assert stream(1, "augment", 0) != stream(11, "augment", 0)
    assert 0 <= stream(0, "order", 3) < 2**63


@pytest.mark.parametrize("workers", [0, 1])
def test_torchs_and_numpys_global_random_numbers_are_left_alone(files, workers):
    dataset = files.read()
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(training_batches(dataset, recipe(workers=workers), batch_size=2, seed=0, steps=3))
    list(evaluation_batches(dataset, recipe(workers=workers)))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


def test_batches_are_padded_and_tell_both_sizes(files):
    plain = recipe(augment=Augment(flip=0), resize=Resize(scale=2.0), size_divisor=32)
    ((images, targets),) = training_batches(files.read(), plain, batch_size=3, seed=0, steps=1)
    assert images.pixels.dtype == torch.uint8
    assert images.pixels.shape == (3, 3, 96, 128)
    assert images.pixels.is_contiguous(memory_format=torch.channels_last)
    originals = {1: (40, 60), 2: (30, 30), 5: (32, 48)}
    for image, target, size, original in zip(images.pixels, targets, images.sizes, images.original_sizes, strict=True):
        assert original == originals[target.image_id]
        assert size == (2 * original[0], 2 * original[1])
        assert (image[:, size[0] :] == 0).all()
        assert (image[:, :, size[1] :] == 0).all()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("batch_size", "counts"), [(1, [1, 1, 1]), (2, [2, 1]), (5, [3])])
def test_evaluation_shows_all_images_in_order_as_prediction_does(files, workers, batch_size, counts):
    dataset, config = files.read(), recipe(workers=workers)
    batches = list(evaluation_batches(dataset, config, batch_size=batch_size))
    assert [len(records) for _, records in batches] == counts
    assert [record for _, records in batches for record in records] == list(dataset.images)
    for images, records in batches:
        predicted = images_batch([read_image(record.path) for record in records], config)
        assert torch.equal(images.pixels, predicted.pixels)
        assert images.sizes == predicted.sizes
        assert images.original_sizes == [(record.height, record.width) for record in records]


def test_training_evaluation_and_prediction_see_the_same_pixels(files):
    """Nothing varied, one size: the three ways must agree to the bit, 16-bit files included."""
    deep = np.random.default_rng(0).gamma(2, 900, (40, 60)).astype(np.uint16)
    Image.fromarray(deep).save(files.folder / "a.png")
    dataset = files.read()
    for mode in ("none", "percentile"):
        config = recipe(augment=Augment(flip=0), normalize=mode)
        shown = {}
        for images, targets in training_batches(dataset, config, batch_size=1, seed=0, steps=3):
            shown[targets[0].image_id] = images.pixels
        for images, records in evaluation_batches(dataset, config):
            assert torch.equal(images.pixels, shown[records[0].id])
        expected = normalize(read_image(files.folder / "a.png"), mode)
        assert images_batch([expected], recipe(normalize="none")).pixels.equal(shown[1])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_fault_in_a_worker_reaches_the_caller_as_the_same_line(files, workers):
    dataset = files.read()
    (files.folder / "b.png").write_bytes(b"no image")
    for batches in (
        training_batches(dataset, recipe(workers=workers), batch_size=3, seed=0, steps=2),
        evaluation_batches(dataset, recipe(workers=workers)),
    ):
        with pytest.raises(UserError) as caught:
            list(batches)
        assert str(caught.value).startswith(f"{files.folder / 'b.png'}: is not an image")
        assert "\n" not in str(caught.value)
    assert multiprocessing.active_children() == []


def test_closing_the_iterator_ends_the_workers(files):
    batches = training_batches(files.read(), recipe(workers=2), batch_size=2, seed=0, steps=1000)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert multiprocessing.active_children() == []


def test_a_worker_that_dies_is_explained(files):
    batches = training_batches(files.read(), recipe(workers=1), batch_size=2, seed=0, steps=1000)
    next(batches)
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"a process that prepares batches was killed.*data\.workers=0"):
        list(batches)
    assert multiprocessing.active_children() == []


def in_a_process_of_its_own(dataset: Dataset, log: Path) -> tuple[int, list[int]]:
    """A training process that reads batches for ever, and its workers."""
    receiving, sending = multiprocessing.Pipe(duplex=False)
    pid = os.fork()
    if pid == 0:
        os.setsid()  # a terminal sends Ctrl-C to the whole group
        signal.signal(signal.SIGINT, signal.default_int_handler)
        output = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)  # not pytest's
        try:
            for step, _ in enumerate(training_batches(dataset, recipe(workers=2), batch_size=2, seed=0, steps=10**9)):
                if step == 0:
                    sending.send([child.pid for child in multiprocessing.active_children()])
        except KeyboardInterrupt:
            os.write(1, f"stopped with {len(multiprocessing.active_children())} workers".encode())
        os._exit(0)
    sending.close()
    workers = receiving.recv()
    receiving.close()
    assert len(workers) == 2
    return pid, workers


def running(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text().replace(")", "", 1)
    except FileNotFoundError:
        return False


def test_ctrl_c_ends_everything_without_a_word_from_the_workers(files, tmp_path):
    pid, workers = in_a_process_of_its_own(files.read(), tmp_path / "log")
    for worker in workers:  # which Ctrl-C must not touch: the main process may first want to save
        os.kill(worker, signal.SIGINT)
    time.sleep(0.2)
    assert all(map(running, workers))
    os.killpg(pid, signal.SIGINT)
    assert os.waitpid(pid, 0)[1] == 0
    assert (tmp_path / "log").read_text() == "stopped with 0 workers"
    assert not any(map(running, workers))


def test_workers_do_not_outlive_a_training_process_that_was_killed(files, tmp_path):
    pid, workers = in_a_process_of_its_own(files.read(), tmp_path / "log")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    deadline = time.monotonic() + 20
    while any(map(running, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(running, workers))
    assert (tmp_path / "log").read_text() == ""


def test_the_cache_keeps_pictures_while_they_fit(files, monkeypatch):
    dataset = files.read()
    read = []
    original = Dataset.read_image
    monkeypatch.setattr(Dataset, "read_image", lambda self, index, _: (read.append(index), original(self, index))[1])
    list(training_batches(dataset, recipe(cache_mb=1), batch_size=3, seed=0, steps=5))
    assert sorted(read) == [0, 1, 2]
    read.clear()
    list(training_batches(dataset, recipe(cache_mb=0), batch_size=3, seed=0, steps=5))
    assert len(read) == 15


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"train": {"images": "a"}}, "train: has images but no annotations: give both or neither"),
        ({"val": {"annotations": "a"}}, "val: has annotations but no images"),
        ({"augment": {"short_sides": [100]}, "resize": {"scale": 2}}, "augment.short_sides needs resize.short_side"),
        ({"classes": ["a", "a"]}, "classes has a name twice"),
        ({"workers": -1}, "workers: "),
        ({"normalize": "minmax"}, "normalize: "),
        ({"train": {"image": "a"}}, "train.image: unknown key; did you mean 'images'?"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(table, words):
    with pytest.raises(UserError) as caught:
        recipes.validate(DataConfig, table)
    assert words in str(caught.value)


def test_a_configuration_survives_being_written():
    for config in (DataConfig(), recipe(train=sample_split("train"), classes=("a", "b"))):
        assert recipes.validate(DataConfig, tomllib.loads(recipes.dumps(config))) == config


def test_the_embedded_sample_is_whole():
    for name, count, objects in (("train", 100, 2742), ("val", 40, 1209)):
        split = sample_split(name)
        dataset = Dataset.read(split.images, split.annotations)
        assert len(dataset) == count
        assert len(dataset.annotations.ids) == objects
        assert dataset.classes == ("nucleus",)
        assert dataset.has_masks
        assert dataset.warnings == []
        dataset.check_trainable()
        assert sorted(path.name for path in split.images.iterdir()) == [record.file_name for record in dataset.images]
        for index in range(0, count, 9):
            image, _ = dataset.sample(index)
            assert image.dtype == np.uint8
    names = [{path.name for path in sample_split(name).images.iterdir()} for name in ("train", "val")]
    assert not names[0] & names[1]


def test_the_embedded_sample_is_small_and_says_where_it_is_from():
    folder = sample_split("val").images.parent
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 4_000_000
    assert "CC0" in (folder / "SOURCE.txt").read_text()
    assert "CC0 1.0 Universal" in (folder / "LICENSE.txt").read_text()


@pytest.mark.parametrize("augment", [AUGMENT, Augment(mosaic=0.7, copy_paste=0.6)])
def test_the_sources_of_a_batch_are_the_pictures_that_were_read_for_it(files, monkeypatch, augment):
    dataset, config = files.read(), recipe(augment=augment, cache_mb=0)
    read = []
    monkeypatch.setattr(
        "mrcnn_cli.data.coco.read_image", lambda path, channels: read.append(path.name) or read_image(path, channels)
    )
    several = 0
    batches = training_batches(dataset, config, batch_size=2, seed=3, steps=8)
    for step in range(8):
        read.clear()
        _, targets = next(batches)
        expected = list(read)
        found = sources(dataset, config, targets, batch_size=2, seed=3, step=step)
        assert [dataset.images[places[0]].id for places in found] == [target.image_id for target in targets]
        assert {dataset.images[place].file_name for places in found for place in places} == set(expected)
        assert sources(dataset, config, targets[1:], batch_size=2, seed=3, step=step) == found[1:]
        assert sources(dataset, config, targets, batch_size=2, seed=3, step=step + 1) == [[], []]
        several += sum(len(places) > 1 for places in found)
    assert (several > 0) == (augment.mosaic > 0)


def broken(files, name):
    """The data set with one file cut short after it was read."""
    dataset = files.read()
    path = files.folder / name
    path.write_bytes(path.read_bytes()[:-200])
    return dataset


def test_an_image_that_breaks_ends_the_batches_with_its_name(files):
    dataset = broken(files, "a.png")
    with pytest.raises(UserError, match="a.png: damaged or cut short"):
        list(training_batches(dataset, recipe(), batch_size=2, seed=3, steps=4))


@pytest.mark.parametrize("augment", [AUGMENT, Augment(mosaic=0.7, copy_paste=0.6)])
def test_broken_images_are_skipped_and_told_and_change_nothing_else(files, augment):
    config = recipe(skip_broken=True, augment=augment)
    whole = list(training_batches(files.read(), config, batch_size=2, seed=3, steps=9))
    dataset, told = broken(files, "a.png"), []
    batches = list(training_batches(dataset, config, batch_size=2, seed=3, steps=9, skipped=told.append))
    assert all(len(images) == len(targets) == 2 for images, targets in batches)
    assert {target.image_id for _, targets in batches for target in targets} == {2, 5}
    assert set(told) == {f"{files.folder / 'a.png'}: {told[0].partition(': ')[2]}"}
    wanted = sum(target.image_id == 1 for _, targets in whole for target in targets)
    assert len(told) >= wanted > 3
    if augment is AUGMENT:
        assert len(told) - wanted < 20  # a picture drawn instead may be the broken one again
        for (_, one), (_, other) in zip(whole, batches, strict=True):
            for a, b in zip(one, other, strict=True):
                assert a.seed == b.seed
                assert a.image_id == 1 or torch.equal(a.boxes, b.boxes)
    parallel = recipe(skip_broken=True, augment=augment, workers=2)
    told_there = []
    for one, other in zip(
        batches,
        training_batches(dataset, parallel, batch_size=2, seed=3, steps=9, skipped=told_there.append),
        strict=True,
    ):
        assert torch.equal(one[0].pixels, other[0].pixels)
    assert told_there == told


def test_a_folder_of_broken_images_ends_the_batches(files):
    for name in ("b.png", "c.png"):
        broken(files, name)
    dataset = broken(files, "a.png")
    with pytest.raises(UserError, match=r"data.skip_broken: 100 images in a row cannot be read; the last one: .*png: "):
        list(training_batches(dataset, recipe(skip_broken=True), batch_size=2, seed=3, steps=4))
