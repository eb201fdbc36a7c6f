"""One binary for every PyTorch: the operator library built here passes the op tests under another torch, unchanged."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OTHER_TORCH = os.environ.get("MRCNN_OTHER_TORCH", "2.13.0")
NEEDED = ("numpy", "pycocotools", "pydantic", "tomli-w", "pytest", "hypothesis")


@pytest.mark.slow
def test_the_operator_library_built_here_passes_the_op_tests_under_another_torch(tmp_path):
    assert not version("torch").startswith(OTHER_TORCH), "the other torch must be another one"
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", python.parent.parent], check=True)
    # Exactly this torch; the rest at the versions that are here. torchvision, which is bound to one torch, stays out.
    packages = [f"torch=={OTHER_TORCH}", *(f"{name}=={version(name)}" for name in NEEDED)]
    subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
    found = subprocess.run([python, "-c", "import torch; print(torch.__version__)"], check=True, capture_output=True)
    assert found.stdout.decode().startswith(OTHER_TORCH)
    result = subprocess.run(
        [python, "-m", "pytest", "tests/ops", "-q", "-m", "not slow and not gpu", "-p", "no:cacheprovider"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    print(result.stdout[-3000:])
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
