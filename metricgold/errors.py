"""One base class for everything a user can put right: shown as a single line, exit code 1."""

from __future__ import annotations

import errno
import io
import sys
from collections.abc import Callable


class UserError(ValueError):
    """Bad input, missing files, unreachable sources: the message says what, where, what to do."""


def memory_short(error: MemoryError) -> str:
    """What to do about it, in a sentence."""
    reason = " ".join(str(error).split()) or "no more is to be had"
    return f"there is not enough memory ({reason}); work at a smaller size, or on fewer at once"


_FULL = {errno.ENOSPC, errno.EDQUOT}


def full_disk(error: BaseException) -> str | None:
    """What was said of a full disk or quota, if that is behind an error; else None.

    Some libraries say it in words alone, others bury it under an error of their own.
    """
    link: BaseException | None = error
    while link is not None:
        if getattr(link, "errno", None) in _FULL or "No space left on device" in str(link):
            return str(link).splitlines()[0]
        link = link.__cause__ or link.__context__
    return None


def run_cli(main: Callable[[], int | None]) -> None:
    """Run a command line's ``main``.

    A :class:`UserError`, a full disk, or memory that does not suffice becomes one line on stderr
    and exit 1. Names of files that are not UTF-8 are printed with their odd bytes escaped.
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
    except Exception as error:
        if (told := full_disk(error)) is None:
            raise
        print(f"error: the disk is full: {told}; free some and run it again", file=sys.stderr)
        sys.exit(1)
    sys.exit(code or 0)
