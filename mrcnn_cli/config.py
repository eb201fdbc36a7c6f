"""Recipes: TOML files read into frozen pydantic models, with errors worded for the person who wrote the file."""

import difflib
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import tomli_w
from pydantic import BaseModel, ConfigDict, ValidationError

from mrcnn_cli.errors import UserError

PACKAGE = Path(__file__).parent


class Config(BaseModel):
    """A table of a recipe: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


Schema = TypeVar("Schema", bound=Config)


def recipes() -> dict[str, Path]:
    """The shipped recipes: name -> file, in alphabetical order."""
    for folder in (PACKAGE / "configs", PACKAGE.parent / "configs"):  # installed, else a checkout
        if folder.is_dir():
            return {path.stem: path for path in sorted(folder.glob("*.toml"))}
    return {}


def find(name: str | Path) -> Path:
    """The file of a recipe, given its name or a path.

    Raises:
        UserError: neither a shipped recipe nor a file.
    """
    known = recipes()
    if str(name) in known:
        return known[str(name)]
    path = Path(name)
    if path.is_dir() and (path / "config.toml").is_file():  # a run folder
        return path / "config.toml"
    if path.is_file():
        return path
    raise UserError(f"{name}: no such recipe or file; {_suggest(str(name), known, 'recipes')}")


def read(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        UserError: the file cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a TOML file: {error}") from None


def override(table: dict[str, Any], assignments: Iterable[str] | Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `table` with values replaced: "train.steps=600" strings, or a mapping of dotted keys to values.

    A string's value is read as TOML; what is not TOML is taken as a bare string.
    """
    result = _copy(table)
    if not isinstance(assignments, Mapping):
        assignments = dict(_parse(text) for text in assignments)
    for dotted, value in assignments.items():
        *parents, key = dotted.split(".")
        inner = result
        for depth, parent in enumerate(parents):
            inner = inner.setdefault(parent, {})
            if not isinstance(inner, dict):
                raise UserError(f"--set {dotted}: '{'.'.join(parents[: depth + 1])}' is a value, not a table")
        inner[key] = _copy(value)  # a later key may reach into it
    return result


def validate(schema: type[Schema], table: Mapping[str, Any], source: str = "config") -> Schema:
    """`table` as a `schema`.

    Raises:
        UserError: names the first faulty key, what is wrong with it, the closest known key, and how many more
            there are.
    """
    try:
        return schema.model_validate(table)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{source}: {_describe(schema, problems[0])}{more}") from None


def loads(text: str) -> dict[str, Any]:
    """The tables of TOML text; ValueError if it is none."""
    return tomllib.loads(text)


def dumps(config: Config) -> str:
    """`config` as TOML, complete: every key with its value, keys without a value left out."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))


def flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested tables by dotted keys."""
    values: dict[str, Any] = {}
    for key, value in table.items():
        values |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return values


def _parse(assignment: str) -> tuple[str, Any]:
    dotted, equals, text = assignment.partition("=")
    if not equals or not dotted.strip():
        raise UserError(f"--set {assignment}: expected KEY=VALUE, such as train.steps=600")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()  # a bare word or a path
    return dotted.strip(), value


def _copy(table: Any) -> Any:
    return {key: _copy(value) for key, value in table.items()} if isinstance(table, dict) else table


def _describe(schema: type[Config], problem: Any) -> str:
    """One line for one pydantic problem; tags of unions and indices are kept out of the dotted key."""
    keys: list[str] = []
    inner: Any = schema
    for part in problem["loc"]:
        chosen = _member(inner, part)
        if chosen is not None:  # the tag that chose one model of a union
            inner = chosen
            continue
        if isinstance(part, int):
            keys[-1] += f"[{part}]"
            continue
        if "[" in part:  # a type, such as tuple[float, ...]: one of several that a value may have
            continue
        keys.append(str(part))
        fields = getattr(inner, "model_fields", {})
        if part not in fields:
            break
        inner = _models(fields[part].annotation)
    dotted = ".".join(keys)
    if problem["type"] == "extra_forbidden":
        return f"{dotted}: unknown key; {_suggest(keys[-1], getattr(inner, 'model_fields', {}), 'keys')}"
    if problem["type"] == "missing":
        return f"{dotted}: is missing; give it in the file or by --set {dotted}=VALUE"
    if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        context = problem["ctx"]
        got = context.get("tag")
        tags = context.get("expected_tags", "")
        return f"{dotted}.name: {f'unknown name {got!r}' if got else 'is missing'}; known: {tags.replace(chr(39), '')}"
    message = problem["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    return f"{dotted}: {message}, got {problem['input']!r}" if dotted else message


def _models(annotation: Any) -> Any:
    """The model, or the tuple of models, that an annotation holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found: list[Any] = []
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated, tuple, list):
        for part in typing.get_args(annotation):
            inner = _models(part)
            found += inner if isinstance(inner, tuple) else [inner] if inner is not None else []
    return tuple(found) if len(found) > 1 else found[0] if found else None


def _member(models: Any, tag: Any) -> Any:
    """The member of a union whose `name` is `tag`."""
    if isinstance(models, tuple):
        for model in models:
            if "name" in model.model_fields and tag in typing.get_args(model.model_fields["name"].annotation):
                return model
    return None


def _suggest(word: str, known: Iterable[str], what: str) -> str:
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1)
    return f"did you mean '{close[0]}'?" if close else f"known {what}: {', '.join(names) or 'none'}"
