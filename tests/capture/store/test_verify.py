"""Every kind of damage to a store is found and named; repair takes back only what is damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from analyze.cli import main
from capture.errors import OutliersError
from capture.store import write
from capture.store.files import file_digest
from capture.store.schema import CHECKSUMS, RAW_VARIABLES, Sizes
from capture.store.verify import verify
from tests.capture.store.test_write import arrays, make

SIZES = Sizes(sequences=2, layers=2, sites=("ln_attn", "ln_mlp"), positions=3, features=4)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole store whose peaks are those of its raw values."""
    path = tmp_path_factory.mktemp("sound") / "s.zarr"
    make(path, SIZES, raw="both")
    for number in range(2):
        content = arrays(SIZES, "both", number)
        content["norm_input"][0, 0, 0, 0] = np.nan
        content["norm_input"][1, 1, :, 2] = np.nan
        content["norm_output"][0, 1, 2, 3] = -np.inf
        both = np.stack([content["norm_input"], content["norm_output"]])
        content["layer_high"] = np.fmax.reduce(both, axis=3)
        content["layer_low"] = np.fmin.reduce(both, axis=3)
        content["position_peak"] = np.fmax.reduce(np.fmax.reduce(np.abs(both), axis=1), axis=1)
        content["nonfinite_count"] = (~np.isfinite(both)).sum((3, 4)).astype(np.int32)
        content["final_input"][0, 1] = np.nan
        content["final_high"] = np.fmax.reduce(content["final_input"], axis=0)
        content["final_low"] = np.fmin.reduce(content["final_input"], axis=0)
        write.write_sequence(path, number, content)
    return path


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "s.zarr"))


def test_a_sound_store_has_no_damage(sound: Path) -> None:
    result = verify(sound)
    assert result.damage == ()
    assert (result.done, result.sequences) == (2, 2)


@pytest.mark.exhaustive
def test_every_flipped_bit_is_found(sound: Path, copy: Path) -> None:
    """Some hundreds of random bits of every file, one at a time."""
    rng = np.random.default_rng(0)
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    assert len(files) > 30
    for file in files:
        content = file.read_bytes()
        for bit in rng.choice(len(content) * 8, size=min(12, len(content) * 8), replace=False):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << bit % 8
            file.write_bytes(flipped)
            try:
                found = verify(copy).damage
            except OutliersError:
                found = ("unreadable",)  # type: ignore[assignment]
            assert found, f"bit {bit} of {file.relative_to(copy)}"
        file.write_bytes(content)
    assert verify(copy).damage == ()


def test_every_missing_file_is_found(copy: Path) -> None:
    for file in sorted(path for path in copy.rglob("*") if path.is_file()):
        content = file.read_bytes()
        file.unlink()
        try:
            result = verify(copy)
            assert result.damage, file
        except OutliersError:
            assert file.name == "zarr.json"
        file.write_bytes(content)


def test_damage_is_named(copy: Path) -> None:
    file = write.StoreWriter(copy).file("norm_input", 1)
    content = bytearray(file.read_bytes())
    content[3] ^= 1
    file.write_bytes(content)
    (damage,) = verify(copy).damage
    assert str(damage) == "sequence 1: norm_input, layer 0, site ln_attn: the values do not match their checksum"


def test_a_truncated_or_lengthened_shard_is_found(copy: Path) -> None:
    file = write.StoreWriter(copy).file("norm_output", 0)
    content = file.read_bytes()
    for changed in (content[:-1], content[:10], b"", b"\0" + content):
        file.write_bytes(changed)
        assert verify(copy).damage


def test_peaks_that_are_not_those_of_the_values_are_found(copy: Path) -> None:
    writer = write.StoreWriter(copy)
    dataset = xr.open_zarr(copy)
    values = dataset.layer_low[:, 1].values
    values[1, 0, 0, 0] -= 1
    writer.put_chunks("layer_low", 1, writer.encode_small("layer_low", 1, values))
    (damage,) = verify(copy).damage
    assert str(damage) == "sequence 1: layer_low: differs from the peaks of norm_output"


@pytest.mark.parametrize("name", ["final_high", "final_low"])
def test_peaks_of_the_last_norm_that_are_not_those_of_its_values_are_found(copy: Path, name: str) -> None:
    values = xr.open_zarr(copy)[name][1].values
    values[2] += 1
    writer = write.StoreWriter(copy)
    writer.put_chunks(name, 1, writer.encode_small(name, 1, values))
    (damage,) = verify(copy).damage
    assert str(damage) == f"sequence 1: {name}: differs from the peaks of final_input"


def test_repair_takes_back_only_the_damaged_sequences(copy: Path) -> None:
    write.StoreWriter(copy).file("nll", 1).unlink()
    assert len(verify(copy, repair=True).damage) == 1
    assert write.StoreWriter(copy).done().tolist() == [True, False]
    result = verify(copy)
    assert result.damage == ()
    assert (result.done, result.sequences) == (1, 2)


def test_sequences_not_captured_are_not_damage(tmp_path: Path) -> None:
    for raw in RAW_VARIABLES:
        make(tmp_path / f"{raw}.zarr", SIZES, raw=raw)
        assert verify(tmp_path / f"{raw}.zarr").damage == ()


def test_a_forged_attribute_is_found(copy: Path) -> None:
    root = json.loads((copy / "zarr.json").read_text())
    root["attributes"]["model_id"] = "another"
    (copy / "zarr.json").write_text(json.dumps(root))
    assert str(verify(copy).damage[0]).startswith("store: zarr.json: differs from its checksum")


@pytest.mark.parametrize("content", [None, b"junk"])
def test_a_flag_that_is_lost_or_unreadable_is_mended(copy: Path, content: bytes | None) -> None:
    file = write.StoreWriter(copy).file("done", 1)
    file.unlink() if content is None else file.write_bytes(content)
    for repair in (False, True):
        (damage,) = verify(copy, repair=repair).damage
        assert str(damage) == "sequence 1: done: the flag is missing or does not match its checksum"
    assert write.StoreWriter(copy).done().tolist() == [True, False]
    assert verify(copy).damage == ()


@pytest.mark.parametrize("name", ["token_id", "norm_weight", "site"])
def test_a_chunk_struck_from_the_list_is_found(copy: Path, name: str) -> None:
    listing = copy / CHECKSUMS
    kept = [line for line in listing.read_text().splitlines(keepends=True) if f"  {name}/c." not in line]
    listing.write_text("".join(kept))
    assert any(name in damage.place for damage in verify(copy).damage)


def test_a_shared_shard_is_mended_with_all_that_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    sizes = Sizes(sequences=300, layers=1, sites=("ln_attn",), positions=2, features=3)
    make(path, sizes, raw="none")
    for number in (10, 11):
        write.write_sequence(path, number, arrays(sizes, "none", number))
    shard = write.StoreWriter(path).file("nll", 10)
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(OutliersError, match="holds sequences 11 too; take them back with: outliers verify"):
        write.write_sequence(path, 10, arrays(sizes, "none", 10))
    assert {item.sequence for item in verify(path, repair=True).damage} == {10, 11}
    for number in (10, 11):
        write.write_sequence(path, number, arrays(sizes, "none", number))
    assert verify(path).damage == ()
    assert verify(path).done == 2


def forge(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the root metadata, and the list of checksums to match."""
    root, listed = path / "zarr.json", path / CHECKSUMS
    document = json.loads(root.read_text())
    change(document)
    root.write_text(json.dumps(document))
    lines = [line for line in listed.read_text().splitlines() if not line.endswith("  zarr.json")]
    listed.write_text("\n".join([*lines, f"{file_digest(root)}  zarr.json"]) + "\n")


@pytest.mark.parametrize(
    "change",
    [
        lambda root: root["attributes"].pop("raw"),
        lambda root: root["attributes"].update(raw=["both"]),
        lambda root: root["attributes"].update(compression="zip"),
        lambda root: root["consolidated_metadata"]["metadata"].pop("site"),
    ],
)
def test_metadata_that_make_no_sense_are_said_in_one_line(
    change: Callable[[dict[str, Any]], object], copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forge(copy, change)
    assert main(["verify", str(copy)]) == 2
    assert "has metadata that no capture wrote" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays: arrays.pop("nll"),
        lambda arrays: arrays["nll"].update(dimension_names=["position", "sequence"]),
        lambda arrays: arrays["nll"]["shape"].__setitem__(0, 1),
    ],
)
def test_an_array_that_readers_would_read_otherwise_is_damage(
    change: Callable[[dict[str, Any]], object], copy: Path
) -> None:
    forge(copy, lambda root: change(root["consolidated_metadata"]["metadata"]))
    assert [damage.place for damage in verify(copy).damage] == ["nll/zarr.json"]
