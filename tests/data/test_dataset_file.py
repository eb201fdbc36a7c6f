"""dataset.toml: read, written, and its faults named."""

import pytest

from mrcnn_cli.data.dataset_file import DatasetFile, dataset_toml, evaluation_split, read_dataset_file
from mrcnn_cli.errors import UserError

TEXT = """
name = "cells"
classes = ["round", "long"]

[splits.train]
images = "pictures"
annotations = "train.json"

[splits.test]
images = "/elsewhere"
annotations = "test.json"
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "dataset.toml").write_text(TEXT)
    return tmp_path


def test_paths_are_relative_to_the_file_or_absolute(folder, monkeypatch):
    monkeypatch.chdir("/")
    for path in (folder, folder / "dataset.toml"):
        content = read_dataset_file(path)
        assert content.splits["train"].images == folder / "pictures"
        assert str(content.splits["test"].images) == "/elsewhere"
        assert content.classes == ("round", "long")


def test_what_is_written_is_read_again(folder, tmp_path):
    content = read_dataset_file(folder)
    (tmp_path / "dataset.toml").write_text(dataset_toml(content))
    assert read_dataset_file(tmp_path) == content


def test_evaluation_takes_the_first_of_val_test_and_train(folder):
    content = read_dataset_file(folder)
    assert evaluation_split(content) == content.splits["test"]
    assert evaluation_split(content, "train") == content.splits["train"]
    only = content.model_copy(update={"splits": {"odd": content.splits["train"]}})
    assert evaluation_split(only) == content.splits["train"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"long"', '"round"', "classes has a name twice"),
        ('images = "pictures"', "", "splits.train: has annotations but no images"),
        ('name = "cells"', 'nam = "cells"', "name"),
        ("[splits.train]", "[splits.train", "not a TOML file"),
        ('images = "pictures"\nannotations = "train.json"', "", "splits.train is empty"),
    ],
)
def test_a_faulty_file_is_named_with_its_fault(folder, old, new, message):
    (folder / "dataset.toml").write_text(TEXT.replace(old, new))
    with pytest.raises(UserError, match=message) as caught:
        read_dataset_file(folder)
    assert str(folder / "dataset.toml") in str(caught.value)


def test_a_folder_that_was_not_prepared_says_how_to_prepare_it(tmp_path):
    with pytest.raises(UserError, match="no dataset.toml is there.*mrcnn data prepare"):
        read_dataset_file(tmp_path)
    with pytest.raises(UserError, match="no such data set"):
        read_dataset_file(tmp_path / "gone")


def test_a_data_set_needs_a_class_and_a_split():
    with pytest.raises(ValueError):
        DatasetFile(name="none", classes=(), splits={})
