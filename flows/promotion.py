"""Champion and challenger: a new model takes the old one's place only if it is better.

``python -m flows.promotion check|promote|rollback|checkout|get|history|status``. The challenger is
what ``dvc repro`` just made. It must pass the gates, and then be better than the champion on the
same held-out frames by the rules of ``params.yaml``. One git tag says who is champion; it is the
last thing that a promotion makes, so one that dies leaves the old champion in place, and the same
command completes it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flows import _dvc, _git, _release
from flows._decision import Decision, Outcome
from flows._environment import prepare_environment
from flows._gates import Gate, champion_hashes, check_gates
from flows._history import history, status
from flows._process import exit_on_sigterm, only_one
from flows._registry import Bump, Registry, Version, read_registry
from flows._stage import project_root
from flows.experiments import read_lock, run_commit
from metricgold.config import ProfileConfig, load_config
from metricgold.errors import UserError, run_cli
from metricgold.evaluation.verdicts import check_rules, judge
from metricgold.workspace import Workspace

NOT_ACCEPTED = 3
"""Exit status of ``check`` when the challenger would not be promoted."""


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """One change of the registry at a time, in all working trees of the repository."""
    with only_one("metricgold-promotion", _git.common_folder(root), wait=True):
        yield


def promote_if_better(
    root: Path,
    config: ProfileConfig,
    *,
    experiment: str | None = None,
    by_hand: str | None = None,
    bump: Bump = "minor",
    register: bool = True,
) -> Decision:
    """Compare the model in ``root`` with the champion; make it the champion if it is better.

    The decision is also written into ``artifacts/promotion``.

    Args:
        config: of the profile that made the model.
        experiment: commit that keeps its run (``flows.experiments.save_experiment``); None: one
            is made, which only the registry refers to.
        by_hand: why a person wants it without a comparison. The gates hold all the same.
        bump: which part of the version number grows.
        register: False only says what would be done.

    Raises:
        UserError: a rule is on an unknown figure; the champion's files are gone or cannot be
            read; ``dvc push`` failed. The champion is then who it was.
    """
    root = root.resolve()
    check_rules(config.promotion)
    if _git.head(root) is None:
        decision = Decision(outcome="not in git", reasons=[str(root)])
    else:
        with _alone(root):
            decision = _decide(root, config, experiment, by_hand)
            if decision.accepted and register:
                _promote(root, config, decision, bump)
    decision.write(root)
    return decision


def _decide(
    root: Path, config: ProfileConfig, experiment: str | None, by_hand: str | None
) -> Decision:
    registry = read_registry(root)
    champion = registry.champion
    commit = experiment or run_commit(root, "challenger")
    gates = [_up_to_date(root, commit), *check_gates(root, commit)]
    decision = Decision(
        outcome="gate failed",
        reasons=[gate.detail for gate in gates if not gate.passed],
        champion=champion.name if champion else None,
        challenger=commit,
        gates=gates,
        rules=config.promotion.model_dump(mode="json"),
    )
    if decision.reasons:
        return decision
    if by_hand:
        return _with(decision, "by hand", by_hand)
    if champion is None:
        return _with(decision, "first", "there is no champion yet: the gates alone decide")
    if known := _known(root, registry, commit):
        return _with(decision, *known)
    return _compare(root, config, decision, champion)


def _with(decision: Decision, outcome: Outcome, *reasons: str) -> Decision:
    decision.outcome, decision.reasons = outcome, list(reasons)
    return decision


def _up_to_date(root: Path, commit: str) -> Gate:
    """The working tree is the run that ``commit`` keeps, and nothing of it is stale."""
    if stale := sorted(_dvc.changed_stages(root)):
        return Gate("up to date", False, f"{', '.join(stale)}: stale; run 'dvc repro' first")
    if read_lock(root) != read_lock(root, commit):
        return Gate("up to date", False, f"dvc.lock: not the one of {commit[:12]}, another run's")
    return Gate("up to date", True, "no stage is stale")


def _known(root: Path, registry: Registry, commit: str) -> tuple[Outcome, str] | None:
    """Whether these weights need no comparison any more, and why."""
    weights = champion_hashes(root, commit)["checkpoint"]

    def same(version: Version) -> bool:
        return champion_hashes(root, version.commit)["checkpoint"] == weights

    champion = registry.champion
    if champion and same(champion):
        if champion_hashes(root, champion.commit) == champion_hashes(root, commit):
            return "champion already", f"{champion.name} has these very files"
        return "champion already", (
            f"{champion.name} has these weights, but other graphs or engines; to register these: "
            "python -m flows.promotion promote --bump patch --by-hand 'REASON'"
        )
    for version in registry.withdrawn:
        if same(version):
            return "withdrawn", (
                f"{version.name} has these weights and was withdrawn; to have it again: "
                f"python -m flows.promotion rollback --to {version.name}"
            )
    return None


def _compare(root: Path, config: ProfileConfig, decision: Decision, champion: Version) -> Decision:
    from metricgold.evaluation.challenge import side_by_side

    checkpoint = _release.fetched_checkpoint(root, champion)
    found = side_by_side(config, Workspace(root), checkpoint)
    verdicts = judge(found.evaluations, config.promotion)
    decision.verdicts, decision.data = verdicts, found.data
    if found.scenes < (least := config.promotion.min_scenes):
        few = f"{found.scenes} held-out scenes: no interval is believed below {least} (min_scenes)"
        return _with(decision, "not better", few)
    failed = [verdict.sentence for verdict in verdicts if not verdict.passed]
    if failed:
        return _with(decision, "not better", *failed)
    return _with(decision, "better", *[verdict.sentence for verdict in verdicts])


def _promote(root: Path, config: ProfileConfig, decision: Decision, bump: Bump) -> None:
    """Push, register, appoint. Only the last changes who is champion."""
    assert decision.challenger is not None
    decision.remote = _release.push(root)
    registry = read_registry(root)
    version = _begun(root, registry, decision)
    if version is None:
        name = decision.version = registry.next_version(bump)
        commit = _release.commit_version(root, config, name, decision.challenger, decision.record())
        version = registry.register(name, commit)
    decision.version = version.name
    read_registry(root).appoint(version, f"{decision.outcome}: {decision.reasons[0]}")


def _begun(root: Path, registry: Registry, decision: Decision) -> Version | None:
    """The version that an earlier promotion of the same files registered before it died."""
    assert decision.challenger is not None
    hashes = champion_hashes(root, decision.challenger)
    for version in registry.waiting:
        entry = registry.entry(version)
        if entry.get("hashes") == hashes and entry["decision"]["champion"] == decision.champion:
            return version
    return None


def rollback(root: Path, to: str | None = None, reason: str = "") -> Version:
    """Make the previous champion (or version ``to``) the champion again, by one new tag.

    Raises:
        UserError: there is no such version, or it is the champion already.
    """
    with _alone(root):
        registry = read_registry(root)
        champion = registry.find(None)
        if to is None and len(registry.line) < 2:
            raise UserError(f"{champion.name} is the first champion: there is none to go back to")
        target = registry.find(to) if to else registry.line[-2].version
        if target == champion:
            raise UserError(f"{champion.name} is the champion already")
        why = f"back from {champion.name}" if to is None else f"chosen instead of {champion.name}"
        registry.appoint(target, f"{why}: {reason}" if reason else why)
    return target


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m flows.promotion")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help=f"decide, change nothing; exit {NOT_ACCEPTED}: not accepted")
    promote = commands.add_parser("promote", help="make the challenger champion if it is better")
    promote.add_argument("--bump", choices=("major", "minor", "patch"), default="minor")
    promote.add_argument("--by-hand", metavar="REASON", help="without comparison; gates hold")
    back = commands.add_parser("rollback", help="the previous champion is champion again")
    back.add_argument("--to", metavar="VERSION", help="this one instead, e.g. v1.2.0")
    back.add_argument("--reason", default="")
    back.add_argument("--checkout", action="store_true", help="also bring its files back")
    restore = commands.add_parser("checkout", help="bring a version's files into the working tree")
    restore.add_argument("version", nargs="?", help="default: the champion")
    get = commands.add_parser("get", help="a new folder with checkpoint, graphs, engines, card")
    get.add_argument("version", nargs="?", help="default: the champion")
    get.add_argument("--out", type=Path, required=True)
    commands.add_parser("history", help="champions over time")
    commands.add_parser("status", help="who is champion; the last decision")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    given = _parser().parse_args(arguments)
    prepare_environment()
    exit_on_sigterm()
    root = project_root()
    if given.command in ("check", "promote"):
        return _decide_and_print(root, given)
    if given.command == "rollback":
        version = rollback(root, given.to, given.reason)
        print(f"{version.name} is the champion ({version.tag})")
        if given.checkout:
            _checkout(root, version.name)
    elif given.command == "checkout":
        _checkout(root, given.version)
    elif given.command == "get":
        version = read_registry(root).find(given.version)
        _release.get_version(root, version, given.out)
        print(f"{version.name} is in {given.out}")
    else:
        print(history(root) if given.command == "history" else status(root))
    return 0


def _decide_and_print(root: Path, given: argparse.Namespace) -> int:
    from metricgold.memory import keep_freed_memory

    keep_freed_memory()
    config, check = load_config(root / "params.yaml"), given.command == "check"
    if check:
        decision = promote_if_better(root, config, register=False)
    else:
        decision = promote_if_better(root, config, by_hand=given.by_hand, bump=given.bump)
    print(decision.markdown(), end="")
    return NOT_ACCEPTED if check and not decision.accepted else 0


def _checkout(root: Path, name: str | None) -> None:
    version = read_registry(root).find(name)
    try:
        kept = _release.checkout_version(root, version)
    except UserError as error:
        again = f"python -m flows.promotion checkout {version.name}"
        raise UserError(f"{error}; to complete it: {again}") from None
    if kept:
        print(f"what was not committed is in git's stash ({kept[:12]})")
    print(f"the working tree has the parameters, figures and files of {version.name}")


if __name__ == "__main__":
    run_cli(main)
