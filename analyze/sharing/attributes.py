"""Files of a store on their way with other metadata, and the list of checksums to match."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from analyze.answers.records import any_unsealed, sealed
from analyze.sharing.files import Entry
from capture.store.privacy import shortened
from capture.store.schema import CHECKSUMS, RECORDS


def without_paths(found: list[Entry]) -> list[Entry]:
    """The same files with only the last part of every path of this machine, in attributes and records.

    Parameters
    ----------
    found : files of a whole store, from `entries`
    """
    root, _ = root_of(found)
    attributes = shortened(root["attributes"])
    changed: dict[str, Path | bytes] = {}
    for entry in found:
        if entry.name.partition("/")[0] in RECORDS:
            record = any_unsealed(content(entry).decode())
            private = shortened(record.get("attributes"))
            if private != record.get("attributes"):
                changed[entry.name] = sealed({**record, "attributes": private}).encode()
    if attributes != root["attributes"]:
        changed["zarr.json"] = as_json({**root, "attributes": attributes})
    return relisted(found, changed) if changed else found


def root_of(found: list[Entry]) -> tuple[dict[str, Any], str]:
    """Root metadata of a store, and the digest of its list of checksums: what tells the original from any other."""
    by_name = {entry.name: entry for entry in found}
    root: dict[str, Any] = json.loads(content(by_name["zarr.json"]))
    return root, hashlib.sha256(content(by_name[CHECKSUMS])).hexdigest()


def consolidated(root: dict[str, Any]) -> dict[str, Any]:
    """Metadata of the arrays, as they stand in those of the root; empty where they do not."""
    found: dict[str, Any] = (root.get("consolidated_metadata") or {}).get("metadata", {})
    return found


def as_json(metadata: dict[str, Any]) -> bytes:
    """Metadata as a file."""
    return json.dumps(metadata, indent=2).encode()


def relisted(kept: list[Entry], changed: dict[str, Path | bytes]) -> list[Entry]:
    """Files with some of them changed, and the list of checksums to match."""
    by_name = {entry.name: entry for entry in kept}
    lines = []
    for line in content(by_name[CHECKSUMS]).decode().splitlines():
        name = line.partition("  ")[2]
        source = changed.get(name)
        if isinstance(source, bytes):
            lines.append(f"{hashlib.sha256(source).hexdigest()}  {name}\n")
        elif name in by_name:
            lines.append(f"{line}\n")
    changed = {**changed, CHECKSUMS: "".join(lines).encode()}
    return [_entry(entry.name, changed[entry.name]) if entry.name in changed else entry for entry in kept]


def _entry(name: str, source: Path | bytes) -> Entry:
    return Entry(name, source, len(source) if isinstance(source, bytes) else source.stat().st_size)


def content(entry: Entry) -> bytes:
    """Bytes of one small file."""
    return entry.source if isinstance(entry.source, bytes) else entry.source.read_bytes()
