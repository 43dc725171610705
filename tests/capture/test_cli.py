"""The capture commands as a user types them: one line for what can be mended, and nothing that exists is harmed."""

from __future__ import annotations

import importlib.util
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import xarray as xr

from analyze.cli import main
from capture import cli, environment
from capture.errors import OutliersError
from capture.store.write import StoreWriter
from tests.capture.store.test_write import make

pytestmark = pytest.mark.slow

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs the capture extra")


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("outliers: ")
    assert err.count("\n") == 1
    return err


@needs_torch
def test_capture_then_find(
    checkpoint: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new folder" / "s.zarr"
    words = ["--text", str(text_file), "--sequences", "3", "--length", "8", "--batch-size", "2", "--raw", "both"]
    assert main(["capture", str(checkpoint), "--out", str(out), *words]) == 0
    told, progress = capsys.readouterr()
    assert f"outliers find {shlex.quote(str(out))}" in told
    assert "3 of 3 sequences" in progress
    assert "tokens/s" in progress
    assert main(["find", str(out), "--json", "--magnitude", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    dataset = xr.open_zarr(out)
    assert found["hidden_size"] == 24
    hit = abs(dataset.norm_input) >= 1
    layers = hit.any("position").mean(["layer", "site"])
    positions = hit.any(["layer", "site"]).mean("position")
    assert found["count"] == int(((layers >= 0.25) & (positions >= 0.06)).sum())
    assert found["count"] > 0
    assert main(["verify", str(out)]) == 0
    assert "sound: 3 of 3 sequences" in capsys.readouterr().out
    assert main(["capture", str(checkpoint), "--out", str(out), *words]) == 2
    assert "exists already and is finished" in one_line(capsys)


@needs_torch
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--sequences", "many"], "'--sequences': Input should be a valid integer"),
        (["--sequences", "-1"], "--sequences -1 is too small"),
        (["--part", "2"], "--part 2 is no part"),
        (["--part", "0/2"], "--part 0/2 is no part"),
        (["--raw", "everything"], "--raw everything is not known"),
        (["--text", "nowhere.txt"], "--text nowhere.txt is no file"),
        (["--frobnicate"], "--frobnicate"),
        (["--sites", "nonsense"], "--sites"),
    ],
)
def test_a_bad_request_is_refused(
    checkpoint: Path,
    text_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    expected: str,
) -> None:
    request = ["capture", str(checkpoint), "--out", str(tmp_path / "s.zarr"), "--text", str(text_file)]
    assert main([*request, "--sequences", "2", "--length", "8", *words]) == 2
    assert expected in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


@needs_torch
def test_an_unknown_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--out", str(tmp_path / "s.zarr"), "--text", "python-docs"]
    assert main(["capture", "surely-no-such-model", *words]) == 2
    assert "cannot load the model surely-no-such-model" in one_line(capsys)


def test_without_torch_capture_says_what_to_install(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment.importlib.util, "find_spec", lambda name: None)
    for words in (["capture", "m", "--out", str(tmp_path / "s")], ["sites", "m"], ["estimate", "m"]):
        assert main(words) == 2
        assert "pip install 'outlier-features[capture]'" in one_line(capsys)


@needs_torch
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--raw", "foo"], "--raw foo is not known"),
        (["--sequences", "0"], "--sequences 0 is too small"),
        (["--length", "-5"], "--length -5 is too small"),
        (["--batch-size", "0"], "--batch-size 0 is too small"),
        (["--compression", "zip"], "--compression zip is not known"),
        (["--dtype", "int4"], "--dtype int4 is not known"),
        (["--sequences", "131073", "--length", "8"], "exceed what a store holds"),
        (["--sequences", "131073", "--length", "8", "--raw", "none"], "exceed what a store holds"),
    ],
)
def test_estimate_refuses_what_capture_refuses(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    assert main(["estimate", str(checkpoint), *words]) == 2
    assert expected in one_line(capsys)


@needs_torch
def test_an_output_below_a_file_is_refused(
    checkpoint: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--out", str(text_file / "s.zarr"), "--text", str(text_file), "--sequences", "1", "--length", "8"]
    assert main(["capture", str(checkpoint), *words]) == 2
    assert "is no folder; choose another --out" in one_line(capsys)


def test_capture_needs_an_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["capture", "m"]) == 2
    assert "--out" in one_line(capsys)


@needs_torch
def test_sites_lists_modules_without_weights(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    assert main(["sites", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 6 + 1
    assert lines[1].split() == ["0", "ln_attn", "model.layers.0.input_layernorm", "rms", "model.layers.0.self_attn"]
    assert lines[-1].split()[1:3] == ["final", "model.norm"]
    assert main(["sites", str(tmp_path), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["sites"]) == 7


@needs_torch
@pytest.mark.parametrize("raw", ["input", "both", "none"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_estimate_is_near_the_truth(
    checkpoint: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], raw: str, dtype: str
) -> None:
    words = ["--sequences", "5", "--length", "60", "--raw", raw, "--dtype", dtype, "--compression", "none"]
    assert main(["estimate", str(checkpoint), "--json", *words]) == 0
    predicted = json.loads(capsys.readouterr().out)
    out = tmp_path / "s.zarr"
    assert main(["capture", str(checkpoint), "--out", str(out), "--text", str(text_file), *words]) == 0
    actual = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    assert predicted["store_bytes"] == pytest.approx(actual, rel=0.1)


def test_verify_names_the_damage_and_repairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from capture.store.write import write_sequence
    from tests.capture.store.test_write import SIZES, arrays

    path = tmp_path / "s.zarr"
    make(path, raw="none")
    for number in range(3):
        write_sequence(path, number, arrays(SIZES, "none", number))
    StoreWriter(path).file("nll", 1).write_bytes(b"junk")
    assert main(["verify", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out.startswith("sequence 1: nll: ")
    assert "--repair" in err
    assert err.count("\n") == 1
    assert main(["verify", str(path), "--repair"]) == 2
    assert "run the same outliers capture again to redo sequences 1" in capsys.readouterr().err
    assert StoreWriter(path).done().tolist() == [True, False, True]


@needs_torch
@pytest.mark.exhaustive
def test_ctrl_c_leaves_a_store_that_resumes(checkpoint: Path, text_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.zarr"
    words = ["--text", str(text_file), "--sequences", "70", "--length", "8"]
    command = [sys.executable, "-m", "analyze.cli", "capture", str(checkpoint), "--out", str(out), *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 100
    while not out.exists() or not StoreWriter(out).done().any():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 130
    assert err.count("\n") == 1
    assert "the same command goes on" in err
    done = StoreWriter(out).done()
    assert 0 < done.sum() < 70
    assert main(command[3:]) == 0
    assert StoreWriter(out).done().all()


def test_parts_are_read_strictly() -> None:
    assert cli.parse_part("2/7") == (2, 7)
    for text in ("", "/", "1/", "/2", "1/2/3", "a/b", "-1/2", "1.0/2"):
        with pytest.raises(OutliersError, match="no part"):
            cli.parse_part(text)
