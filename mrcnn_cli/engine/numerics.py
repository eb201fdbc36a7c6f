"""How a run computes: in which precision, and whether a GPU gives the same bits twice."""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

Precision = Literal["float32", "bfloat16", "float16"]
TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Convolutions and products in this precision while it is entered; weights, norms and losses stay in float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, TYPES[precision])


def gradient_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler:
    """Keeps small gradients above the least number of float16 ("Mixed Precision Training", 2018); else does nothing."""
    return torch.amp.GradScaler(device.type, enabled=precision == "float16")


def make_deterministic(wanted: bool, device: torch.device) -> None:
    """Let PyTorch take those of a GPU's kernels that give the same bits each time; on the CPU all of them do.

    Where it has none, it warns and names the operation.
    """
    if device.type != "cuda":
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs for it
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time
    torch.use_deterministic_algorithms(wanted, warn_only=True)
    torch.backends.cudnn.deterministic = wanted
