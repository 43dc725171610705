"""Results go where the user said, or are refused before anything is read: no URL becomes a folder, no store a table."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from analyze import OutliersError, compare, open_store, sweep, sweep_figure
from analyze.cli import main
from analyze.display.figures import save
from analyze.display.tables import write_csv
from analyze.report.write import write_report
from analyze.sharing.pack import pack
from analyze.sharing.unpack import unpack
from capture.store.output import output_file, output_path
from tests import builders

pytestmark = pytest.mark.slow

# What writes, with a store that is not there: the refusal comes before it is looked for.
WRITERS = {
    "pack": ["pack", "none.zarr", "--out"],
    "unpack": ["unpack", "none.zarr.zip", "--out"],
    "report": ["report", "none.zarr", "--out"],
    "compare": ["compare", "none.zarr", "--out"],
    "transition": ["transition", "none.zarr", "--out"],
    "trajectory csv": ["trajectory", "none.zarr", "--csv"],
    "trajectory plot": ["trajectory", "none.zarr", "--plot"],
    "sweep csv": ["sweep", "none.zarr", "--magnitude", "6", "--csv"],
    "sweep plot": ["sweep", "none.zarr", "--magnitude", "6", "--plot"],
    "metrics csv": ["metrics", "none.zarr", "--csv"],
    "fits csv": ["fits", "none.zarr", "--csv"],
    "quantize csv": ["quantize", "none.zarr", "--csv"],
    "quantize plot": ["quantize", "none.zarr", "--plot"],
    "export": ["export", "none.zarr", "--smoothquant"],
    "fits plot": ["fits", "none.zarr", "--plot"],
    "show": ["show", "none.zarr", "--feature", "1", "--plot"],
    "map": ["map", "none.zarr", "--plot"],
    "walk": ["walk", "none.zarr", "--feature", "1", "--plot"],
    "capture": ["capture", "none/none", "--out"],
    "run": ["run", "recipe.toml", "--out"],
}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return builders.on_disk(tmp_path / "s.zarr", builders.random_activations())


@pytest.mark.parametrize("url", ["s3://bucket/x.png", "hf://datasets/org/name/x.png", "https://host/x.png"])
@pytest.mark.parametrize("words", WRITERS.values(), ids=WRITERS)
def test_a_url_is_refused_before_anything_runs(
    words: list[str], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if words[0] in ("capture", "run"):
        pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.toml").write_text('[[models]]\nmodel = "none/none"\n')
    assert main([*words, url]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert f"{url} is a URL" in told
    assert "outliers push" in told
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.toml"]


@pytest.mark.parametrize("write", [output_path, output_file])
@pytest.mark.parametrize("url", ["s3://name:secret@host/x", "gs://b/x", Path("s3://bucket/x"), "file:///x"])
def test_no_form_of_a_url_passes_and_no_password_is_shown(write: object, url: str | Path) -> None:
    with pytest.raises(OutliersError, match="is a URL") as raised:
        write(url)  # type: ignore[operator]
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("path", ["a:b/x", "C:/x", "x:y", "/tmp/s3://x", "./s3:/x", "2024-01-01T10:00/x"])
def test_paths_with_a_colon_are_paths(path: str) -> None:
    assert output_path(path) == Path(path)


def test_the_home_folder_is_meant_in_python_too(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    pack(store, "~/s.zarr.zip")
    unpack(home / "s.zarr.zip", "~/copy.zarr")
    write_report(store, "~/report.html")
    write_csv(Path("~/table.csv"), [{"a": 1}])
    save(sweep_figure(sweep(store, None, [1, 2])), "~/figure.png")
    assert main(["compare", str(store), "--out", "~/study", "--resamples", "20"]) == 0
    found = {path.name for path in home.iterdir()}
    assert {"s.zarr.zip", "copy.zarr", "report.html", "table.csv", "figure.png", "study"} <= found
    assert not (tmp_path / "~").exists()
    assert compare([home / "copy.zarr"], resamples=20).rows()


@pytest.mark.parametrize("kind", ["store", "archive", "folder", "no folder"])
@pytest.mark.parametrize("words", [["--csv"], ["--plot"]])
def test_nothing_captured_is_replaced_by_a_table_or_a_figure(
    kind: str, words: list[str], store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = pack(store, tmp_path / "a.zarr.zip")
    before = archive.read_bytes()
    (tmp_path / "folder.png").mkdir()
    target = {
        "store": store,
        "archive": archive,
        "folder": tmp_path / "folder.png",
        "no folder": tmp_path / "none" / "x.png",
    }[kind]
    assert main(["sweep", "none.zarr", "--magnitude", "1", *words, str(target)]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "none.zarr" not in told  # refused before the store is looked for
    assert archive.read_bytes() == before
    assert open_store(store).sizes["sequence"] == 3


@pytest.mark.parametrize("name", ["plain.zip", "odd.csv", "odd.png"])
def test_an_archive_by_another_name_is_not_replaced(
    name: str, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = pack(store, tmp_path / "a.zarr.zip").rename(tmp_path / name)
    before = archive.read_bytes()
    option = "--plot" if name.endswith("png") else "--csv"
    assert main(["sweep", str(store), "--magnitude", "1", option, str(archive)]) == 2
    assert "a store or the name of one" in capsys.readouterr().err
    assert archive.read_bytes() == before


FOLDERS = {
    "unpack": ["unpack", "none.zarr.zip", "--out"],
    "compare": ["compare", "none.zarr", "--out"],
    "transition": ["transition", "none.zarr", "--out"],
    "capture": ["capture", "none/none", "--text", "python-docs", "--out"],
    "run": ["run", "recipe.toml", "--out"],
}


@pytest.mark.parametrize("kind", ["a file on the way", "a link to nowhere", "nobody's home"])
@pytest.mark.parametrize("words", FOLDERS.values(), ids=FOLDERS)
def test_a_folder_that_cannot_be_made_is_refused_before_anything_runs(
    words: list[str], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if words[0] in ("capture", "run"):
        pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.toml").write_text('[[models]]\nmodel = "none/none"\n')
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    target = {"a file on the way": "file/x", "a link to nowhere": "link/x", "nobody's home": "~no-such-user/x"}[kind]
    assert main([*words, target]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "is no folder" in told or "is no user's home" in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "link", "recipe.toml"]


def leaks(folder: Path, *secrets: str) -> list[str]:
    """Files of text that hold one of some words."""
    files = [file for file in folder.iterdir() if file.suffix in (".md", ".csv", ".json", ".svg", ".html")]
    assert files
    return sorted(file.name for file in files if any(secret in file.read_text() for secret in secrets))


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("command", ["compare", "transition", "trajectory", "quantize"])
def test_files_that_are_handed_on_hold_no_paths(
    command: str, keep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("analyze.comparison.figures.write_figures", lambda *_: [])  # drawing takes its time
    monkeypatch.setattr("analyze.transitions.tables.save", lambda *_: None)
    stores = []
    for number in (1, 2, 3):
        folder = tmp_path / "secret" / str(number)
        folder.mkdir(parents=True)
        about = {"model_id": "/secret/mine", "text_source": "/secret/text.txt", "total_parameters": 1000 * number}
        if command != "compare":
            about["model_id"] += "/step1" if command == "trajectory" else str(number)
        about["model_revision_name"] = f"step{number}"
        values = builders.random_activations((8, 4, 2, 7, 5))
        stores.append(str(builders.on_disk(folder / "s.zarr", values, attributes=about)))
    out = tmp_path / "out"
    out.mkdir()
    where = {
        "compare": ["--resamples", "20", "--out", str(out)],
        "transition": ["--magnitude", "1:4:1", "--repeats", "99", "--out", str(out)],
        "trajectory": ["--resamples", "20", "--csv", str(out / "t.csv")],
        "quantize": ["--scheme", "int8-token", "--csv", str(out / "q.csv")],
    }[command]
    assert main([command, *stores, *where, *["--keep-paths"] * keep]) == 0
    assert bool(leaks(out, "secret")) == keep
    if command in ("compare", "trajectory", "quantize") and not keep:
        table = next(file for file in out.iterdir() if file.name in ("dense.csv", "t.csv", "q.csv"))
        assert "s.zarr (1)" in table.read_text()  # alike, and told apart all the same


@pytest.mark.parametrize("command", ["sweep", "map", "show", "walk", "fits", "quantize"])
def test_figures_hold_no_paths_and_draw_any_name(command: str, tmp_path: Path) -> None:
    about = {"model_id": "/secret/models/$\\frac{ 漢字 😀"}
    path = builders.on_disk(tmp_path / "s.zarr", builders.random_activations(), attributes=about)
    words = {"show": ["--feature", "1"], "walk": ["--feature", "1"], "quantize": ["--scheme", "int8-token"]}
    assert main([command, str(path), *words.get(command, []), "--plot", str(tmp_path / "f.svg")]) == 0
    assert leaks(tmp_path, "secret") == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_refused_first(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutliersError, match="Permission denied"):
        output_file(tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["sweep", "--magnitude", "1:3:1", "--csv"], "a.csv"),
        (["sweep", "--magnitude", "1:3:1", "--plot"], "a.svg"),
        (["metrics", "--csv"], "a.csv"),
        (["map", "--plot"], "a.png"),
        (["report", "--out"], "a.html"),
        (["compare", "--out"], "folder/dense.md"),
    ],
)
def test_a_full_disk_leaves_what_stood_there(
    words: list[str],
    name: str,
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = tmp_path / name
    target.parent.mkdir(exist_ok=True)
    target.write_text("the good one")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    given = target.parent if words[0] == "compare" else target
    assert main([words[0], str(store), *words[1:], str(given)]) == 2
    told = capsys.readouterr().err.splitlines()
    assert "No space left on device" in told[-1]
    assert target.read_text() == "the good one"
    assert [path for path in target.parent.iterdir() if path.suffix == ".partial"] == []
