"""What a person reads whose kernels are not built, or were built for another machine."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "mrcnn_cli"


@pytest.fixture
def elsewhere(tmp_path):
    """A copy of the package without its compiled parts."""
    shutil.copytree(PACKAGE, tmp_path / "mrcnn_cli", ignore=shutil.ignore_patterns("*.so", "sample", "__pycache__"))
    return tmp_path


def imported(folder):
    return subprocess.run(
        [sys.executable, "-c", "import mrcnn_cli.ops"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(folder)},
    )


def test_kernels_that_are_not_built_are_told_with_what_to_do(elsewhere):
    result = imported(elsewhere)
    assert result.returncode != 0
    last = result.stderr.splitlines()[-1]
    assert last.startswith("mrcnn_cli.errors.UserError: ")
    assert str(elsewhere / "mrcnn_cli" / "_ops.so") in last
    assert "pip install --no-build-isolation -e ." in last


def test_a_library_that_does_not_load_is_told_with_the_loaders_words(elsewhere):
    (elsewhere / "mrcnn_cli" / "_ops.so").write_bytes(b"not a library")
    result = imported(elsewhere)
    last = result.stderr.splitlines()[-1]
    assert last.startswith("mrcnn_cli.errors.UserError: ")
    assert "does not load in PyTorch" in last
    assert "build it again" in last
