"""The page that stands beside a shared store: what it holds, how it was made, how to open it.

Words of a store are a stranger's. They stand in code spans only, on lines of their own, where Markdown interprets
nothing.
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import xarray as xr

from analyze.answers.sweep import sweep
from analyze.answers.sweep_figure import sweep_figure
from analyze.display.text import plain
from analyze.peaks.counted import lengths
from analyze.question.criteria import Criteria
from analyze.reading.open import open_store
from capture.store.privacy import shortened
from capture.store.schema import FEATURE, LAYER, POSITION, SEQUENCE, SITE, VARIABLES

TAGS: Final = ("interpretability", "activations", "outlier-features", "quantization", "zarr", "xarray")
UNKNOWN: Final = "unknown"
_TEXT_LICENCES: Final = {
    "fineweb-edu": "ODC-By 1.0",
    "c4": "ODC-By 1.0",
    "python-docs": "PSF License Agreement and Zero-Clause BSD",
}
_MODEL_LICENCES: Final = {"smollm2-135m": "Apache-2.0"}
# The Hub's own words for the number of elements, which are tokens here.
_SIZES: Final = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "1B<n<10B")
_FACTS: Final = (
    ("model_id", "model"),
    ("model_source", "checkpoint"),
    ("model_file", "file"),
    ("model_revision", "revision"),
    ("architecture", "architecture"),
    ("total_parameters", "parameters"),
    ("active_parameters", "active parameters"),
    ("experts", "experts"),
    ("top_k", "experts a token"),
    ("compute_dtype", "computed in"),
    ("weight_quantisation", "weights quantised"),
    ("norm_kind", "norms"),
    ("text_source", "text"),
    ("text_revision", "revision of the text"),
    ("text_sha256", "SHA-256 of the text"),
    ("bos", "BOS first"),
    ("packed", "packed"),
    ("rounded", "rounded"),
    ("created", "captured"),
    ("versions", "versions"),
    ("command", "command"),
)
_LONGEST: Final = 400
_CURVE: Final = 24


@dataclass(frozen=True)
class Card:
    """What is written about one store.

    Parameters
    ----------
    header : YAML front matter, for a page that is new
    section : Markdown between two comments that name the store, so that it can be replaced later
    name : of the store
    licence : of the data, as a licence id of the Hub
    picture : PNG of the number of outliers against the threshold
    """

    header: str
    section: str
    name: str
    licence: str
    picture: bytes

    def page(self, existing: str | None = None) -> str:
        """The whole page; what an existing one says of other things stays as it is."""
        if existing is None:
            return f"{self.header}\n{self.section}"
        begin, end = _marks(self.name)
        pattern = re.compile(rf"^{re.escape(begin)}$.*?^{re.escape(end)}$\n?", re.MULTILINE | re.DOTALL)
        if pattern.search(existing):
            return pattern.sub(lambda _: self.section, existing, count=1)
        return f"{existing.rstrip()}\n\n{self.section}"


def card(store: Path, name: str, url: str, *, licence: str | None = None, keep_paths: bool = False) -> Card:
    """Describe a store.

    Parameters
    ----------
    store : folder
    name : what the store is called where it is shared
    url : of the store there
    licence : of the data; "unknown" where None
    keep_paths : show paths of this machine whole

    Raises
    ------
    OutliersError
        As `open_store`.
    """
    data = open_store(store)
    if not keep_paths:
        data.attrs = shortened(data.attrs)
    licence = UNKNOWN if licence is None else licence
    tokens = int(lengths(data).sum())
    model = str(data.attrs.get("model_id", UNKNOWN))
    header = "\n".join(
        [
            "---",
            f"license: {yaml(licence)}",
            f"pretty_name: {yaml(f'Activations of {model}')}",
            "tags:",
            *(f"- {yaml(tag)}" for tag in TAGS),
            "size_categories:",
            f"- {yaml(size_category(tokens))}",
            "viewer: false",
            "---",
            "",
            "# Captured activations",
            "",
            "Each folder ending in `.zarr` is a [Zarr](https://zarr.dev) store that xarray opens: what entered",
            "the norms of a model while it read a text, and the peaks from which outlier features are counted.",
            "",
        ]
    )
    return Card(header, _section(data, store, name, url, licence), name, licence, picture(data))


def picture(data: xr.Dataset) -> bytes:
    """PNG of the outlier count of the norm inputs against the magnitude, from the stored peaks."""
    first = sweep(data, Criteria(), use_cache=False)
    (critical,) = first.critical.values()
    finite = critical[np.isfinite(critical)]
    top = float(finite.max()) * 1.05 if finite.size and finite.max() > 0 else 1.0
    figure = sweep_figure(sweep(data, Criteria(), np.linspace(0, top, _CURVE).tolist(), use_cache=False))
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=120, metadata={"Software": None})
    return target.getvalue()


def code(value: Any) -> str:
    """A stranger's value as a code span of Markdown: shown as it is, on one line, nothing in it interpreted."""
    text = plain(value).strip()
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    if not text:
        return "empty"
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    return f"{fence} {text} {fence}" if longest else f"`{text}`"


def yaml(value: str) -> str:
    """A text as a YAML scalar. JSON strings are YAML, as long as every character is printable."""
    return json.dumps(plain(value), ensure_ascii=False)


def size_category(tokens: int) -> str:
    """The Hub's word for a number of elements."""
    for power, word in enumerate(_SIZES):
        if tokens < 10 ** (power + 3):
            return word
    return "10B<n<100B"


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- store {name} -->", f"<!-- end of {name} -->"


def _section(data: xr.Dataset, store: Path, name: str, url: str, licence: str) -> str:
    begin, end = _marks(name)
    sizes = data.sizes
    raw = str(data.attrs["raw"])
    kept = (
        "peaks only, no activations"
        if raw == "none"
        else f"norm {'inputs and outputs' if raw == 'both' else raw + 's'}"
    )
    least = int(lengths(data).min())
    shortest = "" if least == sizes[POSITION] else f"{least:,} to "
    facts = [
        f"- sequences: {sizes[SEQUENCE]:,} of {shortest}{sizes[POSITION]:,} tokens",
        f"- layers: {sizes[LAYER]:,}, with sites {', '.join(code(site) for site in data[SITE].values)}",
        f"- features: {sizes[FEATURE]:,}",
        f"- activations kept: {kept}",
        *(f"- {title}: {code(data.attrs[key])}" for key, title in _FACTS if data.attrs.get(key) is not None),
    ]
    schema = ["| variable | dimensions | shape | dtype | unit | what |", "|---|---|---|---|---|---|"]
    for variable, about in VARIABLES.items():
        if variable in data:
            shape = " x ".join(f"{length:,}" for length in data[variable].shape)
            dims = ", ".join(about.dims)
            schema.append(f"| `{variable}` | {dims} | {shape} | {about.dtype} | {about.units} | {about.description} |")
    lines = [
        begin,
        f"## {name}",
        "",
        f"![Outliers of {name} against the magnitude threshold]({picture_name(name)})",
        "",
        "*Number of outlier features of the norm inputs against the magnitude threshold, in at least 25% of the layer",
        "units and at 6% of the positions.*",
        "",
        "### What was captured, and how",
        "",
        *facts,
        "",
        "Nothing is rounded but what is said above: values of bfloat16 and float16 are stored as the float32 of the",
        "same value. Every chunk carries a checksum.",
        "",
        "### Open it",
        "",
        "With plain xarray (`pip install xarray zarr fsspec huggingface_hub`):",
        "",
        "```python",
        "import xarray as xr",
        "",
        f'store = xr.open_zarr("{url}")',
        "```",
        "",
        "With outlier-features, installed with its extra `remote`:",
        "",
        "```sh",
        f"outliers find {url} --magnitude 6",
        "```",
        "",
        "```python",
        "import analyze",
        "",
        f'store = analyze.open_store("{url}")',
        "analyze.find_outliers(store, analyze.Criteria(magnitude=6))",
        "```",
        "",
        "### Variables",
        "",
        *schema,
        "",
        "### Licence",
        "",
        f"- of this data: {code(licence)}",
        f"- of the model: {code(_MODEL_LICENCES.get(str(data.attrs.get('model_id')), UNKNOWN))}",
        f"- of the text: {code(_TEXT_LICENCES.get(str(data.attrs.get('text_source')), UNKNOWN))}",
        end,
        "",
    ]
    return "\n".join(lines)


def picture_name(name: str) -> str:
    """File of a store's picture, beside the page."""
    return f"{name.removesuffix('.zarr')}.png"
