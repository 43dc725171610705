"""Pages that are made when the site is built: the commands from their own help, the changelog from its file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer
from typer.cli import get_docs_for_click

CAPTURE = (
    "capture.run.capture",
    "capture.estimate.estimate",
    "capture.store.verify.verify",
    "capture.sites.place.find_sites",
    "capture.models.load.load_model",
    "capture.quantization.perplexity.quantize_with_perplexity",
    "capture.store.write.StoreWriter",
    "capture.store.write.write_sequence",
)
ROOT = Path(__file__).parents[1]


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in the pages that say only where their text comes from."""
    made = {"api.md": api, "commands.md": commands, "changelog.md": changelog}.get(page.file.src_uri)
    return markdown if made is None else made()


def on_page_content(html: str, page: Any, files: Any, **_: Any) -> str:
    """Lead links of a notebook to pages, as those of Markdown are; one that leads nowhere is an error."""
    if not page.file.src_uri.endswith(".ipynb"):
        return html

    def url(link: re.Match[str]) -> str:
        target = files.get_file_from_path(link[1])
        if target is None:
            raise ValueError(f"{page.file.src_uri} links to {link[1]}, and there is no such page")
        return f'href="{target.url_relative_to(page.file)}"'

    return re.sub(r'href="([\w-]+\.md)"', url, html)


def commands() -> str:
    """Every command with its options, as `--help` has them."""
    from analyze.cli import app

    command = typer.main.get_command(app)
    with command.make_context("outliers", [], resilient_parsing=True) as context:
        text = get_docs_for_click(obj=command, ctx=context, name="outliers", title="Commands")
    # What follows an `Example:` is to be copied.
    return re.sub(r"^Example: (.+)$", r"    \1", text, flags=re.MULTILINE)


def api() -> str:
    """Every public name, where it is defined."""
    import analyze

    lines = ["# Python", "", "## Analysis", "", "Without torch; each of these is a name of `analyze`.", ""]
    functions = sorted(name for name in analyze.__all__ if name[0].islower())
    classes = sorted(name for name in analyze.__all__ if name[0].isupper())
    for name in (*functions, *classes):
        lines += [f"::: {getattr(analyze, name).__module__}.{name}", ""]
    lines += ["## Capture", "", "Needs the extra `[capture]`.", ""]
    lines += [f"::: {name}\n" for name in CAPTURE]
    return "\n".join(lines)


def changelog() -> str:
    """The changelog."""
    return (ROOT / "CHANGELOG.md").read_text().replace("`docs/", "`")
