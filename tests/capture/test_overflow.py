"""A model whose values are not finite is captured and counted; the look-ahead check says when it cannot say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from analyze import find_outliers, open_store  # noqa: E402
from analyze.cli import main  # noqa: E402
from capture.errors import OutliersError  # noqa: E402
from capture.sites.trial import refuse_lookahead  # noqa: E402
from tests.conftest import tiny_llama, tiny_tokenizer  # noqa: E402


def overflowing(model: Any) -> None:
    model.model.layers[1].mlp.down_proj.weight.mul_(1e6)


def missing(model: Any) -> None:
    model.model.layers[1].self_attn.o_proj.weight[3] = torch.nan


def endless(model: Any) -> None:
    model.model.layers[1].mlp.down_proj.weight[5] = torch.inf


def one_token(model: Any) -> None:
    model.model.embed_tokens.weight[7] = torch.nan


@pytest.mark.parametrize(
    ("spoil", "dtype"),
    [(overflowing, "float16"), (missing, "float32"), (endless, "float32"), (one_token, "float32")],
)
def test_a_capture_of_what_is_not_finite_is_a_store(
    spoil: Callable[[Any], None], dtype: str, tmp_path: Path, text_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_llama()
    with torch.no_grad():
        spoil(model)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    words = ["--text", str(text_file), "--sequences", "2", "--length", "16", "--dtype", dtype, "--raw", "both"]
    out = tmp_path / "s.zarr"
    assert main(["capture", str(tmp_path / "model"), "--out", str(out), *words]) == 0
    assert "not finite" in capsys.readouterr().err
    assert main(["verify", str(out)]) == 0
    store = open_store(out)
    counted = int(store["nonfinite_count"].sel(signal="input").sum())
    assert counted == int((~np.isfinite(store["norm_input"].values)).sum())
    assert counted > 0
    assert find_outliers(store).nonfinite_count == counted


class Reading(torch.nn.Module):
    """Predictions of two rows of tokens, of which only the last differ."""

    def __init__(self, first: list[float], second: list[float]) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(12, 2)
        rows = torch.tensor([[*row, *[0.0] * (9 - len(row))] for row in (first, second)])
        self.logits = rows[..., None]

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.embedding

    def forward(self, **_: Any) -> Any:
        return self


@pytest.mark.parametrize(
    ("first", "second", "told"),
    [
        ([1, 2], [1, 2], True),
        ([torch.nan, 2], [torch.nan, 2], False),
        ([torch.inf, 2], [torch.inf, 2], False),
        ([torch.nan] * 9, [torch.nan] * 9, False),
    ],
)
def test_what_cannot_be_compared_is_not_called_looking_ahead(
    first: list[float], second: list[float], told: bool
) -> None:
    assert refuse_lookahead(Reading(first, second)) is told


@pytest.mark.parametrize(("first", "second"), [([1, 2], [1, 3]), ([torch.nan, 2], [torch.nan, 3])])
def test_what_looks_ahead_is_refused_beside_nan_too(first: list[float], second: list[float]) -> None:
    with pytest.raises(OutliersError, match="looks ahead"):
        refuse_lookahead(Reading(first, second))
