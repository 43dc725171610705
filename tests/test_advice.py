"""What an error or a result advises can be copied into a shell, whatever the store is called."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from analyze import OutliersError, open_store
from analyze.cli import main
from analyze.sharing.pack import pack
from analyze.sharing.unpack import unpack
from capture.errors import advice
from capture.store.write import StoreWriter
from tests import builders

NAMES = ["my store.zarr", "a;rm -rf x.zarr", "$(touch pwned).zarr", "it's.zarr"]


def advised(text: str) -> list[str]:
    """Words of the command at the end of a text."""
    match = re.search(r"outliers [a-z]+ .*$", text.strip())
    assert match is not None, text
    return shlex.split(match[0])


@pytest.mark.parametrize("name", NAMES)
def test_advice_is_quoted(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / name
    with pytest.raises(OutliersError) as caught:
        open_store(path)
    assert advised(str(caught.value)) == ["outliers", "capture", "MODEL", "--out", str(path)]

    packed = tmp_path / f"{name}.zip"
    for function in (open_store, lambda archive: unpack(archive, tmp_path / "u.zarr")):
        with pytest.raises(OutliersError) as caught:
            function(packed)
        assert advised(str(caught.value)) == ["outliers", "pack", "STORE", "--out", str(packed)]

    builders.on_disk(path, builders.random_activations())
    pack(path, packed)
    with pytest.raises(OutliersError) as caught:
        StoreWriter(packed)
    assert advised(str(caught.value)) == ["outliers", "unpack", str(packed), "--out", "STORE"]
    out = tmp_path / f"new {name}"
    assert main(["unpack", str(packed), "--out", str(out)]) == 0
    assert advised(capsys.readouterr().out) == ["outliers", "info", str(out)]

    shutil.copy(path / "nll" / "c.0.0", path / "nll" / "c.1.0")
    (path / "layer_high" / "c.0.0.0.0.0").write_bytes(b"")
    assert main(["verify", str(path)]) == 2
    assert advised(capsys.readouterr().err) == ["outliers", "verify", str(path), "--repair"]


def test_a_plain_name_is_not_quoted() -> None:
    assert advice("find", Path("data/s.zarr"), "--json") == "outliers find data/s.zarr --json"
