"""Splits: shares kept for each class, groups kept together, the same draw for a seed."""

from collections import Counter

import numpy as np
import pytest

from mrcnn_cli.data.splits import stratified

SHARES = {"train": 0.7, "val": 0.2, "test": 0.1}


def pictures(count=400, seed=0):
    generator = np.random.default_rng(seed)
    rare = generator.random((count, 4)) < [0.8, 0.3, 0.1, 0.05]
    return [[name for name, there in zip("abcd", row, strict=True) if there] for row in rare]


def test_each_class_is_divided_in_the_shares():
    classes = pictures()
    splits = stratified(classes, [str(place) for place in range(len(classes))], SHARES, seed=0)
    for name in "abcd":
        total = sum(name in content for content in classes)
        for split, share in SHARES.items():
            there = sum(name in content for content, chosen in zip(classes, splits, strict=True) if chosen == split)
            assert abs(there - share * total) <= 2, (name, split)
    assert {split: count / len(classes) for split, count in Counter(splits).items()} == pytest.approx(SHARES, abs=0.02)


def test_pictures_without_objects_are_divided_too():
    classes = [[] for _ in range(50)] + [["a"] for _ in range(50)]
    splits = stratified(classes, [str(place) for place in range(100)], {"train": 0.8, "val": 0.2}, seed=1)
    assert Counter(splits[:50]) == Counter(splits[50:]) == {"train": 40, "val": 10}


def test_a_group_is_never_divided():
    classes = pictures(200)
    groups = [f"patient{place // 7}" for place in range(200)]
    splits = stratified(classes, groups, SHARES, seed=0)
    assert all(len(set(found)) == 1 for found in _by(groups, splits).values())
    assert set(splits) == set(SHARES)


def _by(keys, values):
    found = {}
    for key, value in zip(keys, values, strict=True):
        found.setdefault(key, set()).add(value)
    return found


def test_a_seed_draws_the_same_and_another_seed_something_else():
    classes, groups = pictures(100), [str(place) for place in range(100)]
    assert stratified(classes, groups, SHARES, 3) == stratified(classes, groups, SHARES, 3)
    assert stratified(classes, groups, SHARES, 3) != stratified(classes, groups, SHARES, 4)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_every_split_gets_a_picture_as_long_as_there_are_enough(count):
    splits = stratified([["a"]] * count, [str(place) for place in range(count)], {"train": 0.9, "val": 0.1}, 0)
    assert set(splits) == {"train", "val"}
    assert Counter(splits)["val"] == 1


def test_a_single_group_is_learnt_from():
    assert stratified([["a"], ["a"]], ["x", "x"], {"train": 0.5, "val": 0.5}, 0) == ["train", "train"]
