"""Faults of keypoints: of their names in the categories, and of the points of each annotation."""

from array import array
from collections.abc import Iterator, Sequence
from reprlib import repr as shown
from typing import Any

import numpy as np

from mrcnn_cli.data.check.faults import Finding
from mrcnn_cli.data.check.tables import Table
from mrcnn_cli.data.keypoints import OUTSIDE, one_sided
from mrcnn_cli.data.shape_faults import NUMBERS, whole

Names = tuple[str, ...]


def keypoint_findings(tables: Sequence[Table]) -> list[Finding]:
    """Names that are faulty, differ or are never used, lines between none, and annotations that do not fit them."""
    findings: list[Finding] = []
    first: tuple[Names, str] | None = None  # and the words for where they stand
    labelled: dict[str, int] = {}
    for table in tables:
        named, faulty = {}, set()
        for place, number, entry in _categories(table):
            given, whose = entry.get("keypoints"), f"category '{entry['name']}'"
            if given is None or given == []:
                continue
            fault = _names_fault(given)
            if fault is not None:
                faulty.add(number)
                findings.append(_of_category(table, "keypoint-names", f"{whose}: 'keypoints' {fault}", place))
                continue
            named[number] = names = tuple(given)
            if first is None:
                first = names, f"{whose} of {table.split.name}"
            elif names != first[0]:
                words = f"{whose} has the keypoints {', '.join(names)}; {first[1]} has {', '.join(first[0])}"
                findings.append(_of_category(table, "keypoints-differ", words, place))
            findings += _skeleton(table, entry, whose, len(names), place)
            lone = one_sided(names)
            if lone:
                words = f"{whose}: no counterpart on the other side for {', '.join(lone)}"
                findings.append(_of_category(table, "keypoint-one-sided", words, place))
        findings += _of_annotations(table, named, faulty, labelled)
    where = ", ".join(table.split.name for table in tables), str(tables[0].split.path) if tables else ""
    for name, count in labelled.items():
        if not count:
            findings.append(Finding("keypoint-unused", *where, f"keypoint '{name}' is labelled in no annotation"))
    return findings


def _categories(table: Table) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Place, id and entry of the sound ones."""
    seen = set()
    for place, entry in enumerate(table.split.content["categories"]):
        number = whole(entry.get("id"))
        if number in table.categories and number not in seen and entry.get("name") == table.categories[number]:
            seen.add(number)
            yield place, number, entry


def _of_category(table: Table, fault: str, words: str, place: int, value: Any = None) -> Finding:
    where = table.split.name, str(table.split.path)
    return Finding(fault, *where, words, place=("categories", place, -1), value=value)


def _names_fault(given: Any) -> str | None:
    if not isinstance(given, list) or not all(isinstance(name, str) and name for name in given):
        return f"is {shown(given)} instead of the list of their names"
    twice = next((name for place, name in enumerate(given) if name in given[:place]), None)
    return None if twice is None else f"has the name '{twice}' twice"


def _skeleton(table: Table, entry: dict[str, Any], whose: str, count: int, place: int) -> list[Finding]:
    given = entry.get("skeleton")
    if given is None:
        return []
    lines = given if isinstance(given, list) else [given]
    sound = [line for line in lines if _is_line(line, count)]
    if len(sound) == len(lines):
        return []
    wrong = next(line for line in lines if not _is_line(line, count))
    words = f"{whose}: its skeleton has the line {shown(wrong)}, but there are keypoints 1 to {count}"
    return [_of_category(table, "skeleton-malformed", words, place, sound)]


def _is_line(line: Any, count: int) -> bool:
    whole_numbers = isinstance(line, list) and len(line) == 2 and all(type(place) is int for place in line)
    return whole_numbers and all(1 <= place <= count for place in line)


def _of_annotations(table: Table, named: dict[int, Names], faulty: set[int], labelled: dict[str, int]) -> list[Finding]:
    """Of one split; adds how often each name is labelled to `labelled`. `faulty`: categories without sound names."""
    findings = []
    rows: dict[int, list[int]] = {number: [] for number in named}
    values = {number: array("d") for number in named}
    for a, number in enumerate(table.category.tolist()):
        given = table.entry(a).get("keypoints")
        if given is None or given == [] or number in faulty:
            continue
        if number not in named:
            words = f"has keypoints, but its category '{table.categories[number]}' names none"
            findings.append(table.finding("keypoints-unnamed", a, words))
            continue
        wanted = 3 * len(named[number])
        if not isinstance(given, list) or len(given) != wanted or not NUMBERS.issuperset(map(type, given)):
            has = f"has {len(given)}" if isinstance(given, list) and len(given) != wanted else f"is {shown(given)}"
            words = f"'keypoints' {has} instead of {wanted} numbers, x, y and visibility of each"
            findings.append(table.finding("keypoints-malformed", a, words, value=wanted))
            continue
        try:
            row = array("d", given)
        except OverflowError:  # an integer beyond a float's range, which JSON knows
            row = array("d", [value if abs(value) < 1e300 else np.nan for value in given])
        rows[number].append(a)
        values[number].extend(row)
    for number, names in named.items():
        points = np.array(values[number], np.float64).reshape(-1, len(names), 3)
        counts = (points[..., 2] > 0).sum(axis=0).tolist()
        for name, count in zip(names, counts, strict=True):
            labelled[name] = labelled.get(name, 0) + count
        findings += _of_points(table, names, np.array(rows[number], np.int64), points)
    return findings


def _of_points(table: Table, names: Names, rows: np.ndarray, points: np.ndarray) -> list[Finding]:
    """Of the annotations `rows`, whose [A, P, 3] `points` are numbers at least."""
    findings = []
    sound = np.isfinite(points).all(axis=2)
    unknown = sound & ~np.isin(points[..., 2], (0, 1, 2))
    sizes = table.sizes()[table.image[rows]]
    inside = ((points[..., :2] > -OUTSIDE) & (points[..., :2] < sizes[:, None, ::-1] + OUTSIDE)).all(axis=2)
    outside = sound & ~inside & (points[..., 2] != 0) & (sizes[:, :1] > 0)  # of a known size

    def chosen(wrong: np.ndarray) -> Iterator[tuple[int, list[int], str]]:
        for row in np.flatnonzero(wrong.any(axis=1)).tolist():
            places = np.flatnonzero(wrong[row]).tolist()
            yield row, places, ", ".join(f"'{names[place]}'" for place in places)

    for row, places, who in chosen(unknown):
        found = f"{points[row, places[0], 2]:g}"
        words = f"keypoint {who} has the visibility {found}; there are 0 (not labelled), 1 (hidden) and 2 (visible)"
        findings.append(table.finding("keypoint-visibility", int(rows[row]), words))
    for row, places, who in chosen(~sound):
        words = f"keypoint {who} has values that are not finite"
        findings.append(table.finding("keypoint-not-finite", int(rows[row]), words, value=places))
    for row, places, who in chosen(outside):
        x, y, _ = points[row, places[0]]
        height, width = sizes[row]
        words = f"keypoint {who} lies at {x:g}, {y:g}, the image is {height} x {width} (height x width)"
        findings.append(table.finding("keypoint-outside", int(rows[row]), words, value=places))
    labelled = (points[..., 2] > 0).sum(axis=1)
    for a, count in zip(rows.tolist(), labelled.tolist(), strict=True):
        entry = table.entry(a)
        if whole(entry.get("num_keypoints")) != count:
            said = f"is {shown(entry['num_keypoints'])}" if "num_keypoints" in entry else "is missing"
            words = f"'num_keypoints' {said}, {count} are labelled"
            findings.append(table.finding("keypoint-count-disagrees", a, words))
    return findings
