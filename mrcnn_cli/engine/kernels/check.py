"""One operator on one input, held against its loop in float64 and its gradient against central differences."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# Largest difference from the float64 loop, for values of about one: the rounding of the type.
TOLERANCE = {"float64": 1e-10, "float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2}
GRADIENT_TOLERANCE = 1e-6  # central differences in float64 with steps of 1e-6
STEP = 1e-6

Row = dict[str, Any]


@dataclass(frozen=True)
class Check:
    """An operator on one input, and the loop that it must agree with.

    Attributes:
        case: what the input is.
        function, loop: of the tensors that are computed with.
        values: those tensors, float64 on the CPU; all of them are differentiated, where there is a gradient.
        exact: the result is whole numbers, or is rounded once, and must be equal.
        differentiable: there is a gradient.
        dtypes: the types that the operator takes.
    """

    case: str
    function: Callable[..., Tensor]
    loop: Callable[..., Tensor]
    values: tuple[Tensor, ...]
    exact: bool = False
    differentiable: bool = False
    dtypes: tuple[str, ...] = ("float64", "float32", "float16", "bfloat16")


def examined(op: str, check: Check, device: torch.device, dtype: str | None) -> Iterator[Row]:
    """Rows of what was compared, in `dtype` or in all types that the operator takes."""
    for name in check.dtypes:
        if dtype in (None, name):
            yield _compared(op, check, name, device)
    if check.differentiable and dtype in (None, "float64"):
        yield _differentiated(op, check, device)


def _compared(op: str, check: Check, dtype: str, device: torch.device) -> Row:
    # The loop sees the numbers as they are rounded to the type: only the arithmetic is judged.
    values = [value.to(device, getattr(torch, dtype)) for value in check.values]
    result = check.function(*values).detach().cpu()
    expected = check.loop(*[value.cpu().double() for value in values]).detach()
    if result.shape != expected.shape:
        error = math.inf
    else:
        error = float((result.double() - expected.double()).abs().max()) if result.numel() else 0.0
    scale = max(float(expected.abs().max()), 1.0) if expected.numel() and not check.exact else 1.0
    return _row(op, check, "equals the loop", dtype, error, 0.0 if check.exact else TOLERANCE[dtype] * scale)


def _differentiated(op: str, check: Check, device: torch.device) -> Row:
    """The gradient of a weighted sum of the result, in float64, against central differences, number by number."""
    values = [value.to(device, torch.float64).requires_grad_() for value in check.values]
    result = check.function(*values)
    weights = torch.linspace(-1, 1, result.numel(), dtype=torch.float64, device=device).reshape(result.shape)
    analytical = torch.autograd.grad((result * weights).sum(), values)
    error = 0.0
    with torch.no_grad():
        for value, gradient in zip(values, analytical, strict=True):
            flat, slopes = value.view(-1), gradient.reshape(-1)
            for i in range(flat.numel()):
                middle = flat[i].item()
                flat[i] = middle + STEP
                above = float((check.function(*values) * weights).sum())
                flat[i] = middle - STEP
                below = float((check.function(*values) * weights).sum())
                flat[i] = middle
                error = max(error, abs((above - below) / (2 * STEP) - slopes[i].item()))
    return _row(op, check, "gradient equals differences", "float64", error, GRADIENT_TOLERANCE)


def _row(op: str, check: Check, what: str, dtype: str, error: float, tolerance: float) -> Row:
    return {
        "op": op,
        "case": check.case,
        "check": what,
        "dtype": dtype,
        "error": error,
        "tolerance": tolerance,
        "passed": error <= tolerance,  # False for NaN
    }
