"""Tables of names: what a tensor of another system is called here.

A row is (their name, our name) or (their name, our name, change), where `change` makes our tensor of theirs. In a name

    {part}         stands for what is between two dots,
    {index+2}      for a number which is 2 more than ours (`{index}` in our name), {index-1} for one which is 1 less,
    {index+first}  for a number which is more than ours by the least one that the file has there: ours begin at 0,
    {*}            for all that is left.

The first row that matches counts. A row whose second entry is None names what is not needed here; its third entry says
why.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

Change = Callable[[Tensor], Tensor]
Row = tuple[str, str] | tuple[str, str, Change] | tuple[str, None, str]
Table = Sequence[Row]

_FIELD = re.compile(r"\{(\*|\w+)([+-]\d+|\+first)?\}")


@dataclass
class Renamed:
    """The tensors of a file, sorted by what became of them.

    Attributes:
        tensors: by our names.
        sources: our name -> their name.
        left_out: their name -> why it is not needed.
        unknown: their names that no row matches.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)

    def move(self, pattern: str, name: Callable[[re.Match[str]], str]) -> None:
        """Give the tensors whose names match as a whole other names of ours."""
        for before in list(self.tensors):
            if found := re.fullmatch(pattern, before):
                self.tensors[name(found)] = self.tensors.pop(before)
                if before in self.sources:
                    self.sources[name(found)] = self.sources.pop(before)


def rename(tensors: Mapping[str, Tensor], table: Table) -> Renamed:
    """All tensors by our names, changed as the table says."""
    rows = [_Row(*row) for row in table]
    for row in rows:
        row.count_from_first(tensors)
    renamed = Renamed()
    for name, tensor in tensors.items():
        for row in rows:
            found = row.pattern.fullmatch(name)
            if found is None:
                continue
            if row.ours is None:
                renamed.left_out[name] = str(row.change)
            else:
                ours = row.name(found)
                renamed.tensors[ours] = row.change(tensor) if callable(row.change) else tensor
                renamed.sources[ours] = name
            break
        else:
            renamed.unknown.append(name)
    return renamed


def known(names: Sequence[str], table: Table) -> int:
    """How many of the names the table has a row for."""
    patterns = [_Row(*row).pattern for row in table]
    return sum(any(pattern.fullmatch(name) for pattern in patterns) for name in names)


class _Row:
    """A row with its first entry as a regular expression."""

    def __init__(self, theirs: str, ours: str | None, change: Change | str | None = None):
        self.ours, self.change = ours, change
        self.shifts: dict[str, int] = {}
        self.from_first: list[str] = []
        pattern, end = "", 0
        for found in _FIELD.finditer(theirs):
            name, shift = found[1], found[2]
            pattern += re.escape(theirs[end : found.start()])
            if name == "*":
                pattern += "(?P<rest>.+)"
            elif shift is not None:
                pattern += rf"(?P<{name}>\d+)"
                if shift == "+first":
                    self.from_first.append(name)
                else:
                    self.shifts[name] = int(shift)
            else:
                pattern += rf"(?P<{name}>[^.]+)"
            end = found.end()
        self.pattern = re.compile(pattern + re.escape(theirs[end:]))

    def count_from_first(self, names: Iterable[str]) -> None:
        """Shift numbers written {..+first} by the least one among the names."""
        if self.from_first:
            matches = [found for found in map(self.pattern.fullmatch, names) if found]
            for field in self.from_first:
                self.shifts[field] = min((int(found[field]) for found in matches), default=0)

    def name(self, found: re.Match[str]) -> str:
        """Our name for a name that the pattern has matched."""
        assert self.ours is not None

        def value(place: re.Match[str]) -> str:
            name = "rest" if place[1] == "*" else place[1]
            return str(int(found[name]) - self.shifts[name]) if name in self.shifts else found[name]

        return _FIELD.sub(value, self.ours)
