"""One JSON object on standard output: what `--json` promises."""

from __future__ import annotations

import json
from typing import Any


def print_json(result: dict[str, Any]) -> None:
    """Print strict JSON, indented."""
    print(json.dumps(result, allow_nan=False, indent=1))
