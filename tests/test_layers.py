"""Imports go down only; the pure files stay pure; docstring examples hold."""

import ast
import doctest
import importlib
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "simpo"

# From the ground up: a file imports from its own layer or from one below. Folders count as one name.
LAYERS = (
    {"errors", "losses", "logps", "attention", "flops", "estimates", "redact", "repetition"},
    {"batching", "main_process", "packing", "parity", "metrics", "objectives", "processes", "weights"},
    {"checks", "config", "forward", "model", "settings", "data", "reference", "loaders", "scoring", "engines", "store"},
    {"trainer", "pack_trainer", "initial_policy", "monitor", "planning", "audit", "sampling"},
    {"run"},
    {"onpolicy", "evals", "analysis", "chat"},
    {"sweep"},
    {"cli"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
PURE: dict[str, set[str]] = {
    "losses": set(),
    "logps": set(),
    "attention.layout": set(),
    "attention.sdpa": {"simpo.attention.layout"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


class Import(NamedTuple):
    """One imported module, and how it stands in its file."""

    module: str
    line: int
    lazy: bool
    typing_only: bool


def module_name(path: Path) -> str:
    """simpo/run/train.py -> simpo.run.train; simpo/run/__init__.py -> simpo.run."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imports_of(path: Path, package: str) -> list[Import]:
    """Every import of a file, also inside functions and under TYPE_CHECKING; `from a import b` names b where b is a
    module, else a."""
    found: list[Import] = []

    def visit(node: ast.AST, lazy: bool, typing_only: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                found.extend(Import(alias.name, child.lineno, lazy, typing_only) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                origin = child.module or ""
                if child.level:
                    base = package.split(".")[: len(package.split(".")) - child.level + 1]
                    origin = ".".join([*base, *filter(None, [child.module])])
                for alias in child.names:
                    whole = f"{origin}.{alias.name}"
                    module = whole if whole in MODULES or origin == "simpo" else origin
                    found.append(Import(module, child.lineno, lazy, typing_only))
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            checking = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            visit(child, lazy or inside, typing_only or checking)

    visit(ast.parse(path.read_text(encoding="utf-8")), False, False)
    return found


def own_imports(name: str) -> Iterator[Import]:
    """Imports of one module of the package from the package."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for item in imports_of(path, package):
        if item.module.split(".")[0] == "simpo":
            yield item


def layer_of(module: str) -> int:
    """Level of `simpo.a.b`: that of a. Names of the front door (`from simpo import SimPOTrainer`) are above all."""
    parts = module.split(".")
    return LEVEL.get(parts[1], len(LAYERS)) if len(parts) > 1 else len(LAYERS)


def test_every_module_has_a_layer() -> None:
    names = {name.split(".")[1] for name in MODULES if name != "simpo"}
    assert names == set(LEVEL)


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"simpo"}))
def test_imports_go_down(name: str) -> None:
    level = layer_of(name)
    front_door = {"simpo.__version__"} if name == "simpo.cli" else set()
    up = [
        f"{MODULES[name]}:{item.line} imports {item.module}"
        for item in own_imports(name)
        if layer_of(item.module) > level and item.module not in front_door
    ]
    assert up == []


def test_rooms_beside_each_other_do_not_meet() -> None:
    """onpolicy, evals and analysis can be read, and left out, one by one."""
    rooms = next(names for names in LAYERS if "analysis" in names)
    for name in MODULES:
        own = name.split(".")[1] if "." in name else ""
        if own in rooms:
            met = {item.module.split(".")[1] for item in own_imports(name) if "." in item.module}
            assert met & (rooms - {own}) == set(), name


def test_the_front_door_imports_when_asked_only() -> None:
    assert [item.module for item in own_imports("simpo") if not (item.lazy or item.typing_only)] == []


@pytest.mark.parametrize("name", PURE)
def test_pure_files_import_torch_only(name: str) -> None:
    assert {item.module for item in own_imports(f"simpo.{name}")} == PURE[name]
    others = {item.module.split(".")[0] for item in imports_of(MODULES[f"simpo.{name}"], "simpo") if not item.lazy}
    assert others - set(sys.stdlib_module_names) - {"numpy", "simpo"} == {"torch"}


def test_no_circles() -> None:
    """Among files, whatever their layer; what is imported for types only may point both ways."""
    graph = {
        name: {item.module for item in own_imports(name) if item.module in MODULES and not item.typing_only} - {name}
        for name in MODULES
    }
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)


def test_the_package_knows_nothing_of_what_stands_around_it() -> None:
    around = {"scripts", "tests", "benchmarks"}
    found = [f"{path}: {item.module}" for path in FILES for item in imports_of(path, "simpo")
             if item.module.split(".")[0] in around]  # fmt: skip
    assert found == []


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("def f():\n    from simpo.trainer import SimPOTrainer", "simpo.trainer"),
        ("class A:\n    async def f(self):\n        import simpo.run.plan as p", "simpo.run.plan"),
        ("from ..run import plan", "simpo.run.plan"),
        ("from . import tokenize", "simpo.data.tokenize"),
        ("from simpo import SimPOTrainer", "simpo.SimPOTrainer"),
        ("try:\n    import simpo.cli\nexcept ImportError:\n    pass", "simpo.cli"),
    ],
)
def test_imports_are_found_wherever_they_stand(tmp_path: Path, code: str, expected: str) -> None:
    path = tmp_path / "file.py"
    path.write_text(code)
    (item,) = imports_of(path, "simpo.data")
    assert item.module == expected and layer_of(item.module) >= layer_of("simpo.data")


def test_no_drawer_for_everything() -> None:
    assert [path for path in FILES if path.stem in ("utils", "util", "common", "helpers", "misc")] == []


@pytest.mark.parametrize("name", sorted(name for name, path in MODULES.items() if ">>> " in path.read_text()))
def test_docstring_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.attempted and not result.failed


def test_the_pure_files_have_examples() -> None:
    shown = [name for name in ("losses", "logps", "batching") if ">>> " in (PACKAGE / f"{name}.py").read_text()]
    assert shown == ["losses", "logps", "batching"]
