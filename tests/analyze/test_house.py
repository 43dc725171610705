"""The house stands: no room bears a function's name, the floors hold, and each contract would notice a breach."""

from __future__ import annotations

import ast
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import analyze

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("importlinter")
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of both packages and of the contracts."""
    for package in ("analyze", "capture"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_no_room_bears_the_name_of_a_public_function() -> None:
    # `import analyze.compare` would put the module in the place of the function.
    rooms = {path.stem for path in (ROOT / "analyze").iterdir()} - {"__init__"}
    assert rooms.isdisjoint(analyze.__all__)


def test_the_floors_hold(house: Path) -> None:
    result = lint(house)
    assert result.returncode == 0, result.stdout
    assert "3 kept, 0 broken" in result.stdout


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        (
            "analyze/display/text.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from analyze.answers.find import Outliers\n",
            "no circles, lazy and type-only imports included",
        ),
        ("capture/store/files.py", "def late():\n    from capture.run import capture\n", "floors"),
        ("analyze/answers/find.py", "def late():\n    import torch\n", "the analysis side reaches of capture"),
        ("analyze/peaks/stream.py", "def late():\n    import analyze.peaks.lookup\n", "no circles"),
    ],
)
def test_a_breach_is_noticed(house: Path, file: str, line: str, contract: str) -> None:
    path = house / file
    path.write_text(path.read_text() + "\n" + line)
    result = lint(house)
    assert result.returncode != 0
    assert any(contract in text and "BROKEN" in text for text in result.stdout.splitlines()), result.stdout


@pytest.mark.exhaustive
@pytest.mark.parametrize("script", ["outliers", "outliers.exe", "study.py"])
@pytest.mark.parametrize("order", [("analyze", "xarray"), ("xarray", "analyze")])
def test_the_accessor_is_there_whatever_its_script(tmp_path: Path, script: str, order: tuple[str, str]) -> None:
    path = tmp_path / script
    path.write_text(f"import {order[0]}\nimport {order[1]}\nprint(xarray.Dataset.outliers.__name__)\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    told = subprocess.run([sys.executable, path], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout == "OutliersAccessor\n"


def test_to_look_for_xarray_is_not_to_import_it() -> None:
    program = """
import importlib.util, sys, analyze
assert importlib.util.find_spec("xarray").origin.endswith("__init__.py")
assert "xarray" not in sys.modules
import xarray
import analyze.accessor
assert xarray.Dataset.outliers is analyze.accessor.OutliersAccessor
assert not any(type(finder).__module__ == "analyze.registration" for finder in sys.meta_path)
"""
    subprocess.run(
        [sys.executable, "-W", "error", "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True
    )


def test_the_package_alone_does_not_import_xarray() -> None:
    program = "import sys, analyze; assert 'xarray' not in sys.modules; assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)


def test_every_public_name_resolves() -> None:
    assert all(getattr(analyze, name) is not None for name in analyze.__all__)
    assert {"find_outliers", "Criteria", "OutliersError", "open_store", "compare"} <= set(dir(analyze))


def own_modules(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Modules of both packages that statements import."""
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in ("analyze", "capture"):
            yield node.module
            yield from (f"{node.module}.{one.name}" for one in node.names)


@functools.cache
def at_once(module: str) -> tuple[frozenset[str], tuple[str, ...]]:
    """Libraries, and modules of ours, that a module of ours imports as it is loaded."""
    file = ROOT / Path(*module.split(".")).with_suffix(".py")
    if not file.exists():
        return frozenset(), ()
    body = ast.parse(file.read_text()).body
    found = {node.module for node in body if isinstance(node, ast.ImportFrom) and node.module}
    found |= {one.name for node in body if isinstance(node, ast.Import) for one in node.names}
    libraries = {name.split(".")[0] for name in found} - {"analyze", "capture", *sys.stdlib_module_names}
    return frozenset(libraries), tuple(own_modules(body))


def outside(module: str) -> set[str]:
    """Libraries that importing a module of ours loads, by way of others of ours too."""
    libraries: set[str] = set()
    seen, left = {module}, [module]
    while left:
        direct, own = at_once(left.pop())
        libraries |= direct
        left += set(own) - seen
        seen |= set(own)
    return libraries


def test_a_function_imports_a_room_of_ours_only_where_that_loads_another_library() -> None:
    exempt = {"cli.py", "accessor.py", "__init__.py", "command.py", "weight_command.py"}  # help and TAB must not wait
    for file in [*ROOT.glob("analyze/**/*.py"), *ROOT.glob("capture/**/*.py")]:
        if file.name in exempt or file.parent.name == "commands":
            continue
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        anyway = outside(module)
        functions = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.FunctionDef)]
        for name in own_modules(node for function in functions for node in ast.walk(function)):
            if (ROOT / Path(*name.split(".")).with_suffix(".py")).exists():
                assert outside(name) - anyway, f"{file} can import {name} at its top"
