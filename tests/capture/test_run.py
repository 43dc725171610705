"""The capture loop: what is in the store, resuming, parts, and refusals that change nothing."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

torch = pytest.importorskip("torch")

from capture import run  # noqa: E402
from capture.errors import OutliersError  # noqa: E402
from capture.run import capture  # noqa: E402
from capture.store.verify import verify  # noqa: E402
from capture.store.write import SequenceWriter, StoreWriter  # noqa: E402
from tests.architectures import ARCHITECTURES  # noqa: E402
from tests.conftest import WORDS, tiny_llama, tiny_tokenizer  # noqa: E402

Capture = Callable[..., Path]


@pytest.fixture
def do(checkpoint: Path, text_file: Path, tmp_path: Path) -> Capture:
    """`capture` of the tiny model with small defaults."""

    def call(**options: Any) -> Path:
        out = options.pop("out", tmp_path / "s.zarr")
        defaults = {"text": str(text_file), "sequences": 5, "length": 8}
        return capture(str(options.pop("model", checkpoint)), out, **(defaults | options))

    return call


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def assert_same_capture(left: Path, right: Path) -> None:
    """Equal in every value and in every attribute apart from when and how they were asked for."""
    one, two = xr.open_zarr(left), xr.open_zarr(right)
    xr.testing.assert_identical(one.drop_attrs().load(), two.drop_attrs().load())
    for dataset in (one, two):
        for name in ("created", "command"):
            del dataset.attrs[name]
    assert one.attrs == two.attrs


def test_the_store_holds_what_plain_hooks_see(do: Capture, checkpoint: Path, text_file: Path) -> None:
    path = do(raw="both")
    dataset = xr.open_zarr(path)
    words = text_file.read_text().split()
    ids = np.array([3 + WORDS.index(word) for word in words[:40]]).reshape(5, 8)
    np.testing.assert_array_equal(dataset.token_id, ids)
    vocabulary = xr.open_zarr(path, group="vocabulary")
    assert {3 + WORDS.index(word): word for word in words[:40]} == dict(
        zip(vocabulary.id.values.tolist(), vocabulary.text.values.tolist(), strict=True)
    )
    model = tiny_llama()
    seen: dict[str, list[Any]] = {}
    for name, module in model.named_modules():
        if "norm" in name:
            module.register_forward_hook(
                lambda _, args, result, name=name: seen.setdefault(name, []).append((args[0].numpy(), result.numpy()))
            )
    losses = []
    with torch.inference_mode():
        for row in torch.from_numpy(ids):
            losses.append(model(input_ids=row[None], labels=row[None], use_cache=False).loss.item())
    for n in range(5):
        for layer in range(3):
            for site, name in (("ln_attn", "input_layernorm"), ("ln_mlp", "post_attention_layernorm")):
                before, after = seen[f"model.layers.{layer}.{name}"][n]
                cell = dataset.sel(site=site).isel(sequence=n, layer=layer)
                np.testing.assert_array_equal(cell.norm_input, before[0])
                np.testing.assert_array_equal(cell.norm_output, after[0])
                weight = model.get_submodule(f"model.layers.{layer}.{name}").weight.detach().numpy()
                np.testing.assert_array_equal(cell.norm_weight, weight)
        np.testing.assert_array_equal(dataset.final_input[n], seen["model.norm"][n][0][0])
    np.testing.assert_allclose(dataset.nll.mean("position"), losses, rtol=1e-6)
    for signal in ("input", "output"):
        raw = dataset[f"norm_{signal}"]
        peaks = dataset.sel(signal=signal)
        np.testing.assert_array_equal(peaks.layer_high, raw.max("position"))
        np.testing.assert_array_equal(peaks.layer_low, raw.min("position"))
        np.testing.assert_array_equal(peaks.position_peak, abs(raw).max(["layer", "site"]))
    assert dataset.done.values.all()


def test_a_stranger_learns_how_to_repeat_the_capture(do: Capture, checkpoint: Path, text_file: Path) -> None:
    attributes = xr.open_zarr(do()).attrs
    assert attributes["model_id"] == str(checkpoint)
    assert attributes["architecture"] == "LlamaForCausalLM"
    assert attributes["compute_dtype"] == "float32"
    assert attributes["weight_quantisation"] is None
    assert attributes["total_parameters"] == sum(p.numel() for p in tiny_llama().parameters())
    assert attributes["norm_kind"] == "rms"
    assert attributes["norm_epsilon"] == pytest.approx(1e-6)
    assert attributes["norm_weight_offset"] == 0
    assert attributes["text_source"] == str(text_file)
    assert len(attributes["text_sha256"]) == 64
    assert attributes["bos"] is False
    assert attributes["document_separator"] == "<end>"
    assert attributes["versions"]["torch"] == torch.__version__
    assert {"created", "command", "attention_implementation", "sites"} <= set(attributes)


@pytest.mark.parametrize("batch_size", [2, 5, 9])
def test_batch_size_changes_no_value_beyond_noise(do: Capture, tmp_path: Path, batch_size: int) -> None:
    one = xr.open_zarr(do())
    many = xr.open_zarr(do(out=tmp_path / "b.zarr", batch_size=batch_size))
    for name in one.data_vars:
        np.testing.assert_allclose(many[name], one[name], rtol=1e-4, atol=1e-4, err_msg=str(name))


def test_dtype_and_raw_choices(do: Capture, tmp_path: Path) -> None:
    half = xr.open_zarr(do(dtype="bfloat16"))
    assert half.attrs["compute_dtype"] == "bfloat16"
    assert not (half.norm_input.values.view(np.uint32) & 0xFFFF).any()
    peaks = xr.open_zarr(do(out=tmp_path / "n.zarr", dtype="bfloat16", raw="none"))
    assert not {"norm_input", "norm_output", "final_input"} & set(peaks)
    np.testing.assert_array_equal(peaks.layer_high, half.layer_high)
    np.testing.assert_array_equal(peaks.nll, half.nll)


def fail_at(monkeypatch: pytest.MonkeyPatch, calls: int, error: BaseException) -> None:
    """Let the writing of encoded matrices fail at its `calls`-th call."""
    append = SequenceWriter.append
    count = 0

    def failing(self: Any, *args: Any, **options: Any) -> None:
        nonlocal count
        count += 1
        if count == calls:
            raise error
        append(self, *args, **options)

    monkeypatch.setattr(SequenceWriter, "append", failing)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("cosmic ray"), MemoryError()])
def test_a_capture_that_broke_off_goes_on(
    do: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    whole = do(out=tmp_path / "whole.zarr")
    with monkeypatch.context() as patch:
        fail_at(patch, 18, error)  # 7 matrices a sequence: in the third
        with pytest.raises(type(error)):
            do()
    assert StoreWriter(tmp_path / "s.zarr").done().tolist() == [True, True, False, False, False]
    assert not list((tmp_path / "s.zarr").rglob("*.partial"))
    assert_same_capture(do(), whole)


def test_a_full_disk_is_told_and_resumed(do: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        fail_at(patch, 18, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        with pytest.raises(
            OutliersError, match="2 of 5 sequences are safe: free some room and run the same command again"
        ):
            do()
    assert_same_capture(do(), do(out=tmp_path / "whole.zarr"))


def test_a_disk_too_small_is_told_before_the_model_runs(
    do: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))  # type: ignore[attr-defined]
    with pytest.raises(OutliersError, match=r"needs about 0\.1 MB and the disk .* has 0\.0 MB free"):
        do()
    assert list(tmp_path.iterdir()) == []


def test_parts_fill_one_store(do: Capture, tmp_path: Path) -> None:
    for part in ((2, 3), (1, 3), (3, 3)):
        do(part=part)
    assert_same_capture(do(out=tmp_path / "whole.zarr"), tmp_path / "s.zarr")
    do(part=(2, 3))  # nothing left to do is no error for a part


def test_a_finished_store_is_not_touched(do: Capture) -> None:
    path = do()
    before = snapshot(path)
    with pytest.raises(OutliersError, match=r"exists already and is finished \(5 sequences\)"):
        do()
    assert snapshot(path) == before


def test_overwrite_replaces_a_store(do: Capture, tmp_path: Path) -> None:
    do()
    path = do(overwrite=True, length=6)
    assert xr.open_zarr(path).sizes["position"] == 6
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.zarr"]


def test_overwrite_that_fails_leaves_the_old_store(
    do: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(do())

    def broken(*args: Any, **options: Any) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(run, "create", broken)
    with pytest.raises(RuntimeError, match="no"):
        do(overwrite=True)
    assert snapshot(tmp_path / "s.zarr") == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.zarr"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"length": 7}, "sizes"),
        ({"sequences": 6}, "sizes"),
        ({"dtype": "bfloat16"}, "compute_dtype"),
        ({"raw": "none"}, "raw"),
        ({"compression": "small"}, "compression"),
        ({"text": "other"}, "text_source"),
        ({"model": "other"}, "model_id"),
    ],
)
def test_resuming_with_another_request_is_refused(
    do: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], named: str
) -> None:
    with monkeypatch.context() as patch:
        fail_at(patch, 9, RuntimeError("stop"))
        with pytest.raises(RuntimeError, match="stop"):
            do()
    if "text" in change:
        (tmp_path / "other.txt").write_text(" ".join(WORDS * 9))
        change = {"text": str(tmp_path / "other.txt")}
    if "model" in change:
        tiny_llama(seed=1).save_pretrained(tmp_path / "other")
        tiny_tokenizer().save_pretrained(tmp_path / "other")
        change = {"model": tmp_path / "other"}
    before = snapshot(tmp_path / "s.zarr")
    with pytest.raises(OutliersError, match=f"begun with another request; it differs in .*{named}"):
        do(**change)
    assert snapshot(tmp_path / "s.zarr") == before


def test_resuming_with_other_weights_of_the_same_name_is_refused(
    do: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    tiny_tokenizer().save_pretrained(folder)
    tiny_llama(seed=1).save_pretrained(folder)
    with monkeypatch.context() as patch:
        fail_at(patch, 9, RuntimeError("stop"))
        with pytest.raises(RuntimeError, match="stop"):
            do(model=folder)
    tiny_llama(seed=2).save_pretrained(folder)
    with pytest.raises(OutliersError, match="norm weights"):
        do(model=folder)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"sequences": 0}, "--sequences 0 is too small"),
        ({"length": 1}, "--length 1 is too small"),
        ({"length": 65}, "longer than the 64 positions"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"raw": "all"}, "--raw all is not known"),
        ({"dtype": "int8"}, "--dtype int8 is not known"),
        ({"compression": "zip"}, "--compression zip"),
        ({"part": (3, 2)}, "--part 3/2"),
        ({"part": (1, 2), "overwrite": True}, "wipe the other parts"),
        ({"device": "cuda:7"}, "--device cuda:7"),
        ({"device": "nonsense"}, "--device nonsense"),
        ({"sequences": 99}, "fill 75 blocks of 8"),
        ({"model": "no/such/model"}, "no model at no/such/model"),
        ({"model": "missing.gguf"}, "no GGUF file"),
        ({"model": "surely-unknown-model"}, "cannot load the model surely-unknown-model"),
        ({"text": "missing.txt"}, "is no file"),
        ({"bos": True}, "no BOS token"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(
    do: Capture, tmp_path: Path, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(OutliersError, match=expected) as caught:
        do(**options)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["gemma3", "qwen3_moe", "opt"])
def test_other_kinds_of_models_go_all_the_way(do: Capture, tmp_path: Path, name: str) -> None:
    """A multimodal wrapper's text tower, a mixture of experts, and a block that flattens its positions."""
    folder = tmp_path / "model"
    model = ARCHITECTURES[name].build()
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    dataset = xr.open_zarr(do(model=folder))
    assert dataset.attrs["total_parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert (dataset.attrs["experts"] > 0) == (name == "qwen3_moe")
    assert len(dataset.attrs["sites"]) == dataset.sizes["layer"] * dataset.sizes["site"] + 1
    assert np.isfinite(dataset.norm_input).all()
    assert verify(tmp_path / "s.zarr").damage == ()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_no_store_is_never_replaced(do: Capture, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "precious"
    if kind == "file":
        out.write_text("precious")
    else:
        out.mkdir()
        (out / "thesis.tex").write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(OutliersError, match="exists already and is no store"):
            do(out=out, overwrite=overwrite)
    assert (out if kind == "file" else out / "thesis.tex").read_text() == "precious"


def test_a_bos_takes_the_first_place(do: Capture, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tiny_llama().save_pretrained(folder)
    tiny_tokenizer(bos=True).save_pretrained(folder)
    with_bos = xr.open_zarr(do(model=folder))
    assert (with_bos.token_id[:, 0] == 1).all()
    assert with_bos.attrs["bos"] is True
    without = xr.open_zarr(do(model=folder, out=tmp_path / "n.zarr", bos=False))
    assert not (without.token_id == 1).any()
    assert without.attrs["bos"] is False


def asks_nothing(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Trace as on a GPU, which is not asked at each site; what is returned tells how each batch was traced."""
    from capture import loop

    traces: list[bool] = []
    trace = loop.trace_batch

    def told(*args: Any, careful: bool, **options: Any) -> Any:
        traces.append(careful)
        return trace(*args, careful=careful, **options)

    monkeypatch.setattr(loop, "asks_at_each_site", lambda device: False)
    monkeypatch.setattr(loop, "trace_batch", told)
    return traces


def test_a_finite_model_is_the_same_unasked(do: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = do(raw="both")
    traces = asks_nothing(monkeypatch)
    assert_same_capture(asked, do(raw="both", out=tmp_path / "unasked.zarr"))
    assert traces == [False] * 5


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("token", [3, 7])  # of the first batch, and of a later one
def test_what_is_not_finite_is_the_same_unasked(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, token: int, batch_size: int
) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.model.embed_tokens.weight[token, 5] = torch.nan
        model.model.embed_tokens.weight[token, 6] = torch.inf
    shutil.copytree(checkpoint, tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    words = ["alpha"] * 8 + ["beta"] * 8 + ["epsilon", *["beta"] * 7] + ["gamma"] * 16
    (tmp_path / "words.txt").write_text(" ".join(words))
    options = {"text": str(tmp_path / "words.txt"), "sequences": 5, "length": 8, "batch_size": batch_size}
    asked = capture(str(tmp_path / "model"), tmp_path / "asked.zarr", raw="both", **options)
    traces = asks_nothing(monkeypatch)
    unasked = capture(str(tmp_path / "model"), tmp_path / "unasked.zarr", raw="both", **options)
    assert_same_capture(asked, unasked)
    again = 1 + traces.index(True)  # the batch after the one that was found wanting was traced already
    assert traces == [False] * (again - 1) + [True] * (len(traces) - again + 1)
    assert not verify(unasked).damage
    dataset = xr.open_zarr(unasked)
    raw = dataset.norm_input.values
    np.testing.assert_array_equal(dataset.nonfinite_count.sel(signal="input"), (~np.isfinite(raw)).sum((3, 4)))
    np.testing.assert_array_equal(dataset.layer_high.sel(signal="input"), np.fmax.reduce(raw, axis=3))
    np.testing.assert_array_equal(dataset.position_peak.sel(signal="input"), np.fmax.reduce(np.abs(raw), axis=(1, 2)))
    assert list(unasked.parent.glob("**/*.partial")) == []
