"""A prepared data set: a folder with a COCO file for each split, and dataset.toml that names them."""

from pathlib import Path
from typing import Any

import tomli_w
from pydantic import Field, model_validator

from mrcnn_cli import config as recipes
from mrcnn_cli.config import Config
from mrcnn_cli.data.loader import SplitConfig
from mrcnn_cli.errors import UserError

FILE_NAME = "dataset.toml"
EVALUATION_SPLITS = ("val", "test", "train")  # the first that is there is evaluated on


class SourceConfig(Config):
    """Where a prepared data set came from."""

    format: str
    path: str
    options: dict[str, Any] = Field(default_factory=dict)  # with which it was read and split


class DatasetFile(Config):
    """The content of dataset.toml."""

    name: str
    classes: tuple[str, ...] = Field(min_length=1)  # in label order
    stuff: tuple[str, ...] | None = None  # names of the labels of splits' semantic maps, from 1 on
    splits: dict[str, SplitConfig] = Field(min_length=1)  # folders and files are relative to dataset.toml, or absolute
    source: SourceConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> "DatasetFile":
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes has a name twice: leave one out")
        for name, split in self.splits.items():
            if split.images is None:
                raise ValueError(f"splits.{name} is empty: give images and annotations, or leave it out")
        return self


def read_dataset_file(path: str | Path) -> DatasetFile:
    """A prepared data set, the paths of its splits absolute.

    Args:
        path: the folder that `mrcnn data prepare` wrote, or the dataset.toml in it.

    Raises:
        UserError: it is not there, or faulty.
    """
    path = Path(path)
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise UserError(
            f"{path}: no prepared data set (no {FILE_NAME} is there); 'mrcnn data prepare {path} -o DATA' makes one"
            if path.is_dir()
            else f"{path}: no such data set; name the folder that 'mrcnn data prepare' wrote"
        )
    found = recipes.validate(DatasetFile, recipes.read(file), str(file))
    root = file.parent.resolve()
    splits = {
        name: SplitConfig(
            images=root / split.images,
            annotations=root / split.annotations,
            semantic=root / split.semantic if split.semantic is not None else None,
        )
        for name, split in found.splits.items()
        if split.images is not None and split.annotations is not None
    }
    return found.model_copy(update={"splits": splits})


def dataset_toml(content: DatasetFile) -> str:
    """The text of dataset.toml."""
    return tomli_w.dumps(content.model_dump(mode="json", exclude_none=True))


def evaluation_split(content: DatasetFile, name: str | None = None) -> SplitConfig:
    """The split of that name; by default the first of val, test and train that is there.

    Raises:
        UserError: there is no such split.
    """
    if name is None:
        name = next((known for known in EVALUATION_SPLITS if known in content.splits), next(iter(content.splits)))
    if name not in content.splits:
        raise UserError(f"{content.name}: has no split '{name}', only {', '.join(content.splits)}; name one of them")
    return content.splits[name]
