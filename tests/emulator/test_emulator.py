"""The emulator finds the faults that are planted, and the sanitizers watch every kernel."""

import ctypes
import subprocess

import pytest
import torch

from tests.emulator.emulation import FOLDER, ORDERS, ROOT, compiled, pointer


def test_a_missing_barrier_gives_other_results_in_other_orders(emulated):
    results = {}
    for with_barrier in (0, 1):
        for order in ORDERS:
            emulated.set_order(order, 3)
            out = torch.full((64,), -7, dtype=torch.int32)
            emulated.run_neighbours(with_barrier, 64, pointer(out))
            results[with_barrier, order] = out.tolist()
    expected = [*range(1, 64), 0]
    assert [results[1, order] for order in ORDERS] == [expected] * len(ORDERS)
    assert all(results[0, order] != expected for order in ORDERS)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (0, "a barrier or a warp operation waits"),
        (1, "a barrier after some threads of the block have returned"),
        (2, "a barrier or a warp operation waits"),
        (3, "a warp mask lacks the calling lane"),
        (4, "a shuffle reads a lane outside of the mask"),
        (5, "no device takes such a block"),
        (6, "no device takes such a grid"),
    ],
)
def test_the_emulator_finds_each_fault(emulated, number, message):
    emulated.set_order(0, 1)
    emulated.run_fault.restype = ctypes.c_char_p
    assert message in emulated.run_fault(number).decode()


def test_every_operator_with_cuda_kernels_is_emulated():
    operators = {path.parent.name for path in (ROOT / "csrc").glob("*/*_cuda.cu")}
    assert operators
    assert operators <= {path.stem for path in FOLDER.glob("*.cpp")}
    assert operators <= {path.stem.removeprefix("test_") for path in FOLDER.glob("test_*.py")}


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g"]
    return compiled(tmp_path_factory.mktemp("sanitized"), flags, "sanitized")


@pytest.mark.slow
def test_no_kernel_touches_a_byte_that_is_not_its_own(sanitized):
    result = subprocess.run([sanitized], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr[-4000:]
    operators = len({path.parent for path in (ROOT / "csrc").glob("*/*_cuda.cu")})
    assert result.stdout == f"clean: {operators} operators\n"


@pytest.mark.slow
def test_the_sanitizer_reports_a_planted_write_out_of_bounds(sanitized):
    result = subprocess.run([sanitized, "plant"], capture_output=True, text=True)
    assert result.returncode != 0
    assert "heap-buffer-overflow" in result.stderr
    assert "write_at" in result.stderr
