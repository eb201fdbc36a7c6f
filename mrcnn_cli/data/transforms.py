"""Pictures and their objects, resized, cut, turned and recoloured together.

All geometry of one image is one affine matrix from the pixels of the annotation to those of the network's input, in
continuous coordinates (pixel i covers [i, i + 1)). The picture is resampled accordingly, boxes are moved by the matrix,
and masks stay as they are annotated: the matrix goes with them.
"""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import interpolate

from mrcnn_cli.config import Config
from mrcnn_cli.data.annotations import ImageAnnotations
from mrcnn_cli.data.composition import Sample, Visibility, mosaic, paste
from mrcnn_cli.data.framing import Frame, centred, cut, cut_by_overlap, placed, zoomed_out
from mrcnn_cli.data.image import resized_by_pillow
from mrcnn_cli.data.masks import visible_box
from mrcnn_cli.data.photometric import blurred, distorted, recoloured, tinted
from mrcnn_cli.structures import IGNORED, Masks, Size, Targets

# A picture and its objects, drawn with the generator.
Another = Callable[[np.random.Generator], tuple[np.ndarray, ImageAnnotations]]

SHORT_SIDE, LONG_SIDE = 800, 1333  # Feature Pyramid Networks (Lin et al., 2017), Detectron2

Factor = Annotated[float, Field(gt=0)]
Range = tuple[Factor, Factor]
Turn = Annotated[float, Field(ge=-0.5, le=0.5)]
Turns = tuple[Turn, Turn]
Probability = Annotated[float, Field(ge=0, le=1)]
Enlargement = Annotated[float, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Pixels = Annotated[int, Field(ge=1)]


class Resize(Config):
    """How large a picture is shown to the network: by a factor, by its short side with a limit to the long one, or
    of one size for all."""

    scale: Factor | None = None  # 2.0: each picture enlarged twice
    short_side: Pixels | None = None  # 800 where neither is given
    long_side: Pixels | None = None  # 1333 with short_side, no limit with scale
    fixed: tuple[Pixels, Pixels] | None = None  # [300, 300]: height and width of every picture, whatever its shape
    # "antialias": torch's bilinear resampling of bytes, antialiased when shrinking; sizes rounded half up. "pillow":
    # the same by Pillow, as in Detectron2 (they differ by 1 in some of 1,000 pixels). "torchvision": bilinear in
    # float32 without antialiasing, sizes rounded down, as in torchvision's detectors.
    method: Literal["antialias", "pillow", "torchvision"] = "antialias"

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, table: Any) -> Any:
        if not isinstance(table, dict) or table.get("scale") is not None or table.get("fixed") is not None:
            return table
        given = {key: value for key, value in table.items() if value is not None}
        return {"short_side": SHORT_SIDE, "long_side": LONG_SIDE} | given

    @model_validator(mode="after")
    def _check(self) -> "Resize":
        if self.fixed is not None and (self.scale, self.short_side, self.long_side) != (None, None, None):
            raise ValueError(
                "fixed stands alone: leave out scale, short_side and long_side, as in "
                "--set 'data.resize={fixed=[300, 300]}'"
            )
        if self.scale is not None and self.short_side is not None:
            raise ValueError(
                "scale and short_side exclude each other: leave one out, as in --set 'data.resize={scale=2.0}'"
            )
        if self.short_side is not None and self.long_side is not None and self.long_side < self.short_side:
            raise ValueError(f"long_side ({self.long_side}) is less than short_side ({self.short_side}): raise it")
        return self

    def size(self, height: int, width: int, *, short_side: int | None = None, jitter: float = 1.0) -> Size:
        """(height, width) that a picture becomes; rounded half up, as in Detectron2, or as `method` says.

        Args:
            height: of the picture, as is `width`.
            short_side: takes the place of the configured one.
            jitter: multiplied onto the result, the limit of the long side notwithstanding.
        """
        short_side = short_side or self.short_side
        if self.method == "torchvision" and self.fixed is None:
            scale = self._one_scale(height, width, short_side) * jitter
            return max(math.floor(height * scale), 1), max(math.floor(width * scale), 1)
        new_height, new_width = self.fixed or (float(height), float(width))
        if short_side is not None:
            scale = short_side / min(height, width)
            new_height, new_width = (short_side, scale * width) if height < width else (scale * height, short_side)
        elif self.scale is not None:
            new_height, new_width = self.scale * height, self.scale * width
        if self.long_side is not None and max(new_height, new_width) > self.long_side:
            scale = self.long_side / max(new_height, new_width)
            new_height, new_width = new_height * scale, new_width * scale
        return max(int(new_height * jitter + 0.5), 1), max(int(new_width * jitter + 0.5), 1)

    def _one_scale(self, height: int, width: int, short_side: int | None) -> float:
        """What both sides are multiplied by where no side is set to a size."""
        scale = self.scale or 1.0
        if short_side is not None:
            scale = short_side / min(height, width)
        return scale if self.long_side is None else min(scale, self.long_side / max(height, width))

    def factor(self, height: int, width: int) -> float:
        """By how much a picture of this size is enlarged; where its shape changes, the root of its area."""
        new_height, new_width = self.size(height, width)
        if self.fixed is not None:
            return float(np.sqrt(new_height * new_width / (height * width)))
        return new_height / height if height > width else new_width / width


class Augment(Config):
    """How training pictures are varied; every value's default leaves them as they are, but for the flip."""

    flip: Probability = 0.5  # left and right exchanged
    vertical_flip: Probability = 0.0  # top and bottom exchanged
    quarter_turns: bool = False  # turned by 0, 90, 180 or 270 degrees, equally often
    short_sides: tuple[Pixels, ...] = ()  # one of them takes the place of resize.short_side
    scale: Range = (1.0, 1.0)  # a factor from this range, multiplied onto the resizing
    zoom_out: Probability = 0.0  # shown on a larger canvas ...
    zoom_out_sides: tuple[Enlargement, Enlargement] = (1.0, 4.0)  # ... of so many times its sides ...
    # ... and of this colour; None: the mean that the network subtracts, or outside of a run the picture's own.
    zoom_out_colour: tuple[float, ...] | None = None
    # A part is shown that overlaps an object by at least one of these intersections over union; 1: all, 0: any part.
    iou_crop: tuple[Probability, ...] = ()
    iou_crop_sides: tuple[Share, Share] = (0.3, 1.0)  # each of the part's sides in parts of the whole
    iou_crop_ratios: Range = (0.5, 2.0)  # of the part's width to its height
    crop: Annotated[int, Field(ge=16)] | None = None  # a square of so many pixels of the network's input
    min_side: Annotated[float, Field(ge=0)] = 1.0  # input pixels; an object that a crop leaves less of is left out
    min_visible: Probability = 0.1  # share of its box; an object that a crop leaves less of is left out
    gamma: Range = (1.0, 1.0)  # exponent of the brightness 0..1
    contrast: Range = (1.0, 1.0)  # factor on the distance to the picture's mean
    brightness: Range = (1.0, 1.0)  # factor
    saturation: Range = (1.0, 1.0)  # factor on the distance to grey
    hue: Turns = (0.0, 0.0)  # all colours turned around grey, in parts of a full turn
    distort: Probability | None = None  # each change of colours with this chance, in SSD's order; None: always all
    blur: Probability = 0.0  # blurred by a Gaussian ...
    blur_sigma: Range = (0.5, 2.0)  # ... of so many input pixels
    mosaic: Probability = 0.0  # four pictures, each varied as above, that meet in a point
    copy_paste: Probability = 0.0  # objects of another picture, varied as above, in front; needs masks

    @model_validator(mode="after")
    def _check(self) -> "Augment":
        ranges = ("zoom_out_sides", "iou_crop_sides", "iou_crop_ratios", "scale", "blur_sigma")
        for key in (*ranges, "gamma", "contrast", "brightness", "saturation", "hue"):
            low, high = getattr(self, key)
            if low > high:
                raise ValueError(f"{key} is [{low:g}, {high:g}]: write the lower value first")
        return self


def inference(image: np.ndarray, resize: Resize) -> Tensor:
    """The picture as the network sees it outside of training: [C, h, w], float32 by torchvision's method, else of the
    same type.

    Args:
        image: uint8 or float32 [H, W, C].
    """
    return _resized(image, resize.size(*image.shape[:2]), resize.method)


def training(
    image: np.ndarray,
    annotations: ImageAnnotations,
    resize: Resize,
    augment: Augment,
    generator: np.random.Generator,
    mirror: np.ndarray | None = None,
    another: Another | None = None,
) -> Sample:
    """A varied picture, [C, h, w] as `inference` gives it, and its objects in the picture's new pixels.

    The picture may first become part of a larger canvas (`augment.zoom_out`), of which a part may be taken that an
    object fills enough (`augment.iou_crop`); this is what is resized. With `augment.crop` a square of the result is
    taken (all of a side that is shorter); only that region is resized. Objects outside of it are left out; an object
    that it cuts gets the box of what is left of its mask. Objects whose centre an `iou_crop` cuts off are left out too.

    Args:
        image: uint8 or float32 [H, W, C].
        annotations: in pixels of `image`.
        generator: gives nineteen numbers, whatever the options, so that switching one on leaves the others' draws
            alone.
        mirror: [P] the keypoint that each one is in a mirror; None: itself.
        another: draws a picture with its annotations, for mosaics and objects to paste.

    Raises:
        ValueError: `augment` asks for mosaics or pasted objects, and there is no `another`.
    """
    *draws, mosaic_draw, mosaic_seed, paste_draw, paste_seed, seed = generator.random(19).tolist()
    sample = _varied(image, annotations, resize, augment, draws, seed, mirror)
    visibility = Visibility(augment.min_side, augment.min_visible)

    def varied(source: np.random.Generator) -> Sample:
        if another is None:
            raise ValueError("training: augment.mosaic and augment.copy_paste need another picture")
        picture, objects = another(source)
        draws = source.random(18).tolist()
        return _varied(picture, objects, resize, augment, draws[:14], draws[14], mirror)

    if mosaic_draw < augment.mosaic:
        source = _generator(mosaic_seed)
        sample = mosaic([sample, *(varied(source) for _ in range(3))], source, visibility)
    if paste_draw < augment.copy_paste:
        source = _generator(paste_seed)
        sample = paste(sample, varied(source), source, visibility)
    return sample


def _varied(
    image: np.ndarray,
    annotations: ImageAnnotations,
    resize: Resize,
    augment: Augment,
    numbers: Sequence[float],
    seed: float,
    mirror: np.ndarray | None,
) -> Sample:
    """One picture flipped, turned, resized, cut, recoloured and blurred as the numbers, 0..1, and the seed say."""
    draws = iter(numbers)
    flip, vertical_flip = next(draws) < augment.flip, next(draws) < augment.vertical_flip
    turns = int(next(draws) * 4)
    *zoom, crop_seed, distort_seed = _generator(seed).random(6).tolist()
    frame = _framed(image, annotations, augment, zoom, crop_seed)
    short_side = next(draws)
    size = resize.size(
        frame.height,
        frame.width,
        short_side=augment.short_sides[int(short_side * len(augment.short_sides))] if augment.short_sides else None,
        jitter=_between(augment.scale, next(draws)),
    )
    first_row, last_row, new_height = cut(frame.height, size[0], augment.crop, next(draws))
    first_column, last_column, new_width = cut(frame.width, size[1], augment.crop, next(draws))
    window = Frame(frame.left + first_column, frame.top + first_row, frame.left + last_column, frame.top + last_row)
    rows, y_scale, (above, below) = placed(window.top, window.bottom, image.shape[0], new_height)
    columns, x_scale, (before, after) = placed(window.left, window.right, image.shape[1], new_width)
    boxes, kept = _visible(annotations, frame, np.array(window, np.float64), np.array([x_scale, y_scale]), augment)
    region = image[rows, columns]
    matrix = np.array([[1.0, 0, -columns.start], [0, 1, -rows.start], [0, 0, 1]])
    # Turned first and resized last: turning is a view until the table of colours copies the (smaller) region.
    if flip:
        matrix = np.array([[-1.0, 0, region.shape[1]], [0, 1, 0], [0, 0, 1]]) @ matrix
        region = region[:, ::-1]
        before, after = after, before
    if vertical_flip:
        matrix = np.array([[1.0, 0, 0], [0, -1, region.shape[0]], [0, 0, 1]]) @ matrix
        region = region[::-1]
        above, below = below, above
    for _ in range(turns if augment.quarter_turns else 0):  # counter-clockwise: the right edge becomes the top one
        matrix = np.array([[0.0, 1, 0], [-1, 0, region.shape[1]], [0, 0, 1]]) @ matrix
        region = np.rot90(region)
        above, before, below, after = after, above, before, below
        x_scale, y_scale, new_width, new_height = y_scale, x_scale, new_height, new_width
    matrix = np.array([[x_scale, 0, before], [0, y_scale, above], [0, 0, 1]]) @ matrix
    colours = [
        _between(bounds, next(draws))
        for bounds in (augment.gamma, augment.contrast, augment.brightness, augment.saturation, augment.hue)
    ]
    size, seen = (new_height, new_width), (new_height - above - below, new_width - before - after)
    if seen == size:
        pixels = _resized(_coloured(region, colours, augment, distort_seed), size, resize.method)
    else:
        pixels = _canvas(image, size, augment, resize.method)
        if region.size:
            part = _resized(_coloured(region, colours, augment, distort_seed), seen, resize.method)
            pixels[:, above : above + seen[0], before : before + seen[1]] = part
    is_blurred, sigma = next(draws) < augment.blur, _between(augment.blur_sigma, next(draws))
    if is_blurred:
        pixels = blurred(pixels, sigma)
    return pixels, _targets(annotations, boxes, kept, matrix[:2], size, mirror)


def _framed(
    image: np.ndarray, annotations: ImageAnnotations, augment: Augment, numbers: Sequence[float], seed: float
) -> Frame:
    """What of the picture and the canvas around it is shown, as the numbers, 0..1, and the seed say."""
    zoom, factor, x, y = numbers
    frame = Frame(0, 0, image.shape[1], image.shape[0])
    if zoom < augment.zoom_out:
        frame = zoomed_out(frame.height, frame.width, _between(augment.zoom_out_sides, factor), x, y)
    if augment.iou_crop:
        objects, generator = annotations.boxes[~annotations.crowds], _generator(seed)
        sides, ratios = augment.iou_crop_sides, augment.iou_crop_ratios
        frame = cut_by_overlap(frame, objects, augment.iou_crop, sides, ratios, generator)
    return frame


def _coloured(region: np.ndarray, colours: Sequence[float], augment: Augment, seed: float) -> np.ndarray:
    if augment.distort is not None:
        return distorted(region, colours, augment.distort, _generator(seed))
    return tinted(recoloured(region, *colours[:3]), *colours[3:])


def _canvas(image: np.ndarray, size: Size, augment: Augment, method: str) -> Tensor:
    """[C, h, w] in one colour, of the type that the resized picture has."""
    colour = augment.zoom_out_colour or image.reshape(-1, image.shape[2]).mean(0).tolist()
    if len(colour) != image.shape[2]:
        raise ValueError(f"training: zoom_out_colour has {len(colour)} values, the picture {image.shape[2]} channels")
    values = torch.tensor(colour)
    if image.dtype == np.uint8 and method != "torchvision":
        values = (values + 0.5).to(torch.uint8)
    return values.expand(*size, -1).clone().permute(2, 0, 1)


def _generator(draw: float) -> np.random.Generator:
    """A stream of its own for each number 0..1."""
    return np.random.Generator(np.random.PCG64(int(draw * 2**53)))


def _between(bounds: tuple[float, float], draw: float) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * draw


def _resized(image: np.ndarray, size: Size, method: str) -> Tensor:
    """[C, h, w] as `Resize.method` says.

    torch has a path of its own for uint8 in channels-last order, several times as fast as Pillow or float32; it is
    taken only if the batch's stride is right, too, which permuting a batch of one gives and unsqueezing does not.
    """
    if method == "torchvision":
        floats = _in_order(image).float()[None].permute(0, 3, 1, 2)
        # In planes, as torchvision has them: its kernels for channels-last order round differently.
        return interpolate(floats.contiguous(), size, mode="bilinear", align_corners=False)[0]
    if image.shape[:2] == size:
        return _in_order(image).clone().permute(2, 0, 1)
    if method == "pillow":
        return torch.from_numpy(resized_by_pillow(image, size)).permute(2, 0, 1)
    batch = _in_order(image)[None].permute(0, 3, 1, 2)
    return interpolate(batch, size, mode="bilinear", align_corners=False, antialias=True)[0]


def _in_order(image: np.ndarray) -> Tensor:
    """The picture [H, W, C] row by row. What is a mirrored view is mirrored by torch, thirty times as fast as a copy by
    NumPy."""
    mirrored = tuple(axis for axis in (0, 1) if image.strides[axis] < 0)
    if not mirrored or not image.flags.writeable:
        return torch.from_numpy(np.require(image, requirements=["C", "W"]))
    return torch.from_numpy(np.flip(image, mirrored)).flip(mirrored).contiguous()


def _visible(
    annotations: ImageAnnotations, frame: Frame, window: np.ndarray, scale: np.ndarray, augment: Augment
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [G, 4] float64 of what the window in a frame shows, in pixels of the annotation; which of them are kept
    [G] bool."""
    whole = annotations.boxes.astype(np.float64)
    boxes = np.concatenate([whole[:, :2].clip(window[:2], window[2:]), whole[:, 2:].clip(window[:2], window[2:])], 1)
    kept = np.asarray((boxes[:, 2:] > boxes[:, :2]).all(1))
    is_cut = kept & (boxes != whole).any(1)
    if annotations.segmentations is not None:
        for i in (is_cut & ~annotations.crowds).nonzero()[0].tolist():
            box = visible_box(annotations.segmentations[i], tuple(window.tolist()))
            if box is None:
                kept[i] = False
            else:
                boxes[i] = np.concatenate([np.maximum(boxes[i, :2], box[:2]), np.minimum(boxes[i, 2:], box[2:])])
    sides, whole_sides = boxes[:, 2:] - boxes[:, :2], whole[:, 2:] - whole[:, :2]
    enough = (sides * scale >= augment.min_side).all(1) & (sides.prod(1) >= augment.min_visible * whole_sides.prod(1))
    kept &= (enough | ~is_cut) & (sides > 0).all(1)
    if augment.iou_crop:
        kept &= centred(whole, np.array([frame]))[0] | annotations.crowds
    return boxes, kept


def _targets(
    annotations: ImageAnnotations,
    boxes: np.ndarray,
    kept: np.ndarray,
    matrix: np.ndarray,
    size: Size,
    mirror: np.ndarray | None,
) -> Targets:
    limits = np.array([size[1], size[0]], np.float64)
    moved = _moved_boxes(boxes, matrix, size)
    objects = (kept & ~annotations.crowds).nonzero()[0]
    masks = None
    if annotations.segmentations is not None:
        masks = Masks([annotations.segmentations[i] for i in objects.tolist()], torch.from_numpy(matrix.copy()))
    keypoints = None
    if annotations.keypoints is not None:
        keypoints = torch.from_numpy(_moved(annotations.keypoints[objects], matrix, limits, mirror))
    return Targets(
        boxes=torch.from_numpy(moved[objects]),
        labels=torch.from_numpy(annotations.labels[objects]),
        crowds=torch.from_numpy(moved[kept & annotations.crowds]),
        masks=masks,
        semantic=None if annotations.semantic is None else _moved_labels(annotations.semantic, matrix, size),
        image_id=annotations.image_id,
        keypoints=keypoints,
        proposals=None if annotations.proposals is None else _shown(_moved_boxes(annotations.proposals, matrix, size)),
    )


def _moved(keypoints: np.ndarray, matrix: np.ndarray, limits: np.ndarray, mirror: np.ndarray | None) -> np.ndarray:
    """[G, P, 3] float32 in the picture's new pixels; those that it does not show are as good as not labelled.

    A picture that is mirrored once shows left as right; mirrored along both axes it is only turned.
    """
    at = keypoints[..., :2].astype(np.float64) @ matrix[:, :2].T + matrix[:, 2]
    shown = (keypoints[..., 2] > 0) & ((at >= 0) & (at <= limits)).all(-1)
    moved = np.concatenate([at, keypoints[..., 2:]], -1).astype(np.float32) * shown[..., None]
    return moved[:, mirror] if mirror is not None and np.linalg.det(matrix[:, :2]) < 0 else moved


def _moved_labels(labels: np.ndarray, matrix: np.ndarray, size: Size) -> Tensor:
    """A map of labels in the new pixels: each takes the label of the old pixel that its centre lies in, else 255."""
    back = np.linalg.inv(np.concatenate([matrix, [[0.0, 0.0, 1.0]]]))
    rows, columns = np.arange(size[0])[:, None] + 0.5, np.arange(size[1]) + 0.5
    x, y = (np.floor(back[axis, 0] * columns + (back[axis, 1] * rows + back[axis, 2])) for axis in (0, 1))
    height, width = labels.shape
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    places = (y.clip(0, height - 1) * width + x.clip(0, width - 1)).astype(np.int64)
    return torch.from_numpy(np.where(inside, labels.reshape(-1)[places], np.uint8(IGNORED)))


def resized_proposals(boxes: np.ndarray, picture: Size, size: Size) -> Tensor:
    """Proposals [P, 4] of a picture of one size in pixels of it at another size; those without area left out."""
    return _shown(_moved_boxes(boxes, np.array([[size[1] / picture[1], 0, 0], [0, size[0] / picture[0], 0]]), size))


def _moved_boxes(boxes: np.ndarray, matrix: np.ndarray, size: Size) -> np.ndarray:
    """Boxes [G, 4] float32 where the matrix [2, 3] puts them, clipped to the size."""
    corners = boxes.reshape(-1, 2, 2) @ matrix[:, :2].T + matrix[:, 2]
    limits = np.array([size[1], size[0]], np.float64)
    return np.concatenate([corners.min(1).clip(0, limits), corners.max(1).clip(0, limits)], 1).astype(np.float32)


def _shown(boxes: np.ndarray) -> Tensor:
    """Those with an area."""
    return torch.from_numpy(boxes[(boxes[:, 2:] > boxes[:, :2]).all(1)])
