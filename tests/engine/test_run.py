"""Which device is taken."""

import pytest
import torch

from mrcnn_cli import _C
from mrcnn_cli.engine.run import choose_device
from mrcnn_cli.errors import UserError


def test_a_gpu_is_taken_only_where_the_kernels_were_built_for_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(_C, "cuda", True)
    assert choose_device("auto").type == "cuda"
    monkeypatch.setattr(_C, "cuda", False)
    assert choose_device("auto").type == "cpu"


def test_a_gpu_that_the_kernels_do_not_know_is_refused(monkeypatch):
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)  # as where there is a GPU
    monkeypatch.setattr(_C, "cuda", False)
    with pytest.raises(UserError, match="--device cuda: the kernels were built without CUDA"):
        choose_device("cuda")
    monkeypatch.setattr(_C, "cuda", True)
    assert choose_device("cuda").type == "cuda"
