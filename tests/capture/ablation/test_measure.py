"""`outliers ablate` from a captured store to a record beside its data."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

torch = pytest.importorskip("torch")

import huggingface_hub  # noqa: E402

from analyze import Criteria, find_outliers  # noqa: E402
from analyze.answers.ablation import Ablation, read_ablations  # noqa: E402
from analyze.cli import main  # noqa: E402
from analyze.reading.open import fingerprint  # noqa: E402
from capture.ablation import measure, reload  # noqa: E402
from capture.ablation.measure import ablate  # noqa: E402
from capture.errors import OutliersError  # noqa: E402
from capture.store.schema import ABLATION  # noqa: E402
from tests import builders  # noqa: E402
from tests.architectures import ARCHITECTURES, VOCABULARY  # noqa: E402
from tests.conftest import WORDS, tiny_llama, tiny_tokenizer  # noqa: E402

pytestmark = pytest.mark.slow

LENGTH, SEQUENCES = 12, 3
PLAIN = ("--preset", "study", "--signal", "input")
FOUND = (*PLAIN, "--magnitude", "2", "--layers", "0.25", "--positions", "0.3")
CRITERIA = Criteria(signal="input", magnitude=2, layers=0.25, positions=0.3)


def captured(model: Path, text: Path, out: Path, *more: str) -> Path:
    words = ["--text", str(text), "--sequences", str(SEQUENCES), "--length", str(LENGTH)]
    assert main(["capture", str(model), "--out", str(out), *words, *more]) == 0
    return out


@pytest.fixture(scope="module")
def pristine(checkpoint: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return captured(checkpoint, text_file, tmp_path_factory.mktemp("stores") / "s.zarr")


@pytest.fixture
def store(pristine: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pristine, tmp_path / "s.zarr")


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("outliers: ")
    assert err.count("\n") == 1, err
    return err


def plain_nll(model: Any, ids: np.ndarray, paths: list[str], features: list[int]) -> np.ndarray:
    """(sequence,) mean loss with features zero in what modules receive, by the model's own loss and plain hooks."""

    def edit(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        values = (args[0] if args else kwargs["hidden_states"]).clone()
        values[..., features] = 0
        return ((values, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": values})

    handles = [model.get_submodule(path).register_forward_pre_hook(edit, with_kwargs=True) for path in paths]
    with torch.inference_mode():
        rows = [torch.from_numpy(row.astype(np.int64))[None] for row in ids]
        losses = [model(input_ids=row, labels=row, use_cache=False).loss.item() for row in rows]
    for handle in handles:
        handle.remove()
    return np.array(losses)


@pytest.mark.parametrize(
    ("site", "parts"), [("ln_attn", ["self_attn"]), ("ln_mlp", ["mlp"]), ("both", ["self_attn", "mlp"])]
)
def test_from_store_to_record(store: Path, site: str, parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["ablate", str(store), *FOUND, "--site", site, "--sequences", "3", "--batch-size", "2", "--repeats", "2"]
    before = fingerprint(store)
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    features = sorted({row.feature for row in find_outliers(store, CRITERIA).features})
    assert 1 <= len(features) <= 12
    assert told["features"] == features
    ids, model = xr.open_zarr(store).token_id.values, tiny_llama()
    paths = [f"model.layers.{layer}.{part}" for layer in range(3) for part in parts]
    (record,) = read_ablations(store)
    for variant, zero in enumerate(([], features, *map(list, record.random_features))):
        np.testing.assert_allclose(record.nll[variant], plain_nll(model, ids, paths, zero), rtol=1e-5)
    assert told["perplexity"] == pytest.approx(find_outliers(store).perplexity, rel=1e-5)
    assert told["perplexity_without"] == pytest.approx(np.exp(plain_nll(model, ids, paths, features).mean()), rel=1e-5)
    assert (told["top1_with"] is None) == (site == "ln_mlp")
    assert (told["layers"][0]["top1_with"] is None) == (site == "ln_mlp")
    assert record.attributes["compute_dtype"] == "float32"
    assert record.attributes["versions"]["torch"] == torch.__version__
    # The store is what it was.
    assert fingerprint(store) == before
    assert main(["verify", str(store)]) == 0
    assert "is sound" in capsys.readouterr().out
    assert "norm_input" in xr.open_zarr(store)
    # A table for a reader, from what is kept.
    assert main(words) == 0
    table = capsys.readouterr().out
    assert f"{told['perplexity_without']:.5g} without" in table
    assert ("attention top-1" in table) == (site != "ln_mlp")


@pytest.mark.parametrize("words", [(), ("--preset", "dettmers"), ("--magnitude", "4.5")])
def test_the_paper_s_criterion_holds_unless_another_is_given(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Norm inputs saturate, as in nearly every model; norm outputs have one outlier."""
    inputs = np.full((2, 3, 2, 20, 8), 9, np.float32)
    outputs = np.ones_like(inputs)
    outputs[..., 5] = 7
    store = builders.on_disk(tmp_path / "s.zarr", inputs, outputs)
    taken: list[Any] = []

    def stop(*_: Any, **__: Any) -> Any:
        raise OutliersError("enough")

    def draws(features: tuple[int, ...], *_: Any) -> Any:
        taken.append(features)
        return ()

    monkeypatch.setattr(measure, "_draws", draws)
    monkeypatch.setattr(measure, "reload_model", stop)
    assert main(["ablate", str(store), *words]) == 2
    with pytest.raises(OutliersError):
        ablate(store)
    assert taken == [(5,), (5,)]
    monkeypatch.undo()
    assert main(["ablate", str(store), *PLAIN]) == 2
    assert "the criterion finds 8 outlier features of 8" in capsys.readouterr().err


def test_documents_count_by_their_own_lengths(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "docs.jsonl").write_text(
        "".join(json.dumps({"text": " ".join(WORDS[n : n + words])}) + "\n" for n, words in enumerate((5, 5, 3, 5, 2)))
    )
    words = ["--text", str(tmp_path / "docs.jsonl"), "--documents", "--out", str(tmp_path / "s.zarr")]
    assert main(["capture", str(checkpoint), *words, "--length", "8"]) == 0
    path = tmp_path / "s.zarr"
    record = ablate(path, CRITERIA, sequences=5, batch_size=3, repeats=1)
    assert record.lengths is not None
    assert record.lengths.tolist() == [5, 5, 3, 5, 2]
    ids = [row[row >= 0] for row in xr.open_zarr(path).token_id.values]
    paths = [f"model.layers.{layer}.self_attn" for layer in range(3)]
    expected = plain_nll(tiny_llama(), ids, paths, list(record.features))
    np.testing.assert_allclose(record.nll[1], expected, rtol=1e-5)
    by_token = np.exp(np.sum(expected * (record.lengths - 1)) / np.sum(record.lengths - 1))
    assert record.row()["perplexity_without"] == pytest.approx(by_token, rel=1e-5)
    assert record.row()["perplexity"] == pytest.approx(find_outliers(path).perplexity, rel=1e-5)
    (again,) = read_ablations(path)
    assert again.perplexities.tolist() == record.perplexities.tolist()


def test_the_answer_is_kept_and_given_without_the_model(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ablate(store, CRITERIA, sequences=1, repeats=1)

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("loaded")

    with monkeypatch.context() as patch:
        patch.setattr(reload, "load_model", never)
        assert ablate(store, CRITERIA, sequences=1, repeats=1).dump() == first.dump()
        for other in ({"seed": 1}, {"repeats": 2}, {"sequences": 2}, {"site": "both"}, {"overwrite": True}):
            with pytest.raises(AssertionError, match="loaded"):
                ablate(store, CRITERIA, **{"sequences": 1, "repeats": 1, **other})
    again = ablate(store, CRITERIA, sequences=1, repeats=1, overwrite=True)
    np.testing.assert_array_equal(again.nll, first.nll)
    assert len(read_ablations(store)) == 1


@pytest.mark.parametrize("after", [4, 5])
def test_an_interrupted_run_goes_on(store: Path, after: int) -> None:
    options: dict[str, Any] = {"sequences": 2, "repeats": 1}
    whole = ablate(shutil.copytree(store, store.with_name("whole.zarr")), CRITERIA, **options)
    told: list[tuple[int, int]] = []

    def interrupt(finished: int, total: int) -> None:
        if finished == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ablate(store, CRITERIA, **options, progress=interrupt)
    assert read_ablations(store) == []
    assert main(["verify", str(store)]) == 0
    resumed = ablate(store, CRITERIA, **options, progress=lambda *numbers: told.append(numbers))
    for name in ("top1", "next_top1", "nll"):
        np.testing.assert_array_equal(getattr(resumed, name), getattr(whole, name))
    # Four passes a sequence: three variants, and one for the attention. The last is told before the sequence is kept.
    left = 8 if after == 4 else 4
    assert told[-1] == (left, left)
    assert len(told) == told[-1][1]
    assert [file.suffix for file in (store / ABLATION).iterdir()] == [".json"]


def test_a_draft_that_is_damaged_or_of_other_circumstances_is_not_gone_on_with(store: Path) -> None:
    def interrupt(finished: int, total: int) -> None:
        if finished == 5:
            raise KeyboardInterrupt

    for spoil in (b"half a rec", None):
        with pytest.raises(KeyboardInterrupt):
            ablate(store, CRITERIA, sequences=2, repeats=1, overwrite=True, progress=interrupt)
        (draft,) = (store / ABLATION).glob(".*.partial")
        known = Ablation.load(draft.read_text())
        other = replace(known, attributes={**known.attributes, "device": "cuda:0"}, nll=known.nll + 1)
        draft.write_bytes(other.dump().encode() if spoil is None else spoil)
        found = ablate(store, CRITERIA, sequences=2, repeats=1, overwrite=True)
        assert np.exp(found.nll[0].mean()) == pytest.approx(np.exp(np.nanmean(xr.open_zarr(store).nll.values[:2])))


def test_the_control_draws_other_features_and_keeps_to_its_seed(store: Path) -> None:
    first = ablate(store, CRITERIA, sequences=1, repeats=3, seed=5)
    for row in first.random_features:
        assert len(set(row)) == len(first.features)
        assert not set(row) & set(first.features)
        assert all(0 <= feature < 24 for feature in row)
    assert len(set(first.random_features)) > 1
    more = ablate(store, CRITERIA, sequences=1, repeats=4, seed=5)
    assert more.random_features[:3] == first.random_features
    np.testing.assert_array_equal(more.nll[:5], first.nll)
    assert ablate(store, CRITERIA, sequences=1, repeats=3, seed=6).random_features != first.random_features
    drawn = np.bincount(np.ravel(measure._draws((0, 9), 12, 3000, 0)), minlength=12)
    assert drawn[[0, 9]].sum() == 0
    assert abs(np.delete(drawn, [0, 9]) - 600).max() < 120  # five standard deviations of 22


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--magnitude", "1e6"], "finds no outlier feature"),
        (["--magnitude", "0"], "finds 24 outlier features of 24"),
        (["--sequences", "4"], "sequences is 4, and"),
        (["--sequences", "0"], "sequences is 0; expected 1"),
        (["--repeats", "0"], "repeats is 0"),
        (["--batch-size", "0"], "batch-size is 0"),
        (["--seed", "-1"], "seed is -1"),
        (["--site", "attention"], "site is 'attention'"),
        (["--device", "cuda:9"], "--device cuda:9 is not there"),
        (["--model", "/no/such/model"], "no model at /no/such/model"),
        (["--preset", "nobody"], "preset is 'nobody'"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    store: Path, words: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["ablate", str(store), *FOUND, "--sequences", "1", "--repeats", "1"]
    assert main([*base, *words]) == 2
    assert reason in one_line(capsys)
    assert not (store / ABLATION).exists()


def test_a_model_that_is_gone_can_be_named(
    checkpoint: Path, text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = shutil.copytree(checkpoint, tmp_path / "before")
    store = captured(moved, text_file, tmp_path / "s.zarr")
    moved.rename(tmp_path / "after")
    capsys.readouterr()
    words = ["ablate", str(store), *FOUND, "--sequences", "1", "--repeats", "1"]
    assert main(words) == 2
    message = one_line(capsys)
    assert f"no model at {tmp_path / 'before'}" in message
    assert "--model" in message
    assert main([*words, "--model", str(tmp_path / "after")]) == 0


def test_another_model_is_refused_and_what_differs_is_named(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def saved(name: str, model: Any) -> Path:
        model.save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
        return tmp_path / name

    norm, weights = tiny_llama(), tiny_llama()
    with torch.no_grad():
        norm.model.layers[1].input_layernorm.weight[3] += 1e-3
        weights.model.layers[2].mlp.down_proj.weight.add_(
            0.2 * torch.randn_like(weights.model.layers[2].mlp.down_proj.weight)
        )
    cases = {
        "norm": (norm, "norm weights (of model.layers.1.input_layernorm, and 0 more); revision sha256:"),
        "weights": (weights, "negative log-likelihood (mean difference"),
        "shallow": (tiny_llama(layers=2), "modules ("),
        "architecture": (
            ARCHITECTURES["gpt2"].build(),
            "architecture ('LlamaForCausalLM' in the store, 'GPT2LMHeadModel' at hand)",
        ),
    }
    for name, (model, reason) in cases.items():
        words = ["ablate", str(store), *FOUND, "--sequences", "1", "--repeats", "1", "--model", str(saved(name, model))]
        assert main(words) == 2
        message = one_line(capsys)
        assert reason in message, message
        assert read_ablations(store) == []


def test_a_model_on_a_hub_out_of_reach_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    site = {"layer": 0, "name": "ln_attn", "module": "a", "kind": "rms", "feeds": ["b"]}
    listed = {"sites": [site, {**site, "name": "final"}]}
    store = builders.on_disk(tmp_path / "s.zarr", builders.random_activations(), attributes=listed)
    assert main(["ablate", str(store), *PLAIN, "--sequences", "1", "--magnitude", "10"]) == 2
    message = one_line(capsys)
    assert "cannot load the model test/model (no route to host)" in message
    assert "--model" in message


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"model_id": None}, "of which model"),
        ({"compute_dtype": "int8"}, "of which model"),
        ({"sites": None}, "which modules were read"),
        ({"sites": []}, "which modules were read"),
        ({"sites": [{"name": "final"}]}, "which modules were read"),
        (
            {"sites": [{"layer": 0, "name": "final", "module": 3, "kind": "x", "feeds": [], "colour": 1}]},
            "which modules",
        ),
    ],
)
def test_a_store_that_does_not_say_what_it_is_of(
    tmp_path: Path, attributes: dict[str, Any], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = builders.on_disk(tmp_path / "s.zarr", builders.random_activations(), attributes=attributes)
    assert main(["ablate", str(store), *PLAIN, "--sequences", "1", "--magnitude", "10"]) == 2
    assert reason in one_line(capsys)


def test_what_is_no_finished_store_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unfinished = builders.on_disk(tmp_path / "half.zarr", builders.random_activations(), done=1)
    packed = tmp_path / "s.zarr.zip"
    packed.write_bytes(b"PK")
    for path, reason in (
        (unfinished, "the capture is unfinished"),
        (packed, "is no folder"),
        (tmp_path / "nothing", "no store at"),
    ):
        assert main(["ablate", str(path)]) == 2
        assert reason in one_line(capsys)


@pytest.mark.parametrize("link", [True, False])
def test_nothing_is_written_outside_of_the_store(link: bool, store: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if link:
        (store / ABLATION).symlink_to(elsewhere)
    else:
        (store / ABLATION).write_text("mine")
    with pytest.raises(OutliersError, match="is a link or no folder"):
        ablate(store, CRITERIA, sequences=1, repeats=1)
    assert list(elsewhere.iterdir()) == []


def test_a_full_memory_is_said_in_one_line(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from capture.ablation import interventions

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(interventions, "token_nll", full)
    with pytest.raises(OutliersError, match="holds no batch of 1 x 12 tokens; use a smaller --batch-size"):
        ablate(store, CRITERIA, sequences=1)


def test_an_interruption_says_that_the_same_command_goes_on(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(measure, "ablate", interrupted)
    assert main(["ablate", str(store), *FOUND]) == 130
    assert "the same command goes on" in one_line(capsys)


def test_a_parallel_block_loses_its_features_before_attention_alone(text_file: Path, tmp_path: Path) -> None:
    model = ARCHITECTURES["phi"].build()
    model.save_pretrained(tmp_path / "phi")
    tiny_tokenizer().save_pretrained(tmp_path / "phi")
    assert len(WORDS) + 3 < VOCABULARY
    store = captured(tmp_path / "phi", text_file, tmp_path / "s.zarr")
    criteria = Criteria(magnitude=2, signal="output", positions=0.3)
    found = ablate(store, criteria, repeats=1)
    assert found.sequences == 3  # all, where there are fewer than four
    ids = xr.open_zarr(store).token_id.values
    paths = [f"model.layers.{layer}.self_attn" for layer in range(2)]
    np.testing.assert_allclose(found.nll[1], plain_nll(model, ids, paths, list(found.features)), rtol=1e-5)
