"""Parameters of the flows: what a page or a command may ask for, and nothing else.

The types stand in the deployments' schemas, so that the page offers what there is and the server
refuses the rest before a run begins; a run checks again. Nothing here reaches a shell, and no
value may name a place outside of the project or a variable of the environment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, Field, GetJsonSchemaHandler, StringConstraints
from pydantic_core import CoreSchema

from metricgold.config import DATASET_NAMES, DatasetName, profile_names
from metricgold.errors import UserError

_KEY = r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*"
_VALUE = r"""[A-Za-z0-9_ .,:/+@%'"{}\[\]-]*"""
OVERRIDE_PATTERN = f"^{_KEY}={_VALUE}$"


class _Profiles:
    """Adds the profiles of params.yaml to the schema, as choices."""

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        known = profile_names()[1]
        return handler(core) | ({"enum": known} if known else {})


def known_profile(name: str) -> str:
    """``name`` if it is a profile of params.yaml, or that has no profiles."""
    if (known := profile_names()[1]) and name not in known:
        raise ValueError(f"unknown profile {name!r}; known profiles: {', '.join(known)}")
    return name


def harmless_override(override: str) -> str:
    """``override`` if it is KEY=VALUE, of a profile, and its value stays inside the project.

    Raises:
        ValueError: it is not.
    """
    if re.fullmatch(OVERRIDE_PATTERN, override) is None or "\n" in override:
        raise ValueError(
            f"{override!r}: write KEY=VALUE with letters, digits and .,:/+@%'\"{{}}[]- alone"
        )
    if override.startswith("orchestration"):  # it names programs, secrets and limits
        raise ValueError(f"{override!r}: how stages are run is not for a run to say")
    try:
        value = yaml.safe_load(override.partition("=")[2])
    except yaml.YAMLError:
        raise ValueError(f"{override!r}: the value cannot be read") from None
    for text in _strings(value):
        refuse_outside(text)
    return override


def refuse_outside(text: str) -> None:
    """Pass a web address, or a path that stays in the current folder, links followed.

    Raises:
        ValueError: it is something else.
    """
    scheme, separator, _ = text.partition("://")
    if separator and scheme in ("http", "https"):
        return
    root = Path.cwd().resolve()
    outside = separator or text.startswith(("/", "~")) or ".." in Path(text).parts
    if outside or not (root / text).resolve().is_relative_to(root):
        raise ValueError(f"{text!r} lies outside of the project")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for pair in value.items():
            yield from (text for part in pair for text in _strings(part))
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)


Profile = Annotated[
    str, StringConstraints(pattern=r"^[\w-]+$"), AfterValidator(known_profile), _Profiles()
]
Override = Annotated[
    str,
    StringConstraints(pattern=OVERRIDE_PATTERN, max_length=500),
    AfterValidator(harmless_override),
]
Overrides = Annotated[list[Override], Field(max_length=100)]
Datasets = Annotated[list[DatasetName], Field(max_length=len(DATASET_NAMES))]


def changes(
    params: Path, profile: str | None, datasets: Sequence[str] | None, overrides: Sequence[str]
) -> list[str]:
    """The overrides that a run's parameters stand for.

    ``datasets``: every other dataset of the profile gets weight 0.

    Raises:
        UserError: a dataset that is asked for has no weight in the profile.
    """
    wanted = [f"profile={profile}"] if profile else []
    if datasets:
        name = profile or profile_names(params)[0]
        sections = yaml.safe_load(params.read_text(encoding="utf-8"))["profiles"][name]["datasets"]
        if without := [d for d in datasets if not sections[d]["weight"]]:
            raise UserError(
                f"datasets {', '.join(without)}: weight 0 in profile {name}; give a weight by "
                f"overrides, as profiles.{name}.datasets.{without[0]}.weight=1"
            )
        others = [d for d in sections if d not in datasets and sections[d]["weight"]]
        wanted += [f"profiles.{name}.datasets.{d}.weight=0" for d in others]
    return [*wanted, *overrides]
