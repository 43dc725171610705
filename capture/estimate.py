"""Bytes that a capture needs, before anything runs."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any, Final

import torch

from capture.losses import nll_bytes
from capture.models.limits import check_length, text_config
from capture.models.load import load_config
from capture.pipeline import BEHIND, host_buffers, writing_threads
from capture.progress import Reporter
from capture.request import Request
from capture.store.create import check_sizes
from capture.store.schema import (
    FINAL_PEAKS,
    PER_SEQUENCE,
    RAW_VARIABLES,
    SEQUENCE,
    SIGNALS,
    VARIABLES,
    WEIGHTS,
    Sizes,
    stored_variables,
)

# Bytes on disk for each value, by the dtype that the model computed in; measured on SmolLM2 with the codec `fast`.
_COMPRESSED_BYTES: Final = {"float32": 3.36, "bfloat16": 1.38, "float16": 1.76}
_COMPRESSED_PEAK_BYTES: Final = {"float32": 3.19, "bfloat16": 1.19, "float16": 1.57}
_UNCOMPRESSED_BYTES: Final = 4.0

_ARRAY_BYTES: Final = 2_900  # metadata of one array, which stand in its folder and at the root
_SITE_BYTES: Final = 330  # one row of the table of sites
_DTYPE_BYTES: Final = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Estimate:
    """What a capture would take.

    Parameters
    ----------
    store_bytes : bytes on disk of the whole store
    weight_bytes : memory of the weights, unquantised, in the dtype of the computation
    working_bytes : memory beside the weights: logits of one batch, running peaks, and the buffers of the writer
    sizes : lengths of the store's dimensions
    dtype : dtype of the computation
    """

    store_bytes: int
    weight_bytes: int
    working_bytes: int
    sizes: Sizes
    dtype: str


def estimate(
    model: str,
    *,
    revision: str | None = None,
    sequences: int = 16,
    length: int = 2048,
    batch_size: int = 1,
    dtype: str = "auto",
    raw: str = "input",
    compression: str = "fast",
    sites: str | None = None,
    trust_remote_code: bool = False,
    reporter: Reporter | None = None,
) -> Estimate:
    """Predict what a capture would take, from the model's configuration alone.

    Parameters are those of `capture.run.capture`.

    Raises
    ------
    OutliersError
        The model is unknown or is no decoder, or a choice is not known.
    """
    Request.among(locals())  # refuses what it cannot be
    config = load_config(model, revision=revision, trust_remote_code=trust_remote_code, reporter=reporter)
    check_length(config, length)
    shape = _shape(config, sites, trust_remote_code)
    own = str(getattr(config, "dtype", None)).removeprefix("torch.")
    chosen = dtype if dtype != "auto" else own if own in _DTYPE_BYTES else "float32"
    sizes = Sizes(sequences, shape.layers, shape.sites, length, shape.features)
    check_sizes(sizes, raw)
    return Estimate(
        store_bytes(sizes, raw, chosen, compression),
        shape.parameters * _DTYPE_BYTES[chosen],
        _working_bytes(sizes, raw, chosen, batch_size, int(text_config(config).vocab_size)),
        sizes,
        chosen,
    )


@dataclass(frozen=True)
class _Shape:
    layers: int
    sites: tuple[str, ...]
    features: int
    parameters: int


_SHAPES: Final[dict[str, _Shape]] = {}


def _shape(config: Any, sites: str | None, trust_remote_code: bool) -> _Shape:
    """What the network of a configuration is like, probed once: checkpoints of one training all have the same."""
    described = {**config.to_dict(), "_name_or_path": None, "class": type(config).__qualname__}
    key = json.dumps([described, sites, trust_remote_code], sort_keys=True, default=repr)
    if key not in _SHAPES:
        from capture.models.meta import meta_model
        from capture.sites.facts import model_facts
        from capture.sites.place import parse_overrides, sites_from_config

        network = meta_model(config, trust_remote_code=trust_remote_code)
        placed = sites_from_config(network, None if sites is None else parse_overrides(sites))
        facts = model_facts(network)
        _SHAPES[key] = _Shape(placed.layers, placed.names, placed.hidden_size, facts.total_parameters)
    return _SHAPES[key]


def _working_bytes(sizes: Sizes, raw: str, dtype: str, batch_size: int, vocabulary: int) -> int:
    """Memory beside the weights, where the model runs on what `--device auto` takes here."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    matrix, threads = sizes.positions * sizes.features, writing_threads(device)
    # On a CPU a batch is written before the next one runs; beside a GPU, others are on their way meanwhile.
    written = sum(math.prod(sizes.shape(VARIABLES[name].dims)) // sizes.sequences for name in RAW_VARIABLES[raw])
    batches = 1 if device == "cpu" else 1 + BEHIND
    buffers = min(host_buffers(threads), batches * batch_size * (written // matrix + len(SIGNALS)))
    # Beside the buffers, each thread holds what it has compressed.
    values = batch_size * (sizes.positions * vocabulary + len(SIGNALS) * matrix) + (buffers + threads) * matrix
    return values * _DTYPE_BYTES[dtype] + nll_bytes(sizes.positions, vocabulary, dtype, device)


def store_bytes(sizes: Sizes, raw: str, dtype: str, compression: str = "fast", sequences: int | None = None) -> int:
    """Predicted size of a store.

    Parameters
    ----------
    sizes : lengths of the dimensions
    raw, compression : as for `capture.store.create.create`
    dtype : `float32`, `bfloat16` or `float16`, which the model computes in
    sequences : only so many of them

    Returns
    -------
    bytes on disk
    """
    one_sequence = 0.0
    for name in (*RAW_VARIABLES[raw], *PER_SEQUENCE, "token_id", "digest"):
        dims = VARIABLES[name].dims
        measured = _COMPRESSED_BYTES if name in RAW_VARIABLES[raw] else _COMPRESSED_PEAK_BYTES
        each = _UNCOMPRESSED_BYTES if compression == "none" else measured[dtype]
        one_sequence += each * math.prod(n for dim, n in zip(dims, sizes.shape(dims), strict=True) if dim != SEQUENCE)
    metadata = (len(stored_variables(raw, {*WEIGHTS, *FINAL_PEAKS, "digest"})) + 2) * _ARRAY_BYTES
    # With the norm's own weight, and two sizes of those that read it.
    metadata += sizes.layers * len(sizes.sites) * (_SITE_BYTES + 3 * 4 * sizes.features)
    return metadata + round(one_sequence * (sizes.sequences if sequences is None else sequences))
