"""The options of a capture: one declaration, which signatures, recipes and command lines keep to."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import typer

from analyze.cli import app
from capture.errors import OutliersError
from capture.estimate import estimate
from capture.request import DEFAULTS, OPTIONS, Request
from capture.run import capture
from capture.store.schema import Sizes

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]

# A value other than the default for each option.
OTHER: dict[str, Any] = {
    "model": "org/m",
    "revision": "step1000",
    "text": "a b.txt",
    "field": "body",
    "chat": True,
    "special_tokens": "parse",
    "documents": True,
    "sequences": 3,
    "length": 7,
    "batch_size": 2,
    "dtype": "float16",
    "device": "cpu",
    "max_memory": "cpu=1GiB",
    "raw": "none",
    "compression": "small",
    "bos": False,
    "sites": "ln_attn=a.{}.b",
    "trust_remote_code": True,
}


def stored(request: Request) -> tuple[dict[str, Any], Sizes]:
    """What a store of a request would record of it."""
    sizes = Sizes(request.sequences, 1, ("ln_attn",), request.length, 4)
    recorded = {one.recorded: getattr(request, name) for name, one in OPTIONS.items() if one.recorded is not None}
    return recorded, sizes


@pytest.mark.parametrize("function", [capture, estimate])
def test_public_signatures_have_the_same_defaults(function: Callable[..., Any]) -> None:
    own = {name: one.default for name, one in inspect.signature(function).parameters.items() if name in DEFAULTS}
    assert own == {name: DEFAULTS[name] for name in own}
    if function is capture:
        assert own == DEFAULTS


@pytest.mark.parametrize("name", ["capture", "estimate"])
def test_commands_have_the_same_defaults(name: str) -> None:
    options = {one.name: one.default for one in COMMANDS[name].params if one.name in DEFAULTS}
    assert options == {name: DEFAULTS[name] for name in options}
    if name == "capture":
        assert options == DEFAULTS


def test_words_are_what_the_command_understands() -> None:
    assert OTHER.keys() == OPTIONS.keys()
    assert Request("m").to_words() == []
    words = Request(**OTHER).to_words()
    parsed = COMMANDS["capture"].make_context("capture", ["org/m", "--out", "s", *words]).params
    assert {name: parsed[name] for name in OPTIONS} == OTHER
    assert Request(**OTHER).to_words("device", "length") == ["--length", "7", "--device", "cpu"]
    assert Request("m", bos=True).to_words() == ["--bos"]


@pytest.mark.parametrize("name", [name for name, option in OPTIONS.items() if option.recorded])
def test_each_recorded_option_is_compared_with_a_store(name: str) -> None:
    request = Request(**OTHER)
    assert request.differences(*stored(request), None) == []
    other = dataclasses.replace(request, **{name: DEFAULTS.get(name, "other")})
    told = other.differences(*stored(request), None)
    if name in ("bos", "dtype", "sites"):  # left to the model, hence never another
        assert told == []
        told = dataclasses.replace(
            request, **{name: {"bos": True, "dtype": "float32", "sites": "x"}[name]}
        ).differences(*stored(request), None)
    assert [line.split()[0] for line in told] == [name]


def test_a_text_is_compared_by_content_where_both_have_a_digest() -> None:
    request = Request("m", text="b.txt")
    attributes, sizes = stored(dataclasses.replace(request, text="a.txt"))
    assert request.differences({**attributes, "text_sha256": "1"}, sizes, "1") == []
    assert request.differences({**attributes, "text_sha256": "1"}, sizes, "2") == [
        "text (a.txt of other content in the store, b.txt asked for)"
    ]
    assert request.differences({**attributes, "text_sha256": None}, sizes, "2") == [
        "text (a.txt in the store, b.txt asked for)"
    ]


def test_the_field_of_a_store_is_compared_also_where_none_is_named() -> None:
    attributes, sizes = stored(Request("m", text="x.jsonl"))
    for had, chat, asked, told in (
        (None, False, None, []),  # plain text, or a store from before fields could be named
        ("text", False, None, []),
        ("text", False, "text", []),
        ("body", False, None, ["field (body in the store, text asked for)"]),
        ("messages", True, None, []),
        (None, False, "body", ["field (text in the store, body asked for)"]),
    ):
        recorded = {**attributes, "text_field": had, "text_chat": chat}
        request = Request("m", text="x.jsonl", field=asked, chat=chat)
        assert request.differences(recorded, sizes, None) == told
    old = {key: value for key, value in attributes.items() if key not in ("text_field", "text_chat", "placement")}
    assert Request("m", text="x.jsonl", sites="ln_attn=a.{}").differences(old, sizes, None) == []
    assert Request("m", text="x.jsonl").differences(old, sizes, None) == []
    assert Request("m", text="x.jsonl", chat=True).differences(old, sizes, None) == [
        "chat (False in the store, True asked for)"
    ]


def test_a_commit_is_the_revision_by_any_name() -> None:
    commit = "c0ffee0123" + "0" * 30
    attributes, sizes = stored(Request("m", revision="step1000"))
    attributes["model_revision"] = commit
    for asked in ("step1000", commit, commit[:7]):
        assert Request("m", revision=asked).differences(attributes, sizes, None) == []
    for asked in ("step2000", "c0ffee", None, "main"):
        (told,) = Request("m", revision=asked).differences(attributes, sizes, None)
        assert told == f"revision (step1000 in the store, {asked or 'main'} asked for)"
    del attributes["model_revision_name"]  # begun when only the commit was stored
    assert Request("m").differences(attributes, sizes, None) == []


def test_the_request_of_a_store_is_that_which_made_it() -> None:
    request = Request(**{**OTHER, "batch_size": 1, "device": "auto", "max_memory": None, "trust_remote_code": False})
    attributes, sizes = stored(request)
    assert Request.of_store(attributes, sizes) == request
    assert Request.of_store({**attributes, "model_revision": "c0ffee"}, sizes).revision == "c0ffee"
    assert (
        Request.of_store({**attributes, "model_revision": "sha256:12", "model_revision_name": None}, sizes).revision
        is None
    )
    packed = {**attributes, "compute_dtype": "float32", "weight_quantisation": "gguf:Q8_0"}
    assert Request.of_store(packed, sizes).dtype == "auto"
    for wrong, told in (
        ({"model_id": "--trust-remote-code"}, "does not say of which model"),
        ({"model_id": None}, "does not say of which model"),
        ({"raw": "all"}, "--raw all is not known"),
        ({"text_source": 3}, "--text 3; expected a string"),
    ):
        with pytest.raises(OutliersError, match=told):
            Request.of_store({**attributes, **wrong}, sizes)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"sequences": 0}, "--sequences 0 is too small; expected 1 or more"),
        ({"batch_size": "2"}, "--batch-size 2; expected a whole number, and it is a str"),
        ({"length": True}, "--length True; expected a whole number, and it is a bool"),
        ({"raw": "all"}, "--raw all is not known; expected one of input, output, both, none"),
        ({"bos": "no"}, "--bos no; expected true or false, and it is a str"),
        ({"text": None}, "--text None; expected a string, and it is a NoneType"),
        ({"text": ""}, "--text  is empty"),
        ({"model": ""}, "MODEL  is empty"),
    ],
)
def test_what_an_option_cannot_be_is_told_in_one_line(options: dict[str, Any], told: str) -> None:
    with pytest.raises(OutliersError) as caught:
        Request(**{"model": "m", **options})
    assert str(caught.value).startswith(told)
