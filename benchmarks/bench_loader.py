"""Training samples from JPEG files: ours and Detectron2's default mapper's steps, side by side on one core.

    python benchmarks/bench_loader.py --rounds 40 --json benchmarks/results/loader.json
    python benchmarks/bench_loader.py --data photos/ photos.json

480 x 640 photographs, shown at 800 x 1067, flipped half of the time, with polygons. Detectron2's steps are rebuilt here
from its documentation and figures: decode by Pillow, turn upright, resize by Pillow, flip, move boxes and polygons,
arrange as planes. Pictures and boxes are compared before anything is timed; both are given the same flips.
"""

import argparse
import json
import statistics
import tempfile
import time
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from mrcnn_cli.data.coco import Dataset
from mrcnn_cli.data.image import read_image
from mrcnn_cli.data.loader import DataConfig, Pictures, stream
from mrcnn_cli.data.transforms import training
from mrcnn_cli.engine.memory import keep_freed_memory
from mrcnn_cli.engine.run import environment

SIZE = (480, 640)
OBJECTS = 8
# Beside the plain sample: what users add. A mosaic reads four pictures, pasting two.
VARIANTS = {
    "colours": {"gamma": [0.8, 1.25], "saturation": [0.7, 1.3], "hue": [-0.05, 0.05]},
    "large-scale jitter": {"scale": [0.1, 2.0], "crop": 1024},
    "blur": {"blur": 1.0},
    "copy-paste": {"copy_paste": 1.0},
    "mosaic": {"mosaic": 1.0},
}


def made_up(folder, count, classes=1):
    """Photographs of noise of all scales, about as large as files as real ones, and their COCO file."""
    random = torch.Generator().manual_seed(0)
    truth = {"images": [], "annotations": []}
    truth["categories"] = [{"id": number, "name": f"thing {number}"} for number in range(1, classes + 1)]
    for number in range(1, count + 1):
        picture = torch.zeros(3, *SIZE)
        for cells, strength in ((4, 45), (16, 30), (64, 12), (240, 6)):
            noise = torch.randn(1, 3, cells, cells * 4 // 3, generator=random)
            picture += strength * torch.nn.functional.interpolate(noise, SIZE, mode="bilinear")[0]
        pixels = (127 + picture).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=90)
        truth["images"].append({"id": number, "file_name": f"{number}.jpg", "height": SIZE[0], "width": SIZE[1]})
        for _ in range(OBJECTS):
            centre = torch.rand(2, generator=random).numpy() * (SIZE[1] - 200, SIZE[0] - 200) + 100
            angle = np.arange(40) / 40 * 2 * np.pi
            radius = 30 + 60 * torch.rand(40, generator=random).numpy()
            points = centre + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
            (x1, y1), (x2, y2) = points.min(0), points.max(0)
            done = len(truth["annotations"])
            annotation = {"id": done + 1, "image_id": number, "category_id": done % classes + 1, "iscrowd": 0}
            annotation |= {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": 1.0, "segmentation": [points.ravel().tolist()]}
            truth["annotations"].append(annotation)
    (folder / "coco.json").write_text(json.dumps(truth))
    return folder, folder / "coco.json"


def detectrons(entry, short_side, long_side, flip):
    """Detectron2's DatasetMapper with ResizeShortestEdge and RandomFlip: planes, boxes, classes, polygons."""
    entry = deepcopy(entry)
    with Image.open(entry["file_name"]) as file:
        image = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))[:, :, ::-1]  # BGR
    height, width = image.shape[:2]
    scale = short_side / min(height, width)
    scale = min(scale, long_side / max(height, width))
    new_height, new_width = int(height * scale + 0.5), int(width * scale + 0.5)
    resized = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR)
    image = np.asarray(resized)
    if flip:
        image = np.flip(image, axis=1)
    planes = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
    boxes, classes, polygons = [], [], []
    for annotation in entry["annotations"]:
        if annotation["iscrowd"]:
            continue
        x, y, w, h = annotation["bbox"]
        corners = np.array([[x, y], [x + w, y], [x, y + h], [x + w, y + h]], np.float64)
        moved = [corners, *(np.asarray(polygon).reshape(-1, 2) for polygon in annotation["segmentation"])]
        moved = [points * (new_width / width, new_height / height) for points in moved]
        if flip:
            moved = [points * (-1, 1) + (new_width, 0) for points in moved]
        boxes.append(np.concatenate([moved[0].min(0), moved[0].max(0)]).clip(0, [new_width, new_height] * 2))
        classes.append(annotation["category_id"])
        polygons.append([points.reshape(-1) for points in moved[1:]])
    boxes = torch.as_tensor(np.array(boxes, np.float32).reshape(-1, 4))
    kept = (boxes[:, 2:] - boxes[:, :2] > 1e-5).all(1)
    return (
        planes,
        boxes[kept],
        torch.as_tensor(classes)[kept],
        [p for p, keep in zip(polygons, kept, strict=True) if keep],
    )


def entries(dataset):
    """What Detectron2 holds of each picture: a dict with its annotations."""
    truth = dataset.coco()
    found = {record.id: {"file_name": str(record.path), "annotations": []} for record in dataset.images}
    for annotation in truth["annotations"]:
        if isinstance(annotation["segmentation"], list):  # of its two forms the one that is moved with the picture
            found[annotation["image_id"]]["annotations"].append(annotation)
    return list(found.values())


def compared(dataset, theirs, config):
    """How far pictures and boxes lie apart; raises unless they are the same but for rounding."""
    pixels, boxes, many = 0, 0.0, []
    for index, entry in enumerate(theirs):
        for flip in (0.0, 1.0):
            augment = config.augment.model_copy(update={"flip": flip})
            image = dataset.read_image(index)
            ours, targets = training(image, dataset.objects(index), config.resize, augment, np.random.default_rng(0))
            planes, their_boxes, *_ = detectrons(entry, config.resize.short_side, config.resize.long_side, bool(flip))
            if ours.shape != planes.shape:
                raise SystemExit(f"{entry['file_name']}: {list(ours.shape)} against {list(planes.shape)}: not timed")
            apart = (ours.int() - planes.flip(0).int()).abs()
            pixels, many = max(pixels, int(apart.max())), [*many, float((apart > 0).float().mean())]
            if len(targets) != len(their_boxes):
                raise SystemExit(f"{entry['file_name']}: {len(targets)} objects against {len(their_boxes)}: not timed")
            boxes = max(boxes, float((targets.boxes - their_boxes).abs().max()) if len(their_boxes) else 0.0)
    if pixels > 1 or boxes > 0.01:
        raise SystemExit(f"pixels {pixels}, boxes {boxes} apart: not timed")
    return {"pixels_apart": pixels, "share_of_pixels": statistics.fmean(many), "boxes_apart": boxes}


def raced(works, count, rounds):
    """Milliseconds of a core per picture: medians over rounds, in each of which all take turns at the same pictures.

    The time of the process, so that other programs on the machine cost neither side.
    """
    times = {name: [] for name in works}
    for number in range(rounds):
        for name, work in works.items():
            begin = time.process_time()
            for index in range(count):
                work(index, number)
            times[name].append((time.process_time() - begin) / count * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs=2, type=Path, metavar=("DIR", "ANNOTATIONS"), help="default: made up")
    parser.add_argument("--count", type=int, default=12, help="pictures")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as aside:
        images, annotations = arguments.data or made_up(Path(aside), arguments.count)
        dataset = Dataset.read(images, annotations)
        config = DataConfig(cache_mb=0)
        theirs = entries(dataset)[: arguments.count]
        count = len(theirs)
        facts = compared(dataset, theirs, config)
        print(
            f"{count} pictures: pixels at most {facts['pixels_apart']} apart, in {facts['share_of_pixels']:.2%} of them"
        )

        def ours(augment):
            pictures = Pictures(dataset, config.model_copy(update={"augment": config.augment.model_validate(augment)}))
            return lambda index, number: pictures.varied(index, np.random.default_rng(stream(number, index)))

        def detectron(index, number):
            return detectrons(theirs[index], 800, 1333, number % 2 == 0)

        works = {"mrcnn": ours({}), "detectron2's steps": detectron}
        works |= {f"mrcnn, {name}": ours(augment) for name, augment in VARIANTS.items()}
        works["decoding alone"] = lambda index, number: read_image(dataset.images[index].path)
        raced(works, count, 1)
        times = raced(works, count, arguments.rounds)
    for name, milliseconds in times.items():
        print(f"{name:28} {milliseconds:6.2f} ms per picture")
    ratio = times["detectron2's steps"] / times["mrcnn"]
    print(f"ratio {ratio:.2f}")
    if arguments.json:
        result = {"date": time.strftime("%Y-%m-%d"), "environment": environment(torch.device("cpu")).splitlines()}
        result |= {"pictures": count, "rounds": arguments.rounds, **facts, "ratio": ratio, "milliseconds": times}
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
