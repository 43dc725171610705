"""Documents become blocks of tokens: nothing padded, nothing overlapping, nothing lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.errors import OutliersError
from capture.texts.blocks import token_blocks
from capture.texts.documents import Documents
from capture.texts.files import Record
from capture.texts.sources import Corpus
from tests.conftest import WORDS, tiny_tokenizer

pytest.importorskip("transformers")


def documents(texts: list[str], tokenizer: Any, bos: bool, most: int = 1000) -> Documents:
    return Documents(Corpus([Record(text, "a row") for text in texts], "x", None, None), tokenizer, most=most, bos=bos)


@given(
    texts=st.lists(st.lists(st.sampled_from(WORDS), max_size=9), min_size=1, max_size=6),
    length=st.integers(2, 7),
    bos=st.booleans(),
    eos=st.booleans(),
)
def test_blocks_are_the_joined_documents_cut(texts: list[list[str]], length: int, bos: bool, eos: bool) -> None:
    tokenizer = tiny_tokenizer(bos=bos, eos=eos)
    stream: list[int] = []
    for words in filter(None, texts):  # empty documents are left out, and bring no separator
        stream += ([2] if eos and stream else []) + [3 + WORDS.index(word) for word in words]
    room = length - bos
    full = len(stream) // room
    joined = [" ".join(words) for words in texts]
    if full:
        blocks = token_blocks(documents(joined, tokenizer, bos, full * length), sequences=full, length=length)
        assert blocks.shape == (full, length)
        assert blocks.dtype == np.int32
        assert blocks[:, int(bos) :].ravel().tolist() == stream[: full * room]
        assert not bos or (blocks[:, 0] == 1).all()
    with pytest.raises(OutliersError, match=f"fill {full} blocks of {length}"):
        token_blocks(documents(joined, tokenizer, bos), sequences=full + 1, length=length)


def test_text_behind_the_last_block_is_not_read() -> None:
    def records() -> Iterator[Record]:
        yield Record("alpha beta gamma", "")
        raise AssertionError("read on")

    read = Documents(Corpus(records(), "", None, None), tiny_tokenizer(), most=3)
    assert token_blocks(read, sequences=1, length=3).tolist() == [[3, 4, 5]]


def test_empty_documents_alone_are_no_text() -> None:
    with pytest.raises(OutliersError, match="has 0 tokens, which fill 0 blocks of 2"):
        token_blocks(documents([""] * 500, tiny_tokenizer(), False), sequences=1, length=2)
