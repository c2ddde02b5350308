"""The registry as a person reads it: champions over time, and how things stand."""

from __future__ import annotations

from pathlib import Path

from flows._decision import latest_decision
from flows._registry import read_registry


def history(root: Path) -> str:
    """The champions over time as a table, the latest last."""
    rows: list[tuple[str, ...]] = [("since (UTC)", "champion", "AbsRel", "delta1", "commit", "why")]
    registry = read_registry(root)
    for one in registry.appointments:
        metrics = registry.entry(one.version).get("metrics") or {}
        figures = (f"{metrics[n]:.4f}" if n in metrics else "–" for n in ("abs_rel", "delta1"))
        since = f"{one.date:%Y-%m-%d %H:%M:%S}"
        rows.append((since, one.version.name, *figures, one.version.commit[:9], one.reason))
    if len(rows) == 1:
        return "no champion yet"
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]) - 1)]
    return "\n".join(
        "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]])
        for row in rows
    )


def status(root: Path) -> str:
    """Who is champion, what waits, and the last decision."""
    registry = read_registry(root)
    lines = [f"champion   {registry.champion.name if registry.champion else 'none'}"]
    if len(registry.line) > 1:
        lines.append(f"before it  {registry.line[-2].version.name} (rollback goes there)")
    for version in registry.waiting:
        lines.append(f"waiting    {version.name}: registered, never champion")
    for version in registry.withdrawn:
        lines.append(f"withdrawn  {version.name}")
    if last := latest_decision(root):
        lines += ["", f"Last decision, {last}:", "", last.read_text(encoding="utf-8").rstrip()]
    return "\n".join(lines)
