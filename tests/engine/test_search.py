"""The range test of learning rates and the search for the largest batch."""

import math

import pytest
import torch

from mrcnn_cli.engine import search
from mrcnn_cli.engine.run import prepare, read_config
from mrcnn_cli.engine.search import BatchTrial, RateTrial, batch_trials, best_rate, largest_batch, rate_trials
from mrcnn_cli.errors import UserError


@pytest.fixture
def run(tiny, tmp_path):
    return prepare(read_config("nuclei_scratch", tiny), tmp_path / "run", "cpu")


def test_rates_ascend_by_one_factor_and_nothing_is_written(run):
    trials = list(rate_trials(run, 1e-5, 1e-3, steps=5))
    assert [trial.rate for trial in trials] == pytest.approx([1e-5, 10**-4.5, 1e-4, 10**-3.5, 1e-3])
    assert trials[0].smoothed == pytest.approx(trials[0].loss)
    assert trials == list(rate_trials(run, 1e-5, 1e-3, steps=5))
    assert not run.folder.exists()


def test_a_range_test_ends_when_the_loss_diverges(tiny, tmp_path):
    settings = {**tiny, "train.optimizer": "sgd", "train.clip_norm": None}
    run = prepare(read_config("nuclei_scratch", settings), tmp_path / "run", "cpu")
    trials = list(rate_trials(run, 1e-3, 1e6, steps=60))
    assert 2 < len(trials) < 60
    assert all(math.isfinite(trial.loss) for trial in trials)


def test_the_rate_to_take_is_a_tenth_of_that_of_the_lowest_loss():
    rates = [10 ** (-6 + place / 10) for place in range(60)]
    trials = [RateTrial(rate, 0.0, (math.log10(rate) + 2) ** 2) for rate in rates]
    assert best_rate(trials) == pytest.approx(1e-3)
    with pytest.raises(UserError, match="falls at none of the learning rates"):
        best_rate([RateTrial(rate, 0.0, rate) for rate in rates])


@pytest.mark.parametrize(("room", "largest"), [(1000, 5), (460, 3), (235, 1)])
def test_the_largest_batch_is_the_last_that_fits(run, monkeypatch, room, largest):
    begun = []

    def memory(run, images):
        begun.append(images)
        return 100.0 + 100.0 * images

    monkeypatch.setattr(search, "_in_process", memory)
    monkeypatch.setattr(search, "free_memory_mb", lambda device: room / search.ROOM)
    trials = list(batch_trials(run))
    assert largest_batch(trials) == largest
    assert all(100 + 100 * images <= room for images in begun if images > 2)  # what would not fit is not begun
    assert all(trial.memory_mb is None for trial in trials if 100 + 100 * trial.images > room)


def test_a_picture_that_does_not_fit_is_an_error(run, monkeypatch):
    monkeypatch.setattr(search, "_in_process", lambda run, images: None)
    trials = list(batch_trials(run))
    assert trials == [BatchTrial(1, None)]
    with pytest.raises(UserError, match="not even one picture fits"):
        largest_batch(trials)


def test_a_trial_has_the_largest_pictures(run):
    images, targets = search._largest_pictures(run, 3, 0)
    assert len(images) == len(targets) == 3
    assert max(images.sizes) == (96, 96)


@pytest.mark.slow
def test_a_larger_batch_takes_more_memory_in_a_process_of_its_own(run):
    few, many = (search._in_process(run, images) for images in (1, 5))
    assert 100 < few < many < 4000
    assert not torch.cuda.is_initialized()
