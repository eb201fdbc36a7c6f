"""Pictures of squares and discs on grass below a sky, in COCO's panoptic format."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

CATEGORIES = [
    {"id": 3, "name": "square", "isthing": 1},
    {"id": 7, "name": "disc", "isthing": 1},
    {"id": 20, "name": "sky", "isthing": 0},
    {"id": 31, "name": "grass", "isthing": 0},
]
COLOURS = {3: (220, 60, 60), 7: (240, 220, 60), 20: (90, 150, 230), 31: (40, 120, 50)}
VOID_COLOUR = (128, 128, 128)


def scene(number, size=(64, 80)):
    """The ids [H, W] of picture `number`, and its segments without their extents."""
    random = np.random.default_rng(number)
    height, width = size
    y, x = np.mgrid[:height, :width]
    ids = np.where(y < height * 0.4, 1000 + number, 70000 + number)
    ids[:, -4:] = 0  # void
    info = [{"id": 1000 + number, "category_id": 20}, {"id": 70000 + number, "category_id": 31}]
    for place, category in enumerate((3, 7, 3)):
        top, left = random.integers(0, [height - 24, width - 28])
        inside = (abs(y - top - 12) < 10) & (abs(x - left - 12) < 10)
        if category == 7:
            inside = (y - top - 12) ** 2 + (x - left - 12) ** 2 < 110
        ids[inside] = 9_000_000 + place
        info.append({"id": 9_000_000 + place, "category_id": category})
    present = set(np.unique(ids).tolist())
    return ids, [{"iscrowd": 0, **segment} for segment in info if segment["id"] in present]


def colours(ids):
    """The pixels of a panoptic PNG, written as the format says: R + 256 G + 256^2 B."""
    pixels = np.zeros((*ids.shape, 3), np.uint8)
    for y, x in np.ndindex(ids.shape):
        rest = int(ids[y, x])
        for channel in range(3):
            rest, pixels[y, x, channel] = divmod(rest, 256)
    return pixels


def extent(ids, number):
    """Area and box [x, y, width, height] of a segment."""
    y, x = (ids == number).nonzero()
    box = [int(x.min()), int(y.min()), int(x.max() - x.min()) + 1, int(y.max() - y.min()) + 1]
    return {"area": len(y), "bbox": box}


def write(folder: Path, count: int, *, name: str = "panoptic_shapes", first: int = 1) -> tuple[Path, Path]:
    """Writes `count` pictures into folder/images and their list and PNG files beside; (images, list)."""
    images, maps = folder / "images", folder / name
    images.mkdir(parents=True, exist_ok=True)
    maps.mkdir()
    content = {"images": [], "annotations": [], "categories": CATEGORIES}
    for number in range(first, first + count):
        ids, info = scene(number)
        pixels = np.full((*ids.shape, 3), VOID_COLOUR, np.uint8)
        for segment in info:
            pixels[ids == segment["id"]] = COLOURS[segment["category_id"]]
        noise = np.random.default_rng(number).integers(-15, 16, pixels.shape)
        Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8)).save(images / f"{number}.png")
        Image.fromarray(colours(ids)).save(maps / f"{number}.png")
        height, width = ids.shape
        content["images"].append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        segments = [{**segment, **extent(ids, segment["id"])} for segment in info]
        content["annotations"].append({"image_id": number, "file_name": f"{number}.png", "segments_info": segments})
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content))
    return images, path
