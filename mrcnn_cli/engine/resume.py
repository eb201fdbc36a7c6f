"""What a run goes on from: its saved states, the newest that is whole, and what has changed since.

A run's folder holds the newest state as state.safetensors and those before it as state-<step>.safetensors. A state has
the weights, what the optimiser remembers, the running average, and the recipe. Random numbers need no saving, as each
stream of them is a function of the seed and the step; the learning rate is one of the step and of the evaluations that
metrics.jsonl records.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mrcnn_cli import config as recipes
from mrcnn_cli.engine.checkpoint import read_tensors, step_of, write_tensors
from mrcnn_cli.engine.run import RunConfig, environment
from mrcnn_cli.errors import UserError


@dataclass(frozen=True)
class State:
    """A saved state of training.

    Attributes:
        path: of its file.
        step: steps done.
        tensors: see `Trainer.save`.
        about: its metadata; "recipe" is the whole recipe.
        damaged: newer files that could not be read, and why.
    """

    path: Path
    step: int
    tensors: dict[str, Tensor]
    about: dict[str, str]
    damaged: tuple[str, ...]


def state_files(folder: Path) -> list[Path]:
    """The saved states of a run, the newest first."""
    newest = folder / "state.safetensors"
    older = {path: path.stem.removeprefix("state-") for path in folder.glob("state-*.safetensors")}
    ordered = sorted((path for path, step in older.items() if step.isdigit()), key=lambda path: -int(older[path]))
    return [newest, *ordered] if newest.exists() else ordered


def write_state(folder: Path, tensors: Mapping[str, Tensor], about: Mapping[str, str], step: int, keep: int) -> None:
    """A new state.safetensors; the `keep` - 1 states before it stay beside it under their steps' names."""
    newest = folder / "state.safetensors"
    before = step_of(newest)
    keeps_it = keep > 1 and before is not None and before < step
    former = folder / f"state-{before}.safetensors" if keeps_it else None
    write_tensors(newest, tensors, {"step": str(step), **about}, former)
    older = [path for path in state_files(folder) if path != newest]
    # States of later steps are those of a run that went on from before them.
    kept = [path for path in older if int(path.stem.removeprefix("state-")) < step][: keep - 1]
    for path in set(older) - set(kept):
        path.unlink()


def read_state(folder: Path) -> State:
    """The newest state that is whole.

    Raises:
        UserError: there is none.
    """
    damaged: list[str] = []
    for path in state_files(folder):
        try:
            tensors, about = read_tensors(path)
            return State(path, int(about["step"]), tensors, about, tuple(damaged))
        except UserError as error:
            damaged.append(str(error))
        except (KeyError, ValueError):
            damaged.append(f"{path}: holds no state of a run")
    raise UserError(damaged[0] if damaged else f"{folder}: no state to go on from (state.safetensors)")


def can_resume(folder: Path) -> bool:
    """Whether there is a run to go on with, be it one that was stopped before it saved anything.

    Raises:
        UserError: there is none.
    """
    missing = "config.toml" if not (folder / "config.toml").is_file() else None
    saved = bool(state_files(folder))
    if missing is None and not saved and (folder / "last.safetensors").exists():
        missing = "state.safetensors"
    if missing is not None:
        raise UserError(f"{folder}: no run to go on with: there is no {missing} in it; 'mrcnn train' starts a new one")
    return saved


def remarks(folder: Path, state: State, device: torch.device) -> list[str]:
    """What may keep the run from ending with the bits that it would have had, a sentence each."""
    said = [f"{reason}: going on from {state.path.name}, step {state.step}" for reason in state.damaged]
    try:
        before = (folder / "environment.txt").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        before = []
    now = environment(device).splitlines()
    if before and before != now:
        changes = [f"{old} -> {new}" for old, new in zip(before, now, strict=False) if old != new] or ["another device"]
        said.append(f"{folder}: not where the run began ({'; '.join(changes)}): the bits may differ")
    return said


def changed_recipe(folder: Path, state: State | None, assignments: Iterable[str]) -> tuple[RunConfig, list[str]]:
    """The recipe to go on with, and what it changes, such as "train.steps: 300 -> 600".

    Args:
        folder: of the run.
        state: that it goes on from; None: it starts from step 0.
        assignments: "KEY=VALUE", the keys that may change.

    Raises:
        UserError: config.toml says something else than the state, and no assignment asks for it.
    """
    path, assignments = folder / "config.toml", list(assignments)
    table = recipes.read(path)
    after = recipes.validate(RunConfig, recipes.override(table, assignments), str(path))
    if state is None:
        before = recipes.validate(RunConfig, table, str(path))
    else:
        before = recipes.validate(RunConfig, recipes.loads(state.about["recipe"]), str(state.path))
    changes = _changes(before, after)
    named = [text.partition("=")[0].strip() for text in assignments]
    unnamed = [key for key in changes if not any(key == name or key.startswith(f"{name}.") for name in named)]
    if unnamed:
        first = unnamed[0]
        more = f" (and {len(unnamed) - 1} more)" if len(unnamed) > 1 else ""
        raise UserError(
            f"{path}: differs from what {state.path.name if state else 'the run'} was trained with: {first}: "
            f"{changes[first]}{more}; put it back, or ask for the change with --set {first}=VALUE"
        )
    return after, [f"{key}: {change}" for key, change in changes.items()]


def _changes(before: RunConfig, after: RunConfig) -> dict[str, str]:
    old, new = (recipes.flat(config.model_dump(mode="json")) for config in (before, after))
    keys = sorted({*old, *new})
    return {key: f"{old.get(key)} -> {new.get(key)}" for key in keys if old.get(key) != new.get(key)}
