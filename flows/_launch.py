"""A training stage in several processes, on this machine or several: torchrun's agent.

The stage is the agent itself: it starts the stage anew for each process, waits for them, and ends
with them. Which processes there are is said in params.yaml (``orchestration.launch``) and decides
no number. The machines share one folder, the project's: only the first process writes.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil

from metricgold.config import LaunchConfig
from metricgold.errors import UserError

NODE_RANK = "METRICGOLD_NODE_RANK"
"""Which of the hosts this machine is, from 0; where it is not said their names tell."""

SHUTDOWN_S = 3
"""From asking the processes to end to killing them; less than whoever ends the agent waits."""


def is_shared(settings: LaunchConfig) -> bool:
    """Whether the stage is to be started in several processes, and this is not one of them."""
    return "RANK" not in os.environ and (len(settings.hosts) > 1 or settings.processes > 1)


def node_rank(hosts: list[str]) -> int:
    """Which of ``hosts`` this machine is, by ``METRICGOLD_NODE_RANK`` or its names and addresses.

    Raises:
        UserError: it is none of them, or that cannot be told.
    """
    if given := os.environ.get(NODE_RANK):
        if not given.isdecimal() or int(given) >= len(hosts):
            raise UserError(f"{NODE_RANK}={given}: not one of 0 to {len(hosts) - 1}")
        return int(given)
    ours = {socket.gethostname(), socket.getfqdn()}
    ours |= {a.address for each in psutil.net_if_addrs().values() for a in each}
    found = [rank for rank, host in enumerate(hosts) if host in ours]
    if len(found) != 1:
        raise UserError(
            f"which of orchestration.launch.hosts ({', '.join(hosts)}) is {socket.gethostname()}? "
            f"Set {NODE_RANK} to its place there, from 0"
        )
    return found[0]


def launch(stage: str, settings: LaunchConfig) -> int:
    """Run ``python -m flows.STAGE`` in every process of this machine; the first one's exit status.

    Raises:
        UserError: DVC started this on another machine than the first, the hosts did not all come
            in time, the first cannot be reached, or its port is taken.
    """
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher import api

    rank = node_rank(settings.hosts) if len(settings.hosts) > 1 else 0
    if rank > 0 and "DVC_STAGE" in os.environ:
        raise UserError(
            f"DVC runs on {settings.hosts[0]} alone; here: {NODE_RANK}={rank} "
            f"python -m flows.{stage}, while the stage runs there"
        )
    logging.disable(logging.ERROR)  # what the agent would say, the processes say themselves
    for number in (signal.SIGTERM, signal.SIGINT):  # while it waits for others no Python runs
        signal.signal(number, signal.SIG_DFL)
    config = api.LaunchConfig(
        min_nodes=max(1, len(settings.hosts)),
        max_nodes=max(1, len(settings.hosts)),
        nproc_per_node=settings.processes,
        run_id=f"metricgold-{stage}",
        max_restarts=0,
        shutdown_timeout=SHUTDOWN_S,
        logs_specs=DefaultLogsSpecs(log_dir=os.devnull),
        **_meeting(settings, rank),
    )
    try:
        api.elastic_launch(config, sys.executable)("-m", f"flows.{stage}")
    except ChildFailedError as error:
        return max(1, error.get_first_failure()[1].exitcode)
    except SignalException as error:
        return 128 + error.sigval
    except DistError as error:
        if len(settings.hosts) < 2:
            raise
        raise UserError(_not_met(stage, settings, rank, str(error))) from error
    return 0


def _meeting(settings: LaunchConfig, rank: int) -> dict[str, Any]:
    """Where the agents meet: on the first host, or on a free port where there is no other."""
    if len(settings.hosts) < 2:
        return {"rdzv_backend": "c10d", "rdzv_endpoint": "127.0.0.1:0", "local_addr": "127.0.0.1"}
    return {
        "rdzv_backend": "static",
        "rdzv_endpoint": f"{settings.hosts[0]}:{settings.port}",
        "rdzv_configs": {"rank": rank, "timeout": int(settings.wait_s)},
    }


def _not_met(stage: str, settings: LaunchConfig, rank: int, why: str) -> str:
    where = f"{settings.hosts[0]}:{settings.port}"
    within = timedelta(seconds=settings.wait_s)
    if rank == 0 and "EADDRINUSE" in why:
        return f"{where}: another program has the port; set another as orchestration.launch.port"
    if rank > 0:
        return f"{stage}: no stage answered at {where} within {within}; start it there, then here"
    others = "; ".join(
        f"on {host}: {NODE_RANK}={number} python -m flows.{stage}"
        for number, host in enumerate(settings.hosts)
        if number > 0
    )
    return f"{stage}: not every host came to {where} within {within}; start it there too ({others})"


def check_one_folder(folder: Path) -> None:
    """Have the first process leave a file in ``folder``, and look whether every process finds it.

    Raises:
        UserError: in every process, if one does not: its machine has another folder.
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list, gather_object

    # as metricgold.training.accelerator makes it, which this may not import: every stage is
    # started from here, and would become stale by what only training uses
    first = PartialState(cpu=not torch.cuda.is_available()).is_main_process
    mark = folder / broadcast_object_list([uuid.uuid4().hex])[0]
    if first:
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    broadcast_object_list([None])  # nobody looks before it is there
    without = gather_object([] if mark.exists() else [socket.gethostname()])
    if first:
        mark.unlink()
    if without:
        raise UserError(
            f"{', '.join(sorted(set(without)))} does not see what the first host writes to "
            f"{folder.resolve()}; the hosts need one folder for the project, as by NFS"
        )
