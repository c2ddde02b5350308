"""One base class for everything a user can put right: shown as a single line, exit code 1."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable


class UserError(ValueError):
    """Bad input, missing files, unreachable sources: the message says what, where, what to do."""


def memory_short(error: MemoryError) -> str:
    """What to do about it, in a sentence."""
    reason = " ".join(str(error).split()) or "no more is to be had"
    return f"there is not enough memory ({reason}); work at a smaller size, or on fewer at once"


def run_cli(main: Callable[[], int | None]) -> None:
    """Run a command line's ``main``.

    A :class:`UserError`, or memory that does not suffice, becomes one line on stderr and exit 1.
    Names of files that are not UTF-8 are printed with their odd bytes escaped.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr is from the start
    try:
        code = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except MemoryError as error:
        print(f"error: {memory_short(error)}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept, run the same command again", file=sys.stderr)
        sys.exit(130)
    sys.exit(code or 0)
