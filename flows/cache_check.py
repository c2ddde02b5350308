"""``python -m flows.cache_check``: is every object in DVC's cache what its name says?

DVC believes a write-protected object, so one that rotted on the disk, or that a power failure cut
short, is linked into the workspace for ever after, under the right hash. This reads them all.
What is damaged is removed together with its links, so that ``dvc repro`` makes it again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from flows._dvc import dvc_output
from flows._environment import available_cpus
from flows._stage import project_root
from metricgold.errors import run_cli
from metricgold.progress import progress_bar


def objects(cache: Path) -> list[Path]:
    """Files of the cache that are named by their MD5 (what DVC is still writing is not)."""
    found = (cache / "files" / "md5").glob("??/*")
    return sorted(path for path in found if len(path.name.removesuffix(".dir")) == 30)


def is_whole(path: Path) -> bool:
    """Whether an object's MD5 is its name."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "md5")
    return path.parent.name + path.name.removesuffix(".dir") == digest.hexdigest()


def damaged(cache: Path) -> list[Path]:
    """Objects that are not what their names say; reads all of them."""
    paths = objects(cache)
    with ThreadPoolExecutor(available_cpus()) as pool:
        whole = pool.map(is_whole, paths)
        bar = progress_bar(whole, description="cache", total=len(paths), unit="object")
        return [path for path, good in zip(paths, bar, strict=True) if not good]


def outputs(root: Path) -> Iterable[Path]:
    """Every file of every output in dvc.lock."""
    lock = root / "dvc.lock"
    stages = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"] if lock.is_file() else {}
    for body in stages.values():
        for out in body.get("outs", []):
            path = root / out["path"]
            yield from [path] if path.is_file() else (p for p in path.rglob("*") if p.is_file())


def remove(root: Path, bad: Iterable[Path]) -> list[Path]:
    """Remove objects, and the files of the workspace that are links to them; returns these."""
    inodes = {(path.stat().st_dev, path.stat().st_ino) for path in bad}
    links = [p for p in outputs(root) if (p.stat().st_dev, p.stat().st_ino) in inodes]
    for path in [*bad, *links]:
        os.unlink(path)
    return links


def main() -> int:
    """Look, remove, tell; 1 where something was damaged."""
    root = project_root()
    cache = Path(dvc_output(root, "cache", "dir").strip())
    bad = damaged(cache)
    links = remove(root, bad)
    for path in bad:
        print(f"{path}: damaged, removed")
    for path in links:
        print(f"{path.relative_to(root)}: was a link to it, removed")
    told = "run 'dvc repro', or 'dvc pull', to have them again" if bad else "all whole"
    print(f"{len(bad)} damaged objects; {told}", flush=True)
    return int(bool(bad))


if __name__ == "__main__":
    run_cli(main)
