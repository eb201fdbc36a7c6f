"""mrcnn train, killed by the system (kill -9) and gone on with: the same bytes as without."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands.conftest import TINY, assignments

# The command, which kills itself at the n-th call of a function: no earlier, no later, and nothing gets to clean up.
KILLED = """
import os, signal, sys
import mrcnn_cli.engine.files as files
module, name, last = {"rename": (os, "replace"), "row": (files, "append_row")}[sys.argv[1]] + (int(sys.argv[2]),)
function, calls = getattr(module, name), 0
def counted(*words, **named):
    global calls
    calls += 1
    if calls == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*words, **named)
setattr(module, name, counted)
from mrcnn_cli.__main__ import main
sys.exit(main(sys.argv[3:]))
"""


def run(words, *, kill_at=("row", 0)):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, *map(str, kill_at), *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done


def left(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timeless = [{k: v for k, v in row.items() if k not in ("seconds", "data_seconds", "memory_mb")} for row in rows]
    files = ("last.safetensors", "best.safetensors", "state.safetensors", "config.toml")
    return {name: (folder / name).read_bytes() for name in files}, timeless


@pytest.mark.slow
@pytest.mark.parametrize("what", ["rename", "row"])
def test_a_run_that_is_killed_again_and_again_ends_with_the_bytes_of_one_that_was_not(
    own_data, tmp_path, monkeypatch, what
):
    """Killed at its 4th, 5th, ... rename of a file (while saving) or row (of a step or an evaluation)."""
    monkeypatch.chdir(tmp_path)
    settings = assignments(*TINY, "train.steps=6", "train.save_every=2", "train.evaluate_every=3", "data.workers=1")
    words = ["train", "nuclei_scratch", *own_data, *settings]
    assert run([*words, "--out", "whole"]).returncode == 0
    first = 4 if what == "rename" else 1
    kills, done = 1, run([*words, "--out", "parts"], kill_at=(what, first))
    assert done.returncode == -signal.SIGKILL
    while done.returncode != 0:
        assert kills < 12
        done = run(["train", "--resume", "parts"], kill_at=(what, first + kills))
        kills += 1
    assert kills > 3
    assert left(Path("parts")) == left(Path("whole"))
    assert {path.name for path in Path("parts").iterdir()} == {path.name for path in Path("whole").iterdir()}
