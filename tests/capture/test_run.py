"""The capture loop: what is in the store, resuming, parts, and refusals that change nothing."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

torch = pytest.importorskip("torch")

from analyze.cli import main  # noqa: E402
from capture import run  # noqa: E402
from capture.errors import OutliersError  # noqa: E402
from capture.progress import Silence  # noqa: E402
from capture.run import capture  # noqa: E402
from capture.sites import columns  # noqa: E402
from capture.sites.columns import UnreadableWeightsError  # noqa: E402
from capture.store.verify import verify  # noqa: E402
from capture.store.write import SequenceWriter, StoreWriter  # noqa: E402
from tests import builders  # noqa: E402
from tests.architectures import ARCHITECTURES  # noqa: E402
from tests.conftest import WORDS, tiny_llama, tiny_tokenizer  # noqa: E402

pytestmark = pytest.mark.slow

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
    left_values, right_values = (dataset.drop_attrs().drop_vars("digest") for dataset in (one, two))
    xr.testing.assert_identical(left_values.load(), right_values.load())
    for dataset in (one, two):
        for name in ("created", "command", "store_id"):
            dataset.attrs.pop(name, None)
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
    np.testing.assert_array_equal(dataset.final_high, dataset.final_input.max("position"))
    np.testing.assert_array_equal(dataset.final_low, dataset.final_input.min("position"))
    for layer, block in enumerate(model.model.layers):
        for site, maps in (
            ("ln_attn", (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj)),
            ("ln_mlp", (block.mlp.gate_proj, block.mlp.up_proj)),
        ):
            rows = np.concatenate([linear.weight.detach().numpy() for linear in maps])
            cell = dataset.sel(site=site).isel(layer=layer)
            np.testing.assert_array_equal(cell.weight_peak, abs(rows).max(0))
            np.testing.assert_allclose(cell.weight_norm, np.linalg.norm(rows, axis=0), rtol=1e-6)
    assert "weights_left_out" not in dataset.attrs
    np.testing.assert_allclose(dataset.nll.mean("position"), losses, rtol=1e-6)
    for signal in ("input", "output"):
        raw = dataset[f"norm_{signal}"]
        peaks = dataset.sel(signal=signal)
        np.testing.assert_array_equal(peaks.layer_high, raw.max("position"))
        np.testing.assert_array_equal(peaks.layer_low, raw.min("position"))
        np.testing.assert_array_equal(peaks.position_peak, abs(raw).max(["layer", "site"]))
    assert dataset.done.values.all()


def test_weights_that_cannot_be_read_are_left_out_and_the_store_says_why(
    do: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> Any:
        raise UnreadableWeightsError("model.layers.0.mlp (Kernel) reads ln_mlp and is no linear map: it cannot be told")

    monkeypatch.setattr(columns, "weight_columns", refuse)
    path = do(raw="none")
    dataset = xr.open_zarr(path)
    assert not {"weight_peak", "weight_norm"} & set(dataset.variables)
    assert dataset.attrs["weights_left_out"].startswith("model.layers.0.mlp (Kernel) reads ln_mlp")
    assert {"final_high", "final_low"} <= set(dataset.variables)
    assert verify(path).damage == ()
    StoreWriter(path).mark_done(2, False)
    monkeypatch.undo()
    do(raw="none")  # the weights can be read now, and that is no other request
    assert verify(path).done == 5


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
    assert "command" not in attributes  # the words of a program that calls are its own
    assert {"created", "attention_implementation", "sites"} <= set(attributes)


@pytest.mark.parametrize("batch_size", [2, pytest.param(5, marks=pytest.mark.exhaustive), 9])
def test_batch_size_changes_no_value_beyond_noise(do: Capture, tmp_path: Path, batch_size: int) -> None:
    one = xr.open_zarr(do())
    many = xr.open_zarr(do(out=tmp_path / "b.zarr", batch_size=batch_size))
    for name in set(one.data_vars) - {"digest"}:  # which names its own store
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


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), RuntimeError("cosmic ray"), pytest.param(MemoryError(), marks=pytest.mark.exhaustive)],
)
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


def interrupted(monkeypatch: pytest.MonkeyPatch, after: int, error: BaseException) -> None:
    """Let the capture fail once so many sequences are durable."""
    mark_done, count = StoreWriter.mark_done, iter(range(100))

    def failing(store: StoreWriter, number: int, value: bool = True) -> None:
        if next(count) == after:
            raise error
        mark_done(store, number, value)

    monkeypatch.setattr(StoreWriter, "mark_done", failing)


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        OSError(errno.ENOSPC, "No space left on device"),
        pytest.param(ValueError("a bug"), marks=pytest.mark.exhaustive),
    ],
)
def test_overwrite_keeps_the_old_store_until_the_new_one_is_finished(
    do: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path, successor = do(), tmp_path / "s.zarr.successor"
    before = snapshot(path)
    with monkeypatch.context() as patch:
        interrupted(patch, 2, error)
        expected = OutliersError if isinstance(error, OSError) else type(error)
        with pytest.raises(expected) as told:
            do(overwrite=True, length=6)
    if expected is OutliersError:
        assert re.search(rf"2 of 5 sequences are safe.* {path} is still the earlier store", str(told.value))
    assert snapshot(path) == before
    assert StoreWriter(successor).done().sum() == 2
    with monkeypatch.context() as patch:
        interrupted(patch, 3, RuntimeError("more than the three that were left"))
        do(overwrite=True, length=6)
    assert xr.open_zarr(path).sizes["position"] == 6
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.zarr"]


def test_overwrite_takes_another_request_for_a_new_successor(
    do: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = do()
    with monkeypatch.context() as patch:
        interrupted(patch, 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            do(overwrite=True, length=6)
    do(overwrite=True, length=7)
    assert xr.open_zarr(path).sizes["position"] == 7
    assert [entry.name for entry in tmp_path.iterdir()] == ["s.zarr"]


def test_overwrite_through_a_link(do: Capture, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    os.rename(do(), tmp_path / "disk" / "real.zarr")
    (tmp_path / "s.zarr").symlink_to(tmp_path / "disk" / "real.zarr")
    path = do(overwrite=True, length=6)
    assert path.is_symlink()
    assert xr.open_zarr(path).sizes["position"] == 6
    assert [entry.name for entry in (tmp_path / "disk").iterdir()] == ["real.zarr"]


@pytest.mark.parametrize("stranger", ["notes.txt", "nll/mine.csv", "other.zarr/zarr.json", ".git/config"])
def test_overwrite_removes_nothing_that_is_not_the_stores(do: Capture, stranger: str) -> None:
    path = do()
    (path / stranger).parent.mkdir(exist_ok=True)
    (path / stranger).write_text("mine")
    before = snapshot(path)
    with pytest.raises(OutliersError, match=r"holds .*, which is no file of a store, so --overwrite leaves it"):
        do(overwrite=True)
    assert snapshot(path) == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"length": 7}, "length"),
        ({"sequences": 6}, "sequences"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"raw": "none"}, "raw"),
        ({"compression": "small"}, "compression"),
        ({"text": "other"}, "text"),
        ({"model": "other"}, "model"),
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


TEMPLATE = "{% for message in messages %}{{ message.content }} {{ eos_token }}{% endfor %}"


@pytest.fixture
def rows(tmp_path: Path, do: Capture) -> Capture:
    """`capture` of records with a text, ids and messages, with a tokenizer that has a chat template."""
    record = {"body": "alpha <end>", "ids": [3, 12], "messages": [{"role": "user", "content": "alpha <end>"}]}
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(record)}\n" * 30)
    tiny_llama().save_pretrained(tmp_path / "model")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(tmp_path / "model")

    def call(**options: Any) -> Path:
        return do(**{"model": tmp_path / "model", "text": str(tmp_path / "rows.jsonl"), "sequences": 2, **options})

    return call


@pytest.mark.parametrize(
    ("options", "begins", "recorded"),
    [
        ({"field": "ids"}, [3, 12, 2, 3, 12, 2], {"text_field": "ids", "text_kind": "ids", "text_chat": False}),
        ({"field": "body"}, [3, 0, 0, 0, 2, 3], {"text_kind": "text", "text_special_spelled": 4}),
        ({"field": "body", "special_tokens": "parse"}, [3, 2, 2, 3, 2, 2], {"text_special_tokens": "parse"}),
        ({"chat": True}, [3, 0, 0, 0, 2, 2], {"text_field": "messages", "text_kind": "messages", "text_chat": True}),
    ],
)
def test_records_of_every_kind_are_captured(
    rows: Capture, options: dict[str, Any], begins: list[int], recorded: dict[str, Any]
) -> None:
    dataset = xr.open_zarr(rows(**options))
    assert dataset.token_id.values.ravel()[:6].tolist() == begins
    assert {name: dataset.attrs[name] for name in recorded} == recorded
    assert dataset.attrs["text_documents"] > 0


@pytest.mark.parametrize(
    ("begun", "change", "named"),
    [
        ({"field": "ids"}, {"field": "body"}, r"field \(ids in the store, body asked for\)"),
        ({"field": "ids"}, {"field": None, "chat": True}, "field .* chat "),
        ({"field": "body"}, {"special_tokens": "parse"}, r"special_tokens \(text in the store, parse asked for\)"),
        ({"chat": True}, {"template": "{{ messages[0].role }}" + TEMPLATE}, "text_template_sha256"),
    ],
)
def test_resuming_with_another_reading_of_the_text_is_refused(
    rows: Capture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    begun: dict[str, Any],
    change: dict[str, Any],
    named: str,
) -> None:
    with monkeypatch.context() as patch:
        fail_at(patch, 9, RuntimeError("stop"))
        with pytest.raises(RuntimeError, match="stop"):
            rows(**begun)
    before = snapshot(tmp_path / "s.zarr")
    if "template" in change:
        (tmp_path / "model" / "chat_template.jinja").write_text(change.pop("template"))
    with pytest.raises(OutliersError, match=f"begun with another request; it differs in .*{named}"):
        rows(**{**begun, **change})
    assert snapshot(tmp_path / "s.zarr") == before
    assert StoreWriter(tmp_path / "s.zarr").done().tolist() == [True, False]


def test_the_command_is_recorded_where_outliers_runs_and_without_secrets(
    do: Capture, checkpoint: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "--hf-token", "abcdefgh"])
    assert "command" not in StoreWriter(do()).attributes
    words = ["capture", str(checkpoint), "--out", str(tmp_path / "c.zarr"), "--text", str(text_file)]
    assert main([*words, "--sequences", "1", "--length", "8"]) == 0
    attributes = StoreWriter(tmp_path / "c.zarr").attributes
    assert attributes["command"] == shlex.join(["outliers", *words, "--sequences", "1", "--length", "8"])
    assert "abcdefgh" not in str(attributes)


def asks_nothing(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Trace as on a GPU, which is not asked at each site; what is returned tells how each batch was traced."""
    from capture import batches

    traces: list[bool] = []
    trace = batches.trace_batch

    def told(*args: Any, careful: bool, **options: Any) -> Any:
        traces.append(careful)
        return trace(*args, careful=careful, **options)

    monkeypatch.setattr(batches, "asks_at_each_site", lambda device: False)
    monkeypatch.setattr(batches, "trace_batch", told)
    return traces


def test_a_finite_model_is_the_same_unasked(do: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = do(raw="both")
    traces = asks_nothing(monkeypatch)
    assert_same_capture(asked, do(raw="both", out=tmp_path / "unasked.zarr"))
    assert traces == [False] * 5


@pytest.mark.parametrize(
    ("token", "batch_size"),  # a token of the first batch, and one of a later
    [
        (3, 1),
        (7, 2),
        pytest.param(3, 2, marks=pytest.mark.exhaustive),
        pytest.param(7, 1, marks=pytest.mark.exhaustive),
    ],
)
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


class Replacing(Silence):
    """Puts another store in the place of the one that is captured, once its first sequence is safe."""

    def __init__(self, path: Path, done: int) -> None:
        self._path, self._done = path, done
        self.before: dict[str, bytes] = {}

    def advance(self, sequences: int, tokens: int, size: int) -> None:
        if not self.before:
            shutil.move(self._path, self._path.with_name("aside.zarr"))
            shape = (5, 3, 2, 8, 24)
            builders.on_disk(self._path, builders.random_activations(shape), raw="none", done=self._done)
            self.before = snapshot(self._path)


@pytest.mark.parametrize("done", [0, 2])
@pytest.mark.parametrize("raw", ["input", "none"])
def test_a_store_that_replaces_the_captured_one_stays_as_it_is(
    do: Capture, tmp_path: Path, done: int, raw: str
) -> None:
    reporter = Replacing(tmp_path / "s.zarr", done)
    with pytest.raises(OutliersError, match="was replaced or removed while its sequences were captured") as error:
        do(raw=raw, reporter=reporter)
    assert "\n" not in str(error.value)
    assert snapshot(tmp_path / "s.zarr") == reporter.before
