"""Documents as tokens: text through the tokenizer, conversations through its template, token ids as they are.

What was left out or could be read in two ways is counted, for the store to say.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from capture.errors import OutliersError, in_one_line
from capture.store.schema import SPECIAL_TOKENS
from capture.texts.files import Record, shown
from capture.texts.sources import Corpus

_PIECE: Final = 1_000_000  # characters tokenized at once, so that a large file needs no large memory
_BOM: Final = "\ufeff"

# The date that a template writes as today's, so that a capture can be gone on with tomorrow: the one that Llama's
# templates fall back on. A macro, for transformers lets no function of ours into a template.
_DATE: Final = {
    "%d": "26",
    "%e": "26",
    "%m": "07",
    "%b": "Jul",
    "%B": "July",
    "%Y": "2024",
    "%y": "24",
    "%A": "Friday",
    "%a": "Fri",
    "%F": "2024-07-26",
    "%H": "00",
    "%I": "12",
    "%M": "00",
    "%S": "00",
    "%p": "AM",
}
_TODAY: Final = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f" | replace({code!r}, {text!r})" for code, text in _DATE.items())
    + " }}{%- endmacro -%}"
)


class Documents:
    """The documents of a corpus as arrays of token ids, int32, without BOS where `bos`; empty ones are left out.

    They can be gone through once. What is not asked for is not read.

    Parameters
    ----------
    corpus : where they come from
    tokenizer : a Hugging Face tokenizer
    most : tokens of one document that are needed; what is behind them is not tokenized
    bos : whether a BOS will be put before each block; None does what the tokenizer or its template does by itself,
        and adds none to token ids
    chat : documents are conversations
    special_tokens : `text` keeps text that spells a special token text, `parse` makes it the token

    Raises
    ------
    OutliersError
        The first document cannot be read or is of the wrong kind, there is no BOS token or no chat template.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Any,
        *,
        most: int,
        bos: bool | None = None,
        chat: bool = False,
        special_tokens: str = "text",
    ) -> None:
        self.corpus, self.tokenizer = corpus, tokenizer
        self._most, self._chat, self._keep_text = most, chat, special_tokens == "text"
        self._count = dict.fromkeys(("documents", "empty", "boms", "special"), 0)
        self._special = _special_pattern(tokenizer)
        self._template = _template(tokenizer, self._keep_text) if chat else None
        first, self._records = _first_of(corpus.records)
        self._ids = not chat and first is not None and _may_be_ids(first.value)
        if bos and tokenizer.bos_token_id is None:
            raise OutliersError("--bos was given, but this tokenizer has no BOS token; use --no-bos")
        self.bos = self._adds_bos(first) if bos is None else bos

    def _adds_bos(self, first: Record | None) -> bool:
        """Whether BOS stands first by itself: where the tokenizer puts it, or its template."""
        token = self.tokenizer.bos_token_id
        if token is None or self._ids:
            return False
        if self._chat and first is not None:
            return self._conversation(first)[:1] == [token]
        with _read_by_tokenizer("the letter a, by which BOS is known (--bos or --no-bos says it too)"):
            return list(self.tokenizer("a").input_ids[:1]) == [token]

    def __iter__(self) -> Iterator[npt.NDArray[np.int32]]:
        """Each document that has tokens."""
        for record in self._records:
            tokens = self._tokens(record)
            if self.bos and tokens[:1] == [self.tokenizer.bos_token_id]:
                tokens = tokens[1:]  # it is put first again, and there must not be two
            self._count["documents" if tokens else "empty"] += 1
            if tokens:
                yield np.array(tokens[: self._most], np.int32)

    def attributes(self) -> dict[str, Any]:
        """What a store says of the text that was read so far."""
        template = self._template
        return {
            "text_source": self.corpus.source,
            "text_revision": self.corpus.revision,
            "text_sha256": self.corpus.sha256,
            "text_field": self.corpus.field,
            "text_kind": "messages" if self._chat else "ids" if self._ids else "text",
            "text_chat": self._chat,
            "text_template_sha256": None if template is None else hashlib.sha256(template.encode()).hexdigest(),
            "text_special_tokens": "text" if self._keep_text else "parse",
            "text_special_spelled": self._count["special"],
            "text_documents": self._count["documents"],
            "text_documents_empty": self._count["empty"],
            "text_boms_removed": self._count["boms"],
            "bos": self.bos,
            SPECIAL_TOKENS: _special_numbers(self.tokenizer),
        }

    def _tokens(self, record: Record) -> list[int]:
        if self._ids:
            return self._known(record)
        if self._chat:
            ids = self._conversation(record)
            self._count["special"] += sum(len(self._special.findall(message["content"])) for message in record.value)
            return ids
        text = _checked(record.value, record.where)
        if text.startswith(_BOM):
            text = text.lstrip(_BOM)
            self._count["boms"] += 1
        spelled = self._special.findall(text)
        self._count["special"] += len(spelled)
        options = {"add_special_tokens": False, "verbose": False, "split_special_tokens": self._keep_text}
        tokens: list[int] = []
        for piece in _pieces(text):
            with _read_by_tokenizer(record.where):
                tokens.extend(self.tokenizer(piece, **options).input_ids)
            if len(tokens) > self._most:
                break
        if self._keep_text and spelled:
            self._check_kept(set(spelled), tokens, record.where)
        return tokens

    def _check_kept(self, spelled: set[str], tokens: list[int], where: str) -> None:
        """Refuse where text became a special token all the same: not every tokenizer can do otherwise."""
        ids = {token: self.tokenizer.convert_tokens_to_ids(token) for token in spelled}
        made = [token for token, one in ids.items() if one in tokens and one != self.tokenizer.unk_token_id]
        if made:
            raise OutliersError(
                f"{where} spells {made[0]}, which this tokenizer makes a special token and cannot keep as text; "
                "pass --special-tokens parse if that is meant, or leave the row out"
            )

    def _known(self, record: Record) -> list[int]:
        ids, size = record.value, len(self.tokenizer)
        if not isinstance(ids, list):
            raise OutliersError(f"{record.where} holds {shown(ids)}; expected token ids, as in the first row")
        for number, one in enumerate(ids):
            if type(one) is not int or not 0 <= one < size:
                raise OutliersError(
                    f"{record.where} holds {shown(one)} at place {number}; expected token ids from 0 to {size - 1}, "
                    "which this model's tokenizer knows; mend the row, or name another --field"
                )
        return ids

    def _conversation(self, record: Record) -> list[int]:
        messages = _messages(record)
        if not messages:
            return []
        options = {"sanitize_control_tokens": True} if self._keep_text else {}
        try:
            ids = self.tokenizer.apply_chat_template(
                messages, chat_template=_TODAY + str(self._template), return_dict=False, **options
            )
        except Exception as error:  # templates come with models, and fail in ways of their own
            reason = in_one_line(error)
            raise OutliersError(f"the chat template refuses {record.where} ({reason}); mend the row") from error
        return list(ids)


def _first_of(records: Iterable[Record]) -> tuple[Record | None, Iterator[Record]]:
    """The first record that holds anything, by which the kind of all is told, and all of them."""
    following, read = iter(records), []
    for record in following:
        read.append(record)
        if record.value not in ("", []):
            break
    return read[-1] if read else None, itertools.chain(read, following)


@contextlib.contextmanager
def _read_by_tokenizer(what: str) -> Iterator[None]:
    """Tell in one line what keeps a tokenizer from reading a text, such as a vocabulary without a token for it."""
    try:
        yield
    except Exception as error:
        raise OutliersError(
            f"the tokenizer of this model cannot read {what} ({in_one_line(error)}); leave that out of the text, or "
            "mend the tokenizer's files"
        ) from error


def _special_pattern(tokenizer: Any) -> re.Pattern[str]:
    """What finds every special token that a text spells."""
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    spelled = sorted({*tokenizer.all_special_tokens, *added}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, spelled)) if spelled else "(?!)")


def _special_numbers(tokenizer: Any) -> dict[str, list[int]]:
    """Numbers of the special tokens, as `--skip-tokens` names them."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    one = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos")}
    return {
        **{name: [] if number is None else [int(number)] for name, number in one.items()},
        "special": sorted({*map(int, added), *map(int, tokenizer.all_special_ids)}),
    }


def _may_be_ids(value: Any) -> bool:
    return isinstance(value, list) and not (value and isinstance(value[0], dict))


def _template(tokenizer: Any, keep_text: bool) -> str:
    """The tokenizer's chat template."""
    try:
        template = str(tokenizer.get_chat_template())
    except ValueError as error:
        raise OutliersError(
            "--chat was given, and the tokenizer of this model has no chat template; "
            "use a model that was trained on chats, or text that is written out as the model expects it"
        ) from error
    if keep_text and "sanitize_control_tokens" not in inspect.signature(tokenizer.apply_chat_template).parameters:
        raise OutliersError(
            "this transformers cannot tell special tokens that messages spell from those of the chat template; "
            "install transformers 5.23 or later, or pass --special-tokens parse"
        )
    return template


def _messages(record: Record) -> list[dict[str, Any]]:
    """The messages of a conversation; what is null in them is left out, as columns are null where others have them."""
    told = "expected messages, a list of objects with role and content"
    if not isinstance(record.value, list):
        raise OutliersError(f"{record.where} holds {shown(record.value)}; {told}")
    for number, message in enumerate(record.value, 1):
        if not isinstance(message, dict):
            raise OutliersError(f"message {number} of {record.where} is {shown(message)}; {told}")
        for key in ("role", "content"):
            if not isinstance(message.get(key), str):
                has = shown(message[key]) if key in message else f"missing (it has {', '.join(map(str, message))})"
                raise OutliersError(f"{key} in message {number} of {record.where} is {has}; expected text")
        _checked(message["content"], f"message {number} of {record.where}")
    return [{key: value for key, value in message.items() if value is not None} for message in record.value]


def _checked(text: Any, where: str) -> str:
    """A document that must be text."""
    if not isinstance(text, str):
        messages = isinstance(text, list) and not _may_be_ids(text)
        advice = "pass --chat" if messages else "name another --field"
        raise OutliersError(f"{where} holds {shown(text)}; expected text; mend the row, or {advice}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise OutliersError(f"{where} is no Unicode text (half a surrogate pair at {error.start}); mend it") from error
    return text


def _pieces(document: str) -> Iterator[str]:
    """Cut a very long document behind line ends; a shorter one stays whole."""
    begin = 0
    while len(document) - begin > _PIECE:
        cut = document.rfind("\n", begin, begin + _PIECE) + 1
        end = cut if cut > begin else begin + _PIECE
        yield document[begin:end]
        begin = end
    yield document[begin:]
