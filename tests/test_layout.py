"""The house: what may import what, and how files are called. Read from the sources with ast."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mrcnn_cli"
FLOORS = (
    ("config", "errors"),
    ("structures",),
    ("ops",),
    ("models", "data", "evaluation", "views"),
    ("engine",),
    ("commands", "__main__"),
)
STRANGERS = FLOORS[3]  # on one floor, but they meet only in engine
# What may import it, by the path below the package.
RESERVED = {
    "click": ("commands/", "__main__.py"),
    "rich": ("commands/", "__main__.py"),
    "PIL": ("data/image.py", "views/"),
    "torchvision": ("engine/kernels/race.py",),  # to be timed beside ours; never needed
}
NO_TORCH = ("config.py", "errors.py", "__init__.py", "__main__.py", "commands/")  # at the top of the file
FORBIDDEN_NAMES = {"utils", "util", "misc", "helpers", "helper", "common", "base", "manager"}
SOURCE_FOLDERS = ("csrc", "mrcnn_cli", "tests", "benchmarks", "configs", "docs")

MODULES = sorted(PACKAGE.rglob("*.py"))


def below(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor(name: str) -> int:
    return next(level for level, names in enumerate(FLOORS) if name in names)


def statements(tree: ast.AST) -> list[ast.Import | ast.ImportFrom]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def imported(nodes: list[ast.Import | ast.ImportFrom]) -> set[str]:
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif node.module == PACKAGE.name:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif node.module:
            names.add(node.module)
    return names


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


each_module = pytest.mark.parametrize("path", MODULES, ids=below)


def test_there_are_modules_to_look_at():
    assert {part(path) for path in MODULES} >= {name for names in FLOORS for name in names}


@each_module
def test_a_module_imports_only_from_its_own_floor_or_below(path):
    name = part(path)
    if name == "__init__":  # the library's face, which hands out names of all floors
        return
    for other in imported(statements(tree(path))):
        package, _, rest = other.partition(".")
        target = rest.split(".")[0]
        if package != PACKAGE.name or target in ("", "_C", "__version__"):
            continue
        assert floor(target) <= floor(name), f"{below(path)} imports {other}, which is a floor above it"
        if name in STRANGERS and target in STRANGERS:
            assert name == target, f"{below(path)} imports {other}: strangers meet in engine"


@each_module
def test_reserved_packages_are_imported_only_where_they_belong(path):
    for name in imported(statements(tree(path))):
        places = RESERVED.get(name.split(".")[0])
        if places is not None:
            assert below(path).startswith(places), f"{below(path)} imports {name}; only {', '.join(places)} may"


@each_module
def test_the_first_floor_and_the_commands_do_not_import_torch_when_they_are_imported(path):
    if not below(path).startswith(NO_TORCH):
        return
    top = [node for node in tree(path).body if isinstance(node, ast.Import | ast.ImportFrom)]
    for name in imported(top):
        package, _, rest = name.partition(".")
        assert package not in ("torch", "numpy"), f"{below(path)} imports {name} at its top"
        if package == PACKAGE.name and rest:
            light = rest.split(".")[0] in ("config", "errors", "commands", "__version__")
            assert light, f"{below(path)} imports {name} at its top, which loads torch"


@each_module
def test_imports_are_absolute(path):
    for node in statements(tree(path)):
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{below(path)}:{node.lineno}: a relative import"


@each_module
def test_only_ops_loads_the_compiled_operators(path):
    if below(path) == "ops/__init__.py":
        assert "load_library" in path.read_text(encoding="utf-8")
        return
    for node in ast.walk(tree(path)):
        name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
        assert name not in ("load_library", "CDLL") or below(path) == "engine/memory.py", (
            f"{below(path)}:{node.lineno}: loads a library"
        )


def test_no_file_or_folder_has_a_name_that_says_nothing():
    for folder in SOURCE_FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path == ROOT / "csrc" / "common.h" or "__pycache__" in path.parts:
                continue
            assert path.stem.lower() not in FORBIDDEN_NAMES, f"{path.relative_to(ROOT)}: say what it holds"


@each_module
def test_a_module_has_at_most_600_lines_and_says_what_it_is(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 600, f"{below(path)} wants to be two"
    if text.strip():
        assert ast.get_docstring(tree(path)), f"{below(path)} has no docstring"
