"""A small data set without a fault, and every fault that `mrcnn data check` knows, to be planted into it."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

SIDE = 64
CLASSES = ("square", "disc", "run")
CORNERS = ("left", "right", "middle")  # keypoints of the squares


class Planted:
    """Two splits, train and val, of images of 64 x 64; image i has the annotations 3 * i - 2 to 3 * i, the first of
    them with keypoints."""

    def __init__(self, root: Path, per_split: int = 100):
        self.root = root
        self.content: dict[str, Any] = {}
        generator = np.random.default_rng(0)
        for name in ("train", "val"):
            folder = root / name
            folder.mkdir()
            content: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
            content["categories"] = [{"id": k + 1, "name": label} for k, label in enumerate(CLASSES)]
            content["categories"][0] |= {"keypoints": list(CORNERS), "skeleton": [[1, 3], [3, 2]]}
            for number in range(1, per_split + 1):
                coarse = generator.integers(0, 256, (16, 16, 3), np.uint8)
                Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.NEAREST).save(folder / f"{number}.png")
                size = {"height": SIDE, "width": SIDE}
                content["images"].append({"id": number, "file_name": f"{number}.png", **size})
                for k in range(3):
                    content["annotations"].append(self._object(number, k))
            self.content[name] = content

    def _object(self, image: int, k: int) -> dict[str, Any]:
        x, y = 2 + 20 * k, 4 + image % 40
        square = {"segmentation": [[x, y, x + 16, y, x + 16, y + 16, x, y + 16]], "area": 256.0}
        if k == 2:
            mask = np.zeros((SIDE, SIDE), np.uint8, order="F")
            mask[y : y + 16, x : x + 16] = 1
            encoding = coco_mask.encode(mask)
            square["segmentation"] = {"size": [SIDE, SIDE], "counts": encoding["counts"].decode()}
        if k == 0:
            square |= {"keypoints": [x, y, 2, x + 15, y, 1, x + 7.5, y + 7.5, 2], "num_keypoints": 3}
        where = {"id": (image - 1) * 3 + k + 1, "image_id": image, "category_id": k + 1}
        return where | {"bbox": [x, y, 16, 16], "iscrowd": 0} | square

    def annotation(self, number: int, split: str = "train") -> dict[str, Any]:
        return next(a for a in self.content[split]["annotations"] if a["id"] == number)

    def image(self, number: int, split: str = "train") -> dict[str, Any]:
        return next(i for i in self.content[split]["images"] if i["id"] == number)

    def add(self, like: int, **values: Any) -> int:
        """Another annotation; its id."""
        annotations = self.content["train"]["annotations"]
        number = max(a["id"] for a in annotations) + 1
        annotations.append(copy.deepcopy(self.annotation(like)) | {"id": number} | values)
        return number

    def drop_objects(self, image: int, split: str = "train") -> None:
        content = self.content[split]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] != image]

    def write(self) -> Path:
        """The data set's folder."""
        tables = [f'[splits.{name}]\nimages = "{name}"\nannotations = "{name}.json"\n' for name in self.content]
        listed = ", ".join(f'"{label}"' for label in CLASSES)
        (self.root / "dataset.toml").write_text("\n".join([f'name = "planted"\nclasses = [{listed}]\n', *tables]))
        for name, content in self.content.items():
            (self.root / f"{name}.json").write_text(json.dumps(content))
        return self.root

    def picture(self, number: int, split: str = "train") -> Path:
        return self.root / split / f"{number}.png"


Place = tuple[str | None, int | None]  # file name of the image, id of the annotation, as far as the finding names them


def annotated(**values: Any) -> Callable[[Planted, int], Place]:
    """Overwrite values of the first annotation of an image."""

    def plant(data: Planted, image: int) -> Place:
        number = (image - 1) * 3 + 1
        data.annotation(number).update(copy.deepcopy(values))
        return f"{image}.png", number

    return plant


def segmented(segmentation: Any, k: int = 0) -> Callable[[Planted, int], Place]:
    def plant(data: Planted, image: int) -> Place:
        number = (image - 1) * 3 + 1 + k
        data.annotation(number)["segmentation"] = segmentation
        return f"{image}.png", number

    return plant


def with_part(*points: float) -> Callable[[Planted, int], Place]:
    """One polygon more."""

    def plant(data: Planted, image: int) -> Place:
        number = (image - 1) * 3 + 1
        data.annotation(number)["segmentation"].append(list(points))
        return f"{image}.png", number

    return plant


def malformed(data: Planted, image: int) -> Place:
    data.annotation((image - 1) * 3 + 1)["iscrowd"] = "no"
    return f"{image}.png", (image - 1) * 3 + 1


def same_id(data: Planted, image: int) -> Place:
    number = (image - 1) * 3 + 1
    data.annotation(number + 1)["id"] = number
    return None, number


def same_file(data: Planted, image: int) -> Place:
    entry = dict(data.image(image)) | {"id": 1000 + image}
    data.content["train"]["images"].append(entry)
    data.annotation((image - 1) * 3 + 1)["image_id"] = 1000 + image
    return f"{image}.png", None


def same_name(data: Planted, image: int) -> Place:
    data.content["train"]["categories"].append({"id": 4, "name": "square"})
    data.annotation((image - 1) * 3 + 1)["category_id"] = 4
    return None, None


def other_order(data: Planted, image: int) -> Place:
    categories = data.content["val"]["categories"]
    categories[0]["id"], categories[1]["id"] = 2, 1
    return None, None


def other_class(data: Planted, image: int) -> Place:
    data.content["val"]["categories"].append({"id": 7, "name": "unheard of"})
    data.annotation((image - 1) * 3 + 1, "val")["category_id"] = 7
    return None, None


def gap(data: Planted, image: int) -> Place:
    for content in data.content.values():
        content["categories"][2]["id"] = 9
        for annotation in content["annotations"]:
            if annotation["category_id"] == 3:
                annotation["category_id"] = 9
    return None, None


def unused(data: Planted, image: int) -> Place:
    for content in data.content.values():
        content["categories"].append({"id": 5, "name": "never seen"})
    return None, None


def imbalance(data: Planted, image: int) -> Place:
    for content in data.content.values():
        content["categories"].append({"id": 6, "name": "rare"})
    data.annotation((image - 1) * 3 + 1)["category_id"] = 6
    return None, None


def named(*keypoints: str, k: int = 2, split: str = "train") -> Callable[[Planted, int], Place]:
    """Other keypoints of a category."""

    def plant(data: Planted, image: int) -> Place:
        data.content[split]["categories"][k]["keypoints"] = list(keypoints)
        return None, None

    return plant


def unnamed(data: Planted, image: int) -> Place:
    number = (image - 1) * 3 + 2
    data.annotation(number, "val").update(keypoints=[5, 5, 2], num_keypoints=1)
    return f"{image}.png", number


def loose_line(data: Planted, image: int) -> Place:
    data.content["train"]["categories"][0]["skeleton"].append([1, 4])
    return None, None


def without_box(data: Planted, image: int) -> Place:
    del data.annotation((image - 1) * 3 + 1)["bbox"]
    return f"{image}.png", (image - 1) * 3 + 1


def without_mask(data: Planted, image: int) -> Place:
    del data.annotation((image - 1) * 3 + 1)["segmentation"]
    return f"{image}.png", (image - 1) * 3 + 1


def leaving_box(data: Planted, image: int) -> Place:
    annotation = data.annotation((image - 1) * 3 + 1)
    annotation["bbox"][0], annotation["bbox"][2] = -1.5, 19.5
    return f"{image}.png", annotation["id"]


def other_box(data: Planted, image: int) -> Place:
    annotation = data.annotation((image - 1) * 3 + 1)
    annotation["bbox"][2] = 26
    return f"{image}.png", annotation["id"]


def repeated(data: Planted, image: int) -> Place:
    return f"{image}.png", data.add((image - 1) * 3 + 1)


def empty(data: Planted, image: int) -> Place:
    data.drop_objects(image)
    return f"{image}.png", None


def sliver(data: Planted, image: int) -> Place:
    annotation = data.annotation((image - 1) * 3 + 1)
    annotation["segmentation"] = [[2, 4, 50, 4, 50, 4.4, 2, 4.4]]
    annotation["bbox"], annotation["area"] = [2, 4, 48, 0.4], 19.2
    return f"{image}.png", annotation["id"]


def no_size(data: Planted, image: int) -> Place:
    del data.image(image)["height"]
    return f"{image}.png", None


def other_size(data: Planted, image: int) -> Place:
    Image.open(data.picture(image)).resize((SIDE, SIDE + 8)).save(data.picture(image))
    return f"{image}.png", None


def exif(height: int, said: tuple[int, int], orientation: int) -> Callable[[Planted, int], Place]:
    def plant(data: Planted, image: int) -> Place:
        tag = Image.Exif()
        tag[0x0112] = orientation
        Image.open(data.picture(image)).resize((SIDE, height)).save(data.picture(image), exif=tag)
        data.drop_objects(image)
        data.add(4, image_id=image)
        data.image(image).update(height=said[0], width=said[1])
        return f"{image}.png", None

    return plant


def missing(data: Planted, image: int) -> Place:
    data.picture(image).unlink()
    return f"{image}.png", None


def unreadable(data: Planted, image: int) -> Place:
    data.picture(image).write_bytes(b"not a picture")
    return f"{image}.png", None


def truncated(data: Planted, image: int) -> Place:
    data.picture(image).write_bytes(data.picture(image).read_bytes()[:-300])
    return f"{image}.png", None


def unlisted(data: Planted, image: int) -> Place:
    Image.fromarray(np.random.default_rng(9).integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(data.picture(999))
    return "999.png", None


def grey(data: Planted, image: int) -> Place:
    Image.open(data.picture(image)).convert("L").save(data.picture(image))
    return f"{image}.png", None


def twin(split: str, exact: bool) -> Callable[[Planted, int], Place]:
    """The next image (or the same one of val) shows this one again."""

    def plant(data: Planted, image: int) -> Place:
        other = data.picture(image + (split == "train"), split)
        other.write_bytes(data.picture(image).read_bytes())
        if not exact:
            noise = np.random.default_rng(1).integers(-9, 10, (SIDE, SIDE, 3))
            dimmed = np.asarray(Image.open(other)).astype(int) * 8 // 10 + 20
            Image.fromarray((dimmed + noise).clip(0, 255).astype(np.uint8)).save(other)
        return other.name, None

    return plant


def not_coco(data: Planted, image: int) -> Place:
    data.content["test"] = {"pictures": []}
    (data.root / "test").mkdir()
    return None, None


# How each fault is planted at an image of its own; what the finding names.
PLANTS: dict[str, Callable[[Planted, int], Place]] = {
    "malformed-entry": malformed,
    "duplicate-id": same_id,
    "duplicate-file": same_file,
    "unknown-image": lambda data, image: (None, data.add(4, image_id=7777)),
    "unknown-category": lambda data, image: (f"{image}.png", data.add((image - 1) * 3 + 1, category_id=77)),
    "duplicate-class": same_name,
    "class-order": other_order,
    "class-missing": other_class,
    "category-gap": gap,
    "class-unused": unused,
    "class-imbalance": imbalance,
    "box-missing": without_box,
    "box-malformed": annotated(bbox=[1, 2, "3", 4]),
    "box-not-finite": annotated(bbox=[1, 2, float("nan"), 4]),
    "box-negative": annotated(bbox=[20, 20, -16, 16]),
    "box-degenerate": annotated(bbox=[20, 20, 0, 16]),
    "box-outside": annotated(bbox=[100, 100, 16, 16]),
    "box-leaves-image": leaving_box,
    "box-disagrees": other_box,
    "area-disagrees": annotated(area=900.0),
    "mask-missing": without_mask,
    "mask-malformed": segmented("a square"),
    "mask-empty": segmented({"size": [SIDE, SIDE], "counts": [SIDE * SIDE]}, k=2),
    "polygon-malformed": with_part(1, 2, 3, 4),
    "polygon-tiny": with_part(10, 10, 10.5, 10, 10.5, 10.5),
    "polygon-crosses-itself": with_part(2, 2, 18, 18, 18, 2, 2, 18),
    "polygon-leaves-image": with_part(20, -6, 24, -6, 24, 6, 20, 6),
    "runs-of-other-size": segmented({"size": [SIDE, SIDE + 1], "counts": [SIDE * (SIDE + 1)]}, k=2),
    "runs-malformed": segmented({"size": [SIDE, SIDE], "counts": [5, 5]}, k=2),
    "keypoint-names": named("top", "top", k=1),
    "keypoints-differ": named("right", "left", "middle", k=0, split="val"),
    "keypoints-malformed": annotated(keypoints=[5, 5, 2, 9, 9, 2]),
    "keypoint-visibility": annotated(keypoints=[5, 5, 2, 9, 9, 3, 0, 0, 0]),
    "keypoint-not-finite": annotated(keypoints=[5, 5, 2, float("nan"), 9, 2, 0, 0, 0]),
    "keypoint-outside": annotated(keypoints=[5, 5, 2, 66, 9, 1, 0, 0, 0]),
    "keypoint-count-disagrees": annotated(num_keypoints=2),
    "keypoints-unnamed": unnamed,
    "keypoint-unused": named("end"),
    "keypoint-one-sided": named("left_end"),
    "skeleton-malformed": loose_line,
    "duplicate-annotation": repeated,
    "image-empty": empty,
    "no-anchor": sliver,
    "size-missing": no_size,
    "size-disagrees": other_size,
    "exif-size": exif(SIDE + 8, (SIDE + 8, SIDE), 6),
    "exif-rotation": exif(SIDE, (SIDE, SIDE), 3),
    "image-missing": missing,
    "image-unreadable": unreadable,
    "image-truncated": truncated,
    "image-not-listed": unlisted,
    "mixed-pixels": grey,
    "duplicate-image": twin("train", exact=True),
    "near-duplicate-image": twin("train", exact=False),
    "leaked-image": twin("val", exact=True),
    "near-leaked-image": twin("val", exact=False),
    "unreadable-file": not_coco,
}
