"""Official lists that are kept as package data: file names and numbers only."""

from __future__ import annotations

from importlib import resources


def listed(name: str) -> dict[str, list[str]]:
    """A list in ``lists/``: the first word of each line to the words behind it, in order."""
    text = resources.files(__package__).joinpath("lists", name).read_text(encoding="utf-8")
    lines = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    return {words[0]: words[1:] for words in lines}
