"""Who of several processes still lives, without any process: marks in a store of this one."""

import time

import pytest
import torch.distributed as dist

from mrcnn_cli.engine import watch
from mrcnn_cli.engine.watch import Watch


@pytest.fixture
def pair(monkeypatch):
    """Two that watch each other, fast."""
    monkeypatch.setattr(watch, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr(watch, "QUICK_SECONDS", 0.3)
    store = dist.HashStore()
    both = [Watch(store, rank, 2, f"host{rank}") for rank in range(2)]
    said = []
    for one in both:
        one.start(said.append)
    yield both
    for one in both:
        one.finish()
    assert said == []


def test_one_that_gives_no_sign_is_named_with_its_machine_and_the_step(pair):
    pair[0].step = 7
    pair[1].ended.set()  # as if it were killed: it neither marks nor says that it is done
    assert pair[0].explain().startswith("step 7: rank 1 on host1 is lost: no sign of it for 0")


def test_one_that_failed_has_said_so_itself(pair):
    pair[1].failed()
    pair[1].finish()
    assert pair[0].explain() == ""


def test_while_all_live_nobody_is_lost(pair):
    assert pair[0].explain() is None


def test_one_that_is_done_is_not_lost(pair):
    pair[1].finish()
    time.sleep(0.5)
    assert pair[0].explain() is None


def test_a_store_that_is_gone_is_said_of_oneself(pair, monkeypatch):
    class Gone:
        def set(self, key, value):
            raise RuntimeError("connection reset")

    monkeypatch.setattr(pair[0], "store", Gone())
    assert pair[0].explain() == "rank 0 on host0 no longer reaches the process that the run was started by"


def test_patience_is_long_until_the_first_step_alone(pair, monkeypatch):
    monkeypatch.setattr(watch, "SETUP_SECONDS", 600.0)
    pair[1].ended.set()
    time.sleep(0.5)
    assert pair[0]._lost(0.2, watch.SETUP_SECONDS) is None  # it may be reading a large file
    pair[0].step = 1
    assert pair[0]._lost(0.2, watch.SETUP_SECONDS) is None
    pair[0].step = 2  # together they have done the first one
    assert pair[0]._lost(0.2, watch.SETUP_SECONDS).startswith("step 2: rank 1 on host1 is lost")
