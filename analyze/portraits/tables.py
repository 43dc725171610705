"""Portraits as tables for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analyze.tables import plain, print_rows

if TYPE_CHECKING:
    from analyze.portraits.portrait import Portrait
    from analyze.portraits.residual import Walk
    from analyze.portraits.strongest import FeatureMap


def print_portrait(found: Portrait) -> None:
    """The feature in words, by sequence, by layer, and its strongest tokens."""
    _print_facts(found.summary())
    for title, rows in (
        ("by sequence", list(found.sequences)),
        ("smallest and largest value over sequences and positions", found.layer_rows),
        ("tokens with the largest magnitudes", list(found.tokens)),
    ):
        print()
        print_rows(rows, title)


def print_map(found: FeatureMap) -> None:
    """One row a feature, the strongest first."""
    _print_facts(found.summary())
    print()
    print_rows(found.rows)


def print_walk(found: Walk) -> None:
    """The three matrices, and the feature at every norm."""
    _print_facts(found.summary())
    for name in ("before", "contribution", "after"):
        print()
        rows = [
            {"position": p, **{f"feature {f}": value for f, value in zip(found.features, values, strict=True)}}
            for p, values in zip(found.positions, getattr(found, name).tolist(), strict=True)
        ]
        print_rows(
            rows, {"before": "the stream", "contribution": "+ contribution", "after": "= the stream after"}[name]
        )
    print()
    layers, sites = found.stream["layer"].values.tolist(), found.stream["site"].values.tolist()
    print_rows(
        [
            {
                "layer": "" if layer < 0 else str(layer),
                "site": site,
                **{f"position {p}": value for p, value in zip(found.positions, values, strict=True)},
            }
            for layer, site, values in zip(layers, sites, found.stream.values.tolist(), strict=True)
        ],
        f"feature {found.feature} at every norm",
    )


def _print_facts(rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name.ljust(width)}  {plain(value)}")
