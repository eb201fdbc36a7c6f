"""The README keeps its word: what it names exists, and every command in it runs."""

import json
import os
import pickle
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mrcnn_cli.commands import COMMANDS
from mrcnn_cli.data.loader import SAMPLE
from tests.models import detectron2_oracle

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
# The README's own data, made as small as a test can bear.
SHORT = [
    "train.steps=2",
    "train.batch_size=2",
    "train.save_every=1",
    "model.backbone={name='resnet18',width=8,norm='batch_norm'}",
    "model.fpn.channels=16",
    "model.box_head.fc_channels=32",
    "model.mask_head.conv_channels=16",
    "data.resize={short_side=96}",
    "data.workers=0",
]


# The same of a model whose weights are a file's, so its layers stay.
SHORT_ON_WEIGHTS = [setting for setting in SHORT if not setting.startswith("model.")]
# What asks for more than this test has: a loss that is not finite, eight processes, minutes of an idle machine.
TRIED_ELSEWHERE = {
    "mrcnn replay": "test_replay.py",
    "mrcnn train --processes 8": "test_processes.py",
    "mrcnn bench kernels": "test_kernels.py",
}


def commands(program):
    """The command lines of a program in the README's code blocks and in its text, without placeholders."""
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.S))
    text = re.sub(r"\n\| verb \|.*?\n\n", "\n\n", README, flags=re.S)  # the table names verbs, without what they need
    lines = [line.split("  #")[0].strip() for line in blocks.splitlines()] + re.findall(r"`([^`\n]+)`", text)
    found = [line for line in lines if line.startswith(f"{program} ") and not re.search(r"[\[\]<>]|[A-Z]{3,}", line)]
    return list(dict.fromkeys(found))


def test_the_readme_is_short():
    assert len(README.splitlines()) < 150


def test_the_readme_names_every_verb_and_no_other():
    named = set(re.findall(r"`mrcnn ([a-z]+)", README))
    assert named == set(COMMANDS)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_paths_in_documents_lead_somewhere(path):
    text = path.read_text()
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    missing = [link for link in links if not (path.parent / link).exists()]
    assert not missing
    named = re.findall(r"`((?:csrc|mrcnn_cli|configs|tests|benchmarks|docs)/[\w./-]+)`", text)
    assert not [name for name in named if not (ROOT / name).exists()]


def test_make_targets_that_are_named_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {line.split()[1] for line in commands("make")}
    assert {"demo", "test"} <= named <= targets


@pytest.fixture(scope="module")
def a_readers_folder(tmp_path_factory):
    """images/ with train.json and val.json, photos/ with label maps, and a file of Detectron2's zoo."""
    folder = tmp_path_factory.mktemp("reader")
    (folder / "images").mkdir()
    for split, count in (("train", 4), ("val", 2)):
        table = json.loads((SAMPLE / f"{split}.json").read_text())
        images = table["images"][:count]
        numbers = {image["id"] for image in images}
        annotations = [a for a in table["annotations"] if a["image_id"] in numbers]
        (folder / f"{split}.json").write_text(json.dumps({**table, "images": images, "annotations": annotations}))
        for image in images:
            shutil.copy(SAMPLE / split / image["file_name"], folder / "images")
    shutil.copytree(folder / "images", folder / "photos" / "images")
    shutil.copy(folder / "train.json", folder / "photos")
    arrays = detectron2_oracle.fill().fill_from_json(
        json.loads((detectron2_oracle.FOLDER / "models" / "mask_rcnn_R_50_FPN_3x.json").read_text())
    )
    (folder / "model_final.pkl").write_bytes(
        pickle.dumps({"model": arrays, "__author__": "Detectron2 Model Zoo"}, protocol=4)
    )
    return folder


@pytest.mark.slow
def test_every_command_of_the_readme_runs(a_readers_folder):
    mrcnn = Path(sys.executable).parent / "mrcnn"
    assert mrcnn.is_file(), "the package must be installed for this test"
    assert all((ROOT / "tests" / "commands" / file).is_file() for file in TRIED_ELSEWHERE.values())
    lines = [line for line in commands("mrcnn") if line not in TRIED_ELSEWHERE]
    assert any("--train" in line for line in lines)
    assert any("--resume" in line for line in lines)
    for line in lines:
        arguments = shlex.split(line)
        if arguments[1] == "train" and "--resume" not in arguments:
            settings = SHORT_ON_WEIGHTS if "--weights" in arguments else SHORT
            arguments += [part for setting in settings for part in ("--set", setting)]
        result = subprocess.run([mrcnn, *arguments[1:]], cwd=a_readers_folder, capture_output=True, text=True)
        print(f"$ {line}\n{result.stdout[-400:]}{result.stderr[-400:]}")
        assert result.returncode == 0, line
    assert (a_readers_folder / "predictions" / "predictions.json").is_file()
    assert (a_readers_folder / "predictions" / "overview.png").is_file()


@pytest.mark.slow
def test_the_readmes_python_runs(tmp_path):
    [code] = re.findall(r"```python\n(.*?)```", README, re.S)
    shutil.copy(next((SAMPLE / "val").glob("*.png")), tmp_path / "a.png")
    short = code.replace('{"train.steps": 300}', '{"train.steps": 2}')
    assert short != code
    result = subprocess.run([sys.executable, "-c", short], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "'mask_ap'" in result.stdout


@pytest.mark.slow
def test_the_demo_learns_nuclei():
    """`make demo`, word for word, in this environment."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    arguments = ["make", "demo", f"VENV={sys.prefix}"]
    result = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    rows = [json.loads(line) for line in (ROOT / "runs" / "latest" / "metrics.jsonl").read_text().splitlines()]
    metrics = rows[-1]
    steps = [row for row in rows if row["kind"] == "train"]
    print({key: metrics[key] for key in ("mask_ap", "mask_ap50", "box_ap", "box_ap50")})
    print(f"{sum(row['seconds'] for row in steps):.0f} s of training, {steps[-1]['memory_mb']:.0f} MB at most")
    assert metrics["mask_ap"] >= 0.40
    assert metrics["mask_ap50"] >= 0.75
    assert steps[-1]["memory_mb"] < 3000
    assert (ROOT / "predictions" / "overview.png").is_file()
