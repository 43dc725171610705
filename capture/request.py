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
    revision: str | None = _option(str, None, recorded="model_revision_name")
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
    sites: str | None = _option(str, None, recorded="placement")
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

    @classmethod
    def of_store(cls, attributes: Mapping[str, Any], sizes: Sizes) -> Self:
        """The request that makes a store again, as far as the store records that.

        Raises
        ------
        OutliersError
            The store does not say of which model it is, or records what no request can be.
        """
        had = _recorded(attributes, sizes)
        values = {name: had[str(option.recorded)] for name, option in OPTIONS.items() if option.recorded in had}
        commit = had.get("model_revision")
        if isinstance(commit, str) and ":" not in commit:  # of the hub; of local files there is a digest
            values["revision"] = commit
        if str(had.get("weight_quantisation")).startswith("gguf") and values.get("dtype") == "float32":
            values["dtype"] = "auto"  # so that the weights stay packed
        if values.get("field") == default_field(bool(values.get("chat"))):
            values["field"] = None
        if not isinstance(values.get("model"), str) or values["model"].startswith("-"):
            raise OutliersError("this store does not say of which model it is; expected an attribute model_id")
        return cls(**values)

    def differences(self, attributes: Mapping[str, Any], sizes: Sizes, text_sha256: str | None) -> list[str]:
        """What a store was asked for otherwise, as far as it records that.

        Parameters
        ----------
        attributes, sizes : of the store
        text_sha256 : of the text that is asked for, where it has one; then it counts and not its name
        """
        had = _recorded(attributes, sizes)
        if text_sha256 is not None and had.get("text_sha256") is not None:
            same = text_sha256 == had["text_sha256"]
            had["text_source"] = self.text if same else f"{had['text_source']} of other content"
        named = self.revision
        if named is not None and len(named) > 6 and str(had.get("model_revision")).startswith(named):
            had["model_revision_name"] = named  # the commit itself
        had.setdefault("placement", self.sites)  # not recorded by older stores; the sites themselves are compared
        unnamed = {"field": default_field(self.chat), "revision": "main"}  # what None stands for, then and now
        told = []
        for name, option in OPTIONS.items():
            if option.recorded is None:
                continue
            stood, asked = had.get(option.recorded, DEFAULTS.get(name)), getattr(self, name)
            stood, asked = (unnamed.get(name) if one is None else one for one in (stood, asked))
            if asked not in (stood, "auto", None):
                told.append(f"{name} ({stood} in the store, {asked} asked for)")
        return told


OPTIONS: Final[Mapping[str, Option]] = {one.name: one.metadata["option"] for one in fields(Request)}
"""What each option may be, by its name."""

DEFAULTS: Final[Mapping[str, Any]] = {one.name: one.default for one in fields(Request) if one.default is not MISSING}


def _recorded(attributes: Mapping[str, Any], sizes: Sizes) -> dict[str, Any]:
    """What a store says of its request: its attributes, and lengths of dimensions or, of documents, the most."""
    most, cut_at = (attributes.get(f"text_documents_{name}") for name in ("most", "cut_at"))
    return {
        **attributes,
        "sequences": sizes.sequences if most is None else most,
        "positions": sizes.positions if cut_at is None else cut_at,
    }


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
