"""What takes a file's place is whole; an error leaves what was there and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from metricgold.files import write_csv, write_json, write_text
from tests.unit.small_disk import room_for


def test_what_was_there_stays_where_the_disk_is_full(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_json(path, {"frames": 10})
    before = path.read_bytes()
    with pytest.raises(OSError, match=r"report\.json"), room_for(1000):
        write_text(path, "x" * 5000)
    assert [*tmp_path.iterdir()] == [path]
    assert path.read_bytes() == before


def test_rows_that_cannot_be_made_leave_no_table(tmp_path: Path) -> None:
    def rows() -> Iterator[tuple[int, float]]:
        yield 1, 0.5
        raise RuntimeError("no second row")

    with pytest.raises(RuntimeError, match="no second row"):
        write_csv(tmp_path / "curve.csv", ("step", "loss"), rows())
    assert not list(tmp_path.iterdir())
