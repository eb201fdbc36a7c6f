"""Faults of the classes: their ids within a split, their order across splits, and how often they occur."""

from collections.abc import Sequence

import numpy as np

from mrcnn_cli.data.check.faults import Finding
from mrcnn_cli.data.check.tables import Table

IMBALANCE = 100  # times as many objects in the largest class


def class_findings(tables: Sequence[Table]) -> list[Finding]:
    """Ids with gaps, names with other ids than in the first split, classes without objects or with very few."""
    findings = []
    for table in tables:
        findings += _gaps(table)
        if table is not tables[0]:
            findings += _differences(table, tables[0])
    return findings + _counts(tables)


def new_numbers(tables: Sequence[Table]) -> dict[str, int]:
    """name -> id, 1, 2, 3, ... in the order of the first split's ids, then of what other splits add.

    Ids that are without gaps already, from 0 or from 1, stay.
    """
    names: dict[str, None] = {}
    for table in tables:
        names |= dict.fromkeys(table.categories[number] for number in sorted(table.categories))
    first = min(tables[0].categories, default=1) if tables else 1
    return {name: number for number, name in enumerate(names, start=first if first in (0, 1) else 1)}


def _gaps(table: Table) -> list[Finding]:
    ids = sorted(table.categories)
    if not ids or (ids[0] in (0, 1) and ids == list(range(ids[0], ids[0] + len(ids)))):
        return []
    missing = sorted(set(range(1, ids[-1])) - set(ids))[:5] if 0 < ids[-1] < 10**6 else []
    words = f"{len(ids)} category ids from {ids[0]} to {ids[-1]}"
    words += f", without {', '.join(map(str, missing))}{', ...' if len(missing) == 5 else ''}" if missing else ""
    return [Finding("category-gap", table.split.name, str(table.split.path), words)]


def _differences(table: Table, first: Table) -> list[Finding]:
    findings = []
    known = {name: number for number, name in reversed(first.categories.items())}
    where = table.split.name, str(table.split.path)
    for number, name in table.categories.items():
        if name not in known:
            words = f"class '{name}' (id {number}) is not among the classes of {first.split.name}"
            findings.append(Finding("class-missing", *where, words))
        elif first.categories.get(number) != name:
            words = f"class '{name}' has the id {number} here and {known[name]} in {first.split.name}"
            findings.append(Finding("class-order", *where, words))
    return findings


def _counts(tables: Sequence[Table]) -> list[Finding]:
    """Of all splits together; a class that the annotation files list but never use is named once."""
    counts: dict[str, int] = {}
    for table in tables:
        ids, found = np.unique(table.category[~table.crowd], return_counts=True)
        objects = dict(zip(ids.tolist(), found.tolist(), strict=True))
        for number, name in table.categories.items():
            counts[name] = counts.get(name, 0) + objects.get(number, 0)
    where = ", ".join(table.split.name for table in tables), str(tables[0].split.path) if tables else ""
    largest = max(counts, key=lambda name: counts[name], default="")
    findings = []
    for name, count in counts.items():
        if not count:
            findings.append(Finding("class-unused", *where, f"class '{name}' has no object"))
        elif count * IMBALANCE < counts[largest]:
            words = (
                f"class '{name}' has {count:,} object{'s' if count > 1 else ''}, '{largest}' has {counts[largest]:,}"
            )
            findings.append(Finding("class-imbalance", *where, words))
    return findings
