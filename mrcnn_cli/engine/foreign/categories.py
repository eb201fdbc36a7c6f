"""The classes that weights of other systems were trained on: only COCO's are taken for granted."""

from typing import Any

# id -> name, in the order of the labels of Detectron2's and MMDetection's models (80 classes, COCO 2014 to 2017).
COCO = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train", 8: "truck", 9: "boat",
    10: "traffic light", 11: "fire hydrant", 13: "stop sign", 14: "parking meter", 15: "bench", 16: "bird", 17: "cat",
    18: "dog", 19: "horse", 20: "sheep", 21: "cow", 22: "elephant", 23: "bear", 24: "zebra", 25: "giraffe",
    27: "backpack", 28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase", 34: "frisbee", 35: "skis",
    36: "snowboard", 37: "sports ball", 38: "kite", 39: "baseball bat", 40: "baseball glove", 41: "skateboard",
    42: "surfboard", 43: "tennis racket", 44: "bottle", 46: "wine glass", 47: "cup", 48: "fork", 49: "knife",
    50: "spoon", 51: "bowl", 52: "banana", 53: "apple", 54: "sandwich", 55: "orange", 56: "broccoli", 57: "carrot",
    58: "hot dog", 59: "pizza", 60: "donut", 61: "cake", 62: "chair", 63: "couch", 64: "potted plant", 65: "bed",
    67: "dining table", 70: "toilet", 72: "tv", 73: "laptop", 74: "mouse", 75: "remote", 76: "keyboard",
    77: "cell phone", 78: "microwave", 79: "oven", 80: "toaster", 81: "sink", 82: "refrigerator", 84: "book",
    85: "clock", 86: "vase", 87: "scissors", 88: "teddy bear", 89: "hair drier", 90: "toothbrush",
}  # fmt: skip


# The classes of stuff of COCO's panoptic annotations (53, COCO 2018), in label order.
COCO_STUFF = {
    92: "banner", 93: "blanket", 95: "bridge", 100: "cardboard", 107: "counter", 109: "curtain", 112: "door-stuff",
    118: "floor-wood", 119: "flower", 122: "fruit", 125: "gravel", 128: "house", 130: "light", 133: "mirror-stuff",
    138: "net", 141: "pillow", 144: "platform", 145: "playingfield", 147: "railroad", 148: "river", 149: "road",
    151: "roof", 154: "sand", 155: "sea", 156: "shelf", 159: "snow", 161: "stairs", 166: "tent", 168: "towel",
    171: "wall-brick", 175: "wall-stone", 176: "wall-tile", 177: "wall-wood", 178: "water-other", 180: "window-blind",
    181: "window-other", 184: "tree-merged", 185: "fence-merged", 186: "ceiling-merged", 187: "sky-other-merged",
    188: "cabinet-merged", 189: "table-merged", 190: "floor-other-merged", 191: "pavement-merged",
    192: "mountain-merged", 193: "grass-merged", 194: "dirt-merged", 195: "paper-merged", 196: "food-other-merged",
    197: "building-other-merged", 198: "rock-merged", 199: "wall-other-merged", 200: "rug-merged",
}  # fmt: skip


# The keypoints of COCO's persons, and the lines that join them.
COCO_KEYPOINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
    "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
    "right_ankle",
)  # fmt: skip
COCO_SKELETON = (
    (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10), (1, 2),
    (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
)  # fmt: skip


def coco_keypoints(model: dict[str, Any]) -> dict[str, Any]:
    """The keys of a recipe that name a model's keypoints, where their number is that of COCO's persons."""
    if model.get("num_keypoints") != len(COCO_KEYPOINTS):
        return {}
    skeleton = [[COCO_KEYPOINTS[one], COCO_KEYPOINTS[other]] for one, other in COCO_SKELETON]
    return {"data.keypoints.names": list(COCO_KEYPOINTS), "data.keypoints.skeleton": skeleton}


def coco_categories() -> list[dict[str, Any]]:
    """The 80 classes: label -> {"id", "name"}."""
    return [{"id": number, "name": name} for number, name in COCO.items()]


def coco_slots() -> list[dict[str, Any]]:
    """torchvision's 90 classes, one per COCO id from 1 on; the ten ids that COCO never used are named after theirs."""
    return [{"id": number, "name": COCO.get(number, f"N/A {number}")} for number in range(1, 91)]


def numbered(count: int) -> list[dict[str, Any]]:
    """Classes that nobody has named."""
    return [{"id": number, "name": f"class {number}"} for number in range(1, count + 1)]


def named(names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Classes by name, with COCO's ids where all are COCO's, else 1, 2, ..."""
    ids = {name: number for number, name in COCO.items()}
    if all(name in ids for name in names):
        return [{"id": ids[name], "name": name} for name in names]
    return [{"id": number, "name": name} for number, name in enumerate(names, start=1)]


def with_stuff(things: list[dict[str, Any]], count: int, names: tuple[str, ...] | None) -> list[dict[str, Any]]:
    """The categories of a panoptic model: things, then so many classes of stuff, COCO's where the number is COCO's."""
    free = max((category["id"] for category in things), default=0) + 1
    if names is None and count == len(COCO_STUFF):
        stuff = [{"id": number, "name": name} for number, name in COCO_STUFF.items()]
    else:
        names = names or tuple(f"stuff {number}" for number in range(1, count + 1))
        stuff = [{"id": number, "name": name} for number, name in enumerate(names, start=free)]
    return [{**c, "isthing": 1} for c in things] + [{**c, "isthing": 0} for c in stuff]
