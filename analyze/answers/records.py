"""Records that are kept beside a store's data: JSON in one canonical form, with the SHA-256 of its own content."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any


def sealed(content: dict[str, Any]) -> str:
    """Text of a record: its content, and the digest of it.

    Parameters
    ----------
    content : strict JSON, with `format` and `version`
    """
    plain = json.dumps(content, allow_nan=False, ensure_ascii=False, sort_keys=True)
    return json.dumps(
        {"sha256": sha256(plain.encode()).hexdigest(), **content},
        allow_nan=False,
        ensure_ascii=False,
        sort_keys=True,
        indent=1,
    )


def unsealed(text: str, form: str, version: int) -> dict[str, Any]:
    """Content of a record.

    Parameters
    ----------
    text : of `sealed`
    form, version : what its `format` and `version` must be

    Raises
    ------
    ValueError
        The text is not, to the last bit, what `sealed` made, or is of another kind.
    """
    content = json.loads(text)
    if not isinstance(content, dict) or content.get("format") != form:
        raise ValueError(f"it is no record of {form}")
    if content.get("version") != version:
        raise ValueError(f"it has version {content.get('version')}, and this release reads {version}")
    content.pop("sha256", None)
    if sealed(content) != text:
        raise ValueError("it does not match its checksum")
    return content
