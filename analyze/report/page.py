"""The page itself: scripts, styles and data put into one HTML text that needs no network and permits none."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Any, Final

SCRIPTS: Final = (
    *("vendor/uPlot.iife.min.js", "answers.js", "charts.js"),
    *("curves.js", "portrait.js", "tables.js", "quantise.js", "page.js"),
)
STYLES: Final = ("vendor/uPlot.min.css", "page.css")
_SLOT = re.compile(r"<!-- slot: (\w+) -->")


def render(facts: dict[str, Any], blocks: Sequence[str]) -> str:
    """The page.

    Parameters
    ----------
    facts : what the page knows about its stores, JSON-able; strings may be a stranger's
    blocks : base64 texts, which `facts` refer to by number
    """
    scripts = [_asset(name) for name in SCRIPTS]
    # A licence that asks to be kept with every copy is: the page is one.
    scripts[0] = f"/*\n{_asset('vendor/uPlot-LICENSE')}*/\n{scripts[0]}"
    styles = [_asset(name) for name in STYLES]
    slots = {
        "policy": _policy(scripts, styles),
        "styles": "\n".join(f"<style>{style}</style>" for style in styles),
        "facts": f'<script type="application/json" id="facts">{json_text(facts)}</script>',
        "blocks": "\n".join(
            f'<script type="text/plain" id="block-{number}">{block}</script>' for number, block in enumerate(blocks)
        ),
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
    }
    # One pass, so that nothing that is put in is looked at for slots.
    return _SLOT.sub(lambda match: slots[match[1]], _asset("page.html"))


def json_text(value: Any) -> str:
    """Strict JSON in ASCII without <, > and &, so that no text in it can end its element or open a comment."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026")


def _policy(scripts: Sequence[str], styles: Sequence[str]) -> str:
    """A content security policy: these scripts and styles by their hashes, and nothing from anywhere."""
    allowed = {"script-src": scripts, "style-src": styles}
    rules = ["default-src 'none'", "base-uri 'none'", "form-action 'none'"]
    rules += [f"{name} {' '.join(_digest(text) for text in texts)}" for name, texts in allowed.items()]
    return f'<meta http-equiv="Content-Security-Policy" content="{"; ".join(rules)}">'


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    # As bytes: a translated line ending would change the hash in the policy.
    return files("analyze.report").joinpath("assets", *name.split("/")).read_bytes().decode()
