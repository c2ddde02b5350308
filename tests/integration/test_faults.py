"""Every fault of the matrix at one stage (``scripts/fault_matrix.py`` has it at all stages)."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.faults import FAULTS, Bench, Fault, InTurn, rows_of
from tests.integration.faults.project import Project, make_project

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1200)]

STAGE = "train_unet"
IN_TURN = ("preprocess@hypersim", "train_unet", "export_onnx")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return make_project(tmp_path_factory.mktemp("faults") / "project")


@pytest.fixture
def bench(finished: Project) -> Iterator[Bench]:
    """A copy of a finished run of the smoke profile."""
    folder = finished.folder.parent
    with Bench(finished.copied(folder / "copy"), folder) as made:
        yield made


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "_"))
def test_a_run_survives(bench: Bench, fault: Fault | InTurn) -> None:
    stage = STAGE if STAGE in fault.stages else fault.stages[0]
    for row in rows_of(fault, bench, IN_TURN if isinstance(fault, InTurn) else [stage]):
        if row.skipped:
            pytest.skip(row.outcome)
        assert not row.problems, row
        assert row.trainers <= 1
