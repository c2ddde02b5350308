"""Freed memory is used again."""

from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from metricgold.memory import keep_freed_memory

if "keep" in sys.argv:
    assert keep_freed_memory()

def temporaries():
    for _ in range(50):
        [np.ones(500_000) for _ in range(6)]

temporaries()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
temporaries()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="is about glibc")
def test_temporaries_take_no_fresh_pages() -> None:
    def faults(*arguments: str) -> int:
        run = [sys.executable, "-c", FAULTS, *arguments]
        return int(subprocess.run(run, check=True, capture_output=True, text=True).stdout)

    fresh, kept = faults(), faults("keep")
    assert kept < 100
    assert fresh > 10 * kept
