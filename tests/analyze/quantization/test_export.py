"""The file of channel maxima holds what a loop over the activations finds, and other tools read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from analyze import OutliersError, View, export, open_store
from analyze.cli import main
from tests import builders

FEEDS = {"ln_attn": ["attn"], "ln_mlp": ["mlp"]}
ROWS = [
    {"layer": layer, "name": name, "module": f"model.layers.{layer}.{name}", "feeds": [f"model.layers.{layer}.{feed}"]}
    for layer in range(4)
    for name, (feed,) in FEEDS.items()
]


def made(path: Path, **settings: Any) -> Path:
    values = builders.random_activations()
    return builders.on_disk(path, values, -2 * values, attributes={"sites": ROWS}, **settings)


@pytest.mark.parametrize("raw", ["both", "none"])
def test_each_tensor_is_the_largest_magnitude_of_each_channel(raw: str, tmp_path: Path) -> None:
    names = export(made(tmp_path / "s.zarr", raw=raw), smoothquant=tmp_path / "m.safetensors")
    found = load_file(tmp_path / "m.safetensors")
    values = -2 * builders.random_activations()
    assert sorted(found) == sorted(names)
    assert len(found) == 4 * 2 * 2
    for layer in range(4):
        for j, name in enumerate(FEEDS):
            expected = np.abs(values[:, layer, j]).max(axis=(0, 1))
            assert np.array_equal(found[f"model.layers.{layer}.{name}"], expected)
            assert np.array_equal(found[f"model.layers.{layer}.{FEEDS[name][0]}"], expected)


def test_torch_reads_it_and_a_view_chooses(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from safetensors.torch import load_file as load_torch

    view = View(layer_range=(1, 3), sites=("ln_mlp",), skip_first=2)
    export(made(tmp_path / "s.zarr"), smoothquant=tmp_path / "m.safetensors", view=view)
    found = load_torch(tmp_path / "m.safetensors")
    assert sorted(found) == [f"model.layers.{layer}.{name}" for layer in (1, 2) for name in ("ln_mlp", "mlp")]
    expected = np.abs(-2 * builders.random_activations()[:, 2, 1, 2:]).max(axis=(0, 1))
    assert np.array_equal(found["model.layers.2.mlp"].numpy(), expected)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = made(tmp_path / "s.zarr")
    assert main(["export", str(store), "--smoothquant", str(tmp_path / "m.safetensors"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["names"]) == 16
    assert main(["export", str(store), "--smoothquant", str(tmp_path / "m.pt")]) == 2
    assert "expected a file ending in .safetensors" in capsys.readouterr().err


def test_nothing_is_written_that_is_no_number_or_has_no_name(tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    values = builders.random_activations()
    with pytest.raises(OutliersError, match="does not say which modules were read"):
        export(builders.on_disk(tmp_path / "a.zarr", values), smoothquant=out)
    values[0, 0, 0, 0, 3] = np.inf
    store = builders.on_disk(tmp_path / "b.zarr", values, values, attributes={"sites": ROWS})
    with pytest.raises(OutliersError, match="channel 3 has no finite largest magnitude"):
        export(store, smoothquant=out)
    assert not out.exists()
    assert open_store(store).sizes["layer"] == 4
