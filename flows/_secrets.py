"""Secrets: from Prefect's Secret blocks or the environment to the stages, and to no log.

Only names stand in params.yaml. Values are handed to a stage by its environment, and whatever it
prints is searched for them before anybody sees it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping

from metricgold.errors import UserError

HIDDEN = "***"
SHORTEST = 6
"""Shorter values are too common in ordinary output to be looked for."""

_SECRET_NAME = re.compile(r"TOKEN|SECRET|PASSW|CREDENTIAL|API_?KEY|ACCESS_KEY|AUTH_STRING", re.I)


def load_secrets(blocks: Mapping[str, str]) -> dict[str, str]:
    """Environment variable to value, from the Secret blocks named in params.yaml.

    Raises:
        UserError: there is no such block.
    """
    if not blocks:
        return {}
    from prefect.blocks.system import Secret

    found = {}
    for variable, name in blocks.items():
        try:
            block = Secret.load(name)
        except ValueError:
            raise UserError(
                f"params.yaml: orchestration.secrets.{variable}: the Prefect server has no Secret "
                f"block '{name}'; create it on the page under Blocks"
            ) from None
        found[variable] = str(block.get())  # type: ignore[union-attr]
    return found


def hider(
    secrets: Mapping[str, str], environ: Mapping[str, str] = os.environ
) -> Callable[[str], str]:
    """Replaces in a text every secret, and what the environment holds under a secret's name."""
    named = [value for name, value in environ.items() if _SECRET_NAME.search(name)]
    values = {v for v in (*secrets.values(), *named) if len(v) >= SHORTEST}
    if not values:
        return lambda text: text
    pattern = re.compile("|".join(re.escape(v) for v in sorted(values, key=len, reverse=True)))
    return lambda text: pattern.sub(HIDDEN, text)
