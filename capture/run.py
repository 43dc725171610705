"""The capture itself: a loop over batches of sequences that can stop anywhere and go on later."""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from capture.errors import OutliersError, advice, brief
from capture.estimate import store_bytes
from capture.models.limits import check_length
from capture.models.load import Loaded, describe_model
from capture.models.placement import input_device
from capture.progress import Reporter, Silence
from capture.request import Request
from capture.store.create import StoreExistsError, create
from capture.store.files import check_free_space
from capture.store.layout import part_sequences
from capture.store.output import output_folder, output_path
from capture.store.privacy import command_line
from capture.store.replace import check_replaceable, remove_store, replacing, settle, successor_path
from capture.store.schema import Sizes
from capture.store.write import StoreWriter
from capture.texts.blocks import vocabulary
from capture.texts.documents import Documents
from capture.texts.sources import open_corpus
from capture.texts.whole import Sequences, block_sequences, document_sequences

if TYPE_CHECKING:
    from capture.sites.place import SiteMap

_LIBRARIES: Final = ("torch", "transformers", "nnsight", "zarr", "numcodecs", "numpy", "outlier-features")

_LESS: Final = "use fewer --sequences, a smaller --length, or --raw none"

# What may differ between the runs that fill one store: when, by what and how it was asked for.
_CIRCUMSTANCES: Final = frozenset({"created", "command", "versions", "device"})


def capture(
    model: str,
    out: Path | str,
    *,
    revision: str | None = None,
    text: str = "fineweb-edu",
    field: str | None = None,
    chat: bool = False,
    special_tokens: str = "text",
    documents: bool = False,
    sequences: int = 16,
    length: int = 2048,
    batch_size: int = 1,
    dtype: str = "auto",
    device: str = "auto",
    max_memory: str | None = None,
    raw: str = "input",
    part: tuple[int, int] = (1, 1),
    overwrite: bool = False,
    bos: bool | None = None,
    compression: str = "fast",
    sites: str | None = None,
    trust_remote_code: bool = False,
    reporter: Reporter | None = None,
) -> Path:
    """Run a model over a text and keep what enters its norms.

    An unfinished store of the same request is gone on with; each sequence is on disk before it counts.

    Parameters
    ----------
    model : Hugging Face id, local folder, `.gguf` file, or `smollm2-135m`
    out : folder of the store
    revision : branch, tag or commit of a model on the hub; None for its branch `main`
    text, field : source of documents, and their field, as for `capture.texts.sources.open_corpus`
    chat, special_tokens : how documents become tokens, as for `capture.texts.documents.Documents`
    documents : make each document a sequence of its own, instead of cutting all of them joined into blocks
    sequences, length : number of token blocks, and tokens in each; of documents the most
    batch_size : sequences that go through the model together, if they are equally long; no effect on values beyond
        floating-point noise
    dtype, device, max_memory : as for `capture.models.load.load_model`
    raw : activations to keep: `input`, `output`, `both`, or `none` for peaks alone
    part : (i, k), capture only the i-th of k disjoint shares, counted from 1
    overwrite : replace an existing store, which stays until its successor is finished
    bos : put a BOS first in each sequence; None does what the tokenizer does by itself
    compression : `fast`, `small` or `none`
    sites : placement to use where the probe cannot see it, as for `capture.sites.place.parse_overrides`
    trust_remote_code : run the model code that a checkpoint brings along
    reporter : is told of the progress

    Returns
    -------
    path of the store

    Raises
    ------
    OutliersError
        The request cannot be carried out; nothing that exists is changed.
    """
    request = Request.among(locals())
    out = output_path(out)
    _check_part(part, overwrite)
    settle(out)
    _check_target(out, part, overwrite)
    output_folder(out)
    reporter = Silence() if reporter is None else reporter
    corpus = open_corpus(text, field=field, chat=chat, reporter=reporter)
    _check_request(request, out, overwrite, corpus.sha256)
    described = describe_model(**request.arguments(describe_model), reporter=reporter)
    if described.config is not None:
        check_length(described.config, length)
    how: dict[str, Any] = {"bos": bos, "chat": chat, "special_tokens": special_tokens}
    texts = Documents(corpus, described.tokenizer, most=length + 1 if documents else sequences * length, **how)
    read = (document_sequences if documents else block_sequences)(texts, sequences=sequences, length=length)
    token_id = read.token_id
    loaded = described.load()
    check_length(loaded.model.config, length)

    from capture.sites.facts import model_facts
    from capture.sites.place import find_sites, parse_overrides
    from capture.sites.trial import refuse_lookahead, refuse_untakeable

    placed = find_sites(loaded.model, None if sites is None else parse_overrides(sites))
    if not refuse_lookahead(loaded.model):
        reporter.warn("the model computes values that are not finite; they are captured and counted as they are")
    refuse_untakeable(loaded.model, placed, token_id, read.longest)
    sizes = Sizes(len(token_id), placed.layers, placed.names, token_id.shape[1], placed.hidden_size)
    weight, bias = _parameters(loaded.model, placed, sizes)
    attributes = {
        **loaded.attributes,
        **model_facts(_described(loaded), trust_remote_code=trust_remote_code).as_attributes(),
        **_site_attributes(placed),
        "placement": sites,
        **texts.attributes(),
        **read.attributes,
        **_circumstances(loaded),
    }
    mine = part_sequences(sizes.sequences, *part)
    full = -(-int(read.length[mine.start : mine.stop].sum()) // sizes.positions)  # as many if none ended early
    needed = store_bytes(sizes, raw, loaded.attributes["compute_dtype"], compression, full)
    wanted = {**attributes, "raw": raw, "compression": compression}
    work = _Work(loaded, placed, sizes, read, wanted, weight, bias, mine, needed, batch_size, part == (1, 1), reporter)
    place = successor_path(out) if overwrite and os.path.lexists(out) else out
    if place != out and os.path.lexists(place) and not _goes_on(place, sizes, wanted, token_id, weight):
        remove_store(place)
    with replacing(out, place):
        _fill(place, work)
    return out


@dataclass(frozen=True)
class _Work:
    """Everything that a store is filled from, once all of it is known to fit."""

    loaded: Loaded
    placed: SiteMap
    sizes: Sizes
    read: Sequences
    attributes: dict[str, Any]
    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32] | None
    mine: range
    needed: int
    batch_size: int
    alone: bool
    reporter: Reporter


def _fill(place: Path, work: _Work) -> None:
    """Create the store where there is none, then capture what it lacks."""
    begun = not os.path.lexists(place)
    if begun:
        check_free_space(place, work.needed, "the capture", _LESS)
        # Another part may create the store in the same moment: then this one joins it.
        with contextlib.suppress(StoreExistsError):
            _create(place, work)
    store = StoreWriter(place)
    _check_same(store, work.sizes, work.attributes, work.read.token_id, work.weight)
    if len(work.mine):
        left = round(work.needed * (1 - store.done()[work.mine.start : work.mine.stop].mean()))
        check_free_space(place, left, "the capture", _LESS)

    from capture.batches import capture_sequences

    try:
        with _told(store, work.loaded.model, work.batch_size):
            capture_sequences(work.loaded, work.placed, store, work.mine, work.batch_size, work.reporter)
    except Exception:
        if begun and work.alone and store.is_same() and not store.done().any():
            remove_store(place)  # nothing is lost, and nobody is sent back to a request that cannot succeed
        raise


def _create(place: Path, work: _Work) -> None:
    from capture.sites.columns import variables_of_weights

    columns, left_out = variables_of_weights(work.loaded.model, work.placed, work.reporter)
    attributes = {**work.attributes, **left_out}
    create(
        place,
        work.sizes,
        raw=attributes.pop("raw"),
        compression=attributes.pop("compression"),
        attributes=attributes,
        token_id=work.read.token_id,
        norm_weight=work.weight,
        norm_bias=work.bias,
        **columns,
        length=work.read.stored_length,
        vocabulary=vocabulary(work.loaded.tokenizer, work.read.token_id),
    )


def _check_part(part: tuple[int, int], overwrite: bool) -> None:
    if not 1 <= part[0] <= part[1]:
        raise OutliersError(f"--part {part[0]}/{part[1]} is no part; expected I/K with I from 1 to K, such as 1/4")
    if overwrite and part[1] > 1:
        raise OutliersError(
            "--overwrite with --part would wipe the other parts; remove the store first, then start all parts"
        )


def _check_target(out: Path, part: tuple[int, int], overwrite: bool) -> None:
    """Refuse what no capture may replace, before minutes go into loading a model."""
    if not os.path.lexists(out):
        return
    try:
        store = StoreWriter(out)
    except OutliersError as error:
        raise OutliersError(
            f"{out} exists already and is no store that can be gone on with ({error}); choose another --out"
        ) from error
    if overwrite:
        check_replaceable(out)
        return
    done = store.done()
    # With parts, another part may have finished the store; then this one has simply nothing left to do.
    if done.all() and part[1] == 1:
        raise OutliersError(
            f"{out} exists already and is finished ({len(done)} sequences); look at it with: {advice('info', out)}, "
            "choose another --out, or pass --overwrite to capture it again"
        )


def _check_request(request: Request, out: Path, overwrite: bool, text_sha256: str | None) -> None:
    """Refuse to go on with a store that was asked for otherwise, before minutes go into loading a model."""
    if os.path.lexists(out) and not overwrite:
        store = StoreWriter(out)
        _refuse_differences(store, request.differences(store.attributes, store.sizes, text_sha256))


def _parameters(
    model: Any, placed: SiteMap, sizes: Sizes
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None]:
    """Weights and biases of all norms, (layer, site, feature); no bias where no norm has one."""
    from capture.sites.place import norm_parameters

    shape = (sizes.layers, len(sizes.sites), sizes.features)
    weight, bias, biased = np.ones(shape, np.float32), np.zeros(shape, np.float32), False
    for site in placed.sites:
        cell = site.layer, sizes.sites.index(site.name)
        own_weight, own_bias = norm_parameters(model, site)
        weight[cell] = own_weight
        if own_bias is not None:
            bias[cell], biased = own_bias, True
    return weight, bias if biased else None


def _described(loaded: Loaded) -> Any:
    """What tells the numbers of parameters: the model, or where quantised weights hide them, its configuration."""
    method = loaded.attributes["weight_quantisation"]
    return loaded.model if method is None or method.startswith("gguf") else loaded.model.config


def _site_attributes(placed: SiteMap) -> dict[str, Any]:
    """Where was read, and the constants of the norms; None where they differ between sites (see `sites` then)."""

    def common(field: str) -> Any:
        values = {getattr(site, field) for site in placed.sites}
        return values.pop() if len(values) == 1 else None

    return {
        "sites": placed.table(),
        "norm_kind": placed.kind,
        "norm_epsilon": common("epsilon"),
        "norm_weight_offset": common("weight_offset"),
        "norm_rounding": common("rounding"),
    }


def _circumstances(loaded: Loaded) -> dict[str, Any]:
    command = command_line()
    return {
        "device": str(input_device(loaded.model)),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in _LIBRARIES},
        },
        **({} if command is None else {"command": command}),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _check_same(
    store: StoreWriter,
    sizes: Sizes,
    attributes: dict[str, Any],
    token_id: npt.NDArray[np.int32],
    weight: npt.NDArray[np.float32],
) -> None:
    """Refuse to go on with a store of another model, or of another outcome of the same request."""
    ignored = {*_CIRCUMSTANCES, "model_revision_name"}  # another name of the same commit
    if attributes["text_sha256"] is not None and attributes["text_sha256"] == store.attributes.get("text_sha256"):
        ignored.add("text_source")  # the same file by another path
    if store.attributes.get("model_revision") is None:
        ignored.add("model_revision")  # begun when it was not recorded; the weights of the norms are compared below
    differences = [
        f"{name} ({brief(store.attributes.get(name))} in the store, {brief(value)} asked for)"
        for name, value in attributes.items()
        if name not in ignored and name in store.attributes and store.attributes[name] != value
    ]
    if store.sizes != sizes:
        differences.append(f"sizes ({store.sizes} in the store, {sizes} asked for)")
    elif not np.array_equal(store.token_id, token_id):
        differences.append("tokens (the text or the tokenizer is another)")
    elif not np.array_equal(store.read("norm_weight"), weight):
        differences.append("norm weights (the model is another)")
    _refuse_differences(store, differences)


def _refuse_differences(store: StoreWriter, differences: list[str]) -> None:
    if differences:
        raise OutliersError(
            f"{store.path} exists already and was begun with another request; it differs in {'; '.join(differences)}; "
            "repeat the request that began it, choose another --out, or pass --overwrite"
        )


def _goes_on(place: Path, *request: Any) -> bool:
    """Whether what an earlier --overwrite left unfinished is of this request, as `_check_same` has it."""
    try:
        _check_same(StoreWriter(place), *request)
    except OutliersError:
        return False
    return True


@contextlib.contextmanager
def _told(store: StoreWriter, model: Any, batch_size: int) -> Iterator[None]:
    """Tell in one line what a full memory or a full disk means."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutliersError(
            f"the memory of {model.device} holds no batch of {batch_size} x {store.sizes.positions} tokens; "
            "use a smaller --batch-size or --length, or --device auto to spread the model over several GPUs"
        ) from error
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            store.check_same()
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OutliersError(
            f"no space left on the disk of {store.path}; {store.done().sum()} of {store.sizes.sequences} sequences "
            "are safe: free some room and run the same command again"
        ) from error
