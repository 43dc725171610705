"""Documents as sequences of their own: cut where they are too long, ended where they end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from capture.errors import OutliersError
from capture.store.lengths import NO_TOKEN
from capture.texts.blocks import token_blocks
from capture.texts.documents import Documents

_LEAST: Final = 2  # tokens: of a single one nothing is predicted


@dataclass(frozen=True)
class Sequences:
    """What the model reads.

    Parameters
    ----------
    token_id : (sequence, position) int32, -1 behind the end of a sequence
    length : (sequence,) int32, positions of each
    attributes : what a store says of how they were made
    """

    token_id: npt.NDArray[np.int32]
    length: npt.NDArray[np.int32]
    attributes: dict[str, Any]

    @property
    def stored_length(self) -> npt.NDArray[np.int32] | None:
        """`length` where a store has to say it: where not all sequences are equally long."""
        return None if (self.length == self.token_id.shape[1]).all() else self.length

    @property
    def longest(self) -> npt.NDArray[np.int32]:
        """Tokens of the longest, (1, position)."""
        number = int(self.length.argmax())
        return self.token_id[number : number + 1, : self.length[number]]


def block_sequences(documents: Documents, *, sequences: int, length: int) -> Sequences:
    """Documents joined and cut into blocks: `capture.texts.blocks.token_blocks`."""
    blocks = token_blocks(documents, sequences=sequences, length=length)
    separator = documents.tokenizer.eos_token
    return Sequences(blocks, np.full(len(blocks), length, np.int32), {"document_separator": separator})


def document_sequences(documents: Documents, *, sequences: int, length: int) -> Sequences:
    """Each document as a sequence, with the BOS first where there is one.

    Documents of fewer than 2 tokens are left out. What is not asked for is not read.

    Parameters
    ----------
    documents : as tokens, at least `length` + 1 of each that has so many
    sequences : the most
    length : tokens behind which a document is cut

    Raises
    ------
    OutliersError
        No document is long enough, or one cannot be read.
    """
    start = [documents.tokenizer.bos_token_id] if documents.bos else []
    found: list[npt.NDArray[np.int32]] = []
    cut = short = 0
    for document in documents:
        tokens = np.concatenate([np.array(start, np.int32), document])
        if len(tokens) < _LEAST:
            short += 1
            continue
        cut += len(tokens) > length
        found.append(tokens[:length])
        if len(found) == sequences:
            break
    if not found:
        raise OutliersError(
            f"--text {documents.corpus.source} has no document of {_LEAST} tokens or more ({short} are shorter); "
            "expected one prompt or text a record; name the field that holds it with --field, or leave out --documents"
        )
    ends = np.array([len(tokens) for tokens in found], np.int32)
    token_id = np.full((len(found), ends.max()), NO_TOKEN, np.int32)
    for row, tokens in zip(token_id, found, strict=True):
        row[: len(tokens)] = tokens
    said = {
        "document_separator": None,
        "text_as_documents": True,
        "text_documents_most": sequences,
        "text_documents_cut_at": length,
        "text_documents_cut": cut,
        "text_documents_short": short,
    }
    return Sequences(token_id, ends, said)
