"""A model that does not fit: what accelerate keeps on the CPU or the disk is read where it keeps it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
accelerate = pytest.importorskip("accelerate")

from analyze import open_store  # noqa: E402
from capture.errors import OutliersError  # noqa: E402
from capture.models.load import load_model  # noqa: E402
from capture.models.placement import input_device, memory_limits, placed_where, whole_parameter  # noqa: E402
from capture.models.traced import traced  # noqa: E402
from capture.progress import Silence  # noqa: E402
from capture.run import capture  # noqa: E402
from capture.sites.place import find_sites, norm_parameters  # noqa: E402
from capture.sites.trial import refuse_lookahead, refuse_untakeable  # noqa: E402
from capture.trace import trace_batch  # noqa: E402
from tests.architectures import ARCHITECTURES, VOCABULARY  # noqa: E402

CPU = torch.device("cpu")
IDS = np.random.default_rng(0).integers(1, VOCABULARY, (2, 9), dtype=np.int32)
ALL = frozenset({"norm_input", "norm_output", "final_input"})

OFFLOADING: dict[str, Callable[[Any, Path], Any]] = {
    "cpu": lambda model, folder: accelerate.cpu_offload(model, execution_device=CPU),
    "disk": lambda model, folder: accelerate.disk_offload(model, folder, execution_device=CPU),
}


def captured(model: Any) -> dict[Any, Any]:
    """Everything that a capture reads, by place."""
    seen: dict[Any, Any] = {}
    placed = find_sites(model)
    batch = trace_batch(traced(model), placed, IDS, lambda *place: seen.update({place[:3]: place[3].clone()}), ALL)
    return {
        **{place: value.numpy() for place, value in seen.items()},
        **{name: value for name, value in vars(batch).items() if name != "position_peaks"},
        **dict(enumerate(batch.position_peaks)),
    }


@pytest.mark.parametrize("where", OFFLOADING)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "opt", "mixtral"])
def test_an_offloaded_model_gives_what_a_whole_one_gives(name: str, where: str, tmp_path: Path) -> None:
    whole, model = (ARCHITECTURES[name].build() for _ in range(2))
    OFFLOADING[where](model, tmp_path / "kept")
    assert any(parameter.is_meta for parameter in model.parameters())
    assert input_device(model) == CPU
    placed = find_sites(model)
    assert placed == find_sites(whole)
    assert refuse_lookahead(model)
    refuse_untakeable(model, placed, IDS, IDS[:1])
    for site in placed.sites:
        for one, other in zip(norm_parameters(model, site), norm_parameters(whole, site), strict=True):
            np.testing.assert_array_equal(one, other)
    expected, found = captured(whole), captured(model)
    assert expected.keys() == found.keys()
    for place, values in expected.items():
        np.testing.assert_array_equal(values, found[place])
    assert any(parameter.is_meta for parameter in model.parameters())  # nothing was left where it does not fit


@pytest.mark.parametrize("where", OFFLOADING)
def test_a_parameter_inside_a_norm_is_found(where: str, tmp_path: Path) -> None:
    class Wrapped(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.LayerNorm(8)

        def forward(self, x: Any) -> Any:
            return self.inner(x)

    model = Wrapped()
    expected = torch.randn(8)
    model.inner.weight.data.copy_(expected)
    OFFLOADING[where](model, tmp_path / "kept")
    assert model.inner.weight.is_meta
    assert torch.equal(whole_parameter(model, "inner.weight"), expected)


class Told(Silence):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, words: str) -> None:
        self.lines.append(words)


def test_what_does_not_fit_is_captured_from_the_disk(checkpoint: Path, text_file: Path, tmp_path: Path) -> None:
    told = Told()
    words: dict[str, Any] = {"text": str(text_file), "sequences": 2, "length": 8}
    plain = open_store(capture(str(checkpoint), tmp_path / "plain.zarr", **words))
    part = capture(str(checkpoint), tmp_path / "part.zarr", max_memory="cpu=40KB", reporter=told, **words)
    (line,) = told.lines
    assert "GB on cpu" in line
    assert "GB on disk" in line
    assert open_store(part).attrs["device"] == "cpu"
    for name in ("norm_input", "norm_weight", "layer_high", "position_peak", "nll"):
        np.testing.assert_array_equal(open_store(part)[name].values, plain[name].values)


def test_where_weights_lie_is_told_in_one_line(checkpoint: Path) -> None:
    told = Told()
    loaded = load_model(str(checkpoint), max_memory="cpu=1GB", reporter=told)
    assert placed_where(loaded.model) == "0.00 GB on cpu"
    assert told.lines == [f"the weights of {checkpoint} lie where there is room: 0.00 GB on cpu"]


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("cpu=60GiB", {"cpu": "60GiB"}),
        ("0=20GiB,1=20.5GB, CPU=100mb", {0: "20GiB", 1: "20.5GB", "cpu": "100MB"}),
        ("12=3 TiB", {12: "3 TiB"}),
    ],
)
def test_limits_of_memory_are_read(text: str, limits: dict[Any, str]) -> None:
    assert memory_limits(text) == limits


@pytest.mark.parametrize("text", ["", "20GiB", "gpu=3GB", "0=lots", "0=3", "0=-3GB", "cuda:0=3GB", "0=3GB;1=3GB"])
def test_limits_that_are_none_are_refused_before_the_weights(text: str, checkpoint: Path) -> None:
    with pytest.raises(OutliersError, match="--max-memory"):
        load_model(str(checkpoint), max_memory=text)


@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_limits_are_for_auto_alone(device: str, checkpoint: Path) -> None:
    with pytest.raises(OutliersError, match=r"--max-memory was given; expected it with --device auto|--device cuda"):
        load_model(str(checkpoint), device=device, max_memory="cpu=1GB")
