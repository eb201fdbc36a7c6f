"""Whether training's memory is flat: over epochs, over the workers that prepare batches, over the objects of an image.

    python benchmarks/bench_memory.py --json benchmarks/results/memory.json

Three measurements on the CPU, each in processes of its own, all resident memory as /proc has it:

    epochs   Mask R-CNN (width 8) learns the embedded sample; after 10 epochs as compared with after the first
    workers  a COCO file of many images in one worker process; its private pages after each epoch over all of it
    objects  the peak of training steps on one image of 2,000 objects as compared with one of 20, with polygons
"""

import argparse
import datetime
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SIDE = 800  # pixels of the image with many objects
SMALL = {
    "model.backbone": {"name": "resnet18", "width": 8, "norm": "batch_norm"},
    "model.fpn.channels": 16,
    "model.box_head.fc_channels": 32,
    "model.mask_head.conv_channels": 16,
    "model.mask_head.num_conv": 1,
    "data.augment.crop": 128,
    "train.batch_size": 2,
    "train.warmup_steps": 1,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--pictures", type=int, default=12, help="of the sample, in an epoch")
    parser.add_argument("--images", type=int, default=20_000, help="of the COCO file that a worker reads")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--alone", nargs=2, metavar=("MEASUREMENT", "NUMBER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        name, number = arguments.alone
        print(json.dumps({"epochs": epochs, "workers": workers, "objects": objects}[name](int(number), arguments)))
        return
    result = {
        "date": datetime.date.today().isoformat(),
        "machine": platform.platform(),
        "epochs": of_epochs(arguments),
        "workers": of_workers(arguments),
        "objects": of_objects(arguments),
    }
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def of_epochs(arguments):
    """Resident memory of the training process and its worker after each epoch, and the last by the first."""
    megabytes = alone("epochs", arguments.epochs, arguments)
    ratio = megabytes[-1] / megabytes[0]
    print(f"epochs   {megabytes[0]:,.0f} MB after the first, {megabytes[-1]:,.0f} after {len(megabytes)}: {ratio:.3f}")
    return {"megabytes": megabytes, "ratio": ratio}


def of_workers(arguments):
    """Private memory of one worker after each epoch, beside what the annotations take."""
    found = alone("workers", arguments.images, arguments)
    first, *_, last = found["private"]
    print(
        f"workers  {arguments.images:,} images with {found['objects']:,} objects take {found['annotations']:,.0f} MB; "
        f"private to a worker {first:,.1f} MB at its start, {last:,.1f} after {len(found['private']) - 1} epochs"
    )
    return found


def of_objects(arguments):
    """Peak memory of steps on an image of 20 and of one of 2,000 objects, and their ratio."""
    found = {number: alone("objects", number, arguments) for number in (20, 2000)}
    ratio = found[2000]["peak"] / found[20]["peak"]
    added = {number: values["peak"] - values["before"] for number, values in found.items()}
    print(
        f"objects  peak {found[20]['peak']:,.0f} MB with 20, {found[2000]['peak']:,.0f} with 2,000: {ratio:.3f}; "
        f"above what the process holds before the first step {added[20]:,.0f} and {added[2000]:,.0f}: "
        f"{added[2000] / added[20]:.3f}"
    )
    return {"20": found[20], "2000": found[2000], "ratio": ratio, "ratio_of_steps": added[2000] / added[20]}


def alone(name, number, arguments):
    """A measurement in a fresh process."""
    options = ["--pictures", str(arguments.pictures)]
    words = [sys.executable, __file__, *options, "--alone", name, str(number)]
    done = subprocess.run(words, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def epochs(count, arguments):
    """MB of this process and its worker at the end of each epoch."""
    from mrcnn_cli.engine.memory import keep_freed_memory
    from mrcnn_cli.engine.run import prepare, read_config
    from mrcnn_cli.engine.train import train

    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        data = some_of_the_sample(arguments.pictures, Path(folder))
        steps = arguments.pictures // 2
        settings = {**SMALL, **data, "train.steps": (count + 1) * steps, "train.save_every": steps, "data.workers": 1}
        run = prepare(read_config("nuclei_scratch", settings), Path(folder) / "run", "cpu")
        found = []
        for step in train(run):
            if step.step % steps == 0:
                found.append(sum(resident(process) for process in ("self", *children())))
            if len(found) == count:  # the worker is still there, one epoch before the end
                return found
    raise SystemExit("training ended early")


def some_of_the_sample(count, folder):
    """Its first pictures as a COCO file of their own, without a validation set."""
    from mrcnn_cli.data.loader import SAMPLE

    truth = json.loads((SAMPLE / "train.json").read_text())
    truth["images"] = truth["images"][:count]
    chosen = {image["id"] for image in truth["images"]}
    truth["annotations"] = [entry for entry in truth["annotations"] if entry["image_id"] in chosen]
    (folder / "train.json").write_text(json.dumps(truth))
    return {"data.train.images": str(SAMPLE / "train"), "data.train.annotations": str(folder / "train.json")}


def workers(count, arguments, rounds=3):
    """MB private to a worker that has read every image's objects once, twice, ...; the pictures are left out."""
    from mrcnn_cli.data.coco import Dataset
    from mrcnn_cli.data.workers import in_workers

    with tempfile.TemporaryDirectory() as folder:
        many_images(count, Path(folder))
        before = resident("self")
        dataset = Dataset.read(folder, Path(folder) / "many.json")
        annotations = resident("self") - before

        def epoch(number):
            if number:
                for index in np.random.default_rng(number).permutation(len(dataset)).tolist():
                    dataset.objects(index)
                    dataset.images[index].path  # noqa: B018 - what reading a picture touches
            return private("self")

        found = list(in_workers(epoch, range(rounds + 1), 1))
    objects = int(dataset.annotations.first[-1])
    return {"objects": objects, "annotations": annotations, "private": found}


def many_images(count, folder, objects=8, corners=20):
    """A COCO file of `count` images that share one file."""
    from PIL import Image

    Image.new("RGB", (64, 64)).save(folder / "a.png")
    generator = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(count):
        images.append({"id": number, "file_name": "a.png", "height": 64, "width": 64})
        for box in generator.uniform(2, 30, (objects, 4)).round(1).tolist():
            outline = outlines(box, corners)
            annotation = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "bbox": box}
            annotations.append({**annotation, "iscrowd": 0, "area": 100.0, "segmentation": [outline]})
    truth = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "many.json").write_text(json.dumps(truth))


def outlines(box, corners):
    """An ellipse in a box, as a polygon."""
    x, y, width, height = box
    turn = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    points = np.stack([x + width * (1 + np.cos(turn)) / 2, y + height * (1 + np.sin(turn)) / 2], axis=1)
    return points.round(2).reshape(-1).tolist()


def objects(count, arguments, steps=3):
    """MB before the first step, and at the peak of training on one image with so many objects."""
    from PIL import Image

    from mrcnn_cli.engine.memory import peak_memory_mb
    from mrcnn_cli.engine.run import prepare, read_config
    from mrcnn_cli.engine.train import train

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generator = np.random.default_rng(0)
        pixels = generator.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "a.png")
        annotations = []
        for number in range(count):
            box = [*generator.uniform(0, SIDE - 40, 2).tolist(), *generator.uniform(8, 40, 2).tolist()]
            annotation = {"id": number + 1, "image_id": 1, "category_id": 1, "bbox": box, "iscrowd": 0}
            annotations.append({**annotation, "area": box[2] * box[3], "segmentation": [outlines(box, 20)]})
        image = {"id": 1, "file_name": "a.png", "height": SIDE, "width": SIDE}
        truth = {"images": [image], "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
        (folder / "a.json").write_text(json.dumps(truth))
        data = {"data.train.images": name, "data.train.annotations": str(folder / "a.json")}
        # The architecture and numbers of the paper, but for its width.
        size = {"data.resize": {"short_side": SIDE}, "data.workers": 0, "train.batch_size": 1, "train.steps": steps}
        backbone = {"name": "resnet18", "width": 16, "norm": "batch_norm"}
        settings = {"model.backbone": backbone, **data, **size}
        run = prepare(read_config("mask_rcnn_r18_fpn", settings), folder / "run", "cpu")
        before = peak_memory_mb()
        for _ in train(run):
            pass
    return {"before": before, "peak": peak_memory_mb()}


def children():
    """Ids of this process's children."""
    return [
        number for thread in Path("/proc/self/task").iterdir() for number in (thread / "children").read_text().split()
    ]


def resident(process):
    return rollup(process, ("Rss",))


def private(process):
    """Pages that no other process has: what a forked process has written to since, or made."""
    return rollup(process, ("Private_Clean", "Private_Dirty"))


def rollup(process, fields):
    """MB of some of the fields of a process's /proc/.../smaps_rollup."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    values = {line.partition(":")[0]: int(line.split()[1]) for line in lines}
    return sum(values[field] for field in fields) / 1024


if __name__ == "__main__":
    main()
