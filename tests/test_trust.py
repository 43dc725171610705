"""A stranger's store runs nothing, writes nowhere else, allocates nothing absurd, and cannot put words into answers."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import os
import resource
import shutil
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest

from analyze import Criteria, OutliersError, extreme_tokens, find_outliers, open_store, sweep, view_peaks
from analyze.cli import main
from analyze.peaks.cache import cache_folder
from analyze.question.view import View
from analyze.sharing.pack import pack
from capture.store.verify import verify
from capture.store.write import StoreWriter
from tests import builders

pytestmark = pytest.mark.slow

HOSTILE = 'a\x1b[31m\x07[red]b[/red]\r\n‮<script>alert(1)</script>"; $(reboot) \\write18{x} [link=file:///]c[/link]'


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module", autouse=True)
def _modest_memory() -> Iterator[None]:
    """Nothing here takes more than a gigabyte, whatever a store claims; most of it the largest that is accepted."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of bfloat16 values, whose step functions are kept too."""
    values = (builders.random_activations().view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    return builders.on_disk(tmp_path_factory.mktemp("sound") / "s.zarr", values)


@pytest.fixture
def path(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "s.zarr"))


def edit(path: Path, name: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the metadata of one array, there and in the consolidated ones."""
    file, root = path / name / "zarr.json", path / "zarr.json"
    document, whole = json.loads(file.read_text()), json.loads(root.read_text())
    change(document)
    file.write_text(json.dumps(document))
    whole["consolidated_metadata"]["metadata"][name] = document
    root.write_text(json.dumps(whole))


def codecs(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Codecs of the chunks inside the shards of an array."""
    found: list[dict[str, Any]] = document["codecs"][0]["configuration"]["codecs"]
    return found


def set_grid(document: dict[str, Any], chunk: list[int], shard: list[int] | None = None) -> None:
    document["codecs"][0]["configuration"]["chunk_shape"] = chunk
    document["chunk_grid"]["configuration"]["chunk_shape"] = chunk if shard is None else shard


LIES: dict[str, tuple[str, Callable[[dict[str, Any]], Any], str]] = {
    "a dimension of terabytes": ("norm_input", lambda d: d.update(shape=[3, 4, 2, 7, 10**12]), "is 1e.12 long"),
    "a dimension that no float holds": ("nll", lambda d: d.update(shape=[10**400, 7]), "is over 1e.300 long"),
    "numbers of chunks that no float holds": (
        "nll",
        lambda d: (
            d.update(shape=[2**22] * 200, dimension_names=None),
            set_grid(d, [1] * 200),
            d["chunk_grid"]["configuration"].update(chunk_shape=[2**22] * 200),
        ),
        "it has over 1e.300 chunks",
    ),
    "a negative dimension": ("nll", lambda d: d.update(shape=[-3, 7]), "no list of whole numbers"),
    "a fraction": ("nll", lambda d: d.update(shape=[3.5, 7]), "no list of whole numbers"),
    "a flag as a dimension": ("nll", lambda d: d.update(shape=[True, 7]), "no list of whole numbers"),
    "a chunk of gigabytes": ("final_input", lambda d: set_grid(d, [1, 2**20, 2**20]), "a chunk has .* at most 2 GiB"),
    "many sequences": ("nll", lambda d: d.update(shape=[2**17 + 1, 7]), "131,073 sequences; expected at most 131,072"),
    "trillions of chunks": (
        "norm_input",
        lambda d: d.update(shape=[2**22, 2**11, 2**8, 7, 5]),
        "it has .* chunks; expected at most 1,048,576",
    ),
    "trillions of chunks in a shard": (
        "norm_input",
        lambda d: set_grid(d, [1, 1, 1, 7, 5], [2**20, 2**10, 2**10, 7, 5]),
        "it has .* chunks; expected at most",
    ),
    "chunks of nothing": ("nll", lambda d: set_grid(d, [0, 7]), "no list of whole numbers"),
    "chunks of one value": ("nll", lambda d: set_grid(d, [1, 1], [1, 7]), "its chunks are 1 long along position"),
    "shards that chunks do not fill": ("nll", lambda d: set_grid(d, [2, 7], [3, 7]), "not whole numbers of chunks"),
    "other numbers of dimensions": ("nll", lambda d: set_grid(d, [1, 7, 1]), "different numbers of dimensions"),
    "names for other dimensions": ("nll", lambda d: d.update(dimension_names=["a"]), "different numbers"),
    "objects": ("nll", lambda d: d.update(data_type="object"), 'its values are "object"'),
    "a dtype with settings": ("nll", lambda d: d.update(data_type={"name": "pickle"}), "its values are .*pickle"),
    "a pickling codec": ("nll", lambda d: codecs(d).insert(0, {"name": "numcodecs.pickle"}), "codecs numcodecs.pickle"),
    "a filter": ("nll", lambda d: codecs(d).insert(0, {"name": "numcodecs.delta"}), "codecs numcodecs.delta, bytes"),
    "another compressor": ("nll", lambda d: codecs(d).insert(1, {"name": "gzip"}), "codecs bytes, gzip, blosc"),
    "no checksum": ("nll", lambda d: codecs(d).pop(), "codecs bytes, blosc; expected those of the format"),
    "shards in shards": (
        "nll",
        lambda d: d["codecs"][0]["configuration"].update(codecs=copy.deepcopy(d["codecs"])),
        "codecs shard",
    ),
    "no codecs": ("nll", lambda d: d.update(codecs=[]), "nll"),
    "a codec that is a number": ("nll", lambda d: d.update(codecs=[7]), "a codec is int"),
    "an index without checksum": (
        "nll",
        lambda d: d["codecs"][0]["configuration"].update(index_codecs=[{"name": "bytes"}]),
        "codecs of its shards' index",
    ),
    "a storage transformer": ("nll", lambda d: d.update(storage_transformers=[{"name": "x"}]), "storage transformers"),
    "another grid": ("nll", lambda d: d["chunk_grid"].update(name="rectangular"), "chunks are not those of the format"),
    "keys that lead out": (
        "nll",
        lambda d: d["chunk_key_encoding"]["configuration"].update(separator="/../"),
        "chunk keys are not those",
    ),
    "files in folders, which no fingerprint would see": (
        "nll",
        lambda d: d["chunk_key_encoding"]["configuration"].update(separator="/"),
        "chunk keys are not those",
    ),
    "a million sites": (
        "site",
        lambda d: (d.update(shape=[2**22]), d["chunk_grid"]["configuration"].update(chunk_shape=[2**22])),
        "strings that the metadata say",
    ),
    "a group": ("nll", lambda d: d.update(node_type="group"), "it is no Zarr v3 array"),
    "another version": ("nll", lambda d: d.update(zarr_format=2), "it is no Zarr v3 array"),
    "tokens of a trillion": (
        "token_id",
        lambda d: (d.update(shape=[2**17, 2**20]), whole(d, [1, 2**20])),
        "tokens; expected at most",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_metadata_that_no_capture_writes(lie: str, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, change, said = LIES[lie]
    edit(path, name, change)
    for command in ("find", "info"):
        assert main([command, str(path)]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert len(lines[0]) < 600
    with pytest.raises(OutliersError, match=said):
        open_store(path)
    if name != "site":  # zarr reads the labels of those
        with pytest.raises(OutliersError, match=said):
            verify(path)
    # The same where metadata are not consolidated.
    root = json.loads((path / "zarr.json").read_text())
    del root["consolidated_metadata"]
    (path / "zarr.json").write_text(json.dumps(root))
    with pytest.raises(OutliersError, match=said):
        open_store(path)


def test_the_most_sequences_that_metadata_may_claim(path: Path) -> None:
    """Their flags are really there: the store opens lazily, and the first sequence that is missing is an error."""
    many = 2**17
    group = many // 256
    shapes = {name: [2, many, 4, 2, 5] for name in ("layer_high", "layer_low")}
    shapes |= {"final_high": [many, 5], "final_low": [many, 5], "digest": [many, 10]}
    shapes |= {"position_peak": [2, many, 7, 5], "nonfinite_count": [2, many, 4, 2], "nll": [many, 7]}
    for name, shape in shapes.items():
        if name == "position_peak":  # two chunks a sequence
            edit(path, name, lambda d: set_grid(d, [2, 1, 7, 5], [2, group, 7, 5]))
        edit(path, name, lambda d, shape=shape: d.update(shape=shape))
    root = json.loads((path / "zarr.json").read_text())
    root["attributes"]["raw"] = "none"
    (path / "zarr.json").write_text(json.dumps(root))
    edit(path, "token_id", lambda d: (d.update(shape=[many, 7]), whole(d, [many, 7])))
    edit(path, "done", lambda d: (d.update(shape=[many]), whole(d, [many])))
    (path / "done" / "c.0").write_bytes(signed(b"\1" * many))
    store = open_store(path)
    assert store.sizes["sequence"] == many
    with pytest.raises(OutliersError, match="is damaged at"):
        find_outliers(store, Criteria(sequences=(many - 1,)))


def whole(document: dict[str, Any], shape: list[int]) -> None:
    document["chunk_grid"]["configuration"]["chunk_shape"] = shape


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"attributes":' + '{"a":' * 300 + "1" + "}" * 301, "nested too deeply"),
        ("[]", "the JSON is list; expected an object"),
        ('"text"', "the JSON is str"),
        ('{"attributes": []}', "attributes is list"),
        ("\xff", "damaged"),
        ('{"attributes": {"format": "outlier-features", "format_version": ' + "9" * 5000 + "}}", "damaged"),
        ("{" + " " * 2**23 + "}", "zarr.json is larger than the 8,388,608 bytes"),
    ],
)
def test_root_metadata_that_no_capture_writes(text: str, said: str, path: Path) -> None:
    (path / "zarr.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(OutliersError, match=said):
        open_store(path)
    with pytest.raises(OutliersError, match=said):
        StoreWriter(path)


def test_a_file_of_a_terabyte_is_not_read(path: Path) -> None:
    for name in ("zarr.json", "site/c.0"):
        with (path / name).open("r+b") as file:
            before = file.read()
            file.truncate(2**40)  # sparse: it takes no room
        with pytest.raises(OutliersError, match=r"is larger than the [\d,]+ bytes that it can have"):
            open_store(path)
        (path / name).write_bytes(before)
    with (path / "done" / "c.0").open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(OutliersError, match="done is damaged .*larger than"):
        open_store(path)


def test_a_pipe_in_place_of_a_file_is_not_waited_for(path: Path) -> None:
    for name in ("zarr.json", "site/c.0", "layer_low/c.0.0.0.0.0"):
        before = (path / name).read_bytes()
        (path / name).unlink()
        os.mkfifo(path / name)
        with pytest.raises(OutliersError, match=r"no Zarr v3 store|is missing"):
            find_outliers(path)
        (path / name).unlink()
        (path / name).write_bytes(before)


def signed(data: bytes) -> bytes:
    return data + int(google_crc32c.value(data)).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        (struct.pack("<II", 2, 2**31) + b"ln", "a string is longer than the chunk"),
        (struct.pack("<I", 2**32 - 1), "has not the 2 strings"),
        (struct.pack("<II2sI2s", 2, 2, b"\xff\xfe", 2, b"ab"), "coordinates are damaged .*utf-8"),
        (struct.pack("<II2sI2sB", 2, 2, b"ab", 2, b"cd", 0), "goes on behind its last string"),
        (b"", "has not the 2 strings"),
    ],
)
def test_strings_that_lie_about_their_length(payload: bytes, said: str, path: Path) -> None:
    (path / "site" / "c.0").write_bytes(signed(payload))
    with pytest.raises(OutliersError, match=said):
        open_store(path)


def test_an_index_that_claims_terabytes(path: Path) -> None:
    file = path / "norm_input" / "c.1.0.0.0.0"
    data, size = file.read_bytes(), 4 * 2 * 16
    index = np.frombuffer(data[-size - 4 : -4], "<u8").reshape(4, 2, 2).copy()
    for place in ((0, 2**62), (2**62, 100), (2**64 - 2, 2**64 - 2)):
        index[2, 1] = place
        file.write_bytes(data[: -size - 4] + signed(index.tobytes()))
        with pytest.raises(
            OutliersError, match="norm_input is damaged at sequence 1, layer 2, site ln_mlp .*cut short"
        ):
            open_store(path)["norm_input"][1, 2, 1].compute()


def test_attributes_are_shown_and_never_interpreted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ("model_id", "architecture", "text_source", HOSTILE)
    attributes = {**dict.fromkeys(texts, HOSTILE), "versions": {HOSTILE: HOSTILE}, "top_k": [HOSTILE]}
    path = builders.on_disk(tmp_path / "s.zarr", builders.random_activations(), attributes=attributes)
    for words in (["info"], ["find"], ["find", "--all-conventions"], ["metrics"], ["sweep", "--magnitude", "1:3:1"]):
        assert main([words[0], str(path), *words[1:]]) == 0
        shown = capsys.readouterr()
        for stream in (shown.out, shown.err):
            assert all(character.isprintable() or character == "\n" for character in stream), words
    assert main(["info", str(path)]) == 0
    assert "[red]b[/red]" in capsys.readouterr().out.replace("\n", "")
    assert main(["info", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["attributes"]["model_id"] == HOSTILE


def test_errors_show_words_of_a_store_on_one_line(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = json.loads((path / "zarr.json").read_text())
    root["attributes"]["raw"] = HOSTILE
    (path / "zarr.json").write_text(json.dumps(root))
    assert main(["find", str(path)]) == 2
    shown = capsys.readouterr().err
    assert shown.endswith("\n")
    assert shown.rstrip("\n").isprintable()


def forge(path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave cached views and step functions in a store, with false peaks, under the names that they would have."""
    with monkeypatch.context() as other:
        other.setenv("XDG_CACHE_HOME", str(elsewhere))
        other.setattr("analyze.peaks.lookup.stream_peaks", _false_peaks)
        view_peaks(open_store(path), View(skip_first=1))
        sweep(path, Criteria(skip_first=1), [1.0, 2.0])
        shutil.copytree(cache_folder(), path / ".views")
    assert len(list((path / ".views").iterdir())) == 2


def _false_peaks(*arguments: Any) -> Any:
    from analyze.peaks.stream import stream_peaks

    for part in stream_peaks(*arguments):
        for values in (part.layer_high, part.layer_low, part.position_peak):
            values[...] = 100
        yield part


@pytest.mark.parametrize("known", [False, True])
def test_a_strangers_cached_view_changes_no_answer(
    known: bool, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    criteria = Criteria(magnitude=50, skip_first=1)
    truth = find_outliers(path, criteria)
    shutil.rmtree(cache_folder())
    forge(path, tmp_path / "other", monkeypatch)
    if known:  # this user has a view of the same name
        find_outliers(path, criteria)
    assert find_outliers(path, criteria) == truth
    assert truth.count == 0
    assert [row["count"] for row in sweep(path, criteria, [50.0]).rows()] == [0]


def test_a_flipped_bit_of_a_cached_view_is_an_error(path: Path) -> None:
    view = View(skip_first=1)
    view_peaks(open_store(path), view)
    (folder,) = cache_folder().iterdir()
    last = sorted((folder / "layer_high").glob("c.*"))[-1]
    data = bytearray(last.read_bytes())
    data[-9] ^= 1
    last.write_bytes(data)
    peaks = view_peaks(open_store(path), view)
    assert peaks["layer_low"].load().notnull().all()
    assert np.isfinite(peaks["layer_high"][0].values).all()
    with pytest.raises(OutliersError, match=r"cached layer_high is damaged .*; remove the folder .* and run the same"):
        peaks["layer_high"].compute()
    for file in (last, folder / "position_peak" / "zarr.json"):
        file.write_bytes(file.read_bytes()[:-1])
        np.testing.assert_array_equal(  # not whole: computed again
            view_peaks(open_store(path), view)["layer_high"].values,
            view_peaks(open_store(path), view, use_cache=False)["layer_high"].values,
        )


@pytest.mark.parametrize("character", [b"3", b"4", b"f", b"c", b"[", b"}", b'"'])
def test_a_flipped_bit_in_the_metadata_of_a_cached_view_costs_no_more_than_its_computation(
    character: bytes, path: Path
) -> None:
    view = View(skip_first=1)
    truth = view_peaks(open_store(path), view)["layer_high"].values
    (folder,) = cache_folder().iterdir()
    file = folder / "layer_high" / "zarr.json"
    data = bytearray(file.read_bytes())
    data[data.index(character)] ^= 1
    file.write_bytes(data)
    np.testing.assert_array_equal(view_peaks(open_store(path), view)["layer_high"].values, truth)


def test_a_cache_that_cannot_be_kept_still_gives_answers(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    criteria = Criteria(magnitude=2, skip_first=1)
    truth = find_outliers(path, criteria)
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null/nowhere")
    assert find_outliers(path, criteria) == truth


@pytest.mark.parametrize("name", [".views", ".views/x"])
def test_links_in_a_store_lead_no_writing_out_of_it(name: str, path: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("mine")
    if name == ".views":
        (path / ".views").symlink_to(outside)
    else:
        view_peaks(open_store(path), View(skip_first=1))
        (folder,) = cache_folder().iterdir()
        shutil.rmtree(folder)
        (path / ".views").mkdir()
        (path / ".views" / folder.name).symlink_to(outside)
    view_peaks(open_store(path), View(skip_first=1))
    sweep(path, Criteria(skip_first=1), [1.0])
    assert [entry.name for entry in outside.iterdir()] == ["kept"]


def test_repair_does_not_follow_links(path: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    shutil.move(path / "done", outside)
    (path / "done").symlink_to(outside)
    before = {file.name: file.read_bytes() for file in outside.iterdir()}
    assert find_outliers(path).count  # reading is harmless
    file = path / "nll" / "c.1.0"
    file.write_bytes(file.read_bytes()[:-1])
    (damage,) = verify(path, repair=True).damage
    assert damage.place == "done/zarr.json"
    with pytest.raises(OutliersError, match="done is a link, and a store is written only inside its own folder"):
        StoreWriter(path).mark_done(1, False)
    assert {file.name: file.read_bytes() for file in outside.iterdir()} == before


def archive(path: Path, content: dict[str, bytes], change: Callable[[zipfile.ZipInfo], None] | None = None) -> Path:
    """An archive of these entries, of which the last is changed before it is written."""
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as opened:
        warnings.simplefilter("ignore")
        for number, (name, data) in enumerate(content.items()):
            info = zipfile.ZipInfo(name)
            if change is not None and number == len(content) - 1:
                change(info)
            opened.writestr(info, data)
    return path


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a\\x", "C:x", "a//x", "./x", "a\nx"])
def test_archives_with_names_that_lead_elsewhere(name: str, path: Path, tmp_path: Path) -> None:
    content = {entry: (path / entry).read_bytes() for entry in ("zarr.json", "SHA256SUMS")}
    target = archive(tmp_path / "h.zarr.zip", {**content, name: b"x"})
    with pytest.raises(OutliersError, match="entry .* (leads out of the folder|has a name that no store has)"):
        open_store(target)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda info: setattr(info, "external_attr", 0o120777 << 16), "is a link"),
        (lambda info: setattr(info, "compress_type", zipfile.ZIP_DEFLATED), "is compressed"),
    ],
)
def test_archives_with_links_and_bombs(change: Callable[[Any], None], said: str, path: Path, tmp_path: Path) -> None:
    content = {entry: (path / entry).read_bytes() for entry in ("zarr.json", "SHA256SUMS")}
    target = archive(tmp_path / "h.zarr.zip", {**content, "nll/c.0.0": b"0" * 10**6}, change)
    with pytest.raises(OutliersError, match=said):
        open_store(target)


def test_archives_whose_directory_lies(path: Path, tmp_path: Path) -> None:
    target = pack(path, tmp_path / "s.zarr.zip")
    data = target.read_bytes()
    name = b"nll/c.1.0"
    entry = data.rindex(name) - 46
    assert data[entry : entry + 4] == b"PK\x01\x02"

    def with_field(offset: int, value: int) -> Path:
        changed = bytearray(data)
        changed[entry + offset : entry + offset + 4] = value.to_bytes(4, "little")
        (tmp_path / "h.zarr.zip").write_bytes(changed)
        return tmp_path / "h.zarr.zip"

    flags = int.from_bytes(data[entry + 8 : entry + 12], "little")
    for offset, value, said in (
        (8, flags | 1, "is encrypted"),
        (24, 2**31, "is compressed|claim more bytes"),
        (42, 0, "nll is damaged"),
        (42, len(data) - 60, "nll is damaged|no whole ZIP"),
    ):
        with pytest.raises(OutliersError, match=said):
            find_outliers(with_field(offset, value))
    for length in (0, 10, len(data) // 2, len(data) - 1):
        (tmp_path / "h.zarr.zip").write_bytes(data[:length])
        with pytest.raises(OutliersError, match="is no whole ZIP file|no zarr.json"):
            open_store(tmp_path / "h.zarr.zip")
    content = {entry: (path / entry).read_bytes() for entry in ("zarr.json", "SHA256SUMS")}
    twice = archive(tmp_path / "h.zarr.zip", {**content, "ZARR.json": b"{}"})
    with pytest.raises(OutliersError, match=r"h.zarr.zip: entry '.*' stands there twice"):
        open_store(twice)


def test_texts_of_tokens_that_lie(tmp_path: Path) -> None:
    from capture.store import write
    from capture.store.create import create
    from capture.store.schema import PER_SEQUENCE, VARIABLES, Sizes

    arrays = builders.arrays_of(builders.random_activations((1, 2, 2, 6, 4)))
    path = tmp_path / "s.zarr"
    create(
        path,
        Sizes(1, 2, builders.SITES, 6, 4),
        raw="none",
        attributes=builders.ATTRIBUTES,
        token_id=arrays["token_id"],
        norm_weight=arrays["norm_weight"],
        vocabulary=dict.fromkeys(range(6), HOSTILE),
    )
    names = PER_SEQUENCE
    write.write_sequence(path, 0, {n: np.take(arrays[n], 0, axis=VARIABLES[n].dims.index("sequence")) for n in names})
    assert {row["token_text"] for row in extreme_tokens(path)} == {HOSTILE}
    (path / "vocabulary" / "text" / "c.0").write_bytes(signed(struct.pack("<II20x", 6, 2**32 - 1)))
    with pytest.raises(OutliersError, match="vocabulary is damaged .a string is longer than the chunk"):
        extreme_tokens(path)
    edit(path, "vocabulary/text", lambda d: d.update(shape=[10**15]))
    with pytest.raises(OutliersError, match="vocabulary/text: a dimension is 1e.15 long"):
        open_store(path)


def test_nothing_of_a_store_is_imported_or_unpickled(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What zarr would look up by name is never reached, and NumPy unpickles nothing."""
    truth = sweep(path, Criteria(skip_first=1), [1.0]).rows()
    monkeypatch.setattr("zarr.registry.get_codec_class", lambda *_: pytest.fail("a codec was looked up"))
    find_outliers(path, Criteria(skip_first=1))
    (file,) = cache_folder().glob("*.npz")
    content = io.BytesIO()
    np.savez(content, critical=np.array([{"a": 1}], dtype=object))
    file.write_bytes(hashlib.sha256(content.getvalue()).digest() + content.getvalue())
    assert sweep(path, Criteria(skip_first=1), [1.0]).rows() == truth
