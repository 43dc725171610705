"""The script for GPU figures runs from end to end, here on the CPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
from tests.benchmarks import gpu_capture


@pytest.mark.capture
def test_it_measures_and_profiles(
    checkpoint: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    words = f"--model {checkpoint} --text {text_file} --sequences 2 --length 16 --dtype float32 --device cpu --rounds 1"
    monkeypatch.setattr(sys, "argv", ["gpu_capture", *words.split(), "--profile", str(tmp_path / "trace.json")])
    gpu_capture.main()
    told = capsys.readouterr().out
    assert "2 x 16 tokens" in told
    assert "of the slower of passes and disk" in told
    assert (tmp_path / "trace.json").stat().st_size
