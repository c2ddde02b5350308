"""Champions as git tags: who is in office, whom it goes back to, and that GTO agrees."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from git_project import AUTHOR, forget_user, git, make_repository, write_run

from flows import _git
from flows._registry import Version, read_registry
from flows.experiments import run_commit
from metricgold.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    forget_user(monkeypatch, tmp_path / "home")
    return make_repository(tmp_path / "project")


def promote(root: Path, name: str) -> Version:
    write_run(root, name)
    registry = read_registry(root)
    version = registry.register(registry.next_version(), run_commit(root, name))
    read_registry(root).appoint(version, f"better: {name}")
    return version


def names(root: Path) -> list[str]:
    return [one.version.name for one in read_registry(root).line]


def test_versions_grow_and_the_last_appointed_is_champion(repository: Path) -> None:
    assert read_registry(repository).champion is None
    for expected in ("v1.0.0", "v1.1.0", "v1.2.0"):
        assert promote(repository, expected).name == expected
    registry = read_registry(repository)
    assert registry.champion == registry.find("v1.2.0") == registry.find(None)
    assert git(repository, "tag").split() == [
        *(f"metricgold#champion#{n}" for n in (1, 2, 3)),
        *(f"metricgold@v1.{n}.0" for n in (0, 1, 2)),
    ]
    assert registry.next_version("major") == "v2.0.0"
    assert registry.next_version("patch") == "v1.2.1"
    with pytest.raises(UserError, match=r"no version 'v7' .* v1\.0\.0, v1\.1\.0, v1\.2\.0"):
        registry.find("v7")


def test_versions_are_ordered_as_numbers(repository: Path) -> None:
    commit = _git.head(repository)
    assert commit is not None
    for name in ("v1.9.0", "v1.10.0", "v1.2.0"):
        read_registry(repository).register(name, commit)
    assert read_registry(repository).next_version() == "v1.11.0"


def test_going_back_withdraws_what_came_after(repository: Path) -> None:
    one, two, three = (promote(repository, n) for n in ("A", "B", "C"))
    read_registry(repository).appoint(one, "back")
    assert names(repository) == ["v1.0.0"]
    assert read_registry(repository).withdrawn == [two, three]
    promote(repository, "D")
    assert names(repository) == ["v1.0.0", "v1.3.0"]
    read_registry(repository).appoint(two, "again")
    assert names(repository) == ["v1.0.0", "v1.3.0", "v1.1.0"]
    assert read_registry(repository).withdrawn == [three]


def test_a_registered_version_is_no_champion(repository: Path) -> None:
    promote(repository, "A")
    write_run(repository, "B")
    version = read_registry(repository).register("v1.1.0", run_commit(repository, "B"))
    assert names(repository) == ["v1.0.0"]
    assert read_registry(repository).waiting == [version]


def test_gto_agrees_also_within_one_second_and_when_the_clock_goes_back(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GTO sorts by the tags' dates, in whole seconds; '#10' comes before '#9' as text."""
    from gto import api

    both = [promote(repository, "A"), promote(repository, "B")]
    real = time.time()
    for n in range(10):
        if n == 8:
            monkeypatch.setattr(time, "time", lambda: real - 86400.0)
        read_registry(repository).appoint(both[n % 2], "turn")
    assert read_registry(repository).last_number == 12
    champion = read_registry(repository).champion
    assert champion == both[1]
    (found,) = api.find_versions_in_stage(str(repository), "metricgold", "champion")
    assert (found.version, found.commit_hexsha) == (champion.name, champion.commit)
    events = api.history(str(repository), "metricgold", ascending=True)
    assert [e["version"] for e in events if e["event"] == "assignment"] == [
        one.version.name for one in read_registry(repository).appointments
    ]
    assert api.find_latest_version(str(repository), "metricgold").version == "v1.1.0"


def test_only_annotated_tags_count_as_in_gto(repository: Path) -> None:
    promote(repository, "A")
    git(repository, "tag", "metricgold#champion#7", "HEAD")
    git(repository, "tag", "metricgold@v9.0.0", "HEAD")
    git(repository, *AUTHOR, "tag", "-a", "-m", "other", "another@v3.0.0", "HEAD")
    assert names(repository) == ["v1.0.0"]
    assert read_registry(repository).next_version() == "v1.1.0"


def test_nothing_but_a_tag_changes(repository: Path) -> None:
    """HEAD, what is staged, what is changed and what is untracked stay as they are."""
    (repository / "code.py").write_text("x = 2\n")
    (repository / "staged.txt").write_text("staged\n")
    git(repository, "add", "staged.txt")
    (repository / "loose.txt").write_text("loose\n")
    write_run(repository, "B")

    def state() -> list[str]:
        commands = ("status --porcelain", "diff", "diff --cached", "log --all", "stash list")
        return [git(repository, *c.split()) for c in commands]

    before = state()
    commit = run_commit(repository, "B")
    assert state() == before
    shown = git(repository, "show", "--name-only", "--format=%an <%ae>", commit).split("\n")
    assert shown[0] == "MetricGold <metricgold@localhost>"
    assert "code.py" in shown
    assert "loose.txt" not in shown
    assert git(repository, "rev-parse", f"{commit}^") == git(repository, "rev-parse", "HEAD")


def test_a_user_that_git_knows_is_the_author(repository: Path) -> None:
    git(repository, "config", "user.name", "Ada")
    git(repository, "config", "user.email", "ada@example.com")
    version = promote(repository, "A")
    shown = git(repository, "for-each-ref", "--format=%(tagger)", f"refs/tags/{version.tag}")
    assert shown.startswith("Ada <ada@example.com>")


def test_used_but_untracked_files_are_in_the_commit(repository: Path) -> None:
    lock = "schema: '2.0'\nstages:\n  a:\n    deps: [{path: lib}, {path: new.py}]\n    outs: []\n"
    (repository / "dvc.lock").write_text(lock)
    (repository / "lib").mkdir()
    for name in ("lib/inner.py", "new.py", "notes.txt"):
        (repository / name).write_text("1\n")
    commit = run_commit(repository, "x")
    names = git(repository, "show", "--name-only", "--format=", commit).split()
    assert {"lib/inner.py", "new.py"} <= set(names)
    assert "notes.txt" not in names


def test_two_that_appoint_at_once(repository: Path) -> None:
    """Without the lock: the second of two equal tags is refused, never overwritten."""
    version = promote(repository, "A")
    stale = read_registry(repository)
    read_registry(repository).appoint(version, "first")
    with pytest.raises(UserError, match="champion#2"):
        stale.appoint(version, "second")
    assert [a.reason for a in read_registry(repository).appointments] == ["better: A", "first"]


def test_reading_the_registry_needs_neither_torch_nor_dvc(repository: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom flows import promotion\n"
        "print(promotion.history(Path('.')))\n"
        "assert not {'torch', 'dvc', 'prefect', 'gto'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=repository,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stderr, done.stdout) == ("", "no champion yet\n")
