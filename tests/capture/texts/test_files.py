"""Files of documents: every kind read, every damage told in one line with file, row and remedy."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from capture.errors import OutliersError
from capture.texts.files import files_of, read_file, text_digest

pa = pytest.importorskip("pyarrow")

DOCUMENTS = ["alpha", "beta\nünïcode", ""]
ROWS = "".join(json.dumps({"id": 1, "text": text}) + "\n\n" for text in DOCUMENTS).encode()


def zstandard(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def parquet(path: Path, **columns: Any) -> None:
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)


def values(path: Path, name: str = "text") -> list[Any]:
    return [record.value for record in read_file(path, name)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.json", "a.txt"])
@pytest.mark.parametrize(
    ("ending", "compress"), [("", bytes), (".gz", gzip.compress), (".GZ", gzip.compress), (".zst", zstandard)]
)
def test_every_kind_is_read(tmp_path: Path, name: str, ending: str, compress: Any) -> None:
    path = tmp_path / (name + ending)
    plain = name == "a.txt"
    path.write_bytes(compress("alpha\nünïcode".encode() if plain else ROWS))
    assert values(path) == (["alpha\nünïcode"] if plain else DOCUMENTS)
    assert text_digest(str(path)) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_several_members_of_one_compressed_file_are_one_text(tmp_path: Path) -> None:
    for ending, compress in ((".gz", gzip.compress), (".zst", zstandard)):
        path = tmp_path / f"a.jsonl{ending}"
        path.write_bytes(compress(ROWS) + compress(ROWS))
        assert values(path) == DOCUMENTS * 2


def test_columns_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.PARQUET"
    ids = [[1, 2], [3]]
    chats = [[{"role": "user", "content": "alpha"}], []]
    parquet(path, text=["a", None], ids=ids, chats=chats, words=pa.array(["x", "x"]).dictionary_encode())
    assert values(path) == ["a", None]
    assert values(path, "ids") == ids
    assert values(path, "chats") == chats
    assert values(path, "words") == ["x", "x"]
    with pytest.raises(OutliersError, match="has no column `body`; its columns are text, ids, chats, words; name"):
        values(path, "body")


def test_rows_know_where_they_are(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", text=["a", "b"])
    (tmp_path / "a.jsonl").write_bytes(ROWS)
    assert [record.where for record in read_file(tmp_path / "a.parquet", "text")][1] == f"row 2 of {tmp_path}/a.parquet"
    assert [record.where for record in read_file(tmp_path / "a.jsonl", "text")][1] == f"line 3 of {tmp_path}/a.jsonl"


def test_a_folder_is_its_files_in_order_of_names(tmp_path: Path) -> None:
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    for name in ("b/c/2.jsonl", "b/1.JSON.GZ", "a.txt", "README.md", ".hidden/x.txt", "b/.x.txt"):
        (tmp_path / name).write_bytes(b"x")
    found = files_of(str(tmp_path))
    assert found is not None
    assert [str(file.relative_to(tmp_path)) for file in found] == ["a.txt", "b/1.JSON.GZ", "b/c/2.jsonl"]
    before = text_digest(str(tmp_path))
    (tmp_path / "README.md").write_text("other")
    assert text_digest(str(tmp_path)) == before
    (tmp_path / "a.txt").rename(tmp_path / "aa.txt")
    assert text_digest(str(tmp_path)) != before
    assert files_of(str(tmp_path / ".hidden" / "none")) is None
    assert text_digest("python-docs") is None


def test_a_text_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.txt").write_text("x")
    for name in ("~/d", "~/d/a.txt"):
        assert files_of(name) == [tmp_path / "d" / "a.txt"]
        assert text_digest(name) == text_digest(name.replace("~", str(tmp_path)))
    assert files_of("~no-such-user/a.txt") is None
    with pytest.raises(OutliersError, match="has a NUL character"):
        files_of("a\0.txt")


GOOD = gzip.compress(ROWS, mtime=0)
ZSTD = zstandard(ROWS * 50)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl", b'{"text": "x"}\n{nonsense\n', r"line 2 \(Expecting.*expected one JSON object a line"),
        ("a.jsonl", b'{"text": "x"}\n\n{"text": "\xff"}\n', r"line 3 \(not UTF-8 at byte 10\); convert it to UTF-8"),
        ("a.jsonl", b'{"text": "x"}\n{"text": ' + b"9" * 5000 + b"}\n", r"line 2 \(Exceeds the limit"),
        ("a.jsonl", b'{"text": ' + b"[" * 99999 + b"\n", r"line 1 \(lists within lists without end"),
        ("a.jsonl", b'{"body": "x"}\n', r"line 1 of .* has no field `text` \(its fields are body\); .* with --field"),
        ("a.jsonl", b'{"text": "x"}\n[1]\n', r"line 2 of .* has no field `text` \(it is a list \(\[1\]\)\)"),
        ("a.json", b"null\n", r"line 1 of .* \(it is null\)"),
        ("a.jsonl.gz", b"not compressed", r"cannot be read \(Not a gzipped file.*\); get it again"),
        ("a.jsonl.gz", GOOD[:-9], "ended before the end-of-stream"),
        ("a.txt.gz", GOOD[:20] + b"\0\0\0\0" + GOOD[24:], r"cannot be read \(.*\); get it again"),
        ("a.json.gz", b"", None),
        ("a.jsonl.zst", ZSTD[:-3], "Truncated compressed stream"),
        ("a.txt.zst", b"nonsense", r"a.txt.zst cannot be read \(ZSTD"),
        ("a.parquet", b"nonsense", r"a.parquet cannot be read \(Parquet magic bytes not found"),
        ("a.txt", b"ab\xff\xfe", "not UTF-8 at byte 2"),
        ("a.txt", "ab".encode("utf-16"), "UTF-16 or UTF-32, by its first bytes.; convert it to UTF-8"),
        ("a.txt", "ab".encode("utf-16-le"), "UTF-16 or UTF-32, by its first bytes"),
        ("a.txt", "ab".encode("utf-32-be"), "UTF-16 or UTF-32, by its first bytes"),
        ("a.jsonl", '{"text": "x"}'.encode("utf-32"), r"line 1 \(UTF-16 or UTF-32, by its first bytes"),
        ("a.jsonl", b"{}", r"has no field `text` \(its fields are none at all\)"),
    ],
)
def test_damage_is_told_in_one_line(tmp_path: Path, name: str, content: bytes, told: str | None) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    if told is None:
        assert values(path) == []
        return
    with pytest.raises(OutliersError, match=told) as caught:
        values(path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_column_that_is_no_utf8_is_told_with_its_row(tmp_path: Path) -> None:
    raw = pa.array([b"fine", b"\xff\xfe"], pa.binary())
    parquet(tmp_path / "a.parquet", text=pa.Array.from_buffers(pa.string(), 2, raw.buffers()))
    with pytest.raises(OutliersError, match=r"at row 2 \(not UTF-8 at byte 0\); convert it"):
        values(tmp_path / "a.parquet")


def test_a_date_that_python_cannot_hold_is_told_with_its_row(tmp_path: Path) -> None:
    parquet(tmp_path / "a.parquet", text=pa.array([0, 2**62], pa.timestamp("us")))
    with pytest.raises(OutliersError, match=r"a\.parquet cannot be read at row 2 \(.*\); get it again or mend it"):
        values(tmp_path / "a.parquet")


def test_a_damaged_page_of_parquet_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    parquet(path, text=[f"document {n} of many words" for n in range(3000)])
    content = bytearray(path.read_bytes())
    content[40:400] = bytes(360)
    path.write_bytes(bytes(content))
    with pytest.raises(OutliersError, match=r"a\.parquet cannot be read.*; get it again or mend it") as caught:
        values(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_goes_away_or_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OutliersError, match=r"gone\.txt cannot be read \(No such file or directory\); check the path"):
        values(tmp_path / "gone.txt")
    path = tmp_path / "a.txt"
    path.write_text("x")

    def refuse(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(OutliersError, match=r"a\.txt cannot be read \(Permission denied\)"):
        text_digest(str(path))
