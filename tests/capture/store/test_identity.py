"""A store has an identity: what was captured for another sequence or store is not taken for its own."""

from __future__ import annotations

import shutil
import zipfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from analyze.answers.find import find_outliers
from analyze.cli import main
from analyze.reading.open import open_store
from analyze.sharing.pack import pack
from analyze.sharing.unpack import unpack
from capture.errors import OutliersError
from capture.store.schema import DIGESTED, PER_SEQUENCE, RAW_VARIABLES
from capture.store.shards import read_chunks
from capture.store.verify import verify
from capture.store.write import StoreWriter, write_sequence
from tests import builders

pytestmark = pytest.mark.slow

SIGNALLED = ("layer_high", "layer_low", "position_peak", "nonfinite_count")
SHAPE = (3, 2, 2, 5, 4)
GOLDEN = Path(__file__).parents[2] / "golden" / "version-1.zarr"


def activations(seed: int = 0) -> np.ndarray:
    """Random ones, of which sequence n has n that are not a number, so that no two sequences are alike in anything."""
    values = builders.random_activations(SHAPE, seed)
    for number in range(SHAPE[0]):
        values[number, seed, 0, :number, 1] = np.nan
    return values


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return builders.on_disk(tmp_path / "s.zarr", activations())


def files(path: Path, name: str) -> list[Path]:
    return sorted((path / name).glob("c.*"), key=lambda file: [int(part) for part in file.name.split(".")[1:]])


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def contents_of(path: Path, number: int) -> dict[str, np.ndarray]:
    """One sequence as `write_sequence` takes it."""
    dataset = xr.open_zarr(path).isel(sequence=number).load()
    return {name: dataset[name].values for name in (*RAW_VARIABLES["both"], *PER_SEQUENCE)}


def test_a_digest_is_what_the_specification_says(store: Path) -> None:
    """Name of the store, variable and sequence, then the four bytes behind each chunk, hashed by hand."""
    dataset = xr.open_zarr(store)
    assert dataset.digest.dims == ("sequence", "variable")
    assert dataset.digest.dtype == np.uint64
    assert dataset.digest.attrs["variables"] == [*RAW_VARIABLES["both"], *PER_SEQUENCE]
    name = dataset.attrs["store_id"]
    assert len(name) == 32
    writer = StoreWriter(store)
    for number in range(3):
        for column, variable in enumerate(dataset.digest.attrs["variables"]):
            data = b"".join(
                chunk[-4:]
                for _, chunk in read_chunks(
                    writer.file(variable, number), writer.grid(variable), writer.chunk_bytes(variable)
                )
            )
            text = f"{name} {variable} {number}".encode() + b"\0" + data
            expected = int.from_bytes(sha256(text).digest()[:8], "little")
            assert int(dataset.digest[number, column]) == expected, (variable, number)


def test_two_stores_of_the_same_values_have_names_of_their_own(store: Path, tmp_path: Path) -> None:
    other = builders.on_disk(tmp_path / "t.zarr", activations())
    one, two = xr.open_zarr(store), xr.open_zarr(other)
    assert one.attrs["store_id"] != two.attrs["store_id"]
    assert not (one.digest.values == two.digest.values).any()


@pytest.mark.parametrize("name", DIGESTED)
def test_sequences_that_were_swapped_are_found(store: Path, name: str) -> None:
    first, second, *_ = files(store, name)
    swap(first, second)
    damage = [str(item) for item in verify(store).damage]
    for number in (0, 1):
        lines = [line for line in damage if line.startswith(f"sequence {number}: {name}: ")]
        assert lines
        assert all("was captured for another sequence" in line or "differs from the peaks" in line for line in lines)


@pytest.mark.parametrize("name", ["nll", "position_peak", "layer_high", "final_high", "digest"])
def test_swapped_sequences_of_a_peaks_only_archive_are_found(store: Path, tmp_path: Path, name: str) -> None:
    archive = pack(store, tmp_path / "s.zarr.zip", peaks_only=True)
    unpacked = unpack(archive, tmp_path / "u.zarr")
    assert verify(unpacked).damage == ()
    axis = 1 if name in SIGNALLED else 0
    by_sequence = {int(file.name.split(".")[1 + axis]): file for file in files(unpacked, name)}
    swap(by_sequence[0], by_sequence[2])
    damage = verify(unpacked).damage
    assert {item.sequence for item in damage} == {0, 2}
    if name != "digest":
        assert {item.place for item in damage} == {name}
    assert main(["verify", str(unpacked)]) == 2


def test_a_whole_sequence_of_another_store_is_found(store: Path, tmp_path: Path) -> None:
    other = builders.on_disk(tmp_path / "t.zarr", activations(1))
    for name in (*DIGESTED, "digest"):
        for mine, theirs in zip(files(store, name), files(other, name), strict=True):
            numbers = [int(part) for part in mine.name.split(".")[1:]]
            if numbers[1 if name in SIGNALLED else 0] == 1:
                shutil.copy(theirs, mine)
    damage = verify(store).damage
    assert {(item.sequence, item.place) for item in damage} == {(1, name) for name in DIGESTED}


def test_rounded_archives_have_digests_of_their_own_values(store: Path, tmp_path: Path) -> None:
    unpacked = unpack(pack(store, tmp_path / "s.zarr.zip", mantissa_bits=7), tmp_path / "u.zarr")
    assert verify(unpacked).damage == ()
    before, after = xr.open_zarr(store), xr.open_zarr(unpacked)
    changed = (before.digest != after.digest).any("sequence").values
    assert [name for name, other in zip(DIGESTED, changed, strict=True) if other] == list(RAW_VARIABLES["both"])
    swap(*files(unpacked, "final_input")[:2])
    assert {item.sequence for item in verify(unpacked).damage} == {0, 1}


def test_shared_shards_keep_the_digests_of_their_other_sequences(tmp_path: Path) -> None:
    values = builders.random_activations((300, 1, 1, 2, 3))
    path = builders.on_disk(tmp_path / "s.zarr", values, raw="none", done=4)
    assert verify(path).damage == ()
    assert (xr.open_zarr(path).digest[4:] == 0).all()


def test_the_first_release_wrote_no_digests_and_verify_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(GOLDEN).damage == ()
    assert main(["verify", str(GOLDEN)]) == 0
    assert "not checked: an earlier release began it, without store_id and digest" in capsys.readouterr().out


def test_a_store_that_is_complete_says_nothing_of_what_is_not_checked(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(store)]) == 0
    assert "not checked" not in capsys.readouterr().out


def snapshot(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.mark.parametrize("raw", ["both", "none"])
def test_a_capture_whose_store_was_replaced_stops_and_writes_nothing(tmp_path: Path, raw: str) -> None:
    path = builders.on_disk(tmp_path / "s.zarr", activations(), raw=raw, done=1)
    content = contents_of(builders.on_disk(tmp_path / "t.zarr", activations()), 1)
    writer = StoreWriter(path)
    begun = writer.sequence(1)
    shutil.move(path, tmp_path / "aside.zarr")
    builders.on_disk(path, activations(1), raw=raw, done=0)
    before = snapshot(path)
    for name in PER_SEQUENCE:
        begun.keep(name, content[name])
    for act in (
        begun.finish,
        lambda: writer.sequence(2),
        lambda: writer.mark_done(1),
        lambda: writer.put_chunks("nll", 1, writer.encode_small("nll", 1, content["nll"])),
    ):
        with pytest.raises(OutliersError, match=r"was replaced or removed while its sequences were captured") as error:
            act()
        assert "\n" not in str(error.value)
    begun.discard()
    assert snapshot(path) == before


def test_a_capture_of_a_store_that_was_removed_stops(tmp_path: Path) -> None:
    path = builders.on_disk(tmp_path / "s.zarr", activations(), raw="none", done=1)
    writer = StoreWriter(path)
    shutil.rmtree(path)
    with pytest.raises(OutliersError, match="was replaced or removed"):
        writer.sequence(1)
    assert not path.exists()


def test_an_array_of_digests_that_was_struck_out_is_missed(store: Path) -> None:
    from tests.capture.store.test_verify import forge

    forge(store, lambda root: root["consolidated_metadata"]["metadata"].pop("digest"))
    assert any(item.place == "digest/zarr.json" for item in verify(store).damage)


def test_a_sequence_captured_again_has_a_digest_again(store: Path) -> None:
    content = contents_of(store, 1)
    StoreWriter(store).mark_done(1, False)
    write_sequence(store, 1, content)
    assert verify(store).damage == ()


def opened(path: Path, archive: bool) -> Path:
    return pack(path, path.with_name("s.zarr.zip"), overwrite=True) if archive else path


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize("name", ["norm_input", "position_peak", "nll", "token_id", "norm_weight"])
def test_a_dataset_does_not_answer_from_a_store_that_replaced_its_own(store: Path, name: str, archive: bool) -> None:
    place = opened(store, archive)
    dataset = open_store(place)
    np.testing.assert_array_equal(dataset[name], xr.open_zarr(store)[name])
    shutil.rmtree(store)
    builders.on_disk(store, activations(1), attributes={"model_id": "test/another"})
    opened(store, archive)
    with pytest.raises(OutliersError, match="was replaced or removed since it was opened; open it again") as error:
        dataset[name].compute(scheduler="sync")
    assert "\n" not in str(error.value)
    assert open_store(place).attrs["model_id"] == "test/another"


def test_a_dataset_of_a_removed_store_says_so(store: Path) -> None:
    dataset = open_store(store)
    shutil.rmtree(store)
    with pytest.raises(OutliersError, match="was replaced or removed since it was opened"):
        dataset["nll"].compute(scheduler="sync")


def test_what_is_found_names_the_store(store: Path) -> None:
    name = open_store(store).attrs["store_id"]
    assert find_outliers(store).to_dict()["store_id"] == name
    assert "store_id" not in find_outliers(GOLDEN).to_dict()


@pytest.mark.parametrize("name", ["nll", "layer_low", "nonfinite_count", "final_input", "final_high", "norm_input"])
def test_readers_refuse_a_swapped_sequence_once_they_have_read_it_whole(store: Path, name: str) -> None:
    np.testing.assert_array_equal(open_store(store)[name], xr.open_zarr(store)[name])
    swap(*files(store, name)[:2])
    dataset = open_store(store)
    with pytest.raises(OutliersError, match=rf"{name} is damaged at .*sequence [01] \(it was captured for another"):
        dataset[name].compute(scheduler="sync")
    assert np.isfinite(dataset[name].isel(sequence=2)).any()


@pytest.mark.parametrize("archive", [False, True])
@pytest.mark.parametrize("name", ["norm_input", "norm_output", "position_peak"])
def test_readers_refuse_a_part_of_a_swapped_sequence(store: Path, name: str, archive: bool) -> None:
    """Of one signal, layer or site: the checksums of the rest are looked up."""
    swap(*files(store, name)[:2])
    place = store
    if archive:
        place = repacked(store, store.with_name("h.zarr.zip"))
    for _, part in open_store(place)[name].isel(sequence=0).groupby("signal" if name == "position_peak" else "layer"):
        with pytest.raises(OutliersError, match=rf"{name} is damaged at .*sequence 0 \(it was captured for another"):
            part.compute(scheduler="sync")
    assert np.isfinite(open_store(place)[name].isel(sequence=2)).any()


def repacked(store: Path, archive: Path) -> Path:
    """An archive as anybody's tool makes it, without looking at what it packs."""
    with zipfile.ZipFile(archive, "w") as opened:
        for file in sorted(store.rglob("*")):
            if file.is_file():
                opened.write(file, file.relative_to(store).as_posix())
    return archive


@pytest.mark.parametrize("name", ["token_id", "length", "norm_weight", "norm_bias"])
def test_readers_refuse_what_another_store_was_created_with(tmp_path: Path, name: str) -> None:
    stores = []
    for number in range(2):
        values = builders.random_activations(SHAPE, number)
        norms = {"norm_weight": values[0, ..., 0, :], "norm_bias": values[1, ..., 0, :]}
        length = np.array([5, 4 - number, 5], np.int32)
        stores.append(builders.on_disk(tmp_path / f"{number}.zarr", values, length=length, **norms))
    (mine,), (theirs,) = (files(path, name) for path in stores)
    open_store(stores[0])[name].load()
    shutil.copy(theirs, mine)
    with pytest.raises(OutliersError, match=rf"{name} is damaged .*{name}/c.* is not the one that the store was cr"):
        open_store(stores[0])[name].compute(scheduler="sync")


def test_a_flag_from_another_store_makes_no_sequence_of_nothing(tmp_path: Path) -> None:
    """Sequences that share files with captured ones hold fill values, which are no peaks."""
    values = builders.random_activations((300, 1, 1, 2, 3))
    begun = builders.on_disk(tmp_path / "s.zarr", values, raw="none", done=1)
    StoreWriter(begun).mark_done(1)
    with pytest.raises(OutliersError, match="unfinished"):
        open_store(begun)
    for number in range(2, 300):
        StoreWriter(begun).mark_done(number)
    for name in ("layer_high", "position_peak", "nll", "nonfinite_count"):
        with pytest.raises(OutliersError, match=rf"{name} is damaged at .*sequence 1 \(it was captured for another"):
            open_store(begun)[name].isel({"sequence": [1]}).compute(scheduler="sync")


def test_answers_of_swapped_sequences_are_refused(store: Path) -> None:
    swap(*files(store, "nll")[:2])
    with pytest.raises(OutliersError, match="nll is damaged"):
        find_outliers(store)
