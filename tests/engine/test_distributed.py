"""Two processes of this machine train as one does. The quick half; the rest is in tests/commands/test_processes.py."""

import json
import os
import socket
import subprocess
import sys

import pytest

from mrcnn_cli.data.loader import share
from mrcnn_cli.engine.distributed import ALONE, World, check_shares, joined, local_device
from mrcnn_cli.engine.run import prepare, read_config
from mrcnn_cli.engine.train import train
from mrcnn_cli.errors import UserError

# No statistics of a batch. AdamW's first steps make as much of a rounding as of a gradient.
SETTINGS = {
    "train.optimizer": "sgd",
    "model.backbone": {"name": "resnet18", "width": 32, "norm": "group_norm"},
    "model.fpn": {"channels": 16, "norm": "group_norm"},
}

SCRIPT = """
import json, sys
import torch
import mrcnn_cli as mrcnn
from mrcnn_cli.engine.distributed import joined

with joined("cpu") as world:
    rank = world.rank
    assert world.size == 2
    assert world.sum(torch.tensor([rank + 1.0])).tolist() == [3.0]
    assert world.denominator(5 * rank).item() == 5
    assert world.denominator(torch.tensor(0)).item() == 1
    assert world.largest(3 - rank, rank) == [3, 1]
    assert world.any(rank == 1)
    assert world.tell({"from": rank, "text": "ä" * 1000}) == {"from": 0, "text": "ä" * 1000}
    assert list(world.gather({"rank": rank})) == ([{"rank": 0}, {"rank": 1}] if rank == 0 else [])
    read = lambda: ({"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(7)}, {"step": "4"})
    tensors, about = world.spread(read if rank == 0 else None)
    assert about == {"step": "4"} and tensors["a"][1, 2] == 5 and tensors["b"].dtype == torch.int64
    norm = torch.nn.BatchNorm2d(2)
    norm.running_mean.fill_(float(rank))
    world.align(norm)
    assert norm.running_mean.tolist() == [0.0, 0.0]

overrides = json.loads(sys.argv[1])
for step in mrcnn.train("nuclei_scratch", overrides, out=sys.argv[2], device="cpu"):
    pass
"""


def start(script, *arguments, processes=2):
    """`torchrun` of a script, waited for."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", script]
    return subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=300)


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def same_rows(one, other, tolerance=1e-4):
    assert [(row["kind"], row["step"]) for row in one] == [(row["kind"], row["step"]) for row in other]
    for first, second in zip(one, other, strict=True):
        if first["kind"] == "train":
            losses = {key: value for key, value in first.items() if key.startswith("loss")}
            assert {key: second[key] for key in losses} == pytest.approx(losses, abs=tolerance)


def test_a_script_that_torchrun_starts_twice_trains_as_one_process_does(tmp_path, tiny):
    overrides = {key: value for key, value in tiny.items() if key != "model.fpn.channels"} | SETTINGS
    overrides |= {"train.steps": 3, "train.batch_size": 3}  # shared as 1 and 2
    (tmp_path / "script.py").write_text(SCRIPT)
    finished = start(tmp_path / "script.py", json.dumps(overrides), tmp_path / "two")
    assert finished.returncode == 0, finished.stderr
    list(train(prepare(read_config("nuclei_scratch", overrides), tmp_path / "one", "cpu")))
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    same_rows(one, two)
    assert one[-1]["detections"] == two[-1]["detections"]
    assert {path.name for path in (tmp_path / "one").iterdir()} == {path.name for path in (tmp_path / "two").iterdir()}


def test_shares_follow_each_other_and_differ_by_one_at_most():
    assert [list(share(range(10, 15), part, 3)) for part in range(3)] == [[10], [11, 12], [13, 14]]
    assert [len(share(range(2), part, 4)) for part in range(4)] == [0, 1, 0, 1]


def test_a_process_by_itself_is_alone():
    with joined("cpu") as world:
        assert world is ALONE
        assert world.is_first
        assert world.tell([1, None]) == [1, None]
        assert list(world.gather(5)) == [5]
        assert world.denominator(0) == 1


def test_a_batch_too_small_for_all_is_named():
    check_shares(World(size=4), 8, 2)
    with pytest.raises(UserError, match=r"train.batch_size = 3 images for 4 processes: .* at least 4 or fewer"):
        check_shares(World(size=4), 3, 1)
    with pytest.raises(UserError, match=r"4 processes in 2 parts each \(train.accumulate\): .* at least 8"):
        check_shares(World(size=4), 7, 2)


def test_one_gpu_for_several_processes_is_refused():
    assert local_device(World(size=2), "cpu") == "cpu"
    assert local_device(ALONE, "cuda:1") == "cuda:1"
    with pytest.raises(UserError, match=r"--device cuda:0: names one GPU for 2 processes"):
        local_device(World(size=2), "cuda:0")


@pytest.fixture
def started_as(monkeypatch):
    """Sets the variables of a process of two, as a batch system does."""

    def start(rank, port):
        variables = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    return start


def test_a_master_that_cannot_be_reached_is_named(started_as):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started_as(1, port)
    with (
        pytest.raises(UserError, match=rf"127.0.0.1:{port}: rank 1 of 2 did not meet the others within 0.5 s"),
        joined("cpu", seconds=0.5),
    ):
        pass


def test_a_port_that_is_taken_is_named(started_as):
    with socket.socket(socket.AF_INET6) as other:
        other.bind(("::", 0))
        other.listen()
        port = other.getsockname()[1]
        started_as(0, port)
        with (
            pytest.raises(UserError, match=rf"127.0.0.1:{port}: the port is taken by another program; choose another"),
            joined("cpu", seconds=2),
        ):
            pass


def test_variables_that_are_missing_are_named(started_as, monkeypatch):
    started_as(0, 1)
    monkeypatch.delenv("MASTER_PORT")
    with (
        pytest.raises(UserError, match=r"incomplete \('MASTER_PORT'\): start with --processes N or with torchrun"),
        joined("cpu"),
    ):
        pass
