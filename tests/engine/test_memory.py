"""Memory stays flat: what benchmarks/bench_memory.py measures, held loosely."""

import argparse
import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "bench_memory.py"


@pytest.fixture(scope="module")
def bench():
    specification = importlib.util.spec_from_file_location("bench_memory", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    before = list(sys.path)
    specification.loader.exec_module(module)
    sys.path[:] = before
    return module


def arguments(**values):
    return argparse.Namespace(**{"epochs": 10, "pictures": 6, "images": 6000} | values)


@pytest.mark.slow
def test_ten_epochs_take_no_more_than_the_first(bench):
    assert bench.of_epochs(arguments())["ratio"] < 1.1


@pytest.mark.slow
def test_a_worker_copies_little_of_the_annotations_and_nothing_more_after_its_first_epoch(bench):
    few, many = bench.of_workers(arguments(images=1000)), bench.of_workers(arguments(images=16_000))
    assert many["annotations"] > 30
    start, first, *_, last = many["private"]
    assert last - first < 1
    # What it needs for itself does not depend on how many images there are.
    assert (last - start) - (few["private"][-1] - few["private"][0]) < 0.05 * many["annotations"]


@pytest.mark.slow
def test_two_thousand_objects_train_in_the_memory_of_twenty(bench):
    found = bench.of_objects(arguments())
    assert found["ratio"] < 1.3
    assert found["ratio_of_steps"] < 1.3
