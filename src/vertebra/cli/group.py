"""How the command ends: every error as one line on stderr and an exit status."""

import io
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from vertebra.cli.text import complain
from vertebra.spec import SettingError, UnknownNameError, VertebraError

_PACKAGE = Path(__file__).parents[1]
_shown_by_python = warnings.showwarning

FAILED, USAGE, INTERRUPTED = 1, 2, 130


class OneLineErrors(TyperGroup):
    """Typer's own error boxes span several lines and hide which line is for the user."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> NoReturn:
        """Run the command and exit; `--debug` is found wherever it stands."""
        # A letter that the terminal's encoding lacks is shown by its number.
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")
        given = list(sys.argv[1:] if args is None else args)
        options = given[: given.index("--")] if "--" in given else given
        debug = "--debug" in options
        rest = [a for a in options if a != "--debug"] + given[len(options) :]
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _teller()
                status = super().main(rest, prog_name, complete_var, False, windows_expand_args, **extra)
            sys.stdout.flush()
        except BrokenPipeError:
            _close_stdout()
            status = FAILED
        except (KeyboardInterrupt, typer.Abort):
            status = INTERRUPTED
        except typer.TyperException as error:
            status = error.exit_code
            if message := error.format_message().rstrip("."):
                complain(f"{message}{_see_help(error)}")
        except (VertebraError, OSError, RuntimeError, MemoryError) as error:
            if debug:
                raise
            status = USAGE if isinstance(error, (UnknownNameError, SettingError)) else FAILED
            complain(_message(error))
        if status == INTERRUPTED:
            complain("interrupted")
        sys.exit(status if isinstance(status, int) else 0)


def _teller() -> Any:
    """Shows a warning of ours in one line, once, without the line of source that gives it."""
    told = set[str]()

    def tell(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: Any = None,
        line: str | None = None,
    ) -> None:
        if category is not UserWarning or not Path(filename).is_relative_to(_PACKAGE):
            _shown_by_python(message, category, filename, lineno, file, line)
        elif str(message) not in told:
            told.add(str(message))
            complain(str(message))

    return tell


def _see_help(error: typer.TyperException) -> str:
    context: Any = getattr(error, "ctx", None)
    where = f"`{context.command_path if context else 'vertebra'} --help`"
    return f" See {where}." if error.format_message().endswith("?") else f"; see {where}"


def _message(error: Exception) -> str:
    if isinstance(error, VertebraError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    reason = " ".join(str(error).split()) or "no reason given"
    return f"{type(error).__name__}: {reason}; --debug shows where"


def _close_stdout() -> None:
    """The reader has gone (`| head`): what Python flushes on its way out must not complain of it once more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
