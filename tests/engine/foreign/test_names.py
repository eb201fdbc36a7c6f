"""Rows of the tables of names."""

import pytest
import torch

from mrcnn_cli.engine.foreign.names import known, rename

TABLE = (
    ("stem.{*}", "backbone.stem.{*}"),
    ("res{stage+2}.{block}.{*}", "stages.{stage}.{block}.{*}"),
    ("p{level-1}.{part}", "levels.{level}.{part}"),
    ("score.{*}", "logits.{*}", lambda tensor: tensor.flip(0)),
    ("score.{*}", "never.{*}"),
    ("old[0].{*}", None, "is computed anew"),
)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("stem.norm.weight", "backbone.stem.norm.weight"),
        ("res2.0.conv1.weight", "stages.0.0.conv1.weight"),
        ("res5.12.shortcut.norm.bias", "stages.3.12.shortcut.norm.bias"),
        ("p0.bias", "levels.1.bias"),
    ],
)
def test_a_row_says_what_a_tensor_is_called_here(theirs, ours):
    renamed = rename({theirs: torch.ones(2)}, TABLE)
    assert list(renamed.tensors) == [ours]
    assert renamed.sources == {ours: theirs}


@pytest.mark.parametrize("name", ["astem.weight", "res.0.weight", "resx.0.weight", "p1.a.b", "stem", "old0.x"])
def test_what_no_row_matches_whole_is_unknown(name):
    assert rename({name: torch.ones(1)}, TABLE).unknown == [name]


def test_the_first_row_counts_and_changes_the_tensor():
    assert rename({"score.weight": torch.tensor([1, 2])}, TABLE).tensors["logits.weight"].tolist() == [2, 1]


def test_what_is_not_needed_is_listed_with_the_reason():
    renamed = rename({"old[0].anchors": torch.ones(1)}, TABLE)
    assert renamed.left_out == {"old[0].anchors": "is computed anew"}
    assert not renamed.tensors


def test_the_names_that_a_table_knows_are_counted():
    assert known(["stem.a", "res2.0.b", "other", "old[0].c"], TABLE) == 3
