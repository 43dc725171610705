"""How figures look, which words stand in them, where one may go: alike everywhere, whatever a user has set."""

from __future__ import annotations

import functools
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from analyze.display.text import plain
from capture.errors import OutliersError, one_line
from capture.store.files import write_file
from capture.store.output import output_file, output_path
from capture.store.privacy import shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure


SUFFIXES: Final = (".png", ".svg")

Words = ParamSpec("Words")
Drawn = TypeVar("Drawn")


@contextmanager
def own_style() -> Iterator[None]:
    """Matplotlib's own settings for a while: neither a matplotlibrc nor a style of the user's has a say.

    Figures are made without pyplot and saved by the canvas of their format, so that no window's backend is asked.

    Raises
    ------
    OutliersError
        matplotlib cannot be imported for a file of settings that it cannot read.
    """
    _import_matplotlib()
    import matplotlib

    others = {name: value for name, value in matplotlib.rcParamsDefault.items() if not name.startswith("backend")}
    with matplotlib.rc_context(others):
        yield


def _import_matplotlib() -> None:
    """Import it even where MPLBACKEND names a backend that is not there, and say so where it cannot be."""
    try:
        import matplotlib
    except ValueError:
        backend = os.environ.pop("MPLBACKEND", None)
        for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
            del sys.modules[name]  # what the attempt left is no whole package
        try:
            import matplotlib  # noqa: F401
        except ValueError as error:
            raise OutliersError(
                f"matplotlib cannot read its settings ({one_line(error)}); expected a matplotlibrc of its form; mend "
                "or remove the one in this folder or in your home"
            ) from error
        finally:
            if backend is not None:
                os.environ["MPLBACKEND"] = backend


def in_own_style(draw: Callable[Words, Drawn]) -> Callable[Words, Drawn]:
    """Let a function draw within `own_style`."""

    @functools.wraps(draw)
    def drawn(*args: Words.args, **kwargs: Words.kwargs) -> Drawn:
        with own_style():
            return draw(*args, **kwargs)

    return drawn


def words(text: str, most: int = 80) -> str:
    """A stranger's text as plain words that the font can draw: on one line, not endless, and no formula."""
    known, told = _glyphs(), plain(text)
    told = told if len(told) <= most else f"{told[: most - 1]}…"
    drawn = "".join(c if ord(c) in known else c.encode("unicode_escape").decode() for c in told)
    return drawn.replace("$", r"\$")


def model_words(model: Any) -> str:
    """A model's name as such words; of a path its last part alone, for figures are handed on."""
    return words(shortened(str(model)))


@functools.cache
def _glyphs() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def check_path(path: Path | str) -> Path:
    """Refuse a figure file that is neither PNG nor SVG, or has no folder to lie in."""
    path = output_path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise OutliersError(f"{path} has the suffix {path.suffix!r}; expected a figure file ending in .png or .svg")
    return output_file(path)


def save(figure: Figure, path: Path | str) -> None:
    """Write a figure as PNG or SVG, by its suffix: the same figure gives the same bytes.

    Raises
    ------
    OutliersError
        Another suffix, no such folder, or a file that cannot be written.
    """
    path = check_path(path)
    # No date and no version inside, and no random names for the parts of an SVG.
    metadata = {"Date": None, "Creator": None} if path.suffix.lower() == ".svg" else {"Software": None}
    content = io.BytesIO()
    with own_style():
        import matplotlib

        matplotlib.rcParams["svg.hashsalt"] = "outlier-features"
        figure.savefig(content, format=path.suffix.lower()[1:], dpi=150, metadata=metadata)
    write_file(path, content.getvalue())
