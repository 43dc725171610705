"""Tokens as sequences: documents joined and cut into equal-length, non-overlapping blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from capture.errors import OutliersError
from capture.texts.documents import Documents


def token_blocks(documents: Documents, *, sequences: int, length: int) -> npt.NDArray[np.int32]:
    """Cut a corpus into blocks of tokens.

    Documents are joined by the tokenizer's EOS token where it has one; the stream is cut every `length` tokens
    (`length - 1` where a BOS takes the first place). Nothing is padded, nothing overlaps, and the text behind the last
    block is not read.

    Parameters
    ----------
    documents : as tokens
    sequences, length : number of blocks, and tokens in each

    Returns
    -------
    (sequences, length) int32

    Raises
    ------
    OutliersError
        There is too little text, or a document cannot be read.
    """
    separator = documents.tokenizer.eos_token_id
    taken = length - documents.bos
    if taken < 1:
        raise OutliersError(f"--length {length} leaves no room for text behind the BOS token; use --length 2 or more")
    tokens: list[npt.NDArray[np.int32]] = []
    count = 0
    for document in documents:
        if count and separator is not None:
            tokens.append(np.array([separator], np.int32))
            count += 1
        tokens.append(document)
        count += len(document)
        if count >= sequences * taken:
            break
    full = count // taken
    if full < sequences:
        source = documents.corpus.source
        raise OutliersError(
            f"--text {source} has {count} tokens, which fill {full} blocks of {length}, and "
            f"{sequences} were asked for; use --sequences {full}, a smaller --length, or more text"
            if full
            else f"--text {source} has {count} tokens, which fill 0 blocks of {length}; "
            "use a smaller --length or more text"
        )
    blocks = np.concatenate(tokens)[: sequences * taken].reshape(sequences, taken)
    start = np.full((sequences, int(documents.bos)), documents.tokenizer.bos_token_id if documents.bos else 0, np.int32)
    return np.hstack([start, blocks])


def vocabulary(tokenizer: Any, token_id: npt.NDArray[np.int32]) -> dict[int, str]:
    """Text of every token that occurs, decoded by itself, for readers without the tokenizer."""
    return {number: tokenizer.decode([number]) for number in np.unique(token_id).tolist() if number >= 0}
