"""The analysis side never imports the capture stage's libraries, and this check can fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import builders

pytestmark = pytest.mark.slow

HEAVY = ("torch", "transformers", "nnsight", "datasets", "distributed")

CHECK = f"""
import contextlib, io, sys
import analyze
for name in analyze.__all__:
    getattr(analyze, name)
from analyze.cli import main
commands = {{commands!r}}
for words in commands:
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(words) == 0, words
{{extra}}
loaded = sorted(set({HEAVY!r}) & set(sys.modules))
sys.exit(f"imported: {{{{loaded}}}}" if loaded else 0)
"""


def run(commands: list[list[str]], extra: str = "") -> subprocess.CompletedProcess[str]:
    code = CHECK.format(commands=commands, extra=extra)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return builders.on_disk(tmp_path / "s.zarr", builders.random_activations())


def test_no_analysis_command_imports_torch(path: Path, tmp_path: Path) -> None:
    store = str(path)
    result = run(
        [
            ["--help"],
            ["info", store],
            ["info", store, "--json"],
            ["find", store],
            ["find", store, "--json", "--skip-first", "1"],
            ["find", store, "--all-conventions"],
            ["metrics", store],
            ["null", store, "--repeats", "2"],
            ["compare", store, "--published"],
            ["sweep", store, "--magnitude", "1:4:1", "--layers", "0.1,0.5", "--plot", str(tmp_path / "a.png")],
        ]
    )
    progress = ("reading activations: ", "reading and permuting: ")
    assert [line for line in result.stderr.splitlines() if not line.startswith(progress)] == []
    assert result.returncode == 0


@pytest.mark.parametrize("names", [HEAVY, *(pytest.param((name,), marks=pytest.mark.exhaustive) for name in HEAVY)])
def test_the_check_can_fail(names: tuple[str, ...]) -> None:
    # Stand-ins count as the libraries, so that the proof also holds where none of them is installed.
    result = run([], f"sys.modules.update(dict.fromkeys({names!r}, sys))")
    assert result.returncode == 1
    assert f"imported: {sorted(names)}" in result.stderr


def test_importing_the_package_brings_nothing_heavy() -> None:
    code = "import sys, analyze; sys.exit(bool({'matplotlib', 'zarr', 'xarray'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_command_line_waits_with_heavy_imports() -> None:
    imported = imports(["-c", "import sys; sys.argv[0] = 'bin/outliers'; import analyze.cli"])
    assert "analyze.cli" in imported
    assert not {"xarray", "dask", "pandas", "matplotlib"} & imported
    # Help and TAB wait for these alone: a table that nobody prints took 50 ms, a library's hooks a tenth of a second.
    assert not {"rich.table", "rich.console", "asyncio", "importlib.resources", "wrapt"} & imported
    assert not {"xarray", "dask"} & imports(["-c", "import analyze.cli"])  # whatever the program is called
    assert "xarray" in imports(["-c", "import analyze.cli; import analyze.accessor"])


def imports(words: list[str]) -> set[str]:
    result = subprocess.run([sys.executable, "-X", "importtime", *words], capture_output=True, text=True, check=True)
    return {line.split("|")[-1].strip() for line in result.stderr.splitlines()}
