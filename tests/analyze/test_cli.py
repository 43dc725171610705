"""The analysis commands: what they print, and one line for everything that the user can mend."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from analyze import Criteria, find_outliers, sweep
from analyze.cli import main
from analyze.commands import options
from capture.errors import OutliersError
from tests import builders


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return builders.on_disk(tmp_path / "s.zarr", builders.random_activations())


def strict(text: str) -> dict:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_find_prints_the_criterion_and_the_features(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["find", str(path)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "|norm input| >= 6 in at least 25% of (layer, site) pairs and at 6% of positions" in out
    assert "1 of 5 (20.0% of the width)" in out
    found = find_outliers(path)
    assert f"{found.features[0].critical_magnitude:.4g}" in out


def test_find_says_when_it_is_saturated(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["find", str(path), "--magnitude", "0"]) == 0
    assert "saturated" in capsys.readouterr().out


def test_find_json_is_the_result_and_nothing_else(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--magnitude", "2", "--layers", "0.5", "--positions", "0.1", "--skip-first", "1", "--scale", "rms"]
    more = ["--layer-range", "1:3", "--sites", "ln_mlp", "--sequences", "0,2", "--counting", "pooled"]
    assert main(["find", str(path), "--json", *words, *more, "--layer-unit", "layer", "--signal", "output"]) == 0
    criteria = Criteria(
        magnitude=2,
        layers=0.5,
        positions=0.1,
        skip_first=1,
        scale="rms",
        layer_range=(1, 3),
        sites=("ln_mlp",),
        sequences=(0, 2),
        counting="pooled",
        layer_unit="layer",
        signal="output",
    )
    assert strict(capsys.readouterr().out) == find_outliers(path, criteria).to_dict()


def test_flags_override_the_preset(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["find", str(path), "--json", "--preset", "dettmers", "--layer-unit", "site", "--magnitude", "3"]) == 0
    criteria = strict(capsys.readouterr().out)["criteria"]
    assert (criteria["signal"], criteria["counting"], criteria["layer_unit"]) == ("output", "pooled", "site")
    assert criteria["magnitude"] == 3


def test_sweep_writes_rows_and_figure(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, figure = tmp_path / "rows.csv", tmp_path / "figure.svg"
    words = ["--magnitude", "1:40:0.5", "--layers", "0.1:1:0.3", "--csv", str(table), "--plot", str(figure)]
    assert main(["sweep", str(path), *words, "--json"]) == 0
    magnitudes = [round(1 + i * 0.5, 12) for i in range(79)]
    expected = sweep(path, None, magnitudes, [0.1, 0.4, 0.7, 1.0])
    assert strict(capsys.readouterr().out) == expected.to_dict()
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["count"]) for row in rows] == [row["count"] for row in expected.rows()]
    assert {row["mean_layer_fraction"] for row, e in zip(rows, expected.rows(), strict=True) if e["count"] == 0} == {""}
    assert figure.read_bytes().startswith(b"<?xml")


def test_sweep_prints_a_table(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(path), "--magnitude", "1,6"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].split()[:4] == ["magnitude", "layers", "positions", "count"]
    assert [line.split()[0] for line in lines[4:]] == ["1", "6"]


def test_info_of_a_whole_store(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(path), "--json"]) == 0
    facts = strict(capsys.readouterr().out)
    assert facts["format_version"] == 1
    assert facts["complete"] is True
    assert [facts[name] for name in ("sequences", "done", "layers", "positions", "features", "raw")] == [
        3,
        3,
        4,
        7,
        5,
        "both",
    ]
    assert facts["sites"] == ["ln_attn", "ln_mlp"]
    assert facts["attributes"]["model_id"] == "test/model"
    assert facts["perplexity"] == pytest.approx(find_outliers(path).perplexity)
    assert facts["bytes"] == sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert main(["info", str(path)]) == 0
    assert "complete" in capsys.readouterr().out


@pytest.mark.parametrize("done", [0, 2])
def test_info_of_an_unfinished_store(tmp_path: Path, done: int, capsys: pytest.CaptureFixture[str]) -> None:
    path = builders.on_disk(tmp_path / "s.zarr", builders.random_activations(), done=done)
    assert main(["info", str(path), "--json"]) == 0
    facts = strict(capsys.readouterr().out)
    assert (facts["complete"], facts["done"], facts["sequences"]) == (False, done, 3)
    assert main(["info", str(path)]) == 0
    assert f"unfinished: {done} of 3 sequences are done" in capsys.readouterr().out
    for command in ("find", "sweep"):
        assert main([command, str(path)]) == 2
        assert f"{done} of 3 sequences are done" in capsys.readouterr().err


def test_values_that_are_not_finite_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = builders.random_activations()
    x[0, 0, 0, 0, 0] = np.nan
    path = builders.on_disk(tmp_path / "s.zarr", x)
    for command, words in (("find", "1 values are NaN or infinite"), ("info", "not finite, output  1 values")):
        assert main([command, str(path)]) == 0
        assert words in capsys.readouterr().out


def test_a_strangers_attributes_are_shown_and_not_obeyed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    attributes = {"model_id": "[red]evil[/red]\x1b[2J\nx", "[bold]key": ["[/]", "\x07"], "number": float("nan")}
    path = builders.on_disk(tmp_path / "s.zarr", builders.random_activations(), attributes=attributes)
    assert main(["info", str(path)]) == 0
    out = capsys.readouterr().out
    assert "[red]evil[/red] [2J x" in out
    assert "\x1b" not in out
    assert "\x07" not in out
    assert main(["info", str(path), "--json"]) == 0
    assert strict(capsys.readouterr().out)["attributes"]["number"] is None


BAD = [
    (["find"], "Missing argument 'STORE'"),
    (["nothing"], "No such command 'nothing'"),
    (["find", "STORE", "--nothing"], "No such option"),
    (["find", "STORE", "--magnitude", "six"], "--magnitude"),
    (["find", "STORE", "--magnitude"], "--magnitude"),
    (["find", "STORE", "--magnitude", "-1"], "magnitude is -1.0; expected a finite number, 0 or more"),
    (["find", "STORE", "--magnitude", "nan"], "magnitude is nan"),
    (["find", "STORE", "--layers", "1.5"], "layers is 1.5; expected a fraction from 0 to 1"),
    (["find", "STORE", "--positions", "-0.1"], "positions is -0.1"),
    (["find", "STORE", "--preset", "mine"], "preset is 'mine'; expected one of study, dettmers"),
    (["find", "STORE", "--signal", "both"], "signal is 'both'"),
    (["find", "STORE", "--counting", "all"], "counting is 'all'"),
    (["find", "STORE", "--layer-range", "3"], "layer-range is '3'; expected FIRST:STOP"),
    (["find", "STORE", "--layer-range", "2:9"], "layer-range is 2:9; the store has layers 0 to 3"),
    (["find", "STORE", "--sites", "ln_x"], "sites has ln_x; the store has ln_attn, ln_mlp"),
    (["find", "STORE", "--sequences", "a"], "sequences is 'a'; expected indices such as 0,2,5:8"),
    (["find", "STORE", "--sequences", "0:9"], "sequences has 3; the store has sequences 0 to 2"),
    (["find", "STORE", "--skip-first", "7"], "skip-first is 7"),
    (["find", "STORE/nowhere"], "no store at"),
    (["find", "FOLDER"], "no Zarr v3 store"),
    (["info", "STORE/nowhere"], "no store at"),
    (["sweep", "STORE", "--magnitude", "1:2"], "magnitude is '1:2'; expected START:STOP:STEP"),
    (["sweep", "STORE", "--magnitude", "2:1:0.5"], "expected START:STOP:STEP with START <= STOP and STEP > 0"),
    (["sweep", "STORE", "--magnitude", "1:2:0"], "STEP > 0"),
    (["sweep", "STORE", "--magnitude", "1:1e9:0.1"], "expected at most 1,000,000"),
    (["sweep", "STORE", "--magnitude", "1,,2"], "magnitude is '1,,2'; expected a number, a list"),
    (["sweep", "STORE", "--magnitude", "-2:2:1"], "magnitude is -2.0"),
    (["sweep", "STORE", "--layers", "0.5:1.5:0.5"], "layers is 1.5"),
    (["sweep", "STORE", "--plot", "a.gif"], "expected a figure file ending in .png or .svg"),
    (["sweep", "STORE", "--csv", "FOLDER"], "cannot write"),
]


@pytest.mark.parametrize(
    ("words", "message"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_one_line_and_exit_code_two(
    path: Path, tmp_path: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.replace("STORE", str(path)).replace("FOLDER", str(tmp_path)) for word in words]
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("outliers: ")
    assert message in err
    assert err.count("\n") == 1


def test_no_words_show_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    for command in ("info", "find", "sweep", "capture"):
        assert command in out


def test_a_bug_is_not_hidden(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analyze.answers.find.find_outliers", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["find", str(path)])


def test_an_interrupt_is_one_line(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("analyze.answers.find.find_outliers", interrupt)
    assert main(["find", str(path)]) == 130
    assert capsys.readouterr().err == "outliers: interrupted\n"


def test_the_whole_process_exits_as_documented(path: Path) -> None:
    command = [sys.executable, "-m", "analyze.cli"]
    good = subprocess.run([*command, "find", str(path), "--json"], capture_output=True, text=True, check=False)
    assert (good.returncode, good.stderr) == (0, "")
    strict(good.stdout)
    bad = subprocess.run([*command, "find", str(path / "nowhere")], capture_output=True, text=True, check=False)
    assert (bad.returncode, bad.stdout, bad.stderr.count("\n")) == (2, "", 1)


def test_a_closed_pipe_is_no_error(path: Path) -> None:
    command = [sys.executable, "-m", "analyze.cli", "sweep", str(path), "--magnitude", "0:2:0.0001"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 0


def test_ctrl_c_ends_the_process_with_one_line() -> None:
    script = (
        "import sys, time, analyze.answers.find\n"
        "def wait(*_, **__):\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
        "analyze.answers.find.find_outliers = wait\n"
        "from analyze.cli import main\n"
        "sys.exit(main(['find', 'x']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "outliers: interrupted\n")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("6", [6]),
        ("1,2.5,6.7", [1, 2.5, 6.7]),
        ("1:3:0.5", [1, 1.5, 2, 2.5, 3]),
        ("0.1:1:0.1", [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
        ("1:2:0.3", [1, 1.3, 1.6, 1.9]),
        ("2:2:1", [2]),
        ("0,1:2:1", [0, 1, 2]),
        ("0:1:0.001", [i / 1000 for i in range(1001)]),
    ],
)
def test_numbers(text: str, values: list[float]) -> None:
    assert options.numbers(text, "magnitude") == values


def test_sequences_and_layers() -> None:
    assert options.sequences("0,2,5:8") == (0, 2, 5, 6, 7)
    assert options.layer_range("4:12") == (4, 12)
    with pytest.raises(OutliersError, match="expected indices"):
        options.sequences("1:2:3")


def test_version_names_the_libraries(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("outliers 0.")
    assert any(line.startswith("zarr 3.") for line in lines)


@pytest.mark.parametrize(
    ("words", "function"),
    [
        (["find", "--skip-first", "1"], "analyze.peaks.stream.stream_peaks"),
        (["find"], "analyze.reading.arrays.decode"),
        (["metrics"], "analyze.reading.arrays.decode"),
    ],
)
def test_what_does_not_fit_into_memory_is_one_line(
    words: list[str],
    function: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = builders.on_disk(tmp_path / "s.zarr", builders.random_activations())

    def full(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 1.00 TiB for an array")

    monkeypatch.setattr(function, full)
    monkeypatch.setattr("analyze.peaks.lookup.stream_peaks", full)
    assert main([words[0], str(path), *words[1:]]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "does not hold what was asked for (Unable to allocate 1.00 TiB for an array); ask for a part of it" in told
