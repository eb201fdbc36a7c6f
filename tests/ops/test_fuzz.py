"""The CPU kernels, watched by AddressSanitizer and UndefinedBehaviorSanitizer, on calls that may be wrong."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def sanitized_package(tmp_path_factory):
    """A copy of the package whose operators the sanitizers watch."""
    folder = tmp_path_factory.mktemp("sanitized")
    environment = {**os.environ, "MRCNN_CUDA": "0", "MRCNN_SANITIZE": "1"}
    command = [sys.executable, "setup.py", "build_ext", "--build-lib", folder, "--build-temp", folder / "objects"]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    for name in ("mrcnn_cli", "tests"):
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"), dirs_exist_ok=True
        )
    return folder


def runtime(name):
    command = ["g++", f"-print-file-name={name}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def watched(folder, *arguments, **environment):
    """Python in that folder, with the sanitizers' own code loaded before all else."""
    environment = {
        **os.environ,
        "LD_PRELOAD": f"{runtime('libasan.so')} {runtime('libubsan.so')} {runtime('libstdc++.so')}",
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "PYTHONPATH": str(folder),
        **environment,
    }
    return subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("plain", ["0", "1"], ids=["fastest kernels", "plain kernels"])
def test_no_call_crashes_or_touches_a_byte_that_is_not_its_own(sanitized_package, plain):
    result = watched(
        sanitized_package,
        *("-m", "pytest", "tests/ops/fuzzed_operators.py", "-q", "-x", "-p", "no:cacheprovider", "-c", os.devnull),
        *("--rootdir", "."),
        MRCNN_PLAIN_KERNELS=plain,
    )
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-6000:]


@pytest.mark.slow
def test_the_sanitizers_are_at_work_in_that_package(sanitized_package):
    # A tensor that claims more numbers than its memory holds: reading them is what must be noticed.
    program = """
import ctypes
import torch
from mrcnn_cli import ops
memory = ctypes.create_string_buffer(64)
raw = torch.frombuffer(memory, dtype=torch.float32).clone()
boxes = torch.as_strided(raw, (2, 4), (4, 1))
storage = raw.untyped_storage()
print(ops.nms_sorted(boxes, 0.5).tolist(), flush=True)
storage.resize_(16)
ops.nms_sorted(boxes, 0.5)
print("not noticed")
"""
    result = watched(sanitized_package, "-c", program)
    assert "[True" in result.stdout
    assert "not noticed" not in result.stdout
