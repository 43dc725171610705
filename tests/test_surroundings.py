"""Where the command runs is not its business: settings of matplotlib, streams that are not UTF-8 or are closed."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from analyze.cli import main
from tests import builders

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builders.on_disk(tmp_path_factory.mktemp("s") / "s.zarr", builders.random_activations())


def outliers(
    *words: str, where: Path | None = None, closed: str = "", **environment: str
) -> subprocess.CompletedProcess:
    """The command in a process of its own, as a shell starts it."""
    code = "import sys; from analyze.cli import main; sys.exit(main())"
    return subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" "${{@:2}}" {closed}', sys.executable, code, *words],
        capture_output=True,
        cwd=where,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **environment},
    )


SETTINGS = {
    "restyled": "axes.facecolor: red\nfont.size: 30\nlines.linewidth: 9\nsavefig.dpi: 10\nfigure.dpi: 20\n",
    "latex that is not there": "text.usetex: True\n",
    "another backend": "backend: TkAgg\ninteractive: True\n",
    "other fonts and sizes": "font.family: monospace\nsavefig.bbox: tight\nsvg.fonttype: none\n",
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_matplotlibrc_changes_no_figure(name: str, suffix: str, store: Path, tmp_path: Path) -> None:
    import matplotlib

    (tmp_path / "matplotlibrc").write_text(SETTINGS[name])
    settings = dict(matplotlib.rc_params_from_file(tmp_path / "matplotlibrc", use_default_template=False))
    settings.pop("backend", None)  # asked by pyplot alone, which is never imported
    plain, styled = tmp_path / f"plain{suffix}", tmp_path / f"styled{suffix}"
    words = ["sweep", str(store), "--magnitude", "1:9:1", "--plot"]
    assert main([*words, str(plain)]) == 0
    with matplotlib.rc_context(settings):
        assert main([*words, str(styled)]) == 0
    assert plain.read_bytes() == styled.read_bytes()


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "no such backend"])
def test_the_backend_of_a_notebook_is_not_asked(backend: str, store: Path, tmp_path: Path) -> None:
    file = tmp_path / "f.png"
    done = outliers("sweep", str(store), "--magnitude", "1:9:1", "--plot", str(file), MPLBACKEND=backend)
    assert done.returncode == 0, done.stderr
    assert file.stat().st_size > 1000


def test_settings_that_are_no_text_are_one_line(store: Path, tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_bytes(b"\xff\xfe\x00")
    done = outliers("sweep", str(store), "--magnitude", "1:9:1", "--plot", str(tmp_path / "f.png"), where=tmp_path)
    assert done.returncode == 2
    assert "matplotlib cannot read its settings" in done.stderr.decode().splitlines()[-1]


def test_settings_of_a_user_are_theirs_again_afterwards(store: Path) -> None:
    import matplotlib

    from analyze import sweep
    from analyze.answers.sweep_figure import sweep_figure

    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30}):
        figure = sweep_figure(sweep(store, magnitudes=np.arange(1, 9)))
        assert matplotlib.rcParams["axes.facecolor"] == "red"
        assert matplotlib.rcParams["font.size"] == 30
    assert figure.axes[0].get_facecolor() == (1, 1, 1, 1)


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("latin-1", marks=pytest.mark.exhaustive), "utf-8"])
def test_what_a_stream_has_no_sign_for_is_replaced(encoding: str, tmp_path: Path) -> None:
    name = tmp_path / "Größe 😀.zarr"
    builders.on_disk(name, builders.random_activations(), attributes={"model_id": "modèle/😀"})
    done = outliers("info", str(name), PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert ("?" in done.stdout.decode(encoding)) == (encoding != "utf-8")
    told = json.loads(outliers("info", str(name), "--json", PYTHONIOENCODING=encoding).stdout)
    assert told["attributes"]["model_id"] == "modèle/😀"


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_stops_nothing(closed: str, store: Path, tmp_path: Path) -> None:
    done = outliers("sweep", str(store), "--magnitude", "1:9:1", "--csv", str(tmp_path / "s.csv"), closed=closed)
    assert done.returncode == 0
    assert (tmp_path / "s.csv").read_text().startswith("magnitude")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="stands for a full disk")
@pytest.mark.parametrize(
    ("words", "full", "told"),
    [
        (["find"], "> /dev/full", "No space left on device"),
        (["find", "--json"], "> /dev/full", "No space left on device"),
        (["find", "--magnitude", "-1"], "2> /dev/full", ""),
    ],
)
def test_a_full_disk_behind_a_stream_is_one_line(words: list[str], full: str, told: str, store: Path) -> None:
    done = outliers(words[0], str(store), *words[1:], closed=full)
    assert done.returncode == 2
    assert told in done.stderr.decode()
    assert done.stderr.count(b"\n") == bool(told)


class Gone(io.StringIO):
    """A stream whose reader has left."""

    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_damage_is_an_error_though_nobody_reads_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged = builders.on_disk(tmp_path / "s.zarr", builders.random_activations())
    (damaged / "layer_high" / "c.0.0.0.0.0").write_bytes(b"")
    monkeypatch.setattr(sys, "stdout", Gone())
    assert main(["verify", str(damaged)]) == 2
    assert "is damaged in" in capsys.readouterr().err


@pytest.mark.parametrize(("command", "name"), [("pack", "s.zarr.zip"), ("report", "r.html")])
def test_work_goes_on_though_nobody_reads_standard_error(
    command: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = builders.on_disk(tmp_path / "s.zarr", builders.random_activations())
    (store / "notes.txt").write_text("x")  # of which pack tells
    monkeypatch.setattr(sys, "stderr", Gone())
    assert main([command, str(store), "--out", str(tmp_path / name)]) == 0
    assert (tmp_path / name).stat().st_size > 1000


@pytest.mark.exhaustive
@pytest.mark.capture
@pytest.mark.parametrize("closed", [">&-", "2> >(true)", "> >(true)"])
def test_a_capture_is_finished_though_nobody_listens(
    closed: str, checkpoint: Path, text_file: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s.zarr"
    words = ["--text", str(text_file), "--sequences", "3", "--length", "8", "--raw", "none"]
    done = outliers("capture", str(checkpoint), "--out", str(out), *words, closed=closed)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert main(["verify", str(out)]) == 0
