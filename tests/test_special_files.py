"""Pipes, devices and endless files in a stranger's store: nothing waits for them, and nothing reads them whole."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from analyze.cli import main
from analyze.reading.open import open_store
from capture.errors import OutliersError
from capture.store.write import StoreWriter
from tests import builders
from tests.analyze.answers.test_ablation import keep, made

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _nothing_hangs() -> Iterator[None]:
    def late(*_: object) -> None:
        raise TimeoutError("it waits for a file that is none")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)


def pipe(file: Path) -> None:
    os.mkfifo(file)


def device(file: Path) -> None:
    file.symlink_to("/dev/zero")


def endless(file: Path) -> None:
    """A terabyte that takes no room, which ends as the file did."""
    content = b"\0" * 64
    with file.open("wb") as opened:
        opened.seek(2**40)
        opened.write(content)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = builders.on_disk(tmp_path_factory.mktemp("sound") / "s.zarr", builders.random_activations(), raw="input")
    keep(path, made(hidden_size=5, attributes={"store_id": StoreWriter(path).attributes["store_id"]}))
    return path


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "s.zarr"))


FILES = (
    *("zarr.json", "SHA256SUMS", "norm_input/zarr.json", "site/c.0", "token_id/c.0.0", "done/c.0", "nll/c.0.0"),
    *("norm_input/c.0.0.0.0.0", "layer_high/c.0.0.0.0.0", "norm_weight/c.0.0.0", "ablation/0123456789abcdef.json"),
)


@pytest.mark.parametrize("special", [pipe, device, endless])
@pytest.mark.parametrize("name", FILES)
def test_nothing_waits_for_what_is_no_file(
    name: str, special: Callable[[Path], None], store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (store / name).unlink()
    special(store / name)
    for words in (
        ["verify", str(store)],
        ["find", str(store), "--skip-first", "1"],
        ["compare", str(store)],
        ["pack", str(store), "--out", str(tmp_path / "p.zarr.zip")],
    ):
        code = main(words)
        told = capsys.readouterr().err
        assert code in (0, 2), words
        assert code == 0 or told.splitlines()[-1].startswith("outliers: ")
        record = name.startswith("ablation/")
        if words[0] == "verify":
            assert code == (0 if record else 2)
        if words[0] == "compare" and record:
            assert code == 2
            assert "is damaged or of a newer release" in told


@pytest.mark.parametrize("special", [pipe, device, endless])
def test_a_capture_into_what_is_no_store_waits_for_nothing(special: Callable[[Path], None], store: Path) -> None:
    (store / "zarr.json").unlink()
    special(store / "zarr.json")
    with pytest.raises(OutliersError, match="no Zarr v3 store|larger than"):
        StoreWriter(store)


@pytest.mark.parametrize("name", ["nll/c.0.0", "norm_input/c.0.0.0.0.0", "norm_input/notes"])
def test_a_link_that_leads_nowhere_is_a_missing_file(name: str, store: Path) -> None:
    (store / name).unlink(missing_ok=True)
    (store / name).symlink_to("/nowhere/x")
    opened = open_store(store)
    if name.endswith("0"):
        with pytest.raises(OutliersError, match=f"file {name} is missing"):
            opened[name.partition("/")[0]].compute(scheduler="sync")


@pytest.mark.parametrize("special", [pipe, device, endless])
@pytest.mark.parametrize("name", ["site/c.0", "done/c.0", "token_id/c.0.0"])
def test_a_capture_that_goes_on_waits_for_nothing(name: str, special: Callable[[Path], None], store: Path) -> None:
    (store / name).unlink()
    special(store / name)
    variable = name.partition("/")[0]
    with pytest.raises(OutliersError, match="is damaged .*(no plain file|larger than)"):
        StoreWriter(store).read(variable)


def test_metadata_that_are_not_consolidated(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = json.loads((store / "zarr.json").read_text())
    del root["consolidated_metadata"]
    (store / "zarr.json").write_text(json.dumps(root))
    for name in (".zgroup", "nll/zarr.json"):
        (store / name).unlink(missing_ok=True)
        os.mkfifo(store / name)
    assert main(["verify", str(store)]) == 2
    assert "nll/zarr.json" in capsys.readouterr().err
