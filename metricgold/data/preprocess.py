"""Stage ``preprocess``: verified archives to filtered, checked shards and ``report.json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metricgold.config import DatasetConfig, ProfileConfig
from metricgold.data.conversion import DAMAGED, Tally, convert, worker_pool
from metricgold.data.dataset import SPLITS, DatasetError, Split
from metricgold.data.files import fresh_folder, read_json
from metricgold.data.pieces import convert_spread
from metricgold.data.registry import get_dataset
from metricgold.data.streaming import stream
from metricgold.files import write_json
from metricgold.places import Place
from metricgold.spread import Spread
from metricgold.workspace import Workspace


def run(
    config: ProfileConfig,
    workspace: Workspace,
    dataset: str,
    spread: Spread | None = None,
    source: Place | None = None,
) -> dict[str, Any]:
    """Write the shards of ``dataset`` and ``report.json``; returns the report.

    Args:
        spread: machines that convert; none: processes of this one. What comes out is the same.
        source: what the stage ``download`` left, where it is not in the workspace; needs a
            ``spread``.

    Raises:
        UserError: the download is missing or damaged, too many frames cannot be decoded,
            or no training frame is left.
    """
    raw = source or Place(str(workspace.raw(dataset)))
    with (raw / "manifest.json").at_hand() as path:
        manifest = read_json(path, made_by="download")
    reader = get_dataset(dataset)
    settings = config.datasets[reader.name]
    folder = fresh_folder(workspace.shards(dataset))
    warnings: list[str] = []
    tallies: dict[Split, Tally] = {split: Tally() for split in SPLITS}
    if settings.enabled and manifest["streaming"]:
        if source is not None:
            raise DatasetError(
                f"{source}: streamed, so there are no archives; set datasets.{dataset}.streaming "
                "to false and run 'download' again"
            )
        if spread is not None:
            print(f"{dataset}: streamed by this machine alone")
        tallies, manifest = stream(config, workspace, reader.name, folder)
    elif settings.enabled and spread is not None:
        _check_files(raw, manifest)
        tallies, warnings = convert_spread(config, reader.name, manifest, raw, folder, spread)
        print("".join(f"{dataset}: {line}\n" for line in warnings), end="")
    elif settings.enabled:
        _check_files(raw, manifest)
        warnings = reader.findings(workspace.raw(dataset))
        print("".join(f"{dataset}: {line}\n" for line in warnings), end="")
        with worker_pool(config.preprocess.workers) as pool:
            hashes = {entry["path"]: entry["sha256"] for entry in manifest["files"]}
            tallies = convert(config, reader.name, workspace.raw(dataset), folder, pool, hashes)
    if settings.enabled:
        _check(reader.name, tallies, settings)
    report: dict[str, Any] = {
        "dataset": dataset,
        "source": manifest["source"],
        "reason": "" if settings.enabled else "weight 0 in this profile",
        "warnings": warnings,
        "download": {
            "licence": manifest["licence"],
            "bytes": manifest["total_bytes"],
            "files": len(manifest["files"]),
            "missing": len(manifest["missing"]),
            "mirrors": sorted({f["url"].removesuffix(f"/{f['path']}") for f in manifest["files"]}),
        },
        **{split: tally.report() for split, tally in tallies.items()},
    }
    write_json(folder / "report.json", report)
    counts = ", ".join(
        f"{t.kept} {s} ({sum(t.rejected.values())} left out)" for s, t in tallies.items()
    )
    print(f"{dataset}: {report['reason'] or counts}")
    return report


def _check_files(raw: Place, manifest: Mapping[str, Any]) -> None:
    """Refuse a download of which a file is gone or cut short: its frames would just be lacking."""
    for entry in manifest["files"]:
        path = raw / entry["path"]
        size = path.size()
        if size != entry["size"]:
            found = "is gone" if size is None else f"has {size} instead of {entry['size']} bytes"
            raise DatasetError(f"{path}: {found}; run the stage 'download' again")


def _check(dataset: str, tallies: dict[Split, Tally], settings: DatasetConfig) -> None:
    damaged = sum(
        count
        for tally in tallies.values()
        for reason, count in tally.rejected.items()
        if reason.startswith(DAMAGED)
    )
    seen = sum(t.kept + sum(t.rejected.values()) for t in tallies.values())
    if not seen:
        raise DatasetError(
            f"{dataset}: no frame found in what was downloaded; check "
            f"datasets.{dataset}.include and exclude"
        )
    if damaged > settings.max_missing_share * seen:
        raise DatasetError(
            f"{dataset}: {damaged} of {seen} frames cannot be decoded; max_missing_share allows "
            f"{settings.max_missing_share:.1%}, delete the archives and run 'download' again"
        )
    if not tallies["train"].kept:
        raise DatasetError(
            f"{dataset}: no training frame is left (of {seen}); loosen preprocess.min_valid_ratio "
            f"or datasets.{dataset}.holdout"
        )
