"""``metricgold data evaluation-set``: fetch an evaluation set and make it shards."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from metricgold.errors import UserError


def prepare_command(
    name: Annotated[str | None, typer.Argument(help="Which set; --list shows them.")] = None,
    source: Annotated[
        str | None,
        typer.Option(help="Folder or base URL with the set's files; else the publisher's."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; artifacts/evaluation_sets/NAME if unsaid.")
    ] = None,
    partial: Annotated[
        bool, typer.Option("--partial", help="Accept that official frames are missing.")
    ] = False,
    list_sets: Annotated[bool, typer.Option("--list", help="Show the sets and leave.")] = False,
    params: Annotated[
        Path, typer.Option(help="Whose download settings are used, where it exists.")
    ] = Path("params.yaml"),
) -> None:
    """Fetch a public evaluation set, read it by its official protocol, write holdout shards.

    Pictures and depth are kept as they are; depth outside the official evaluation mask is 0.
    Read the set's licence first: most forbid commercial use.
    """
    from metricgold.data.evaluation_sets.registry import EVALUATION_SETS, get_evaluation_set

    if list_sets:
        for member in EVALUATION_SETS.values():
            low, high = member.depth_range_m
            how = "download" if member.remote_files() else "bring your own files"
            print(f"{member.name}: {member.expected_frames} frames, {low:g} to {high:g} m, {how}")
            print(f"  {member.licence}\n  {member.homepage}")
        return
    if name is None:
        raise UserError(
            "name an evaluation set; 'metricgold data evaluation-set --list' shows them"
        )
    from metricgold.config import DownloadConfig, load_config
    from metricgold.data.evaluation_sets.prepare import prepare

    member = get_evaluation_set(name)
    print(f"{name}: licence: {member.licence}; cite: {member.citation}")
    settings = (
        load_config(params).download
        if params.exists()
        else DownloadConfig(retries=5, timeout_s=30, backoff_s=0.5, parallel=4)
    )
    prepare(name, source, out or Path("artifacts/evaluation_sets", name), settings, partial)
