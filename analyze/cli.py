"""The `outliers` command: version, errors and exit codes; its subcommands are in `commands` and `capture.cli`."""

from __future__ import annotations

import functools
import io
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer

from analyze import commands
from capture.cli import register as register_capture
from capture.errors import OutliersError, one_line
from capture.stderr import abandon, tell
from capture.store.privacy import running

app = typer.Typer(
    name="outliers",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

_COMPLETION: Final = "_OUTLIERS_COMPLETE"


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import PackageNotFoundError, version

        typer.echo(f"outliers {version('outlier-features')}")
        for library in ("zarr", "xarray", "dask", "numpy", "torch", "transformers", "nnsight"):
            try:
                typer.echo(f"{library} {version(library)}")
            except PackageNotFoundError:
                typer.echo(f"{library} not installed")
        raise typer.Exit


@app.callback()
def outliers(
    version: Annotated[
        bool, typer.Option("--version", help="Print versions and stop.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Capture a language model's activations once; ask outlier-feature questions of them as often as you like."""


@functools.cache
def _command() -> Any:
    """All subcommands with their options, which takes longer to build than many an answer: once a process."""
    return typer.main.get_command(app)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : words after `outliers`; those of the process where None

    Returns
    -------
    exit status: 0 done, 2 the user can mend it (told in one line on standard error), 130 interrupted
    """
    words = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    command = _command()
    if _COMPLETION in os.environ:  # the shell asks, on a press of TAB
        command.main(args=words, prog_name="outliers", complete_var=_COMPLETION, standalone_mode=False)
        return 0
    _print_what_can_be()
    try:
        with running(words), command.make_context("outliers", words) as context:
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as stop:
        return stop.exit_code
    except BrokenPipeError:
        abandon(sys.stdout)  # the reader has seen enough
    except OutliersError as error:
        return _complain(str(error))
    except OSError as error:
        # Permissions, a file in place of a folder, a disk that is gone: the user's to mend, wherever it surfaces.
        where = "a file or standard output" if error.filename is None else error.filename
        reason = error.strerror or error
        return _complain(f"cannot use {where} ({reason}); check the path, its permissions and its disk")
    except MemoryError as error:
        return _complain(
            f"the memory of this machine does not hold what was asked for ({one_line(error)}); ask for a part of it, "
            "such as --sequences 0:4 or --layer-range, or use a machine with more"
        )
    except (KeyboardInterrupt, typer.Abort):
        tell("outliers: interrupted")
        return 130
    except Exception as error:
        # Typer brings its own copy of click or uses the package, by version; both words for usage errors have this.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        return _complain(str(message()))
    return 0


def _print_what_can_be() -> None:
    """Let a terminal or pipe that is not UTF-8 get question marks for what it has no signs for; one may be closed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # else the next file that is opened, of a store perhaps, would stand in its place
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _complain(message: str) -> int:
    line = " ".join("".join(c if c.isprintable() else " " for c in message).split())
    try:
        sys.stdout.flush()  # what was printed before stands before the complaint
    except (OSError, ValueError):
        abandon(sys.stdout)
    tell(f"outliers: {line}")
    return 2


commands.register(app)
register_capture(app)

if __name__ == "__main__":
    sys.exit(main())
