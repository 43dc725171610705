"""What is asked of a capture: every option once, with its default, what it may be, and where a store records it.

A new option is a field here, a parameter with the same default of `capture.run.capture` and of its command in
`capture/cli.py`, and whatever it does. Recipes, their command lines, checks, and the comparison with a store that is
gone on with follow by themselves.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, Final, Self

from capture.errors import OutliersError
from capture.store.chunks import COMPRESSION
from capture.store.schema import COMPUTE_DTYPES, RAW_CHOICES, Sizes
from capture.texts.files import default_field

_KINDS: Final = {str: "a string", int: "a whole number", bool: "true or false", list: "a list"}


@dataclass(frozen=True)
class Option:
    """What a value may be.

    Parameters
    ----------
    kind : its type
    least : the smallest number
    choices : the words that are known
    recorded : attribute of a store that says what it was made with, or length of a dimension; None where none does
    """

    kind: type
    least: int | None = None
    choices: tuple[str, ...] | None = None
    recorded: str | None = None

    def flaw(self, value: Any) -> str | None:
        """What follows the value where it cannot be one: what is wrong and what was expected."""
        kind = type(value)
        if kind is not self.kind:  # true is an int to Python, and not to a reader of TOML
            return f"; expected {_KINDS[self.kind]}, and it is a {kind.__name__}"
        if self.least is not None and value < self.least:
            return f" is too small; expected {self.least} or more"
        if self.choices is not None and value not in self.choices:
            return f" is not known; expected one of {', '.join(self.choices)}"
        return " is empty; give it a value or leave it out" if value == "" else None


def _option(kind: type, default: Any = MISSING, **restrictions: Any) -> Any:
    return field(default=default, metadata={"option": Option(kind, **restrictions)})


@dataclass(frozen=True)
class Request:
    """A capture that is asked for; parameters are those of `capture.run.capture`.

    Raises
    ------
    OutliersError
        An option has a value that it cannot have.
    """

    model: str = _option(str, recorded="model_id")
    text: str = _option(str, "fineweb-edu", recorded="text_source")
    field: str | None = _option(str, None, recorded="text_field")
    chat: bool = _option(bool, False, recorded="text_chat")
    special_tokens: str = _option(str, "text", choices=("text", "parse"), recorded="text_special_tokens")
    documents: bool = _option(bool, False, recorded="text_as_documents")
    sequences: int = _option(int, 16, least=1, recorded="sequences")
    length: int = _option(int, 2048, least=2, recorded="positions")
    batch_size: int = _option(int, 1, least=1)
    dtype: str = _option(str, "auto", choices=("auto", *COMPUTE_DTYPES), recorded="compute_dtype")
    device: str = _option(str, "auto")
    max_memory: str | None = _option(str, None)
    raw: str = _option(str, "input", choices=RAW_CHOICES, recorded="raw")
    compression: str = _option(str, "fast", choices=tuple(COMPRESSION), recorded="compression")
    bos: bool | None = _option(bool, None, recorded="bos")
    sites: str | None = _option(str, None)
    trust_remote_code: bool = _option(bool, False)

    def __post_init__(self) -> None:
        """Refuse a value that an option cannot have."""
        for name, option in OPTIONS.items():
            value = getattr(self, name)
            flaw = None if value is None and DEFAULTS[name] is None else option.flaw(value)
            if flaw is not None:
                raise OutliersError(f"{'MODEL' if name == 'model' else _flag(name)} {value}{flaw}")

    @classmethod
    def among(cls, values: Mapping[str, Any]) -> Self:
        """The request that stands among other values, such as the parameters of a function."""
        return cls(**{name: values[name] for name in OPTIONS if name in values})

    def arguments(self, function: Callable[..., Any]) -> dict[str, Any]:
        """The options that a function has parameters for."""
        return {name: getattr(self, name) for name in inspect.signature(function).parameters if name in OPTIONS}

    def to_words(self, *only: str) -> list[str]:
        """Options that are not as by default on the command line, the model left out; some of them, or all."""
        words: list[str] = []
        for name, default in DEFAULTS.items():
            value = getattr(self, name)
            if value == default or (only and name not in only):
                continue
            if isinstance(value, bool):
                words.append(_flag(name if value else f"no_{name}"))
            else:
                words += [_flag(name), str(value)]
        return words

    def differences(self, attributes: Mapping[str, Any], sizes: Sizes, text_sha256: str | None) -> list[str]:
        """What a store was asked for otherwise, as far as it records that.

        Parameters
        ----------
        attributes, sizes : of the store
        text_sha256 : of the text that is asked for, where it has one; then it counts and not its name
        """
        most = {name: attributes.get(f"text_documents_{name}") for name in ("most", "cut_at")}
        recorded = {
            **attributes,
            "sequences": sizes.sequences if most["most"] is None else most["most"],
            "positions": sizes.positions if most["cut_at"] is None else most["cut_at"],
        }
        if text_sha256 is not None and recorded.get("text_sha256") is not None:
            same = text_sha256 == recorded["text_sha256"]
            recorded["text_source"] = self.text if same else f"{recorded['text_source']} of other content"
        if recorded.get("text_field") is None:
            recorded["text_field"] = default_field(self.chat)  # begun when it was no choice, or plain text
        asked = {name: getattr(self, name) for name, option in OPTIONS.items() if option.recorded is not None}
        asked["field"] = default_field(self.chat) if self.field is None else self.field
        had = {name: recorded.get(str(OPTIONS[name].recorded), DEFAULTS.get(name)) for name in asked}
        return [
            f"{name} ({had[name]} in the store, {value} asked for)"
            for name, value in asked.items()
            if value not in (had[name], "auto", None)
        ]


OPTIONS: Final[Mapping[str, Option]] = {one.name: one.metadata["option"] for one in fields(Request)}
"""What each option may be, by its name."""

DEFAULTS: Final[Mapping[str, Any]] = {one.name: one.default for one in fields(Request) if one.default is not MISSING}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
