"""Numbers recorded earlier (``values.json``) come out again."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.golden import generate


@pytest.fixture(scope="module")
def fresh() -> dict[str, list[float]]:
    return generate.values()


RECORDED = json.loads(generate.FILE.read_text())["values"]


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_value_is_what_it_was(name: str, fresh: dict[str, list[float]]) -> None:
    np.testing.assert_allclose(fresh[name], RECORDED[name], rtol=2e-4, atol=1e-5)
