"""The data of a report: a grid of magnitudes, counts of peaks between them, and a page that holds strangers' texts."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from dask import delayed
from hypothesis import given
from hypothesis import strategies as st

from analyze import Criteria, find_outliers, write_report
from analyze.cli import main
from analyze.peaks.lookup import view_peaks
from analyze.report import grid
from analyze.report.embed import packed, text, text_length
from analyze.report.levels import bucket_starts, span, tally
from analyze.report.page import json_text
from capture.errors import OutliersError
from capture.store.schema import VARIABLES
from tests import builders

pytestmark = pytest.mark.slow


class Page(HTMLParser):
    """Elements of a page, as a browser's parser would see them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self._id: str | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._id = dict(attrs).get("id")

    def handle_endtag(self, tag: str) -> None:
        self._id = None

    def handle_data(self, data: str) -> None:
        if self._id is not None:
            self.texts[self._id] = self.texts.get(self._id, "") + data


def facts_of(path: Path) -> dict[str, Any]:
    return json.loads(Page(path.read_text()).texts["facts"])


def decoded(path: Path, store: int, signal: str) -> dict[str, np.ndarray]:
    """The arrays of a page, decoded independently and with features in their own order."""
    page = Page(path.read_text())
    facts = json.loads(page.texts["facts"])["stores"][store]
    result = {}
    for name, (block, size) in facts["signals"][signal]["blocks"].items():
        planes = np.frombuffer(zlib.decompress(base64.b64decode(page.texts[f"block-{block}"])), np.uint8)
        values = sum(plane.astype(np.uint64) << np.uint64(8 * i) for i, plane in enumerate(planes.reshape(size, -1)))
        result[name] = values.astype(np.uint32).view(np.float32) if name == "largest" else values.astype(np.int64)
    places, width, sequences = len(facts["layers"]) * len(facts["sites"]), facts["width"], len(facts["sequences"])
    back = np.argsort(result.pop("order"))
    for name in ("layer", "extra", "position"):
        result[name] = result[name].reshape(-1, width, sequences)[:, back]
    result["largest"] = result["largest"].reshape(width, sequences)[back]
    for name in ("profile", "negative"):
        result[name] = result[name].reshape(places, width)[:, back]
    result["buckets"] = result["buckets"].reshape(-1, width)[:, back]
    return result


def peculiar() -> xr.Dataset:
    """Activations with ties at round magnitudes, NaN, infinities and features of very different size."""
    values = builders.random_activations((3, 4, 2, 70, 9), 3)
    values *= np.float32(10.0) ** np.linspace(-2, 2.5, 9, dtype=np.float32)
    values[..., 4] = np.round(values[..., 4] * 2) / 2
    values[1, 2, 0, 5, 3] = np.nan
    values[2, 1, 1, 6, 2] = -np.inf
    values[:, 3, 1, :, 1] = np.nan
    return builders.dataset(values, values / 3)


@pytest.mark.parametrize("density", range(len(grid.DENSITIES)))
@pytest.mark.parametrize(("low", "high"), [(0.3, 24704.0), (1, 6), (0.0021, 0.9), (5, 5.5), (37, 38)])
def test_a_grid_covers_the_range_with_round_numbers_and_has_six(density: int, low: float, high: float) -> None:
    values = grid.grid(low, high, density)
    assert values == sorted(set(values))
    assert values[0] <= min(low, 6)
    assert values[-2] <= max(high, 6) < values[-1]
    assert 6.0 in values
    assert all(float(f"{value:.3g}") == value for value in values)


def test_grids_thin_out() -> None:
    sizes = [len(grid.grid(1, 1000, density)) for density in range(len(grid.DENSITIES))]
    assert sizes == sorted(set(sizes), reverse=True)


@pytest.mark.parametrize("magnitudes", [[], [-1], [float("nan")], [1, 1 + 1e-12], list(range(3000))])
def test_magnitudes_that_are_no_thresholds(magnitudes: list[float]) -> None:
    with pytest.raises(OutliersError, match="magnitude"):
        grid.chosen(magnitudes)


@given(st.lists(st.integers(0, 2**32 - 1), max_size=50), st.sampled_from([np.uint8, np.uint16, np.uint32]))
def test_what_is_packed_comes_back(numbers: list[int], kind: type) -> None:
    values = np.asarray(numbers, np.uint64).astype(kind)
    stream = packed(values)
    planes = np.frombuffer(zlib.decompress(stream), np.uint8).reshape(values.itemsize, -1)
    assert np.array_equal(planes.T.copy().view(f"<u{values.itemsize}").ravel(), values)
    assert len(text(stream)) == text_length(stream)


@pytest.mark.parametrize("positions", [1, 5, 64, 65, 128, 2048])
def test_buckets_cut_the_positions_into_stretches(positions: int) -> None:
    starts = bucket_starts(positions)
    assert starts[0] == 0
    assert len(starts) == min(positions, 64)
    lengths = np.diff([*starts, positions])
    assert (lengths > 0).all()
    if positions > 64:
        assert lengths[0] == 1
        assert np.ptp(lengths[1:]) <= 1


@pytest.mark.parametrize("signal", ["input", "output"])
def test_counts_against_a_plain_loop(signal: str) -> None:
    store, criteria = peculiar(), Criteria(signal=signal)  # type: ignore[arg-type]
    magnitudes = [0.0, 0.5, 1.0, 2.5, 6.0, 100.0]
    counted = tally(view_peaks(store, criteria), criteria, magnitudes)
    values = np.abs(store[f"norm_{signal}"].values)
    for g, (low, high) in enumerate(zip(magnitudes, [*magnitudes[1:], np.inf], strict=True)):
        for at, f in enumerate(counted.order):
            for n in range(3):
                x = values[n, ..., f]
                hits = [
                    (
                        (x >= m).any(axis=(1, 2)).sum(),
                        (x >= m).any(axis=2).sum(),
                        (x >= m).any(axis=(0, 1)).sum(),
                    )
                    for m in (low, high)
                ]
                if g == len(magnitudes) - 1:
                    hits[1] = (0, 0, 0)
                layer, site, position = np.subtract(*hits)
                assert counted.layer[g, at, n] == layer
                assert counted.extra[g, at, n] == site - layer
                assert counted.position[g, at, n] == position
    largest = np.nanmax(values, axis=(1, 2, 3)).T
    assert np.array_equal(counted.largest, largest[counted.order])


def test_the_profile_has_the_level_and_the_sign_of_the_largest_value() -> None:
    store, criteria = peculiar(), Criteria()
    magnitudes = [0.01, 0.5, 1.0, 2.5, 6.0, 100.0]
    counted = tally(view_peaks(store, criteria), criteria, magnitudes)
    values = store["norm_input"].values
    for at, f in enumerate(counted.order):
        for place, (layer, site) in enumerate(np.ndindex(4, 2)):
            x = values[:, layer, site, :, f].ravel()
            x = x[~np.isnan(x)]
            largest = x[np.argmax(np.abs(x))] if x.size else 0.0
            assert counted.profile[place, at] == sum(abs(largest) >= m for m in magnitudes)
            assert counted.negative[place, at] == (largest < 0)
        stretches = np.split(np.nanmax(np.abs(values[..., f]), axis=(0, 1, 2)), bucket_starts(70)[1:])
        levels = [sum(stretch.max() >= m for m in magnitudes) for stretch in stretches]
        assert counted.buckets[:, at].tolist() == levels


def test_the_span_goes_from_saturation_to_nothing() -> None:
    store, criteria = peculiar(), Criteria()
    low, high = span(view_peaks(store, criteria), criteria)
    values = np.abs(store["norm_input"].values)
    assert high == values[np.isfinite(values)].max()
    assert find_outliers(store, Criteria(magnitude=low, positions=0)).distinct_features == 9


@pytest.mark.parametrize("counting", ["per-sequence", "pooled"])
@pytest.mark.parametrize("unit", ["site", "layer"])
def test_the_data_of_a_page_give_what_find_gives(tmp_path: Path, counting: str, unit: str) -> None:
    store = peculiar()
    out = tmp_path / "r.html"
    written = write_report(store, out)
    assert written.bytes == out.stat().st_size
    magnitudes = facts_of(out)["magnitudes"]
    assert tuple(magnitudes) == written.magnitudes
    rng = np.random.default_rng(0)
    for _ in range(40):
        signal = str(rng.choice(["input", "output"]))
        g, a, b = int(rng.integers(len(magnitudes))), float(rng.choice([0, 0.125, 0.3, 1])), float(rng.random() ** 2)
        data = decoded(out, 0, signal)
        layer, site = (data[name][g:].sum(axis=0) for name in ("layer", "extra"))
        position = data["position"][g:].sum(axis=0)
        hits = layer + site if unit == "site" else layer
        units = 8 if unit == "site" else 4
        total = 70
        if counting == "pooled":
            reached = (data["profile"] > g).reshape(4, 2, 9)
            hits = (reached.sum(axis=(0, 1)) if unit == "site" else reached.any(axis=1).sum(axis=0))[:, None]
            position, total = position.sum(axis=1, keepdims=True), 210
        found = (hits / units >= a) & (position / total >= b)
        expected = find_outliers(
            store,
            Criteria(magnitude=magnitudes[g], layers=a, positions=b, signal=signal, counting=counting, layer_unit=unit),  # type: ignore[arg-type]
        )
        assert found.sum() == expected.count
        assert found.any(axis=1).sum() == expected.distinct_features
        for row in expected.features:
            n = row.sequence or 0
            assert hits[row.feature, n] / units == row.layer_fraction
            assert position[row.feature, n] / total == row.position_fraction
            largest = data["largest"][row.feature]
            assert (largest.max() if row.sequence is None else largest[n]) == row.max_magnitude


HOSTILE = (
    "</script><script>window.pwned = 1</script>",
    "<!--<script>",
    "<img src=x onerror='window.pwned = 1'>",
    "]]>\u2028\u2029\x00\x1b[31m &lt;b&gt; \u202egpj.exe",
    "${window.pwned = 1}",
    "<!-- slot: scripts -->",
)


@given(st.text() | st.sampled_from(HOSTILE))
def test_json_in_a_page_means_the_same_and_nothing_else(value: str) -> None:
    written = json_text({"a": value})
    assert json.loads(written) == {"a": value}
    assert not set("<>&\u2028\u2029") & set(written)
    assert written.isascii()


def test_a_strangers_texts_make_no_elements(tmp_path: Path) -> None:
    store = builders.dataset(builders.random_activations())
    plain_page, hostile_page = tmp_path / "a.html", tmp_path / "b.html"
    write_report(store, plain_page)
    for name in ("model_id", "architecture", "text_source", "compute_dtype"):
        store.attrs[name] = " ".join(HOSTILE)
    store = store.assign_coords(site=["</script><script>alert(1)</script>", "<!--"])
    write_report(store, hostile_page)
    tags = [[tag for tag, _ in Page(path.read_text()).tags] for path in (plain_page, hostile_page)]
    assert tags[0] == tags[1]
    assert "<script>window.pwned" not in hostile_page.read_text()
    assert facts_of(hostile_page)["stores"][0]["sites"][0] == "</script><script>alert(1)</script>"


def test_the_policy_names_every_script_and_permits_no_network(tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    write_report(builders.dataset(builders.random_activations()), out)
    html = out.read_bytes().decode()
    page = Page(html)
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; base-uri 'none'; form-action 'none'; script-src 'sha256-")
    for tag in ("script", "style"):
        inside = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digests = {base64.b64encode(hashlib.sha256(each.encode()).digest()).decode() for each in inside}
        rule = next(part for part in policy.split("; ") if part.startswith(f"{tag}-src"))
        assert set(re.findall(r"'sha256-([^']+)'", rule)) == digests
        assert "unsafe" not in rule
    for _, attributes in page.tags:
        assert not {"src", "srcset", "style"} & set(attributes)
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("href", "#").startswith("#")  # type: ignore[union-attr]
    assert "Copyright (c) 2022 Leon Sorokin" in html


def test_private_attributes_stay_out(tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    path = builders.on_disk(
        tmp_path / "s.zarr",
        builders.random_activations(),
        attributes={
            "command_line": "capture /home/secret",
            "model_id": "/home/secret/models/mine/",
            "text_source": "../secret/text.txt",
            "text_revision": "hf:org/name:a/b",
            "weight_quantisation": r"C:\secret\q4",
            "architecture": "secret/of/A",
        },
    )
    write_report(path, out)
    html = out.read_text()
    assert "secret" not in html
    assert str(tmp_path) not in html
    store = facts_of(out)["stores"][0]
    assert (store["folder"], store["name"]) == ("s.zarr", "mine")
    shown = dict(store["attributes"])
    assert (shown["text_source"], shown["text_revision"]) == ("text.txt", "hf:org/name:a/b")
    assert (shown["weight_quantisation"], shown["architecture"]) == ("q4", "A")
    assert main(["report", str(path), "--out", str(out), "--keep-paths"]) == 0
    store = facts_of(out)["stores"][0]
    assert (store["folder"], store["name"]) == (str(path), "/home/secret/models/mine/")
    assert "command_line" not in out.read_text()


def test_the_same_stores_make_the_same_page(tmp_path: Path) -> None:
    store = peculiar()
    pages = [tmp_path / "a.html", tmp_path / "b.html"]
    for page in pages:
        write_report([store, store], page)
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_the_budget_thins_the_grid_and_is_kept(tmp_path: Path) -> None:
    store = builders.dataset(builders.random_activations((4, 4, 2, 128, 64), 1))
    out = tmp_path / "r.html"
    most = write_report(store, out)
    fixed = write_report(store, out, magnitudes=[6]).bytes
    budget = (most.bytes + fixed) // 2
    thin = write_report(store, out, budget=budget)
    assert thin.bytes <= budget
    assert 1 < len(thin.magnitudes) < len(most.magnitudes)
    with pytest.raises(OutliersError, match=r"needs about 0\.\d MB, the budget is 0\.05 MB; choose fewer stores"):
        write_report(store, out, budget=50_000)
    with pytest.raises(OutliersError, match="choose fewer magnitudes"):
        write_report(store, out, budget=50_000, magnitudes=[1, 2])


def test_views_are_passed_on(tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    values = builders.random_activations()
    values[:, :, :, 0] *= 100
    criteria = Criteria(skip_first=1, layer_range=(1, 3), sites=("ln_mlp",), sequences=(0, 2), scale="rms", magnitude=2)
    write_report(builders.on_disk(tmp_path / "s.zarr", values), out, criteria)
    facts = facts_of(out)
    store = facts["stores"][0]
    assert (store["sequences"], store["layers"], store["sites"]) == ([0, 2], [1, 2], ["ln_mlp"])
    assert (store["positions"], store["first_position"]) == (6, 1)
    words = "--layer-range 1:3 --sites ln_mlp --sequences 0,2 --skip-first 1 --scale rms"
    assert facts["view"] == words.split()
    g = facts["opening"]["magnitude"]
    assert facts["magnitudes"][g] == 2
    data = decoded(out, 0, "input")
    expected = find_outliers(tmp_path / "s.zarr", Criteria(**{**vars(criteria), "layers": 0, "positions": 1 / 6}))
    assert (data["position"][g:].sum(axis=0) >= 1).sum() == expected.count


def wide() -> xr.Dataset:
    """Peaks of 16 x 2,048 tokens, 4,096 wide: streams that grow with depth, massive first tokens, bfloat16 values."""
    sequences, layers, positions, width = 16, 32, 2048, 4096
    rng = np.random.default_rng(0)
    scale = np.exp(0.7 * rng.standard_normal(width, dtype=np.float32))
    scale[::500] *= 30
    sizes = {"signal": 2, "sequence": sequences, "layer": layers, "site": 2, "position": positions, "feature": width}

    def cut(values: np.ndarray) -> np.ndarray:
        return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)

    def position_peak(signal: int, n: int) -> np.ndarray:
        draws = np.random.default_rng([signal, n]).standard_normal((positions, width), dtype=np.float32)
        draws *= 0.35
        values = np.exp(draws, out=draws)
        values *= scale * (12, 2)[signal]
        values[0, ::500] *= 50
        return cut(values)[None, None]

    growth = np.exp(2.5 * np.linspace(0, 1, layers, dtype=np.float32))[:, None, None]
    noise = rng.standard_normal((2, sequences, layers, 2, width), dtype=np.float32)
    high = scale * np.exp(0.3 * noise)
    high[0] *= 2 * growth
    low = -high * rng.uniform(0.5, 1.5, high.shape).astype(np.float32)
    blocks = [
        [
            da.from_delayed(delayed(position_peak)(signal, n), (1, 1, positions, width), np.float32)
            for n in range(sequences)
        ]
        for signal in range(2)
    ]
    data = {
        "layer_high": cut(high),
        "layer_low": cut(low),
        "position_peak": da.concatenate([da.concatenate(row, axis=1) for row in blocks], axis=0),
        "nll": np.ones((sequences, positions), np.float32),
        "nonfinite_count": np.zeros((2, sequences, layers, 2), np.int32),
    }
    coords: dict[str, Any] = {name: np.arange(size) for name, size in sizes.items()}
    coords |= {"signal": ["input", "output"], "site": list(builders.SITES)}
    return xr.Dataset(
        {name: (VARIABLES[name].dims, values) for name, values in data.items()}, coords, {"model_id": "wide"}
    )


@pytest.mark.exhaustive
def test_a_wide_store_makes_a_page_to_mail(tmp_path: Path) -> None:
    store, out = wide(), tmp_path / "r.html"
    written = write_report(store, out)
    assert written.bytes < 5_000_000
    assert len(written.magnitudes) >= 40
    peaks = store["position_peak"][1, 5].values
    position = decoded(out, 0, "output")["position"][:, :, 5]
    for g in (0, 10, 20, 30):
        hits = (peaks >= np.float32(written.magnitudes[g])).sum(axis=0)
        assert np.array_equal(position[g:].sum(axis=0), hits)


def test_nothing_but_zeros(tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    written = write_report(builders.dataset(np.zeros((1, 1, 1, 1, 2))), out)
    assert 6.0 in written.magnitudes
    assert decoded(out, 0, "input")["position"].sum() == 0


def test_wrong_input(tmp_path: Path) -> None:
    store = builders.dataset(builders.random_activations())
    (tmp_path / "folder.html").mkdir()
    for out in (tmp_path / "folder.html", tmp_path / "absent" / "r.html"):
        with pytest.raises(OutliersError, match="expected a file in a folder that exists"):
            write_report(store, out)
    (tmp_path / "folder.html").rmdir()
    with pytest.raises(OutliersError, match="no store to report on"):
        write_report([], tmp_path / "r.html")
    for signals, words in (([], "no signal"), (["both"], "signal is 'both'")):
        with pytest.raises(OutliersError, match=words):
            write_report(store, tmp_path / "r.html", signals=signals)
    with pytest.raises(OutliersError, match="^store 2: sequences has 2; the store has sequences 0 to 1"):
        write_report([store, store.isel(sequence=[0, 1])], tmp_path / "r.html", Criteria(sequences=(2,)))
    for name in (".", "r", "s.zarr.zip"):
        with pytest.raises(OutliersError, match=r"expected a file ending in \.html"):
            write_report(store, tmp_path / name)
    for budget in (0, -1.0, float("nan")):
        with pytest.raises(OutliersError, match=r"budget is .* MB; expected a size above 0"):
            write_report(store, tmp_path / "r.html", budget=budget)
    assert not list(tmp_path.iterdir())


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = builders.on_disk(tmp_path / "s.zarr", builders.random_activations()), tmp_path / "r.html"
    words = ["--preset", "dettmers", "--layers", "0.5", "--magnitude", "1:7:1.5", "--signal", "input"]
    assert main(["report", str(path), str(path), "--out", str(out), *words, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == {"path": str(out), "bytes": out.stat().st_size, "stores": 2, "magnitudes": [1, 2.5, 4, 5.5, 7]}
    facts = facts_of(out)
    assert facts["opening"] == {
        "magnitude": 3,
        "threshold": 3,
        "layers": 0.5,
        "positions": 0.06,
        "signal": "input",
        "counting": "pooled",
        "unit": "layer",
    }
    assert list(facts["stores"][0]["signals"]) == ["input"]
    assert main(["report", str(path), "--out", str(out)]) == 0
    assert "1 store" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "none.zarr"), "--out", str(out)]) == 2
    assert main(["report", str(path), "--out", str(out), "--budget", "nan"]) == 2
    assert main(["report", str(path), "--out", str(out), "--budget", "0.01"]) == 2
    assert "larger --budget" in capsys.readouterr().err
