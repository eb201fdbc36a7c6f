"""Batch norms of two processes without GPUs, beside PyTorch's batch norm of the whole batch, in double."""

from pathlib import Path

import pytest
import torch
from torch import nn

from mrcnn_cli.models.sync_batch_norm import SyncBatchNorm
from tests.engine.test_distributed import start

SCRIPT = """
import sys
import torch
sys.path.insert(0, sys.argv[2])
from mrcnn_cli.engine.distributed import joined
from mrcnn_cli.models.sync_batch_norm import SyncBatchNorm
from tests.models.test_sync_batch_norm import batch, norm_with

with joined("cpu") as world:
    for case, (shares, momentum) in enumerate([((1, 3), 0.1), ((0, 4), 0.1), ((2, 2), 0.0), ((0, 0), 0.1)]):
        first = shares[0] if world.rank else 0
        x = batch()[first : first + shares[world.rank]].requires_grad_()
        norm = norm_with(SyncBatchNorm, momentum)
        for _ in range(2):
            y = norm(x)
        torch.manual_seed(5)
        weights = torch.randn(batch().shape, dtype=torch.float64)[first : first + shares[world.rank]]
        (y.sin() * weights).sum().backward()
        found = {"y": y.detach(), "x": x.grad, **{n: world.sum(p.grad) for n, p in norm.named_parameters()}}
        found |= dict(norm.named_buffers())
        torch.save({"first": first, **found}, f"{sys.argv[1]}/{case}-{world.rank}.pt")
    half = norm_with(SyncBatchNorm, 0.1).float()
    assert half(batch().bfloat16()).dtype == torch.bfloat16
    norm = norm_with(SyncBatchNorm, 0.1).eval()
    assert torch.equal(norm(batch()), norm_with(torch.nn.BatchNorm2d, 0.1).eval()(batch()))
"""


def batch():
    random = torch.Generator().manual_seed(3)
    x = torch.randn(4, 5, 6, 7, dtype=torch.float64, generator=random) * torch.arange(1, 5)[:, None, None, None] + 100
    return x.contiguous(memory_format=torch.channels_last)


def norm_with(kind, momentum):
    norm = kind(5, momentum=momentum).double()
    random = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.copy_(torch.rand(5, dtype=torch.float64, generator=random))
    return norm


def wanted(momentum):
    x, norm = batch().requires_grad_(), norm_with(nn.BatchNorm2d, momentum)
    for _ in range(2):
        y = norm(x)
    torch.manual_seed(5)
    (y.sin() * torch.randn(x.shape, dtype=torch.float64)).sum().backward()
    found = {"y": y.detach(), "x": x.grad, **{name: p.grad for name, p in norm.named_parameters()}}
    return found | dict(norm.named_buffers())


def test_two_processes_give_what_the_whole_batch_gives(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    finished = start(tmp_path / "script.py", tmp_path, Path(__file__).parents[2])
    assert finished.returncode == 0, finished.stderr
    for case, momentum in enumerate([0.1, 0.1, 0.0]):
        expected = wanted(momentum)
        parts = [torch.load(tmp_path / f"{case}-{rank}.pt", weights_only=True) for rank in (0, 1)]
        for name, value in expected.items():
            if name in ("y", "x"):
                found = torch.cat([part[name] for part in parts])
                torch.testing.assert_close(found, value, rtol=1e-9, atol=1e-10)
            else:
                for part in parts:
                    torch.testing.assert_close(part[name], value, rtol=1e-9, atol=1e-10)
    for rank in (0, 1):  # nothing in any process: no statistics
        part = torch.load(tmp_path / f"3-{rank}.pt", weights_only=True)
        fresh = norm_with(nn.BatchNorm2d, 0.1)
        for name, value in fresh.named_buffers():
            assert torch.equal(part[name], value), name


@pytest.mark.parametrize("training", [True, False])
def test_a_process_by_itself_has_a_plain_batch_norm(training):
    norm, plain = (norm_with(kind, 0.1).train(training) for kind in (SyncBatchNorm, nn.BatchNorm2d))
    torch.testing.assert_close(norm(batch()), plain(batch()))
    torch.testing.assert_close(dict(norm.named_buffers()), dict(plain.named_buffers()))
