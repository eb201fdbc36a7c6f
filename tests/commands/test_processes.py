"""mrcnn train in several processes on this machine: the same run, and an end to every run in which one is lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from mrcnn_cli.data.loader import SAMPLE
from mrcnn_cli.engine.checkpoint import read_tensors
from tests.commands.conftest import assignments
from tests.engine.test_distributed import rows, same_rows
from tests.engine.test_train import digest

pytestmark = pytest.mark.slow

# No statistics of a batch, so that it does not matter how a batch is shared.
SETTINGS = (
    'model.backbone={name="resnet18",width=32,norm="group_norm"}',
    'model.fpn={channels=32,norm="group_norm"}',
    "model.rpn.pre_nms_top_n_train=500",
    "model.rpn.post_nms_top_n_train=300",
    "model.box_head.fc_channels=32",
    "model.box_head.samples_per_image=64",
    "model.box_head.detections_per_image=10",
    "model.mask_head.conv_channels=16",
    "data.resize.scale=0.5",
    "data.augment={scale=[0.5,1.5]}",
    "data.workers=1",
    "train.schedule=step",  # which does not depend on the number of steps
    "train.optimizer=sgd",  # AdamW's first steps make as much of a rounding as of a gradient
    "train.learning_rate=0.01",
    "train.batch_size=4",
    "train.warmup_steps=1",
    "train.save_every=3",
    "train.steps=8",
)


@pytest.fixture(scope="session")
def nuclei(tmp_path_factory):
    """Settings that learn the sample's first pictures, of several sizes, and evaluate on three."""
    folder, words = tmp_path_factory.mktemp("nuclei"), []
    for split, count in (("train", 24), ("val", 3)):
        table = json.loads((SAMPLE / f"{split}.json").read_text())
        images = table["images"][:count]
        numbers = {image["id"] for image in images}
        annotations = [a for a in table["annotations"] if a["image_id"] in numbers]
        path = folder / f"{split}.json"
        path.write_text(json.dumps({**table, "images": images, "annotations": annotations}))
        words += [f"data.{split}.images={SAMPLE / split}", f"data.{split}.annotations={path}"]
    return [*SETTINGS, *words]


def command(*words, module=("-m", "mrcnn_cli")):
    return [sys.executable, *module, *map(str, words)]


def run(*words, status=0, what="stderr", **more):
    """What `mrcnn WORDS` says."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command(*words, **more), env=environment, capture_output=True, text=True, timeout=600)
    assert finished.returncode == status, finished.stderr
    return getattr(finished, what)


@pytest.fixture(scope="session")
def two(nuclei, tmp_path_factory):
    """A finished run of two processes."""
    folder = tmp_path_factory.mktemp("two") / "run"
    run("train", "nuclei_scratch", "--out", folder, "--processes", 2, *assignments(*nuclei))
    return folder


def test_one_process_two_and_two_parts_have_the_same_losses(nuclei, tmp_path):
    # As many proposals and samples as in earnest, for one that rounding lets another one take the place of counts less;
    # and the warm-up of the zoo's recipes.
    many = ("model.rpn.pre_nms_top_n_train=1000", "model.rpn.post_nms_top_n_train=600")
    many += ("model.box_head.samples_per_image=256", "train.batch_size=16", "train.steps=3")
    settings = assignments(*nuclei, *many, "train.learning_rate=0.02", "train.warmup_steps=500")
    for name, more in {
        "one": [],
        "two": ["--processes", 2],
        "parts": ["--set", "train.accumulate=2"],
        "both": ["--processes", 2, "--set", "train.accumulate=2"],
    }.items():
        run("train", "nuclei_scratch", "--out", tmp_path / name, *settings, *more)
    for name in ("two", "parts", "both"):
        same_rows(rows(tmp_path / "one"), rows(tmp_path / name), 1e-4)


def test_one_step_leaves_the_same_weights_however_it_is_shared(nuclei, tmp_path):
    settings = assignments(*nuclei, "train.batch_size=5", "train.steps=1", "train.learning_rate=0.1")
    more = {"one": [], "three": ["--processes", 3], "both": ["--processes", 2, "--set", "train.accumulate=2"]}
    weights = {}
    for name, words in more.items():
        run("train", "nuclei_scratch", "--out", tmp_path / name, *settings, *words)
        weights[name], _ = read_tensors(tmp_path / name / "state.safetensors")
    moved = [key for key, tensor in weights["one"].items() if key.startswith("optimizer.") and tensor.abs().max() > 0]
    assert len(moved) > 50  # the gradients of the step, which momentum keeps
    largest = max(float(weights["one"][key].abs().max()) for key in moved)
    for name in ("three", "both"):
        assert weights[name].keys() == weights["one"].keys()
        for key, tensor in weights["one"].items():
            torch.testing.assert_close(weights[name][key], tensor, rtol=1e-3, atol=1e-5 * largest, msg=key)


def test_two_runs_give_the_same_bits(two, nuclei, tmp_path):
    run("train", "nuclei_scratch", "--out", tmp_path / "again", "--processes", 2, *assignments(*nuclei))
    for name in ("last.safetensors", "state.safetensors"):
        assert digest(tmp_path / "again", name) == digest(two, name)


def test_torchrun_gives_the_bits_of_our_own_launcher(two, nuclei, tmp_path):
    module = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "mrcnn_cli")
    run("train", "nuclei_scratch", "--out", tmp_path / "run", *assignments(*nuclei), module=module)
    assert digest(tmp_path / "run", "state.safetensors") == digest(two, "state.safetensors")


def test_a_run_goes_on_with_another_number_of_processes_and_the_same_images(two, tmp_path):
    found = {}
    for number in (1, 2, 3):
        folder = shutil.copytree(two, tmp_path / str(number))
        run("train", "--resume", folder, "--processes", number, "--set", "train.steps=9")
        found[number] = [row for row in rows(folder) if row["step"] == 9 and row["kind"] == "train"]
    same_rows(found[1], found[2], 1e-3)
    same_rows(found[3], found[2], 1e-3)


@pytest.mark.parametrize("processes", [2, 3])
def test_a_stopped_run_resumes_to_the_bits_of_the_uninterrupted_one(nuclei, tmp_path, processes):
    settings = assignments(*nuclei)
    run("train", "nuclei_scratch", "--out", tmp_path / "whole", "--processes", processes, *settings)
    words = ["--out", tmp_path / "run", "--processes", processes, *settings, "--set", "train.steps=3"]
    run("train", "nuclei_scratch", *words)
    run("train", "--resume", tmp_path / "run", "--processes", processes, "--set", "train.steps=8")
    assert digest(tmp_path / "run", "state.safetensors") == digest(tmp_path / "whole", "state.safetensors")


def process_of(launcher, rank):
    """The process of this rank: a child of the launcher."""
    for folder in Path("/proc").iterdir():
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == launcher and f"RANK={rank}" in (folder / "environ").read_text().split("\0"):
                return int(folder.name)
        except (OSError, ValueError, IndexError):
            continue
    raise AssertionError(f"no process of rank {rank}")


class Running:
    """A run of two processes that something is done to after some steps."""

    def __init__(self, folder, *words):
        self.folder, self.errors = folder, folder.with_suffix(".txt")
        words = ["train", "nuclei_scratch", "--out", folder, "--processes", 2, *words]
        with open(self.errors, "w") as errors:
            self.process = subprocess.Popen(
                command(*words), stdout=subprocess.DEVNULL, stderr=errors, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )

    def after(self, steps):
        deadline = time.monotonic() + 300
        path = self.folder / "metrics.jsonl"
        while not (path.exists() and len(path.read_text().splitlines()) >= steps):
            assert self.process.poll() is None, self.errors.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return self

    def send(self, number, rank):
        os.kill(self.pid(rank), number)

    def pid(self, rank):
        return process_of(self.process.pid, rank)

    def ends(self, within):
        """The exit status and what was said."""
        try:
            status = self.process.wait(within)
        finally:
            self.process.kill()
        said = self.errors.read_text()
        assert "Traceback" not in said
        return status, said


@pytest.mark.parametrize(("number", "lost"), [(signal.SIGKILL, 1), (signal.SIGKILL, 0), (signal.SIGSTOP, 1)])
def test_a_process_that_is_lost_ends_the_run_and_is_named_with_the_step(nuclei, tmp_path, number, lost):
    running = Running(tmp_path / "run", *assignments(*nuclei, "train.steps=5000")).after(4)
    running.send(number, lost)
    began = time.monotonic()
    status, said = running.ends(within=60)
    assert status == 1
    assert time.monotonic() - began < 60
    assert f": rank {lost} on " in said
    assert "is lost: no sign of it for" in said
    assert "error: step " in said
    assert f"rank {lost} was ended by SIGKILL after step " in said
    assert f"go on with: mrcnn train --resume {tmp_path / 'run'} --processes 2" in said


def test_processes_that_are_started_again_end_in_the_bits_of_the_undisturbed_run(two, nuclei, tmp_path):
    running = Running(tmp_path / "run", "--restarts", 1, *assignments(*nuclei)).after(4)  # state was saved after 3
    running.send(signal.SIGKILL, 1)
    status, said = running.ends(within=300)
    assert status == 0, said
    assert f"{tmp_path / 'run'} holds this run already: going on with it" in said
    assert [row["step"] for row in rows(tmp_path / "run")] == [1, 2, 3, 4, 5, 6, 7, 8, 8]
    assert digest(tmp_path / "run", "state.safetensors") == digest(two, "state.safetensors")


@pytest.mark.parametrize("rank", [None, 0, 1])
def test_an_interrupted_run_saves_and_says_how_to_go_on(nuclei, tmp_path, rank):
    running = Running(tmp_path / "run", *assignments(*nuclei, "train.steps=5000")).after(2)
    if rank is None:
        running.process.send_signal(signal.SIGINT)
    else:
        running.send(signal.SIGINT, rank)
    status, said = running.ends(within=120)
    assert status == 130
    assert "everything is saved; go on with: mrcnn train --resume" in said
    assert said.count("go on with") == 1


def test_a_picture_that_only_one_process_meets_is_named_with_its_rank_and_step(nuclei, tmp_path):
    folder = shutil.copytree(SAMPLE / "train", tmp_path / "pictures")
    annotations = next(word.split("=")[1] for word in nuclei if word.startswith("data.train.annotations"))
    for image in json.loads(Path(annotations).read_text())["images"][1:]:  # the first is looked at before
        path = folder / image["file_name"]
        path.write_bytes(path.read_bytes()[:300])
    settings = assignments(*nuclei, f"data.train.images={folder}")
    said = run("train", "nuclei_scratch", "--out", tmp_path / "run", "--processes", 2, *settings, status=1)
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert errors
    assert all("step 1: " in line and "damaged or cut short" in line for line in errors)
    assert {line.split(",")[0] for line in errors} <= {"error: rank 0", "error: rank 1"}


def test_a_mistake_that_all_meet_is_said_once(nuclei, tmp_path):
    settings = assignments(*nuclei, "train.batch_size=1")
    said = run("train", "nuclei_scratch", "--out", tmp_path / "run", "--processes", 2, *settings, status=1)
    assert said.count("error: ") == 1
    assert "error: train.batch_size = 1 images for 2 processes: each needs one" in said
    settings = assignments(*nuclei, "train.learning_rate=1e30", "train.clip_norm=1e30")
    said = run("train", "nuclei_scratch", "--out", tmp_path / "run", "--processes", 2, *settings, status=1)
    assert said.count("error: ") == 1
    assert "error: step 2: " in said
    assert [path.name for path in (tmp_path / "run").glob("*.nonfinite.*")] == ["step-2-rank-0.nonfinite.safetensors"]


def test_synchronised_batch_norms_learn_in_two_and_three_processes_what_they_learn_in_one(nuclei, tmp_path):
    more = ("train.batch_size=5", "train.steps=1", "train.learning_rate=0.1", "model.mask_head.norm=sync_batch_norm")
    more += ('model.backbone={name="resnet18",width=32,norm="sync_batch_norm"}',)
    more += ('model.fpn={channels=32,norm="sync_batch_norm"}',)
    weights = {}
    for processes in (1, 2, 3):
        folder = tmp_path / str(processes)
        run("train", "nuclei_scratch", "--out", folder, "--processes", processes, *assignments(*nuclei, *more))
        weights[processes], _ = read_tensors(folder / "state.safetensors")
    same_rows(rows(tmp_path / "1"), rows(tmp_path / "2"))
    same_rows(rows(tmp_path / "1"), rows(tmp_path / "3"))
    gradients = [key for key in weights[1] if key.startswith("optimizer.")]
    statistics = [key for key in weights[1] if key.endswith(("running_mean", "running_var"))]
    assert len(gradients) > 50
    assert len(statistics) > 50
    for processes in (2, 3):
        for keys, tolerance in ((gradients, 1e-3), (statistics, 1e-5)):
            one, other = (torch.cat([weights[n][key].flatten() for key in keys]) for n in (1, processes))
            assert float((one - other).norm() / one.norm()) < tolerance


def test_compiling_is_refused_where_processes_exchange_statistics(nuclei, tmp_path):
    settings = assignments(*nuclei, "model.fpn.norm=sync_batch_norm", "train.compile=true")
    said = run("train", "nuclei_scratch", "--out", tmp_path / "run", "--processes", 2, *settings, status=1)
    assert said.count("error: ") == 1
    assert "error: train.compile: norm = sync_batch_norm exchanges statistics between processes" in said


def test_more_processes_than_pictures_is_no_harm(own_data, tmp_path):
    settings = assignments(*SETTINGS, "train.batch_size=5", "train.steps=1", "data.resize.scale=1.0")
    words = ["train", "nuclei_scratch", *own_data, *settings, "--json"]
    run(*words, "--out", tmp_path / "five", "--processes", 5)
    run(*words, "--out", tmp_path / "one")
    same_rows(rows(tmp_path / "five"), rows(tmp_path / "one"))


def test_restarts_need_a_launcher_and_a_folder(mrcnn, own_data, monkeypatch):
    outcome = mrcnn("train", "nuclei_scratch", "--restarts", 1)
    assert outcome.status == 2
    assert outcome.error == "--restarts starts processes again: give --processes N too"


@pytest.fixture
def machines(tmp_path):
    """Two network namespaces with a cable between them: the words that run a command in each, and how to cut it."""
    names = [f"mrcnn-{os.getpid()}-{number}" for number in range(2)]

    def ip(*words):
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        for name in names:
            ip("netns", "add", name)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("network namespaces need root and the command ip")
    try:
        ip("link", "add", "cable0", "netns", names[0], "type", "veth", "peer", "cable1", "netns", names[1])
        for number, name in enumerate(names):
            ip("-n", name, "address", "add", f"10.77.0.{number + 1}/24", "dev", f"cable{number}")
            for interface in ("lo", f"cable{number}"):
                ip("-n", name, "link", "set", interface, "up")
            (tmp_path / str(number)).mkdir()
        yield (
            [["ip", "netns", "exec", name] for name in names],
            lambda: ip("-n", names[1], "link", "set", "cable1", "down"),
        )
    finally:
        for name in names:
            ip("netns", "delete", name)


def start_machines(machines, folder, *words):
    """torchrun on both, as docs/training.md has it; each has a disk of its own."""
    started = []
    for number, inside in enumerate(machines):
        module = ("-m", "torch.distributed.run", "--nnodes=2", f"--node-rank={number}", "--nproc-per-node=1")
        module += ("--master-addr=10.77.0.1", "--master-port=29500", "-m", "mrcnn_cli")
        with open(folder / f"{number}.txt", "w") as said:
            process = subprocess.Popen(
                [*inside, *command("train", *words, module=module)],
                cwd=folder / str(number),
                stdout=said,
                stderr=said,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
        started.append(process)
    return started


def test_two_machines_give_the_bits_of_two_processes_on_one(two, nuclei, machines, tmp_path):
    inside, _ = machines
    settings = assignments(*nuclei)
    for more in (["nuclei_scratch", "--out", "run", *settings, "--set", "train.steps=6"], ["--resume", "run"]):
        changed = ["--set", "train.steps=8"] if more[0] == "--resume" else []
        started = start_machines(inside, tmp_path, *more, *changed)
        assert [process.wait(300) for process in started] == [0, 0], (tmp_path / "1.txt").read_text()
    assert digest(tmp_path / "0" / "run", "last.safetensors") == digest(two, "last.safetensors")
    assert list((tmp_path / "1").iterdir()) == []  # the first machine alone writes


def test_a_cut_cable_ends_the_run_on_both_sides(nuclei, machines, tmp_path):
    inside, cut = machines
    started = start_machines(
        inside, tmp_path, "nuclei_scratch", "--out", "run", *assignments(*nuclei, "train.steps=5000")
    )
    path = tmp_path / "0" / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while not (path.exists() and len(path.read_text().splitlines()) >= 3):
        assert time.monotonic() < deadline
        assert [process.poll() for process in started] == [None, None]
        time.sleep(0.1)
    cut()
    try:
        assert [process.wait(60) for process in started] == [1, 1]
    finally:
        for process in started:
            process.terminate()
    assert "is lost: no sign of it for 20 s" in (tmp_path / "0.txt").read_text()
    assert "no longer reaches the process that the run was started by" in (tmp_path / "1.txt").read_text()
