"""What leaves the machine: of paths the last part, of secrets nothing; everything else as it is."""

from __future__ import annotations

import pytest

from capture.errors import OutliersError
from capture.store.privacy import command_line, last_part, running, shortened, without_secrets


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("/home/jane/x.txt", "x.txt"),
        ("/home/Jane Doe/my model/", "my model"),
        ("~/models/b", "b"),
        ("~jane/b", "b"),
        ("../jane/b", "b"),
        ("$HOME/jane/b", "b"),
        (r"C:\Users\jane\m.gguf", "m.gguf"),
        ("C:/Users/jane/m.gguf", "m.gguf"),
        (r"\\server\jane\m", "m"),
        ("file:///home/jane/m", "m"),
        ("random:/home/jane/config.json", "random:config.json"),
        ("work/jane/model", "model"),
        ("jane/corpus.jsonl.gz", "corpus.jsonl.gz"),
        ("/home/jane/a.txt, /home/jane/b.txt", "a.txt, b.txt"),
        ("read from '/home/jane/a.txt' today", "read from 'a.txt' today"),
        ({"files": ["/home/jane/a", 3, None]}, {"files": ["a", 3, None]}),
        ("https://jane:pw@host/a?token=1", "https://...@host/a?..."),
        ("model of hf_AbCdEfGhIjKlMn", "model of ..."),
    ],
)
def test_what_is_private_goes(value: object, told: object) -> None:
    assert shortened(value) == told


@pytest.mark.parametrize(
    "value",
    [
        *("ORG/NAME", "hf:ORG/NAME", "hf:ORG/NAME:split", "hf://datasets/ORG/NAME/s.zarr", "s3://bucket/a/b.zarr"),
        *("</s>", "/", "", "<|endoftext|>", "\n\n", "model.layers.0.norm", "and/or", "1/4", "python-docs", "I/O error"),
        *("{% if a %}</s>{{ b }}{% endif %}", "5.23.0+cpu", "2026-01-01T00:00:00+00:00"),
    ],
)
def test_what_is_not_private_stays(value: str) -> None:
    assert shortened(value) == value


def test_a_command_is_shortened_word_by_word() -> None:
    command = "outliers capture /home/jane/m --text=/home/jane/t.txt --out '/home/jane/a b/s.zarr' --length 8"
    assert shortened({"command": command}) == {"command": "outliers capture m --text=t.txt --out s.zarr --length 8"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--hf-token abc --out s", "--hf-token ... --out s"),
        ("--token=abc", "--token=..."),
        ("--api-key abc HF_TOKEN=abc", "--api-key ... HF_TOKEN=..."),
        ("--password --out s", "--password --out s"),
        ("--skip-tokens bos --key-length 3", "--skip-tokens bos --key-length 3"),
        ("--text https://jane:abc@host/x", "--text https://...@host/x"),
        ("--text https://host/x?sig=abc", "--text https://host/x?..."),
        ("--apikey abc PGPASSWORD=abc", "--apikey ... PGPASSWORD=..."),
        ("AWS_SECRET_ACCESS_KEY=abc --public-keys abc", "AWS_SECRET_ACCESS_KEY=... --public-keys abc"),
        ("--passphrase abc --sig abc session_cookie=abc", "--passphrase ... --sig ... session_cookie=..."),
        ("glpat-0123456789abcdef01 xoxb-0123456789ab", "... ..."),
    ],
)
def test_secrets_on_a_command_line(words: str, told: str) -> None:
    assert without_secrets(words.split()) == told.split()


def test_the_command_is_that_of_outliers_or_none() -> None:
    assert command_line() is None
    with running(["find", "a b.zarr", "--token", "abc"]):
        assert command_line() == "outliers find 'a b.zarr' --token ..."
    assert command_line() is None


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("https://jane:pw@host/x", "https://...@host/x"),
        ("s3:/jane:p@w@host/x", "s3:/...@host/x"),
        ("see hf://tok@en@x and http://u@y/z@w", "see hf://...@x and http://...@y/z@w"),
        ("no store at https://host/s.zarr?X-Amz-Signature=abc;", "no store at https://host/s.zarr?...;"),
        ("(https://host/s?sig=a:b) and s3://b/s?t=1,", "(https://host/s?...) and s3://b/s?...,"),
        ("https://host/s?... is told once", "https://host/s?... is told once"),
    ],
)
def test_an_error_repeats_no_password(url: str, told: str) -> None:
    assert str(OutliersError(f"{url} fails")) == f"{told} fails"
    assert str(OutliersError(told)) == told


@pytest.mark.parametrize(
    ("place", "last"),
    [
        ("/home/jane/s.zarr", "s.zarr"),
        ("jane/s", "s"),
        (r"C:\jane\s.zarr", "s.zarr"),
        ("s.zarr/", "s.zarr"),
        ("https://host/a/s.zarr?sig=1", "https://host/a/s.zarr?..."),
        ("hf://datasets/ORG/NAME/s.zarr", "hf://datasets/ORG/NAME/s.zarr"),
    ],
)
def test_where_a_store_is_leaves_as_its_last_part(place: str, last: str) -> None:
    assert last_part(place) == last
