"""Trajectories of synthetic runs: each store's own answers, planted births and a planted duplicate."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from analyze import Criteria, OutliersError, critical_magnitudes, find_outliers, open_store, trajectory
from analyze.cli import main
from analyze.trajectories.figures import trajectory_figure
from tests import builders

pytestmark = pytest.mark.slow

STEPS = (0, 100, 1000, 5000, 20_000)
SHAPE = (3, 4, 2, 20, 12)


def activations(step: int) -> np.ndarray:
    """Feature 3 is born at 1000 and stays, feature 5 lives at 1000 alone, feature 7 is large from the first."""
    x = np.random.default_rng(step).uniform(-1, 1, SHAPE).astype(np.float32)
    x[..., 7] = 9
    if step >= 1000:
        x[..., :15, 3] = 10 + step / 1000
    if step == 1000:
        x[..., 5] = -8
    return x


def store(folder: Path, step: int, *, name: str | None = None, seen: int | None = None, **attributes: object) -> Path:
    """A checkpoint on disk; it is that of the step `seen` in truth."""
    true = step if seen is None else seen
    nll = np.random.default_rng(true).uniform(1, 4, (SHAPE[0], SHAPE[3])).astype(np.float32)
    nll[:, 0] = np.nan
    facts = {"model_id": "planted/run", "model_revision": f"step{step}", **attributes}
    x = activations(true)
    path = folder / f"{name or f'step{step}'}.zarr"
    builders.on_disk(path, x, x / 2, nll=nll, attributes=facts, norm_weight=norms(true))
    return path


def norms(step: int) -> np.ndarray:
    return np.random.default_rng(step).normal(1, 0.1, (SHAPE[1], SHAPE[2], SHAPE[4])).astype(np.float32)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("run")
    return [store(folder, step) for step in STEPS]


@pytest.mark.parametrize(
    "criteria",
    [
        Criteria(),
        Criteria.preset("study", magnitude=3),
        Criteria.preset("dettmers", magnitude=5),
        Criteria(magnitude=8.5, skip_first=2, sequences=(0, 2), layers=0.5, positions=0.75),
        Criteria(scale="rms", magnitude=2, layer_range=(1, 3)),
    ],
)
def test_every_answer_is_that_of_the_store_alone(run: list[Path], criteria: Criteria) -> None:
    result = trajectory(run[::-1], criteria, resamples=20)
    assert [row["step"] for row in result.rows()] == list(STEPS)
    sets = []
    for path, row, critical in zip(run, result.rows(), result.critical.values, strict=True):
        alone = find_outliers(path, criteria)
        assert row["store"] == str(path)
        for name in ("count", "distinct_features", "mean_layer_fraction", "mean_position_fraction", "perplexity"):
            assert row[name] == pytest.approx(getattr(alone, name), rel=1e-15, nan_ok=True), name
        sets.append({outlier.feature for outlier in alone.features})
        own = critical_magnitudes(path, criteria)
        np.testing.assert_array_equal(critical, own if own.ndim == 1 else own.max("sequence"))
        assert row["strongest_feature"] == int(np.argmax(critical))
    for before, now, row in zip(sets, sets[1:], result.rows()[1:], strict=False):
        assert (row["kept"], row["new"], row["gone"]) == (len(before & now), len(now - before), len(before - now))
    born = {row["feature"]: row for row in result.births()}
    assert set(born) == set.union(*sets)
    for feature, row in born.items():
        held = [feature in one for one in sets]
        assert row["born"] == STEPS[held.index(True)]
        assert row["checkpoints"] == sum(held)
        assert row["lasting"] == all(held[held.index(True) :])


def test_births_are_found_where_they_were_planted(run: list[Path]) -> None:
    result = trajectory(run, resamples=20)
    assert [(row["feature"], row["born"], row["after"], row["lasting"]) for row in result.births()] == [
        (7, 0, None, True),
        (3, 1000, 100, True),
        (5, 1000, 100, False),
    ]
    assert [(row["feature"], row["born"]) for row in result.births(12)] == [(3, 5000)]
    assert result.births(1000) == []
    with pytest.raises(OutliersError, match="magnitude is -1"):
        result.births(-1)


def test_intervals_hold_the_count_and_share_their_draws(run: list[Path]) -> None:
    first, again = (trajectory(run, resamples=50, seed=1) for _ in range(2))
    assert first.rows() == again.rows()
    assert all(row["count_low"] <= row["count"] <= row["count_high"] for row in first.rows())
    assert all(row["perplexity_low"] < row["perplexity"] < row["perplexity_high"] for row in first.rows())


def test_the_dataset_is_lazy_and_each_of_its_steps_is_a_store(run: list[Path]) -> None:
    lined = trajectory(run, resamples=0).dataset
    assert lined["norm_input"].dims == ("step", "sequence", "layer", "site", "position", "feature")
    assert all(array.chunks is not None for array in lined.data_vars.values())
    assert lined["revision"].values.tolist() == [f"step{step}" for step in STEPS]
    for step, path in zip(STEPS, run, strict=True):
        own, alone = find_outliers(lined.sel(step=step)), find_outliers(path)
        assert (own.count, own.features, own.perplexity) == (alone.count, alone.features, alone.perplexity)
        xr.testing.assert_equal(lined.sel(step=step, drop=True), open_store(path))


def test_stores_without_activations_and_with_them_line_up(tmp_path: Path) -> None:
    x = activations(0)
    paths = [
        builders.on_disk(
            tmp_path / f"{step}.zarr", x, raw=raw, attributes={"model_revision": f"step{step}"}, norm_weight=norms(step)
        )
        for step, raw in ((1, "none"), (2, "both"))
    ]
    assert "norm_input" not in trajectory(paths, resamples=0).dataset


def test_a_planted_duplicate_is_called_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [store(tmp_path, 100), store(tmp_path, 200, seen=100), store(tmp_path, 300)]
    (found,) = trajectory(paths, resamples=0).duplicates
    assert (found.steps, found.revisions, found.same_losses) == ((100, 200), ("step100", "step200"), True)
    assert main(["trajectory", *map(str, paths), "--resamples", "0"]) == 0
    assert "steps 100 and 200 have the same norm weights and the same losses" in capsys.readouterr().out


def test_equal_norms_with_other_losses_are_called_out_unless_they_say_nothing(tmp_path: Path) -> None:
    def made(name: str, weight: np.ndarray) -> list[Path]:
        return [
            builders.on_disk(
                tmp_path / f"{name}{step}.zarr",
                activations(step),
                nll=np.full((SHAPE[0], SHAPE[3]), 1 + step, np.float32),
                attributes={"model_revision": f"step{step}"},
                norm_weight=weight,
            )
            for step in (1, 2, 3)
        ]

    (found,) = trajectory(made("learnt", norms(0)), resamples=0).duplicates
    assert (found.steps, found.same_losses) == ((1, 2, 3), False)
    assert "but other losses" in str(found)
    assert trajectory(made("untrained", np.ones_like(norms(0))), resamples=0).duplicates == ()


@pytest.mark.parametrize(
    ("lacking", "duplicates"),
    [
        (lambda s: s.drop_vars("nll"), [((0, 100), False)]),
        (lambda s: s.assign(nll=s["nll"] * np.nan), [((0, 100), False)]),
        (lambda s: s.drop_vars(["nll", "norm_weight"]), []),
    ],
)
def test_losses_that_nobody_knows_are_never_the_same(
    run: list[Path], lacking: Callable[[xr.Dataset], xr.Dataset], duplicates: list[object]
) -> None:
    """A checkpoint under two names, and another, none of which says what its losses are."""
    first, other = open_store(run[0]), open_store(run[2])
    stores = [lacking(one) for one in (first, first.assign_attrs(model_revision="step100"), other)]
    result = trajectory(stores, resamples=20)
    assert [(one.steps, one.same_losses) for one in result.duplicates] == duplicates
    assert all(math.isnan(row["perplexity"]) and math.isnan(row["perplexity_low"]) for row in result.rows())
    assert [row["count"] for row in result.rows()] == [find_outliers(one).count for one in (first, first, other)]
    assert "perplexity unknown" in str(result)
    assert trajectory_figure(result).axes


@pytest.mark.exhaustive
def test_a_hundred_checkpoints_in_any_order(tmp_path: Path) -> None:
    """More than most systems let a process have open at once, were each to hold its arrays' files."""
    steps = [1000 * n for n in range(100)]
    x = activations(1000)[:, :2, :, :4]
    stores = [
        builders.on_disk(
            tmp_path / f"{step}.zarr", x + step / 1e6, raw="none", attributes={"model_revision": f"step{step}"},
            norm_weight=np.full((2, 2, 12), 1 + step, np.float32),
        )
        for step in steps
    ]  # fmt: skip
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    result = trajectory(np.random.default_rng(0).permutation(np.array(stores, object)).tolist(), resamples=0)
    assert [row["step"] for row in result.rows()] == steps
    assert result.dataset.sizes["step"] == 100
    if before:
        assert len(os.listdir("/proc/self/fd")) < before + 20


def test_folders_of_checkpoints_name_their_steps(tmp_path: Path) -> None:
    paths = [
        store(tmp_path, step, model_id=f"runs/a/checkpoint-{step}", model_revision=f"sha256:{step}")
        for step in (500, 1000)
    ]
    result = trajectory(paths, resamples=0)
    assert [row["step"] for row in result.rows()] == [500, 1000]
    assert result.model == "runs/a/"


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"tokens_per_step": 2.5}, [250, 500]), ({}, [10**9, 2 * 10**9])],
)
def test_tokens(tmp_path: Path, options: dict[str, float], expected: list[int]) -> None:
    paths = [store(tmp_path, step, model_revision=f"step{step}-tokens{step // 100}B") for step in (100, 200)]
    result = trajectory(paths, by="tokens", resamples=0, **options)
    assert [row["tokens"] for row in result.rows()] == expected
    assert result.dataset["tokens"].values.tolist() == expected


def test_the_name_that_was_asked_for_counts_beside_the_commit(tmp_path: Path) -> None:
    paths = [store(tmp_path, n, model_revision=f"a1b2c{n}", model_revision_name=f"step{n}") for n in (7, 8)]
    assert [(row["step"], row["revision"]) for row in trajectory(paths, resamples=0).rows()] == [
        (7, "step7"),
        (8, "step8"),
    ]


def test_steps_can_be_given(tmp_path: Path) -> None:
    paths = [
        store(tmp_path, 1, model_revision="main"),
        store(tmp_path, 2, model_revision="stage2-step2"),
        store(tmp_path, 3, model_revision="stage1-step3"),
    ]
    result = trajectory(paths, steps=[30, 10, 20], resamples=0)
    assert [row["revision"] for row in result.rows()] == ["stage2-step2", "stage1-step3", "main"]


@pytest.mark.parametrize("steps", [(0, 1, 600), (0, 500, 1000), (5, 10, 5000), (1000, 1001, 1002), (0, 1, 2)])
def test_every_panel_shows_the_training_and_nothing_before_it(run: list[Path], steps: tuple[int, ...]) -> None:
    """Also where only some checkpoints have a mean share; the axis is logarithmic where it spans much."""
    result = trajectory(run[:1] + run[3:], Criteria(magnitude=10), steps=steps, resamples=0)
    assert [row["count"] > 0 for row in result.rows()] == [False, True, True]
    panels = trajectory_figure(result).axes
    assert len({panel.get_xlim() for panel in panels}) == 1
    left, right = panels[0].get_xlim()
    to_axis = panels[0].transScale.transform
    first, *_, last = (to_axis((step, 1))[0] for step in steps)
    start, end = (to_axis((limit, 1))[0] for limit in (left, right))
    assert start < first < last < end
    assert last - first > 0.9 * (end - start)
    assert all(any(left <= tick <= right for tick in panel.get_xticks()) for panel in panels)


def test_tokens_too_rounded_to_tell_checkpoints_apart_are_drawn(tmp_path: Path) -> None:
    paths = [store(tmp_path, step, model_revision=f"step{step}-tokens0B") for step in (100, 200)]
    assert len(trajectory_figure(trajectory(paths, by="tokens", resamples=0)).axes) == 5


def changed(path: Path, **changes: object) -> xr.Dataset:
    return open_store(path).assign_attrs(changes)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda s: s.assign_attrs(model_id="other/run"), "differ in model ('planted/run' and 'other/run')"),
        (lambda s: s.assign_attrs(architecture="X"), "differ in architecture ('TestForCausalLM' and 'X')"),
        (lambda s: s.assign_attrs(compute_dtype="bfloat16"), "differ in compute_dtype ('float32' and 'bfloat16')"),
        (lambda s: s.assign_attrs(model_revision="stage2-step9"), "model ('planted/run' and 'planted/run@stage2')"),
        (lambda s: s.isel(sequence=[0]), "differ in number of sequences (3 and 1)"),
        (lambda s: s.isel(feature=range(8)), "differ in number of features (12 and 8)"),
        (lambda s: s.isel(site=[0]), "number of sites (2 and 1); sites ('ln_attn, ln_mlp' and 'ln_attn')"),
        (lambda s: s.assign(token_id=s["token_id"] + 1), "differ in text (other tokens)"),
        (lambda s: s.assign_attrs(model_revision="step0"), "are both of step 0"),
        (lambda s: s.assign_attrs(model_revision="main"), "does not say of which step it is ('main', 'planted/run')"),
    ],
)
def test_what_is_no_checkpoint_of_the_run_is_refused(
    run: list[Path], change: Callable[[xr.Dataset], xr.Dataset], told: str
) -> None:
    with pytest.raises(OutliersError) as refusal:
        trajectory([run[0], change(open_store(run[1]))], resamples=0)
    assert told in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "0 stores; expected 2 or more"),
        (["0"], "1 store; expected 2 or more"),
        (["0", "0"], "is given twice"),
        (["0", "1", "--by", "tokens"], "does not say how many tokens its model had seen"),
        (["0", "1", "--by", "time"], "by is 'time'; expected one of step, tokens"),
        (["0", "1", "--steps", "5"], "steps has 1 numbers for 2 stores"),
        (["0", "1", "--steps", "5,5"], "are both of step 5"),
        (["0", "1", "--steps", "5,1.5"], "steps has 1.5; expected a whole number"),
        (["0", "1", "--tokens-per-step", "0"], "tokens-per-step is 0.0; expected a number above 0"),
        (["0", "1", "--layer-range", "2:9"], "the store has layers 0 to 3"),
        (["0", "1", "--plot", "x.jpg"], "expected a figure file ending in .png or .svg"),
    ],
)
def test_bad_requests_are_one_line(
    run: list[Path], words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    full = [str(run[int(word)]) if word in "01" and n < 2 else word for n, word in enumerate(words)]
    assert main(["trajectory", *full]) == 2
    captured = capsys.readouterr()
    assert told in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_the_command_writes_what_it_is_asked_for(
    run: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    csv, plot = tmp_path / "t.csv", tmp_path / "t.svg"
    words = ["trajectory", *map(str, run), "--resamples", "20", "--csv", str(csv), "--plot", str(plot)]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told == json.loads(json.dumps(trajectory(run, resamples=20).to_dict()))
    assert [row["step"] for row in told["rows"]] == list(STEPS)
    assert csv.read_text().startswith("step,tokens,revision,store,count,count_low,count_high")
    first = plot.read_bytes()
    assert b"feature 3" in first
    assert main([*words, "--by", "tokens", "--tokens-per-step", "1000"]) == 0
    printed = capsys.readouterr().out
    assert "3 of 12 features" in printed
    assert plot.read_bytes() != first
    html = trajectory(run, resamples=0)._repr_html_()
    assert html.count("<table>") == 3
