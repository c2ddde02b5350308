"""Settings that a process must have before numpy, torch, Prefect or DVC are imported."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

NO_TELEMETRY = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
"""Off switches; a user's own value wins."""

SERVER_START_SECONDS = 120
"""A server on a fresh home creates its database first, which takes tens of seconds."""


def available_cpus() -> int:
    """Number of CPUs that this process may use (its affinity, not the machine's count)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def prepare_environment(environ: MutableMapping[str, str] = os.environ) -> None:
    """Turn telemetry off and fix the number of threads; values already set are kept."""
    for name, value in NO_TELEMETRY.items():
        environ.setdefault(name, value)
    environ.setdefault(
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", str(SERVER_START_SECONDS)
    )
    environ.setdefault("OMP_NUM_THREADS", str(available_cpus()))
