"""A store packed, opened in place, unpacked: the same bytes, and nothing that a hostile archive asks for."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import struct
import warnings
import zipfile
from collections import namedtuple
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st

from analyze import find_outliers, open_store
from analyze.answers.ablation import read_ablations
from analyze.cli import main
from analyze.question.criteria import Criteria
from analyze.sharing.pack import pack
from analyze.sharing.unpack import unpack
from capture.errors import OutliersError
from capture.store.rounding import round_mantissa
from capture.store.schema import RAW_VARIABLES
from capture.store.verify import verify
from capture.store.write import StoreWriter
from tests import builders
from tests.analyze.answers.test_ablation import keep, made

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builders.on_disk(tmp_path_factory.mktemp("packed") / "s.zarr", builders.random_activations(), raw="both")


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "s.zarr"))


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_unpacked_is_the_store_and_packs_to_the_same_bytes(store: Path, tmp_path: Path) -> None:
    first = pack(store, tmp_path / "a.zarr.zip")
    (store / ".views").mkdir()
    (store / ".views" / "cached.zip").write_bytes(b"cache")
    (store / "nll" / ".c.0.1234.partial").write_bytes(b"leftover")
    for path in store.rglob("*"):
        os.utime(path, (1e9, 1e9))
        path.chmod(0o700)
    second = pack(store, tmp_path / "b.zarr.zip")
    assert first.read_bytes() == second.read_bytes()
    out = unpack(second, tmp_path / "u.zarr")
    expected = {name: data for name, data in files(store).items() if "/." not in f"/{name}"}
    assert files(out) == expected
    assert pack(out, tmp_path / "c.zarr.zip").read_bytes() == first.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "a.zarr.zip",
        "b.zarr.zip",
        "c.zarr.zip",
        "s.zarr",
        "u.zarr",
    ]


def test_entries_are_stored_with_metadata_first(store: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(pack(store, tmp_path / "a.zarr.zip")) as archive:
        infos = archive.infolist()
        assert archive.testzip() is None
    names = [info.filename for info in infos]
    assert {info.compress_type for info in infos} == {zipfile.ZIP_STORED}
    assert sorted(names) == sorted(files(store))
    assert names[:2] == ["zarr.json", "SHA256SUMS"]
    metadata = [name.endswith("zarr.json") for name in names[2:]]
    assert metadata == sorted(metadata, reverse=True)
    chunks = [name for name in names if "/c." in name]
    raw = [name.split("/")[0] in RAW_VARIABLES["both"] for name in chunks]
    assert raw == sorted(raw)


def test_xarray_reads_the_archive_in_place(store: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened = zarr.storage.ZipStore(pack(store, tmp_path / "a.zarr.zip"), mode="r")
        packed = xr.open_zarr(opened).load()
        opened.close()
    xr.testing.assert_identical(packed, xr.open_zarr(store).load())


@pytest.mark.parametrize("raw", ["input", "both"])
def test_peaks_only_is_a_sound_store_that_says_what_is_left_out(raw: str, tmp_path: Path) -> None:
    store = builders.on_disk(tmp_path / "s.zarr", builders.random_activations(), raw=raw)
    out = unpack(pack(store, tmp_path / "p.zarr.zip", peaks_only=True), tmp_path / "p.zarr")
    assert verify(out).damage == ()
    left_out = list(RAW_VARIABLES[raw])
    assert not any((out / name).exists() for name in left_out)
    whole, peaks = xr.open_zarr(store), xr.open_zarr(out)
    assert peaks.attrs.pop("packed") == {
        "left_out": left_out,
        "raw_before": raw,
        "sha256sums_before": hashlib.sha256((store / "SHA256SUMS").read_bytes()).hexdigest(),
    }
    assert peaks.attrs.pop("raw") == "none"
    assert whole.attrs.pop("raw") == raw
    xr.testing.assert_identical(peaks.load(), whole.drop_vars(left_out).load())
    # Neither the consolidated metadata nor the list of checksums names what is not there.
    root = json.loads((out / "zarr.json").read_text())
    assert not set(left_out) & set(root["consolidated_metadata"]["metadata"])
    listed = {line.split("  ")[1] for line in (out / "SHA256SUMS").read_text().splitlines()}
    assert all((out / name).is_file() for name in listed)
    assert find_outliers(out, Criteria(magnitude=2)).to_dict() == find_outliers(store, Criteria(magnitude=2)).to_dict()
    with pytest.raises(OutliersError, match="no activations; open the store that this one was packed from"):
        find_outliers(open_store(out), Criteria(skip_first=1))


def test_peaks_only_twice_changes_nothing_more(store: Path, tmp_path: Path) -> None:
    first = pack(store, tmp_path / "p.zarr.zip", peaks_only=True)
    out = unpack(first, tmp_path / "p.zarr")
    assert pack(out, tmp_path / "q.zarr.zip", peaks_only=True).read_bytes() == first.read_bytes()
    assert pack(out, tmp_path / "r.zarr.zip").read_bytes() == first.read_bytes()


def rounded_by_decimals(value: float, bits: int) -> float:
    """To the nearest number with so many bits behind the leading one, ties to even, by exact fractions."""
    exponent = max(math.frexp(value)[1] - 1, -126)  # below that the bits stay where they are
    unit = Fraction(2) ** (exponent - bits)
    return float(round(Fraction(value) / unit) * unit)


@given(
    st.lists(st.floats(width=32), min_size=1, max_size=20),
    st.integers(1, 22),
)
def test_rounding_by_exact_arithmetic(values: list[float], bits: int) -> None:
    array = np.array(values, np.float32)
    result = round_mantissa(array, bits)
    largest = float(np.float32(2) ** np.float32(127)) * (2 - 2.0**-bits)
    expected = [
        float(np.clip(rounded_by_decimals(float(v), bits), -largest, largest)) if np.isfinite(v) else v for v in array
    ]
    np.testing.assert_array_equal(result, np.array(expected, np.float32))
    assert np.array_equal(np.signbit(result), np.signbit(array))
    finite = np.sort(array[np.isfinite(array)])
    assert (np.diff(round_mantissa(finite, bits)) >= 0).all()


@pytest.mark.parametrize("raw", ["output", "both"])
def test_rounded_activations_are_labelled_and_checkable(raw: str, tmp_path: Path) -> None:
    values = builders.random_activations()
    values[0, 0, 0, 0, 0] = np.nan
    values[1, 1, 1, 2, 3] = -np.inf
    values[1, 1, 1, 2, 2] = np.finfo(np.float32).max
    store = builders.on_disk(tmp_path / "s.zarr", values, raw=raw)
    packed = pack(store, tmp_path / "r.zarr.zip", mantissa_bits=5)
    assert packed.read_bytes() == pack(store, tmp_path / "r2.zarr.zip", mantissa_bits=5).read_bytes()
    out = unpack(packed, tmp_path / "r.zarr")
    assert verify(out).damage == ()
    whole, rounded = xr.open_zarr(store).load(), xr.open_zarr(out).load()
    variables = list(RAW_VARIABLES[raw])
    assert rounded.attrs["rounded"]["mantissa_bits"] == 5
    assert rounded.attrs["rounded"]["variables"] == variables
    for name in set(whole.data_vars) - {"digest"}:  # of the rounded values: tests/capture/store/test_identity.py
        expected = round_mantissa(whole[name].values, 5) if name in variables else whole[name].values
        np.testing.assert_array_equal(rounded[name].values, expected)
        assert ("rounded to 5 mantissa bits" in rounded[name].attrs["long_name"]) == (name in variables)
    assert not np.array_equal(rounded[variables[0]], whole[variables[0]], equal_nan=True)
    assert packed.stat().st_size < pack(store, tmp_path / "e.zarr.zip").stat().st_size
    found = find_outliers(out, Criteria(magnitude=2))
    assert found.to_dict() == {**find_outliers(store, Criteria(magnitude=2)).to_dict(), "mantissa_bits": 5}
    assert "rounded" in dict(found.summary())
    for words, said in [
        ({"mantissa_bits": 4}, "is rounded already"),
        ({"mantissa_bits": 23}, "expected 1 to 22"),
        ({"mantissa_bits": 0}, "expected 1 to 22"),
        ({"mantissa_bits": 4, "peaks_only": True}, "give one of them"),
    ]:
        with pytest.raises(OutliersError, match=said):
            pack(out, tmp_path / "x.zarr.zip", **words)
    again = unpack(pack(out, tmp_path / "again.zarr.zip"), tmp_path / "again.zarr")
    assert files(again) == files(out)


def test_verify_sees_peaks_that_the_rounded_values_have_not(store: Path, tmp_path: Path) -> None:
    out = unpack(pack(store, tmp_path / "r.zarr.zip", mantissa_bits=6), tmp_path / "r.zarr")
    writer = StoreWriter(out)
    values = xr.open_zarr(out).layer_high[:, 1].values
    values[0, 1, 0, 2] *= 1.1
    writer.put_chunks("layer_high", 1, writer.encode_small("layer_high", 1, values))
    (damage,) = verify(out).damage
    assert str(damage) == "sequence 1: layer_high: differs from the peaks of norm_input"
    with pytest.raises(OutliersError, match="holds rounded activations"):
        writer.sequence(0)


def test_rounding_that_the_dtype_has_done_already(tmp_path: Path) -> None:
    values = builders.random_activations((1, 2, 2, 3, 4))
    store = builders.on_disk(tmp_path / "s.zarr", values, attributes={"compute_dtype": "bfloat16"})
    with pytest.raises(OutliersError, match="was computed in bfloat16 with 7; expected 1 to 6"):
        pack(store, tmp_path / "a.zarr.zip", mantissa_bits=7)
    peaks = builders.on_disk(tmp_path / "n.zarr", values, raw="none")
    with pytest.raises(OutliersError, match="keeps no activations"):
        pack(peaks, tmp_path / "a.zarr.zip", mantissa_bits=3)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("peaks_only", [False, True])
@pytest.mark.parametrize("name", ["norm_input/c.1.0.0.0.0", "layer_low/c.0.0.0.0.0", "site/c.0", "nll/zarr.json"])
def test_a_damaged_store_is_refused(name: str, peaks_only: bool, store: Path, tmp_path: Path) -> None:
    flip(store / name)
    with pytest.raises(OutliersError, match="damaged"):
        pack(store, tmp_path / "a.zarr.zip", peaks_only=peaks_only)
    assert os.listdir(tmp_path) == ["s.zarr"]


def test_what_cannot_be_packed(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unfinished = builders.on_disk(tmp_path / "u.zarr", builders.random_activations(), done=1)
    out = tmp_path / "a.zarr.zip"
    (tmp_path / "text").write_text("mine")
    for words, said in [
        ([unfinished, out], "is unfinished, 1 of 3 sequences are done"),
        ([tmp_path / "none.zarr", out], "no store at"),
        ([tmp_path, out], "is no Zarr v3 store"),
        ([tmp_path / "text", out], "is a file; expected the folder of a store"),
        ([store, tmp_path / "a.zip"], "expected a name such as a.zarr.zip"),
        ([store, store / "a.zarr.zip"], "lies inside the store"),
    ]:
        with pytest.raises(OutliersError, match=said):
            pack(*words)
    out.write_bytes(b"mine")
    with pytest.raises(OutliersError, match="exists already"):
        pack(store, out)
    assert out.read_bytes() == b"mine"
    assert pack(store, out, overwrite=True).stat().st_size > 4
    out.unlink()
    out.mkdir()
    with pytest.raises(OutliersError, match="is no file, so --overwrite leaves it"):
        pack(store, out, overwrite=True)
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("capture.store.files.shutil.disk_usage", lambda folder: usage(1000))
    with pytest.raises(OutliersError, match="has 0.0 MB free"):
        pack(store, tmp_path / "b.zarr.zip")
    assert {path.name for path in tmp_path.iterdir()} == {"u.zarr", "s.zarr", "text", "a.zarr.zip"}


def test_links_are_not_followed(store: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("key")
    (store / "nll" / "c.9").symlink_to(secret)
    assert not any("secret" in info or "c.9" in info for info in names(pack(store, tmp_path / "s.zarr.zip")))
    (store / "nll" / "c.0.0").unlink()
    (store / "nll" / "c.0.0").symlink_to(secret)
    with pytest.raises(OutliersError, match="is a link"):
        pack(store, tmp_path / "a.zarr.zip")


def test_a_failure_leaves_nothing(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("analyze.sharing.pack.shutil.copyfileobj", full)
    assert main(["pack", str(store), "--out", str(tmp_path / "a.zarr.zip")]) == 2
    assert os.listdir(tmp_path) == ["s.zarr"]


def archive(path: Path, content: dict[str, bytes], change: Callable[[zipfile.ZipInfo], None] | None = None) -> Path:
    """A ZIP file with these entries; `change` sees each before it is written."""
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as opened:
        warnings.simplefilter("ignore")
        for name, data in content.items():
            info = zipfile.ZipInfo(name)
            if change is not None:
                change(info)
            opened.writestr(info, data)
    return path


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../escape", "leads out of the folder"),
        ("a/../../escape", "leads out of the folder"),
        ("/etc/escape", "leads out of the folder"),
        ("..", "leads out of the folder"),
        ("..\\escape", "has a name that no store has"),
        ("C:/escape", "has a name that no store has"),
        ("a//b", "has a name that no store has"),
        ("./a", "has a name that no store has"),
        ("a\nb", "has a name that no store has"),
        ("\x1b[31m", "has a name that no store has"),
        ("ZARR.json", "stands there twice"),
        ("zarr.json/c.0", "is a file and a folder"),
    ],
)
def test_hostile_names(name: str, said: str, store: Path, tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zarr.zip", {**files(store), name: b"evil"})
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutliersError, match=said):
        unpack(path, tmp_path / "deep" / "u.zarr")
    shutil.rmtree(tmp_path / "deep")
    assert sorted(tmp_path.rglob("*")) == before
    assert not Path("/etc/escape").exists()


def test_a_name_behind_a_nul_is_seen(store: Path, tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zarr.zip", {**files(store), "siteX..Y..evil": b""})
    path.write_bytes(path.read_bytes().replace(b"siteX..Y..evil", b"site\0..Y..evil"))
    with pytest.raises(OutliersError, match="has a name that no store has"):
        unpack(path, tmp_path / "u.zarr")


def test_hostile_entries(store: Path, tmp_path: Path) -> None:
    def link(info: zipfile.ZipInfo) -> None:
        info.external_attr = 0o120777 << 16

    def deflated(info: zipfile.ZipInfo) -> None:
        info.compress_type = zipfile.ZIP_DEFLATED

    path = tmp_path / "a.zarr.zip"
    for change, said in [(link, "is a link"), (deflated, "is compressed")]:
        archive(path, files(store), change)
        with pytest.raises(OutliersError, match=said):
            unpack(path, tmp_path / "u.zarr")
    content = bytearray(archive(path, files(store)).read_bytes())
    central = content.index(b"PK\x01\x02")
    content[central + 8] |= 1  # the general purpose bit for encryption
    path.write_bytes(content)
    with pytest.raises(OutliersError, match="is encrypted"):
        unpack(path, tmp_path / "u.zarr")


def test_the_same_name_twice(store: Path, tmp_path: Path) -> None:
    path = archive(tmp_path / "a.zarr.zip", files(store))
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as opened:
        warnings.simplefilter("ignore")
        opened.writestr("zarr.json", b"{}")
    with pytest.raises(OutliersError, match=r"'zarr.json' stands there twice"):
        unpack(path, tmp_path / "u.zarr")


def test_entries_that_claim_the_same_bytes(store: Path, tmp_path: Path) -> None:
    """The central directory names one large entry a hundred times: a bomb without compression."""
    big = {f"site/c.{n:03d}": b"" for n in range(1, 100)}
    path = archive(tmp_path / "a.zarr.zip", {**files(store), "site/c.000": bytes(20_000), **big})
    content = bytearray(path.read_bytes())
    at = content.index(b"PK\x01\x02")
    sizes = {}
    places = []
    while content[at : at + 4] == b"PK\x01\x02":
        length, extra, comment = struct.unpack_from("<3H", content, at + 28)
        name = content[at + 46 : at + 46 + length].decode()
        sizes[name] = content[at + 16 : at + 28] + content[at + 42 : at + 46]
        if name in big:
            places.append(at)
        at += 46 + length + extra + comment
    for place in places:
        content[place + 16 : place + 28] = sizes["site/c.000"][:12]
        content[place + 42 : place + 46] = sizes["site/c.000"][12:]
    path.write_bytes(content)
    with pytest.raises(OutliersError, match="entries claim more bytes"):
        unpack(path, tmp_path / "u.zarr")
    assert not (tmp_path / "u.zarr").exists()


def test_what_cannot_be_unpacked(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = pack(store, tmp_path / "a.zarr.zip")
    out = tmp_path / "u.zarr"
    content = files(store)
    flipped = content["norm_output/c.0.0.0.0.0"][:5] + b"!" + content["norm_output/c.0.0.0.0.0"][6:]
    cases = [
        (b"junk", "no whole ZIP file"),
        (sound.read_bytes()[:-30], "no whole ZIP file"),
        (sound.read_bytes().replace(content["nll/c.0.0"], content["nll/c.1.0"]), "Bad CRC-32"),
        ({"a": b""}, "no zarr.json at its root"),
        ({f"s.zarr/{name}": data for name, data in content.items()}, "no zarr.json at its root"),
        ({name: data for name, data in content.items() if name != "SHA256SUMS"}, "no SHA256SUMS at its root"),
        ({**content, "norm_output/c.0.0.0.0.0": flipped}, "is damaged in 1 place .sequence 0: norm_output"),
        ({name: data for name, data in content.items() if name != "nll/c.0.0"}, "is damaged"),
        ({**content, "zarr.json": b"{}"}, "is a Zarr store, but not one of"),
    ]
    for number, (case, said) in enumerate(cases):
        path = tmp_path / f"{number}.zarr.zip"
        path.write_bytes(case) if isinstance(case, bytes) else archive(path, case)
        with pytest.raises(OutliersError, match=said) as caught:
            unpack(path, out)
        assert f"{number}.zarr.zip" in str(caught.value)
        assert "partial" not in str(caught.value)
        assert not out.exists()
        assert not list(tmp_path.glob(".*"))
    with pytest.raises(OutliersError, match="no file at"):
        unpack(tmp_path / "none.zarr.zip", out)
    out.mkdir()
    (out / "mine").write_text("")
    with pytest.raises(OutliersError, match="exists already"):
        unpack(sound, out)
    with pytest.raises(OutliersError, match="is no store, so --overwrite leaves it"):
        unpack(sound, out, overwrite=True)
    shutil.rmtree(out)
    shutil.copytree(store, out)
    (out / "mine").write_text("")
    with pytest.raises(OutliersError, match="holds mine, which is no file of a store, so --overwrite leaves it"):
        unpack(sound, out, overwrite=True)
    (out / "mine").unlink()
    (out / "nll" / "c.0.0").write_text("damaged")
    assert files(unpack(sound, out, overwrite=True)) == content
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("capture.store.files.shutil.disk_usage", lambda folder: usage(1000))
    with pytest.raises(OutliersError, match="has 0.0 MB free"):
        unpack(sound, tmp_path / "v.zarr")


def test_metadata_that_match_their_checksums_and_lie(store: Path, tmp_path: Path) -> None:
    """A forger rewrites the list of checksums too: still one line, and nothing unpacked."""
    for key, value in [
        ("raw", None),
        ("compression", "zip"),
        ("raw", "none"),
        ("compression", None),
        ("compression", [1]),
    ]:
        content = files(store)
        root = json.loads(content["zarr.json"])
        root["attributes"][key] = value
        content["zarr.json"] = json.dumps(root).encode()
        digest = hashlib.sha256(content["zarr.json"]).hexdigest()
        lines = content["SHA256SUMS"].decode().splitlines()
        forged = [f"{digest}  zarr.json" if line.endswith("  zarr.json") else line for line in lines]
        content["SHA256SUMS"] = ("\n".join(forged) + "\n").encode()
        path = archive(tmp_path / "a.zarr.zip", content)
        if (key, value) == ("raw", "none"):
            continue  # a sound store of peaks, with folders that nobody reads
        assert main(["unpack", str(path), "--out", str(tmp_path / "u.zarr")]) == 2
        assert not (tmp_path / "u.zarr").exists()


def test_the_command_line(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed, out = tmp_path / "a.zarr.zip", tmp_path / "u.zarr"
    assert main(["pack", str(store), "--out", str(packed), "--peaks-only"]) == 0
    assert "packed peaks, tokens and losses of" in capsys.readouterr().out
    assert main(["unpack", str(packed), "--out", str(out)]) == 0
    assert f"next: outliers info {out}" in capsys.readouterr().out
    assert main(["verify", str(out)]) == 0
    assert main(["info", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.partition("\n")[2])["attributes"]["packed"]["raw_before"] == "both"
    assert main(["pack", str(store), "--out", str(packed)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_large_entry_gets_the_64_bit_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the limit lowered, as if the raw activations were larger than 2 GiB."""
    store = builders.on_disk(tmp_path / "s.zarr", np.zeros((1, 1, 1, 40, 40)))
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 500)
    out = pack(store, tmp_path / "a.zarr.zip")
    with zipfile.ZipFile(out) as opened:
        assert any(info.extract_version >= 45 for info in opened.infolist())
    assert files(unpack(out, tmp_path / "u.zarr")) == files(store)


def names(archive: Path) -> list[str]:
    with zipfile.ZipFile(archive) as opened:
        return opened.namelist()


STRANGERS = {
    **{name: name for name in ("notes.txt", "a:b.txt", "a\\b", "Zarr.json", "x\ny", "nll/mine.csv", "nll/c.7.0")},
    **{name: name for name in ("norm_weight/c.0.0.0.0", "nll/c.00.0", "ablation/mine.json")},
    ".git/config": ".git/",
    "other.zarr/zarr.json": "other.zarr/",
    "ablation/deep/x.json": "ablation/deep/",
    "norm_sum/zarr.json": "norm_sum/",
}


@pytest.mark.parametrize(("name", "named"), STRANGERS.items())
def test_what_is_no_file_of_the_store_is_left_out_and_said(
    name: str, named: str, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = names(pack(store, tmp_path / "a.zarr.zip"))
    (store / name).parent.mkdir(exist_ok=True, parents=True)
    (store / name).write_text("mine")
    assert main(["pack", str(store), "--out", str(tmp_path / "b.zarr.zip")]) == 0
    assert names(tmp_path / "b.zarr.zip") == plain
    (told,) = (line for line in capsys.readouterr().err.splitlines() if "left out" in line)
    assert told.endswith(f": {named}".replace("\n", " "))
    known = name == "ablation/mine.json"  # by its name; only what reads records sees that it is none
    assert verify(store).strangers == (() if known else (named,))
    assert main(["verify", str(store)]) == 0
    assert known or f"no file of the store, and never shared: {named!r}" in capsys.readouterr().out


def test_another_raw_array_than_the_stores_is_a_stranger(tmp_path: Path) -> None:
    """Its values are checked by nobody."""
    store = builders.on_disk(tmp_path / "s.zarr", builders.random_activations(), raw="input")
    both = builders.on_disk(tmp_path / "b.zarr", builders.random_activations(), raw="both")
    shutil.copytree(both / "norm_output", store / "norm_output")
    assert not any(name.startswith("norm_output/") for name in names(pack(store, tmp_path / "a.zarr.zip")))
    assert verify(store).strangers == ("norm_output/",)


PRIVATE = {
    "model_id": "/home/jane/model",
    "model_source": "~/jane/model",
    "text_source": "/home/jane/my text.txt",
    "command": "outliers capture /home/jane/model --out=/home/jane/s.zarr",
}


@pytest.mark.parametrize("options", [{}, {"peaks_only": True}, {"mantissa_bits": 4}])
def test_paths_stay_on_the_machine(options: dict[str, int], tmp_path: Path) -> None:
    store = builders.on_disk(tmp_path / "s.zarr", builders.random_activations(), attributes=PRIVATE)
    own = {"store_id": StoreWriter(store).attributes["store_id"]}
    private = {"model_id": "/home/jane/model", "command": "outliers ablate /home/jane/s.zarr"}
    keep(store, made(hidden_size=5, attributes={**own, **private}))
    before = files(store)
    packed = pack(store, tmp_path / "a.zarr.zip", **options)  # type: ignore[arg-type]
    assert b"jane" not in packed.read_bytes()
    assert files(store) == before
    out = unpack(packed, tmp_path / "u.zarr")
    assert verify(out).damage == ()
    assert {name: open_store(out).attrs[name] for name in PRIVATE} == {
        "model_id": "model",
        "model_source": "model",
        "text_source": "my text.txt",
        "command": "outliers capture model --out=s.zarr",
    }
    (record,) = read_ablations(out)
    assert record.attributes == {**own, "model_id": "model", "command": "outliers ablate s.zarr"}
    whole = unpack(pack(store, tmp_path / "b.zarr.zip", keep_paths=True), tmp_path / "w.zarr")
    assert files(whole) == before


def test_a_flipped_bit_in_the_metadata_of_an_archive(store: Path, tmp_path: Path) -> None:
    packed = pack(store, tmp_path / "a.zarr.zip")
    data = bytearray(packed.read_bytes())
    data[data.index(b"test/model")] ^= 1
    packed.write_bytes(data)
    with pytest.raises(OutliersError, match=r"zarr.json does not match its checksum in the archive"):
        open_store(packed)


def test_an_archive_that_lost_its_first_part(store: Path, tmp_path: Path) -> None:
    packed = pack(store, tmp_path / "a.zarr.zip")
    packed.write_bytes(packed.read_bytes()[3000:])
    for function in (open_store, lambda path: unpack(path, tmp_path / "u.zarr")):
        with pytest.raises(OutliersError, match="whose first part is lost"):
            function(packed)


def test_what_is_no_file_to_unpack(store: Path, tmp_path: Path) -> None:
    with pytest.raises(OutliersError, match="is a folder; expected a file made by outliers pack"):
        unpack(store, tmp_path / "u.zarr")
    with pytest.raises(OutliersError, match="is a URL, and this needs a file on this machine; download it first"):
        unpack("https://host/s.zarr.zip", tmp_path / "u.zarr")


@pytest.mark.parametrize("function", [open_store, lambda path: unpack(path, path.with_name("u.zarr"))])
def test_a_directory_of_too_many_entries_is_not_parsed(
    function: Callable[[Path], object], store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = pack(store, tmp_path / "a.zarr.zip")
    many = tmp_path / "b.zarr.zip"
    with zipfile.ZipFile(many, "w") as target:
        for name in ("zarr.json", "SHA256SUMS"):
            target.writestr(name, (store / name).read_bytes())
        for number in range(2000):
            target.writestr(f"x/{number}", b"")
    monkeypatch.setattr("analyze.reading.archive._MOST_ENTRIES", 1000)
    assert find_outliers(packed, Criteria(magnitude=2)).count >= 0
    with pytest.raises(OutliersError, match="its directory has over 1,000 entries"):
        function(many)
