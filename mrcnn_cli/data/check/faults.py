"""The faults that data sets have: how bad each is, what it means, and what `--fix` does about it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True, slots=True)
class Fault:
    """A kind of fault.

    Attributes:
        severity: error: training or scores would be wrong, or stop; warning: suspicious, or silently repaired when
            read; note: worth knowing.
        meaning: of one finding, in words.
        remedy: what `--fix` does; None: it takes a person.
    """

    severity: Severity
    meaning: str
    remedy: str | None = None


FAULTS: dict[str, Fault] = {
    # files and ids
    "unreadable-file": Fault("error", "an annotation file that cannot be read or is not COCO"),
    "malformed-entry": Fault("error", "an entry that lacks what COCO needs, or holds something else", "left out"),
    "duplicate-id": Fault("error", "an id that an earlier entry of the same list has", "annotations: new ids"),
    "duplicate-file": Fault("error", "an image file that an earlier entry lists", "joined with the first entry"),
    "unknown-image": Fault("error", "an annotation of an image that is not listed", "left out"),
    "unknown-category": Fault("error", "an annotation of a category that is not listed", "left out"),
    # classes
    "duplicate-class": Fault("error", "a category with the name of another one", "joined with the first"),
    "class-order": Fault("error", "a class with another id than in the first split", "numbered as in the first split"),
    "class-missing": Fault("error", "a class that the first split does not have"),
    "category-gap": Fault("warning", "category ids that do not run 1, 2, 3, ...", "numbered 1, 2, 3, ..."),
    "class-unused": Fault("warning", "a class without any object"),
    "class-imbalance": Fault("warning", "a class with less than a hundredth of the largest one's objects"),
    # boxes
    "box-missing": Fault("warning", "an annotation without a box", "taken from the mask; left out without one"),
    "box-malformed": Fault("error", "a box that is not [x, y, width, height]", "taken from the mask, else left out"),
    "box-not-finite": Fault("error", "a box with NaN or infinity", "taken from the mask, else left out"),
    "box-negative": Fault("error", "a box of negative size", "taken from the mask, else left out"),
    "box-degenerate": Fault("error", "a box without area", "taken from the mask, else left out"),
    "box-outside": Fault("error", "a box that lies outside of its image", "left out"),
    "box-leaves-image": Fault("warning", "a box that leaves its image", "clipped"),
    "box-disagrees": Fault("warning", "a box that disagrees with its mask", "taken from the mask"),
    "area-disagrees": Fault("warning", "an area that is missing or disagrees with the mask or box", "computed anew"),
    # masks
    "mask-missing": Fault("warning", "an object without a mask where others have one"),
    "mask-malformed": Fault("error", "a segmentation that is neither polygons nor runs", "left out"),
    "mask-empty": Fault("error", "a mask without a pixel", "left out"),
    "polygon-malformed": Fault("error", "a polygon without 3 finite points near the image", "left out"),
    "polygon-tiny": Fault("warning", "a polygon of less than a pixel", "left out"),
    "polygon-crosses-itself": Fault("warning", "a polygon whose edges cross"),
    "polygon-leaves-image": Fault("warning", "a polygon that leaves its image by more than 2 pixels"),
    "runs-of-other-size": Fault("error", "a run-length encoding of another size than its image"),
    "runs-malformed": Fault("error", "a run-length encoding that cannot be read", "left out"),
    # keypoints
    "keypoint-names": Fault("error", "a category whose keypoints are no list of different names"),
    "keypoints-differ": Fault("error", "a category with other keypoints than the first that has any"),
    "keypoints-malformed": Fault(
        "error", "keypoints that are not x, y and visibility of each that the category names", "taken as not labelled"
    ),
    "keypoint-visibility": Fault("error", "a visibility that is not 0, 1 or 2"),
    "keypoint-not-finite": Fault("warning", "a keypoint with NaN or infinity", "taken as not labelled"),
    "keypoint-outside": Fault("warning", "a labelled keypoint outside of its image", "taken as not labelled"),
    "keypoint-count-disagrees": Fault(
        "warning", "a num_keypoints that is missing or not the number of labelled ones", "counted anew"
    ),
    "keypoints-unnamed": Fault("warning", "keypoints of a category that names none"),
    "keypoint-unused": Fault("warning", "a keypoint that no annotation labels"),
    "keypoint-one-sided": Fault("warning", "a left or right keypoint without a counterpart, for mirrored pictures"),
    "skeleton-malformed": Fault("warning", "a skeleton with a line to a keypoint that is not there", "line left out"),
    # objects and images
    "duplicate-annotation": Fault("warning", "an annotation that repeats an earlier one", "left out"),
    "image-empty": Fault("note", "an image without objects (it teaches what background is)"),
    "no-anchor": Fault("warning", "objects that no anchor of the recipe can match"),
    # pictures
    "size-missing": Fault("warning", "an image entry without height and width", "taken from the file"),
    "size-disagrees": Fault("error", "an image of another size than the annotation file says"),
    "exif-size": Fault("error", "an image that its EXIF orientation turns, annotated as it was before"),
    "exif-rotation": Fault("note", "an image that its EXIF orientation turns; tools that ignore it see it unturned"),
    "image-missing": Fault("error", "a listed image that does not exist", "left out with its annotations"),
    "image-unreadable": Fault("error", "a file that is not an image", "left out with its annotations"),
    "image-truncated": Fault("error", "an image that is damaged or cut short", "left out with its annotations"),
    "image-not-listed": Fault("warning", "an image file that no annotation file lists"),
    "mixed-pixels": Fault("warning", "an image of another depth or other channels than most"),
    "duplicate-image": Fault("warning", "an image that is the same as another of its split"),
    "near-duplicate-image": Fault("note", "an image that looks like another of its split"),
    "leaked-image": Fault("error", "an image that is the same as one of another split"),
    "near-leaked-image": Fault("warning", "an image that looks like one of another split"),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault found.

    Attributes:
        fault: a key of `FAULTS`.
        split: the name of the split, or several joined by a comma.
        source: the annotation file.
        words: what exactly is wrong.
        image: the image's file name, as the annotation file has it.
        image_id: of the annotation file.
        annotation_id: of the annotation file.
        place: for repairs: the list of the annotation file, the index in it, and the index of the polygon or -1.
        value: for repairs: what belongs there instead.
    """

    fault: str
    split: str
    source: str
    words: str
    image: str | None = None
    image_id: int | None = None
    annotation_id: int | None = None
    place: tuple[str, int, int] | None = None
    value: Any = None

    @property
    def severity(self) -> Severity:
        return FAULTS[self.fault].severity

    def where(self) -> str:
        """File and annotation, in words."""
        parts = []
        if self.annotation_id is not None:
            parts.append(f"annotation {self.annotation_id}")
        if self.image is not None:
            parts.append(f"{'of ' if parts else ''}image {self.image}")
        return " ".join([f"{self.source}:", *parts]) if parts else self.source

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "fault": self.fault,
            "severity": self.severity,
            "split": self.split,
            "source": self.source,
            "image": self.image,
            "image_id": self.image_id,
            "annotation_id": self.annotation_id,
            "words": self.words,
        }


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """By the order of `FAULTS`, errors first; findings of one fault stay in their order."""
    rank = {name: (SEVERITIES.index(fault.severity), place) for place, (name, fault) in enumerate(FAULTS.items())}
    return sorted(findings, key=lambda finding: rank[finding.fault])
