"""Documents become tokens: text stays text, ids stay ids, chats go through the template, nothing gets two BOS."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capture.errors import OutliersError
from capture.texts import documents as module
from capture.texts.documents import Documents
from capture.texts.files import Record
from capture.texts.sources import Corpus
from tests.conftest import WORDS, tiny_tokenizer

pytest.importorskip("transformers")

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }} {{ m.content }} {{ eos_token }}{% endfor %}"


def corpus_of(*values: Any) -> Corpus:
    return Corpus(
        [Record(value, f"row {number} of x") for number, value in enumerate(values, 1)], "made up", None, None
    )


def tokens(documents: Iterable[Any]) -> list[list[int]]:
    return [document.tolist() for document in documents]


def opened(*values: Any, tokenizer: Any = None, **options: Any) -> Documents:
    return Documents(corpus_of(*values), tokenizer or tiny_tokenizer(), **{"most": 1000, **options})


def chat_tokenizer(template: str = TEMPLATE, bos: bool = True) -> Any:
    """Its words are also roles, so that a template's own words are tokens that can be told apart."""
    tokenizer = tiny_tokenizer(bos=bos)
    tokenizer.chat_template = template
    return tokenizer


def conversations(*values: Any, **options: Any) -> Documents:
    return opened(*values, **{"tokenizer": chat_tokenizer(), "chat": True, **options})


def message(content: Any, role: Any = "beta") -> dict[str, Any]:
    return {"role": role, "content": content}


@given(st.lists(st.lists(st.sampled_from(WORDS), max_size=5), max_size=5), st.integers(1, 7))
def test_text_is_tokenized_cut_and_counted(texts: list[list[str]], most: int) -> None:
    documents = opened(*(" ".join(words) for words in texts), most=most)
    assert tokens(documents) == [[3 + WORDS.index(word) for word in words][:most] for words in texts if words]
    attributes = documents.attributes()
    assert attributes["text_documents"] == sum(map(bool, texts))
    assert attributes["text_documents_empty"] == len(texts) - sum(map(bool, texts))
    assert attributes["text_kind"] == "text"


def test_text_that_spells_a_special_token_stays_text_unless_asked() -> None:
    text = "<s> alpha <end>"
    kept = opened(text, tokenizer=tiny_tokenizer(bos=True))
    assert tokens(kept) == [[0, 0, 0, 3, 0, 0, 0]]  # the pieces of the spellings are unknown words
    assert kept.attributes()["text_special_spelled"] == 2
    assert kept.attributes()["text_special_tokens"] == "text"
    # Parsed, the BOS that it begins with is the one that each block gets anyway.
    parsed = opened(text, "alpha <s>", tokenizer=tiny_tokenizer(bos=True), special_tokens="parse")
    assert tokens(parsed) == [[3, 2], [3, 1]]
    assert parsed.attributes()["text_special_spelled"] == 3
    assert tokens(opened(text, tokenizer=tiny_tokenizer(bos=True), bos=False, special_tokens="parse")) == [[1, 3, 2]]


def test_a_tokenizer_that_cannot_keep_text_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tiny_tokenizer()
    kind = type(tokenizer)
    monkeypatch.setattr(
        kind, "__call__", lambda self, text, **_: type("Encoding", (), {"input_ids": self.encode(text)})()
    )
    assert tokens(opened("alpha", tokenizer=tokenizer)) == [[3]]
    with pytest.raises(OutliersError, match=r"row 2 of x spells <end>.*pass --special-tokens parse"):
        tokens(opened("alpha", "beta <end>", tokenizer=tokenizer))


def test_a_leading_bom_goes_and_is_counted() -> None:
    documents = opened("\ufeffalpha", "alpha", "\ufeff")
    assert tokens(documents) == [[3], [3]]
    counts = documents.attributes()
    assert (counts["text_boms_removed"], counts["text_documents_empty"]) == (2, 1)


def test_token_ids_are_used_as_they_are() -> None:
    documents = opened([1, 3, 1, 12], [], [1], tokenizer=tiny_tokenizer(bos=True))
    assert tokens(documents) == [[1, 3, 1, 12], [1]]
    assert not documents.bos
    assert documents.attributes()["text_kind"] == "ids"
    assert tokens(opened([], [3])) == [[3]]
    assert tokens(opened([1, 3], [4], tokenizer=tiny_tokenizer(bos=True), bos=True)) == [[3], [4]]


@pytest.mark.parametrize("bad", [13, -1, 2.0, True, None, "alpha", 10**30])
def test_what_is_no_token_id_is_refused(bad: Any) -> None:
    with pytest.raises(OutliersError, match=r"row 2 of x holds .* at place 1; expected token ids from 0 to 12"):
        tokens(opened([1], [3, bad]))


def test_chats_go_through_the_template_and_get_one_bos() -> None:
    documents = conversations([message("alpha"), message("gamma")], [])
    assert documents.bos
    assert tokens(documents) == [[4, 3, 2, 4, 5, 2]]
    attributes = documents.attributes()
    assert attributes["text_kind"] == "messages"
    assert attributes["text_documents_empty"] == 1
    assert len(attributes["text_template_sha256"]) == 64
    first_empty = conversations([], [message("alpha")])
    assert first_empty.bos
    assert tokens(first_empty) == [[4, 3, 2]]
    # A tokenizer that adds BOS to text, and a template that does not: the template is what the model knows.
    without = conversations([message("alpha")], tokenizer=chat_tokenizer(TEMPLATE.removeprefix("{{ bos_token }}")))
    assert not without.bos
    assert tokens(without) == [[4, 3, 2]]
    assert tokens(conversations([message("alpha")], bos=False)) == [[1, 4, 3, 2]]


def test_messages_that_spell_special_tokens_end_no_turn() -> None:
    chat = [message("alpha <end> gamma")]
    kept = conversations(chat)
    (ids,) = tokens(kept)
    assert ids.count(2) == 1
    assert ids[-1] == 2
    assert kept.attributes()["text_special_spelled"] == 1
    assert tokens(conversations(chat, special_tokens="parse")) == [[4, 3, 2, 5, 2]]


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'gamma' if strftime_now('%d %b %Y') == '26 Jul 2024' else 'delta' }} {{ messages[0].content }}",
        "{% macro day() %}{{ 'gamma' if strftime_now('%Y-%m-%d') == '2024-07-26' else 'delta' }}{% endmacro %}"
        "{{ day() }} {{ messages[0].content }}",
    ],
)
def test_a_template_that_writes_the_date_says_the_same_tomorrow(template: str) -> None:
    assert tokens(conversations([message("alpha")], tokenizer=chat_tokenizer(template))) == [[5, 3]]


def test_nulls_of_columns_are_no_part_of_a_message() -> None:
    template = "{% for m in messages %}{{ 'gamma' if m.tools is defined else 'delta' }} {{ m.content }}{% endfor %}"
    documents = conversations([{**message("alpha"), "tools": None}], tokenizer=chat_tokenizer(template))
    assert tokens(documents) == [[6, 3]]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("alpha", r"row 1 of x holds a str \('alpha'\); expected messages"),
        (None, "row 1 of x holds null; expected messages"),
        (["alpha"], "message 1 of row 1 of x is a str"),
        ([{"from": "human", "value": "x"}], r"role in message 1 of row 1 of x is missing \(it has from, value\)"),
        ([{"role": "user"}], r"content in message 1 .* is missing \(it has role\)"),
        ([message("alpha"), message(None)], "content in message 2 .* is null; expected text"),
        ([message([{"type": "image"}])], "content in message 1 .* is a list"),
        ([message("alpha", role=3)], r"role in message 1 .* is a int \(3\); expected text"),
        ([message("\ud800")], "message 1 of row 1 of x is no Unicode text"),
    ],
)
def test_what_is_no_conversation_is_refused(value: Any, told: str) -> None:
    with pytest.raises(OutliersError, match=told):
        tokens(conversations(value))


def test_a_template_may_refuse_and_may_be_missing() -> None:
    refusing = chat_tokenizer("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(OutliersError, match=r"refuses row 1 of x \(roles must alternate\); mend the row"):
        tokens(conversations([message("alpha")], tokenizer=refusing))
    with pytest.raises(OutliersError, match=r"--chat was given, and the tokenizer of this model has no chat template"):
        opened([message("alpha")], chat=True)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (["alpha", None], r"row 2 of x holds null; expected text; mend the row, or name another --field"),
        ([{"a": 1}], r"row 1 of x holds a dict \(\{'a': 1\}\); expected text"),
        ([[message("alpha")]], r"row 1 of x holds a list .*; expected text; mend the row, or pass --chat"),
        (["alpha", [1]], r"row 2 of x holds a list \(\[1\]\); expected text"),
        ([[1], "alpha"], r"row 2 of x holds a str \('alpha'\); expected token ids, as in the first row"),
        (["\ud800"], "row 1 of x is no Unicode text"),
        ([3.5], r"holds a float \(3.5\)"),
    ],
)
def test_what_a_field_holds_is_told(values: list[Any], told: str) -> None:
    with pytest.raises(OutliersError, match=told) as caught:
        tokens(opened(*values))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "template", ["{{ 1 / 0 }}", "{{ messages.nope.x }}", "{{ messages[0].role + 1 }}", "{{ 'a' * 10**18 }}"]
)
def test_whatever_a_template_raises_is_one_line(template: str) -> None:
    with pytest.raises(OutliersError, match=r"^the chat template refuses row 1 of x \(.*\); mend the row$"):
        tokens(conversations([message("alpha")], tokenizer=chat_tokenizer(template, bos=False)))


@pytest.mark.parametrize("unknown", [None, "<nope>"])
def test_a_tokenizer_that_has_no_token_for_a_text_is_one_line(unknown: str | None) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"alpha": 0, "a": 1}, **({} if unknown is None else {"unk_token": unknown})))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner)
    assert tokens(opened("alpha a", tokenizer=tokenizer)) == [[0, 1]]
    told = r"^the tokenizer of this model cannot read row 2 of x \(.*UNK.*\)"
    with pytest.raises(OutliersError, match=told) as caught:
        tokens(opened("alpha", "beta", tokenizer=tokenizer))
    assert "\n" not in str(caught.value)


def test_bos_without_a_bos_token_is_refused() -> None:
    with pytest.raises(OutliersError, match="no BOS token; use --no-bos"):
        opened("alpha", bos=True)


def test_bos_is_what_the_tokenizer_does_by_itself() -> None:
    assert opened("alpha", tokenizer=tiny_tokenizer(bos=True)).bos
    assert not opened("alpha").bos
    assert not opened("alpha", tokenizer=tiny_tokenizer(bos=True), bos=False).bos


def test_a_long_document_is_tokenized_in_pieces_and_no_further_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIECE", 40)
    lines = "\n".join(" ".join(WORDS) for _ in range(50))
    pieces = list(module._pieces(lines))
    assert "".join(pieces) == lines
    assert max(map(len, pieces)) <= 40
    whole = list(module._pieces("x" * 100))  # no line end to cut behind
    assert "".join(whole) == "x" * 100
    assert tokens(opened(lines, most=500)) == [[3 + n for n in range(len(WORDS))] * 50]
