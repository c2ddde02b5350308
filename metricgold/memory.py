"""How the C library hands memory back to the system."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST_ON_HEAP = 2**25  # the most that glibc takes
_KEEP = 2**30


def keep_freed_memory() -> bool:
    """Let glibc use freed memory again in place of fresh pages; False where there is no glibc.

    Arrays of a picture's size are mapped anew each time otherwise, and a page's first touch
    costs more than the arithmetic on it. For a process of our own, not for a library's caller.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_ON_HEAP) and mallopt(_M_TRIM_THRESHOLD, _KEEP))
