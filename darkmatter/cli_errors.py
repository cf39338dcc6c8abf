"""Errors on the command line: one line for what a user can mend, a traceback for what only we can."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import ParamSpec

import typer

from darkmatter.errors import DarkmatterError

P = ParamSpec("P")
_OUT_OF_MEMORY = re.compile("can't allocate memory|out of memory")


def one_clear_line(command: Callable[P, None]) -> Callable[P, None]:
    """Turn what a user can cause into one line on stderr and exit code 2; everything else stays a traceback."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except DarkmatterError as error:
            message = str(error)
        except (MemoryError, RuntimeError) as error:
            # torch has no type of its own for a failed allocation on the CPU
            if not isinstance(error, MemoryError) and not _OUT_OF_MEMORY.search(str(error)):
                raise
            message = f"out of memory ({error}): use fewer SAEs at a time, fewer folds, or a machine with more"
        except OSError as error:
            message = f"{error.filename or 'file'}: {error.strerror or error}"
        except KeyboardInterrupt:
            typer.echo("interrupted; the same command again uses what was already saved", err=True)
            raise typer.Exit(130) from None
        else:
            return
        typer.echo("error: " + " ".join(message.split()), err=True)
        raise typer.Exit(2)

    return run
