"""What every operator must satisfy. A test file describes its operator once and asks for each property by name."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
Arguments = dict[str, Any]


@dataclass(frozen=True)
class Operator:
    """An operator, its loop in float64, and what to try them on.

    Args:
        function: the public function.
        reference: the loop; takes the same arguments.
        cases: name -> arguments, all floating-point tensors in float64 on the CPU.
        values: the arguments that are computed with and are given in each dtype; other floating-point tensors (box
            coordinates beside features) become float32, or stay float64 for float64 values.
        tolerance: largest difference from the loop by dtype, for values of about one.
        differentiable: arguments that get gradients.
        same_type: the result has the type of the values.
    """

    function: Callable[..., Tensor]
    reference: Callable[..., Tensor]
    cases: dict[str, Callable[[], Arguments]]
    values: tuple[str, ...]
    tolerance: dict[torch.dtype, float] = field(default_factory=dict)
    differentiable: tuple[str, ...] = ()
    same_type: bool = True

    def arguments(self, case: str, dtype: torch.dtype, device: str = "cpu") -> Arguments:
        other = torch.float64 if dtype == torch.float64 else torch.float32
        return {
            name: _converted(value, dtype if name in self.values else other, device)
            for name, value in self.cases[case]().items()
        }


def _converted(value: Any, dtype: torch.dtype, device: str) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return [_converted(item, dtype, device) for item in value]
    if isinstance(value, Tensor):
        # a copy, so that no test can change what the next one gets
        return value.to(device, dtype if value.is_floating_point() else value.dtype, copy=True)
    return value


def _tensors(arguments: Arguments, names: tuple[str, ...]) -> list[Tensor]:
    values = [arguments[name] for name in names]
    return [tensor for value in values for tensor in (value if isinstance(value, list) else [value])]


def _with_tensors(arguments: Arguments, names: tuple[str, ...], tensors: list[Tensor]) -> Arguments:
    rest, changed = iter(tensors), dict(arguments)
    for name in names:
        value = arguments[name]
        changed[name] = [next(rest) for _ in value] if isinstance(value, list) else next(rest)
    return changed


def equals_the_loop(operator: Operator, case: str, dtype: torch.dtype, device: str = "cpu") -> None:
    arguments = operator.arguments(case, dtype, device)
    result = operator.function(**arguments)
    # The loop sees the numbers as they were rounded to dtype: only the arithmetic is judged.
    expected = operator.reference(
        **{name: _converted(value, torch.float64, "cpu") for name, value in arguments.items()}
    )
    if operator.same_type:
        assert result.dtype == _tensors(arguments, operator.values)[0].dtype
    assert result.shape == expected.shape
    assert result.device.type == device
    if not expected.is_floating_point():
        assert torch.equal(result.cpu(), expected)
        return
    torch.testing.assert_close(result.cpu().double(), expected, rtol=0, atol=operator.tolerance[dtype])


def has_right_gradients(operator: Operator, case: str, device: str = "cpu") -> None:
    """Numerical and analytical gradients agree in float64, first and second."""
    arguments = operator.arguments(case, torch.float64, device)
    tensors = [tensor.requires_grad_() for tensor in _tensors(arguments, operator.differentiable)]

    def function(*tensors: Tensor) -> Tensor:
        return operator.function(**_with_tensors(arguments, operator.differentiable, list(tensors)))

    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


class _Recorder(TorchDispatchMode):
    """Notes every call of an operator of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "mrcnn":
            self.calls.append((func, args))
        return func(*args, **(kwargs or {}))


def passes_opcheck(
    operator: Operator,
    case: str,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    differentiable_boxes: bool = False,
) -> None:
    """Schema, fake kernel, autograd registration and ahead-of-time dispatch are consistent, forward and backward."""
    arguments = operator.arguments(case, dtype, device)
    tensors = [tensor.requires_grad_() for tensor in _tensors(arguments, operator.differentiable)]
    with _Recorder() as recorder:
        result = operator.function(**arguments)
        if tensors:
            torch.autograd.grad(result, tensors, torch.ones_like(result))
    called = [call for call, _ in recorder.calls]
    assert len(called) == (2 if tensors else 1), called
    for call, args in recorder.calls:
        detached = tuple(_leaves(arg, bool(tensors), differentiable_boxes) for arg in args)
        with warnings.catch_warnings():
            # torch's own checker reads .grad of copies that it made of tensors in lists
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
            report = torch.library.opcheck(call, detached)
        assert set(report.values()) == {"SUCCESS"}, report


def _leaves(value: Any, requires_grad: bool, differentiable_boxes: bool) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return [_leaves(item, requires_grad, differentiable_boxes) for item in value]
    if isinstance(value, Tensor):
        boxes = value.ndim == 2 and not differentiable_boxes  # those beside features get no gradient
        return value.detach().requires_grad_(requires_grad and value.is_floating_point() and not boxes)
    return value


def compiles_whole(operator: Operator, case: str) -> None:
    """torch.compile makes one graph of it, for fixed and for dynamic shapes, with the same results and gradients."""
    arguments = operator.arguments(case, torch.float32)
    tensors = [tensor.requires_grad_() for tensor in _tensors(arguments, operator.differentiable)]
    expected = operator.function(**arguments)
    for dynamic in (False, True):
        torch.compiler.reset()
        compiled = torch.compile(operator.function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        result = compiled(**arguments)
        assert torch.equal(result, expected)
        assert result.stride() == expected.stride()
        if tensors:
            weights = torch.linspace(-1, 1, result.numel()).reshape(result.shape)
            grads = torch.autograd.grad((result * weights).sum(), tensors)
            wanted = torch.autograd.grad((expected * weights).sum(), tensors, retain_graph=True)
            assert all(torch.equal(grad, want) for grad, want in zip(grads, wanted, strict=True))


def same_bits_for_any_number_of_threads(operator: Operator, case: str, dtype: torch.dtype) -> None:
    def run() -> list[Tensor]:
        arguments = operator.arguments(case, dtype)
        tensors = [tensor.requires_grad_() for tensor in _tensors(arguments, operator.differentiable)]
        result = operator.function(**arguments)
        grads = torch.autograd.grad(result, tensors, torch.ones_like(result)) if tensors else ()
        return [result, *grads]

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = run()
        for count in (2, 3, 5):
            torch.set_num_threads(count)
            for result, wanted in zip(run(), expected, strict=True):
                assert torch.equal(result, wanted), f"{count} threads"
    finally:
        torch.set_num_threads(threads)


def cuda_equals_cpu(operator: Operator, case: str, dtype: torch.dtype) -> None:
    on_cpu, on_cuda = operator.arguments(case, dtype), operator.arguments(case, dtype, "cuda")
    expected, result = operator.function(**on_cpu), operator.function(**on_cuda)
    assert result.is_cuda
    assert result.stride() == expected.stride()
    if not expected.is_floating_point():
        assert torch.equal(result.cpu(), expected)
        return
    tolerance = 2 * operator.tolerance[dtype]
    torch.testing.assert_close(result.cpu().double(), expected.double(), rtol=0, atol=tolerance)
    if not operator.differentiable:
        return
    grads = []
    for arguments in (on_cpu, on_cuda):
        tensors = [tensor.requires_grad_() for tensor in _tensors(arguments, operator.differentiable)]
        result = operator.function(**arguments)
        weights = torch.linspace(-1, 1, result.numel(), dtype=dtype).reshape(result.shape).to(result.device)
        grads.append(torch.autograd.grad(result, tensors, weights))
    for wanted, grad in zip(*grads, strict=True):
        # A pixel's gradient sums over many bins, so it may be larger than the values the tolerance is for.
        size = max(wanted.abs().max().item(), 1.0)
        torch.testing.assert_close(grad.cpu().double(), wanted.double(), rtol=0, atol=tolerance * size)


def refuses(operator: Operator, case: str, changes: Arguments, message: str) -> None:
    """A wrong argument raises, and the message names the operator, the argument and what it got."""
    with pytest.raises(RuntimeError, match=message):
        operator.function(**{**operator.arguments(case, torch.float32), **changes})
