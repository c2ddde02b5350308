"""Numbers recorded earlier (``values.json``) come out again."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

HERE = Path(__file__).parent


def _generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_generate", HERE / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def fresh() -> dict[str, list[float]]:
    return _generator().values()


RECORDED = json.loads((HERE / "values.json").read_text())["values"]


@pytest.mark.parametrize("name", sorted(RECORDED))
def test_value_is_what_it_was(name: str, fresh: dict[str, list[float]]) -> None:
    np.testing.assert_allclose(fresh[name], RECORDED[name], rtol=2e-4, atol=1e-5)
