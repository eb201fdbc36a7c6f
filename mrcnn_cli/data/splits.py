"""Pictures divided into training, validation and test, each class in the same shares, near-duplicates together."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np

BACKGROUND = "\0"  # pictures without any object are divided like a class of their own


def stratified(
    classes: Sequence[Collection[str]], groups: Sequence[str], shares: Mapping[str, float], seed: int
) -> list[str]:
    """The split of each picture, drawn so that each class is divided in the shares that were asked for.

    Iterative stratification (Sechidis et al., "On the stratification of multi-label data", ECML 2011), with groups of
    pictures in the place of pictures: of what is not yet placed, the rarest class is taken next, and each group that
    has it goes where most of that class is still wanted, then where most pictures are.

    Args:
        classes: per picture the classes of its objects.
        groups: per picture a key; pictures with the same one go to the same split.
        shares: split -> the part of the pictures that it should have; they add up to 1. Of equals the first is taken.
        seed: of the order in which equals are taken.

    Returns:
        Names of splits; each that has a share above 0 gets at least one group, as far as there are enough.
    """
    members: dict[str, list[int]] = {}
    for place, key in enumerate(groups):
        members.setdefault(key, []).append(place)
    # Pictures are counted, not objects: one picture with many would outweigh the rest.
    contents = {
        key: Counter(name for place in places for name in ({*classes[place]} or {BACKGROUND}))
        for key, places in members.items()
    }
    totals: Counter[str] = Counter()
    for content in contents.values():
        totals.update(content)
    names = [name for name, share in shares.items() if share > 0]
    wanted = {name: {kind: shares[name] * total for kind, total in totals.items()} for name in names}
    room = {name: shares[name] * len(classes) for name in names}
    keys = sorted(members)
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(keys))
    left = {keys[place]: contents[keys[place]] for place in order}
    chosen: dict[str, str] = {}
    remaining = Counter(totals)
    while left:
        kind = min((kind for kind in remaining if remaining[kind] > 0), key=lambda kind: (remaining[kind], kind))
        # Large groups first: small ones can still even out what those upset.
        having = sorted((key for key in left if left[key][kind]), key=lambda key: -len(members[key]))
        for key in having:
            name = max(names, key=lambda name: (wanted[name][kind], room[name], shares[name]))
            chosen[key] = name
            room[name] -= len(members[key])
            for other, count in left.pop(key).items():
                wanted[name][other] -= count
                remaining[other] -= count
    _fill_empty(names, shares, chosen, members)
    return [chosen[key] for key in groups]


def _fill_empty(
    names: Sequence[str], shares: Mapping[str, float], chosen: dict[str, str], members: Mapping[str, Sequence[int]]
) -> None:
    """A split that got nothing, its share being less than one picture, takes the largest split's smallest group."""
    for name in sorted(names, key=lambda name: -shares[name]):
        counts = Counter(chosen.values())
        if counts[name]:
            continue
        largest = max(counts, key=lambda other: (counts[other], other))
        if counts[largest] > 1:
            key = min((key for key in chosen if chosen[key] == largest), key=lambda key: (len(members[key]), key))
            chosen[key] = name
