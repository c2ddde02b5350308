"""What becomes one line on stderr, and what must not be hidden."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from metricgold.errors import full_disk, run_cli


def raised_by(message: str, number: int) -> RuntimeError:
    """As torch.save ends when its stream cannot be written."""
    try:
        try:
            raise OSError(number, os.strerror(number))
        except OSError:
            raise RuntimeError(message)  # noqa: B904
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "latents.h5"),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
        raised_by("unexpected pos 704 vs 598", errno.ENOSPC),
        ValueError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as left:
        run_cli(main)
    assert left.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: the disk is full: ")
    assert "unexpected" not in line


def test_other_errors_are_not_taken_for_it(tmp_path: Path) -> None:
    assert full_disk(raised_by("unexpected pos 704 vs 598", errno.EIO)) is None
    with pytest.raises(FileNotFoundError):
        run_cli(lambda: len((tmp_path / "absent").read_bytes()))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_real_one(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        with Path("/dev/full").open("w") as stream:
            stream.write("x")

    with pytest.raises(SystemExit):
        run_cli(main)
    assert "No space left on device" in capsys.readouterr().err
