"""Git as a registry needs it: commits and refs made beside the branch that is checked out.

Nothing here moves HEAD, touches the index or a file of the working tree, or talks to a remote;
a process killed at any point leaves at most an object that nothing refers to.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from metricgold.errors import UserError

NOBODY = {"NAME": "MetricGold", "EMAIL": "metricgold@localhost"}
"""Author of commits and tags where git knows no user, as on a fresh machine."""

_IDENTITY = re.compile(r"^(?P<who>.* <[^>]*>) \d+ (?P<zone>[+-]\d{4})$")


class GitError(UserError):
    """Git refused; the message holds its last line."""


def git(
    root: Path, *arguments: str, stdin: str | None = None, env: Mapping[str, str] | None = None
) -> str:
    """Standard output of a git command in ``root``, without the newline at its end.

    Raises:
        GitError: it failed, or git is not installed.
    """
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=root,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **(env or {})},
        )
    except FileNotFoundError:
        raise GitError("git is not installed") from None
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["it printed nothing"]
        raise GitError(f"git {arguments[0]}: {lines[-1]}")
    return done.stdout.removesuffix("\n")


def resolve(root: Path, name: str) -> str | None:
    """The object that a name stands for; None if there is none, or outside of git."""
    try:
        return git(root, "rev-parse", "--verify", "--quiet", name)
    except GitError:
        return None


def head(root: Path) -> str | None:
    """The commit that is checked out; None outside of git, or where nothing was committed yet."""
    return resolve(root, "HEAD^{commit}")


def common_folder(root: Path) -> Path:
    """The folder of the repository that all its working trees share."""
    return (root / git(root, "rev-parse", "--git-common-dir")).resolve()


def identity(root: Path) -> dict[str, str]:
    """What to add to the environment so that git knows an author; nothing if it knows one."""
    try:
        git(root, "var", "GIT_AUTHOR_IDENT")
        git(root, "var", "GIT_COMMITTER_IDENT")
    except GitError:
        roles = ("AUTHOR", "COMMITTER")
        return {f"GIT_{role}_{key}": value for role in roles for key, value in NOBODY.items()}
    return {}


def file_at(root: Path, commit: str, path: str) -> str:
    """A file of a commit; ``path`` is relative to ``root``."""
    return git(root, "show", f"{commit}:./{path}")


def snapshot(root: Path, message: str, untracked: Iterable[str] = ()) -> str:
    """A commit on top of HEAD with all changes of tracked files, and some files not yet tracked.

    Args:
        untracked: paths relative to ``root``.

    Returns:
        the commit, to which nothing refers yet.
    """
    with _index(root, "HEAD") as env:
        git(root, "add", "--update", "--", ".", env=env)
        if added := list(untracked):
            git(root, "add", "--force", "--", *added, env=env)
        return _commit(root, "HEAD", message, env)


def with_files(root: Path, parent: str, contents: Mapping[str, str], message: str) -> str:
    """A commit on top of ``parent`` with some files added or replaced; nothing refers to it."""
    prefix = git(root, "rev-parse", "--show-prefix")
    with _index(root, parent) as env:
        for path, text in contents.items():
            blob = git(root, "hash-object", "-w", "--stdin", stdin=text)
            entry = f"100644,{blob},{prefix}{path}"
            git(root, "update-index", "--add", "--cacheinfo", entry, env=env)
        return _commit(root, parent, message, env)


@contextmanager
def _index(root: Path, commit: str) -> Iterator[dict[str, str]]:
    """Environment with an index of its own, filled from ``commit``."""
    with tempfile.TemporaryDirectory() as folder:
        env = {"GIT_INDEX_FILE": str(Path(folder) / "index")}
        git(root, "read-tree", commit, env=env)
        yield env


def _commit(root: Path, parent: str, message: str, env: Mapping[str, str]) -> str:
    tree = git(root, "write-tree", env=env)
    return git(root, "commit-tree", "-p", parent, "-m", message, tree, env=identity(root))


def tag_object(root: Path, name: str, commit: str, message: str, seconds: int) -> str:
    """An annotated tag's object of a given date (Unix time), to which nothing refers yet."""
    match = _IDENTITY.match(git(root, "var", "GIT_COMMITTER_IDENT", env=identity(root)))
    assert match is not None
    text = (
        f"object {commit}\ntype commit\ntag {name}\n"
        f"tagger {match['who']} {seconds} {match['zone']}\n\n{message.rstrip()}\n"
    )
    return git(root, "mktag", stdin=text)


def create_refs(root: Path, refs: Mapping[str, str]) -> None:
    """Create refs (full names); each appears at once, with its target.

    Raises:
        GitError: one exists already.
    """
    lines = "".join(f"create {name} {target}\n" for name, target in refs.items())
    git(root, "update-ref", "--stdin", stdin=lines)
