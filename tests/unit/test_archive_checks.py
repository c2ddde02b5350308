"""Hostile archives: refused by name before they are inflated, with little memory."""

from __future__ import annotations

import functools
import gzip
import io
import os
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from made_zip import made_zip

from metricgold.config import DownloadConfig
from metricgold.data import archive_checks, archives
from metricgold.data.archives import (
    ArchiveError,
    close_archives,
    read_part,
    tar_index,
    tar_texts,
    verify_archive,
    zip_names,
)
from metricgold.data.dataset import Part
from metricgold.data.remote_zip import fetch_members
from metricgold.data.transfer import DownloadError, Transfer

MB = 1 << 20
POLICY = DownloadConfig(retries=1, timeout_s=10, backoff_s=0.01, parallel=1)


@contextmanager
def little_memory(limit: int = 8 * MB) -> Iterator[None]:
    """Fails when Python's own allocations inside grow by more than ``limit``."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit


@pytest.fixture
def never_inflates(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("inflated")

    monkeypatch.setattr(zipfile.ZipExtFile, "_read1", refuse)


def zeros(path: Path, size: int) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("office/0.npy", "w") as member:
            for _ in range(size // MB):
                member.write(bytes(MB))
        archive.writestr("office/1.npy", os.urandom(100))
    return path


def patched(path: Path, where: Callable[[bytes], int], value: bytes) -> Path:
    data = bytearray(path.read_bytes())
    place = where(bytes(data))
    data[place : place + len(value)] = value
    path.write_bytes(data)
    return path


def entry(place: int) -> Callable[[bytes], int]:
    """``place`` bytes into the directory's entry of the first member."""
    return lambda data: data.index(b"PK\1\2") + place


def assert_refused(path: Path, says: str) -> None:
    """By whatever looks at it: after the download, for the index, and for a member."""
    close_archives()
    with pytest.raises(ArchiveError, match=says) as told:
        verify_archive(path)
    assert "\n" not in str(told.value)
    look = {".zip": zip_names, ".tar": tar_index, ".gz": lambda p: tar_texts(p, ".txt")}
    with pytest.raises(ArchiveError, match=says):
        look[path.suffix](path)
    if path.suffix == ".zip":
        with pytest.raises(ArchiveError, match=says):
            read_part(path.parent, Part(path.name, "office/0.npy"))


# --- zips -----------------------------------------------------------------------------------


def test_a_bomb_is_refused_before_it_is_inflated(tmp_path: Path, never_inflates: None) -> None:
    path = zeros(tmp_path / "a.zip", 80 * MB)
    assert path.stat().st_size < MB
    with little_memory():
        assert_refused(path, r"a\.zip: refused, member 'office/0\.npy' shrinks more than 200 times")


def test_small_members_may_shrink_as_they_like(tmp_path: Path) -> None:
    """An empty depth map shrinks up to a thousandfold."""
    path = zeros(tmp_path / "a.zip", 32 * MB)
    assert path.stat().st_size < 32 * MB / archive_checks.MAX_RATIO
    verify_archive(path)
    assert read_part(tmp_path, Part("a.zip", "office/0.npy")) == bytes(32 * MB)


@pytest.mark.usefixtures("never_inflates")
def test_a_member_of_more_than_the_cap_is_refused(tmp_path: Path) -> None:
    path = made_zip(tmp_path / "a.zip", {"office/0.npy": b"x"})
    patched(path, entry(24), struct.pack("<I", archive_checks.MAX_MEMBER_BYTES + 1))
    says = r"member 'office/0\.npy' would have 268,435,457 bytes, 268,435,456 at most"
    assert_refused(path, says)


@pytest.mark.usefixtures("never_inflates")
def test_many_members_that_are_a_bomb_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive_checks, "SMALL_TOTAL_BYTES", 8 * MB)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(10):
            archive.writestr(f"office/{i}.npy", bytes(MB))
    assert_refused(path, r"a\.zip: refused, .* bytes would become more than .*decompression bomb")


def test_a_header_that_lies_about_the_size_is_not_followed(tmp_path: Path) -> None:
    """16 MB of zeros that say they are 1,000 bytes: nothing beyond these is inflated."""
    path = zeros(tmp_path / "a.zip", 16 * MB)
    patched(path, entry(24), struct.pack("<I", 1000))
    close_archives()
    with little_memory(MB), pytest.raises(ArchiveError, match=r"CRC.*office/0"):
        read_part(tmp_path, Part("a.zip", "office/0.npy"))
    with little_memory(4 * MB), pytest.raises(ArchiveError, match="CRC"):
        verify_archive(path)


def test_the_same_name_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("office/0.npy", b"first")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("office/0.npy", b"second")
    assert_refused(path, r"member 'office/0\.npy' is there twice")
    made_zip(path, {"office/0.npy": b"first", "office/./0.npy": b"second"})
    assert_refused(path, r"member 'office/0\.npy' is there twice")


def test_members_that_share_their_bytes(tmp_path: Path) -> None:
    """The bomb of overlapping entries: both headers point to the first member."""
    path = made_zip(tmp_path / "a.zip", {"office/0.npy": b"x" * 99, "office/1.npy": b"x" * 99})

    def second(data: bytes) -> int:
        return data.rindex(b"PK\1\2") + 42

    patched(path, second, bytes(4))
    assert_refused(path, "member 'office/[01].npy' shares its bytes with another one")
    made_zip(path, {"office/0.npy": b"x" * 99, "office/1.npy": b"x" * 99})
    patched(path, entry(20), struct.pack("<I", 150))
    assert_refused(path, "member 'office/1.npy' shares its bytes with another one")


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (8, 1, "is encrypted"),
        (8, 0x40, "is encrypted"),
        (10, 9, "is compressed by method 9"),
        (10, 12, "is compressed by method 12"),
        (10, 14, "is compressed by method 14"),
        (10, 99, "is compressed by method 99"),
    ],
)
def test_encrypted_members_and_other_methods(
    tmp_path: Path, place: int, value: int, says: str
) -> None:
    """bzip2 and LZMA have no bound on what one step gives."""
    path = made_zip(tmp_path / "a.zip", {"office/0.npy": b"x" * 99})
    patched(path, entry(place), struct.pack("<H", value))
    assert_refused(path, f"member 'office/0.npy' {says}")


def test_too_many_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_checks, "MAX_MEMBERS", 5)
    path = made_zip(tmp_path / "a.zip", {f"office/{i}.npy": b"x" for i in range(6)})
    assert_refused(path, r"a\.zip: refused, more than 5 members")
    made_zip(path, {f"office/{i}.npy": b"x" for i in range(5)})
    verify_archive(path)


def test_a_directory_is_not_read_whatever_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = functools.partial(archive_checks.check_request, most=500)
    monkeypatch.setattr(archives, "check_request", few)
    path = made_zip(tmp_path / "a.zip", {f"office/{i}.npy": b"x" for i in range(20)})
    with pytest.raises(ArchiveError, match=r"a header asks to read .* bytes at once"):
        verify_archive(path)


@pytest.mark.parametrize(
    "name", ["../x", "a/../../x", "/etc/x", "C:x", "c:/x", "a\\x", "\\\\host\\x", "./../x", "a\0b"]
)
def test_names_that_point_outside(tmp_path: Path, name: str) -> None:
    path = made_zip(tmp_path / "a.zip", {"office/0.npy": b"x", "y" * len(name.encode()): b"x"})
    data = path.read_bytes()
    path.write_bytes(data.replace(b"y" * len(name.encode()), name.encode()))
    assert_refused(path, r"a\.zip: refused, member .* points outside the archive")


@pytest.mark.parametrize(
    "name", ["a", "a/b.c", "-x/_y/Z.9", "./a", "a//b", "ä/ö.png", "a b/c d.png", "..a/b.."]
)
def test_ordinary_names_pass(tmp_path: Path, name: str) -> None:
    verify_archive(made_zip(tmp_path / "a.zip", {name: b"x"}))


def test_a_name_cannot_break_the_message(tmp_path: Path) -> None:
    path = made_zip(tmp_path / "a.zip", {"/\n\x1b[31m" + "x" * 5000: b""})
    with pytest.raises(ArchiveError) as told:
        verify_archive(path)
    assert str(told.value).isprintable()
    assert len(str(told.value)) < 400


def test_a_zip_put_in_the_place_of_another_is_opened_anew(tmp_path: Path) -> None:
    made_zip(tmp_path / "a.zip", {"office/0.npy": b"first"})
    assert read_part(tmp_path, Part("a.zip", "office/0.npy")) == b"first"
    made_zip(tmp_path / "b.zip", {"office/0.npy": b"another"})
    os.replace(tmp_path / "b.zip", tmp_path / "a.zip")
    assert read_part(tmp_path, Part("a.zip", "office/0.npy")) == b"another"


# --- tars -----------------------------------------------------------------------------------


def header(name: str, size: int = 0, kind: bytes = b"0", **fields: bytes) -> bytes:
    """A tar header with a right checksum; ``size`` may be anything."""
    block = bytearray(512)
    block[:100] = name.encode().ljust(100, b"\0")
    block[100:108] = b"0000644\0"
    number = b"%011o\0" % size if size >= 0 else b"\xff" * 4 + struct.pack(">q", size)
    block[124:136] = number
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    for place, value in fields.items():
        start = int(place[2:])
        block[start : start + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


END = bytes(1024)


def written(folder: Path, data: bytes, zipped: bool) -> Path:
    path = folder / ("a.tar.gz" if zipped else "a.tar")
    path.write_bytes(gzip.compress(data, 1) if zipped else data)
    return path


GOOD = header("office/0.txt", 3) + padded(b"abc")
PAX = b"30 mtime=1350244992.023960108\n"
TARS = {
    "the same name twice": (GOOD + GOOD + END, "member 'office/0.txt' is there twice"),
    "a name that goes up": (header("../x") + END, "'../x' points outside"),
    "an absolute name": (GOOD + header("/etc/x") + END, "'/etc/x' points outside"),
    "a drive": (header("C:x") + END, "'C:x' points outside"),
    "a long name that goes up": (
        header("././@LongLink", 5, b"L") + padded(b"../x\0") + header("x") + END,
        "'../x' points outside",
    ),
    "a pax name that goes up": (
        header("p", 13, b"x") + padded(b"13 path=../x\n") + header("x") + END,
        "'../x' points outside",
    ),
    "a symbolic link": (header("x", 0, b"2") + END, "'x' is a link or a device"),
    "a hard link": (header("x", 0, b"1") + END, "'x' is a link or a device"),
    "a character device": (header("x", 0, b"3") + END, "'x' is a link or a device"),
    "a block device": (header("x", 0, b"4") + END, "'x' is a link or a device"),
    "a pipe": (header("x", 0, b"6") + END, "'x' is a link or a device"),
    "holes": (
        header("x", 512, b"S", at386=b"%011o\0%011o\0" % (0, 512), at483=b"%011o\0" % (1 << 20))
        + bytes(512) + END,
        "'x' is stored with holes",
    ),
    "pax holes": (
        header("p", 73, b"x")
        + padded(b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n29 GNU.sparse.realsize=99999\n")
        + header("office/0.txt", 1024) + padded(b"1\n0\n3\n") + padded(b"abc") + GOOD + END,
        "'office/0.txt' is stored with holes",
    ),
    "a pax record cut short": (
        header("p", 49, b"x")
        + padded(b"22 GNU.sparse.major=1\n27 GNU.sparse.realsize=99999\n"[:49])
        + GOOD[:512] + padded(b"abc") + GOOD + END,
        # tarfile of Python 3.11.2 refuses the record, that of 3.11.7 reads over it
        r"\((the header at byte 0 is damaged|"
        r"'office/0\.txt' has a header that contradicts itself)\)",
    ),
    "a huge file": (header("x", (1 << 33) - 1) + END, "'x' would have 8,589,934,591 bytes"),
    "a negative file": (GOOD + header("x", -1024) + END, "'x' would have -1,024 bytes"),
    "a negative file that comes round": (
        GOOD + header("x", -(1 << 40)) + END, "(would have -|negative|read)",
    ),
    "a huge long name": (header("n", 1 << 30, b"L") + END, "asks to read 1073741824 bytes"),
    "a negative long name": (header("n", -512, b"L") + END, "asks to read -512 bytes"),
    "a huge pax header": (header("p", 1 << 30, b"x") + END, "asks to read 1073741824 bytes"),
    "headers without end": (
        (header("p", len(PAX), b"g") + padded(PAX)) * 2000 + GOOD + END, "(recursion|asks to read)"
    ),
    "a contradicting pax size": (
        header("p", 19, b"x") + padded(b"19 size=1000000000\n") + GOOD + END,
        "would have 1,000,000,000 bytes",
    ),
    "a second header damaged": (GOOD + b"\1" * 512 + END, "the header at byte 1024 is damaged"),
    "a second header zeroed": (
        GOOD + bytes(512) + padded(b"abc") + END, "it goes on after its end mark"
    ),
    "no end": (GOOD, "no end-of-archive mark"),
    "half an end": (GOOD + bytes(300), "no end-of-archive mark"),
    "a second archive": (GOOD + END + GOOD + END, "it goes on after its end mark"),
    "nothing": (b"", "empty"),
    "noise": (bytes(range(256)) * 9, "damaged or cut short"),
}  # fmt: skip


@pytest.mark.parametrize("zipped", [False, True], ids=["tar", "tar.gz"])
@pytest.mark.parametrize("name", list(TARS))
def test_hostile_tars(tmp_path: Path, name: str, zipped: bool) -> None:
    data, says = TARS[name]
    path = written(tmp_path, data, zipped)
    with little_memory(20 * MB):
        assert_refused(path, says)


@pytest.mark.parametrize("zipped", [False, True], ids=["tar", "tar.gz"])
def test_an_ordinary_tar_of_every_kind_of_header_passes(tmp_path: Path, zipped: bool) -> None:
    long = "Scene01/" + "very/" * 40 + "long.txt"
    buffer = io.BytesIO()
    for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:
            for name in ("./Scene01", "Scene01"):
                folder = tarfile.TarInfo(name)
                folder.type = tarfile.DIRTYPE
                tar.addfile(folder)
            for name in ("./Scene01/ä.txt", long):
                info = tarfile.TarInfo(name)
                info.size, info.mtime = 5, 1350244992.02
                tar.addfile(info, io.BytesIO(b"12345"))
        path = written(tmp_path, buffer.getvalue(), zipped)
        verify_archive(path)
        if zipped:
            assert tar_texts(path, ".txt") == {"./Scene01/ä.txt": "12345", long: "12345"}
        else:
            assert [m.name for m in tar_index(path)] == ["./Scene01/ä.txt", long]
            for member in tar_index(path):
                part = Part(path.name, member.name, member.offset, member.size)
                assert read_part(tmp_path, part) == b"12345"


def bomb(path: Path, blocks: int, start: bytes, end: bytes = b"") -> Path:
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(start)
        for _ in range(blocks):
            file.write(bytes(MB))
        file.write(end)
    return path


@pytest.mark.parametrize("what", ["many files", "zeros behind the end", "one text"])
def test_a_gzip_bomb_is_stopped_at_the_cap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Its size is only known by reading: no more than the cap is read, and little of it kept."""
    monkeypatch.setattr(archive_checks, "SMALL_TOTAL_BYTES", 8 * MB)
    monkeypatch.setattr(archive_checks, "MAX_RATIO", 10)
    path = tmp_path / "a.tar.gz"
    if what == "many files":
        with tarfile.open(path, "w:gz", compresslevel=1) as tar:
            for i in range(40):
                info = tarfile.TarInfo(f"{i}.bin")
                info.size = MB
                tar.addfile(info, io.BytesIO(bytes(MB)))
    elif what == "one text":
        bomb(path, 40, header("bomb.txt", 40 * MB), END)
    else:
        bomb(path, 40, GOOD)
    seen = 0
    read = gzip.GzipFile.readinto

    def counted(self: gzip.GzipFile, buffer: bytearray) -> int:
        nonlocal seen
        count = read(self, buffer)
        seen += count
        return count

    monkeypatch.setattr(gzip.GzipFile, "readinto", counted)
    with little_memory():
        assert_refused(path, r"a\.tar\.gz: refused, .* would become more than .*bomb")
    assert seen <= 2 * 12 * MB  # looked at twice


def test_a_gzip_of_right_length_but_wrong_check(tmp_path: Path) -> None:
    """The end mark comes before the CRC32, which used to be left unread."""
    path = written(tmp_path, GOOD + bytes(20 * 512), zipped=True)
    verify_archive(path)
    patched(path, lambda data: len(data) - 8, b"\0\0\0\0")
    assert_refused(path, "CRC check failed")


# --- single members of a hostile remote zip -------------------------------------------------


def fetch(url: str, target: Path, wanted: tuple[str, ...] = ("office/0.npy",)) -> list[str]:
    with Transfer(POLICY, [].append) as transfer:
        return fetch_members(transfer, f"{url}/a.zip", wanted, target, lambda _: None)


def assert_not_fetched(url: str, tmp_path: Path, says: str) -> None:
    with pytest.raises(DownloadError, match=r"a\.zip: .*" + says) as told:
        fetch(url, tmp_path / "got.zip")
    assert "\n" not in str(told.value)
    assert not (tmp_path / "got.zip").exists()


@pytest.mark.usefixtures("never_inflates")
@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (24, struct.pack("<I", 1 << 30), "would have 1,073,741,824 bytes"),
        (24, struct.pack("<I", 200 << 20), "shrinks more than 200 times"),
        (8, b"\1\0", "is encrypted"),
        (10, b"\x0c\0", "by method 12"),
        (20, struct.pack("<I", 5000), "shares its bytes"),
        (41, b"\xa0", "is a link"),
        (46, b"../", "points outside"),
    ],
)
def test_a_hostile_member_of_a_remote_zip(
    tmp_path: Path, serve, place: int, value: bytes, says: str
) -> None:
    path = made_zip(tmp_path / "mirror/a.zip", {"office/0.npy": b"x" * 999, "office/1.npy": b"x"})
    patched(path, entry(place), value)
    assert_not_fetched(serve().url, tmp_path, says)


def test_what_is_not_wanted_may_be_large(tmp_path: Path, serve) -> None:
    """Hypersim's scenes hold meshes and more, of which nothing is read."""
    path = made_zip(tmp_path / "mirror/a.zip", {"mesh.hdf5": b"x" * 99, "office/0.npy": b"x" * 999})
    patched(path, entry(24), struct.pack("<I", 1 << 30))
    assert fetch(serve().url, tmp_path / "got.zip", ("office/0.npy", "none")) == ["none"]
    verify_archive(tmp_path / "got.zip")


def test_remote_members_that_are_a_bomb_together(
    tmp_path: Path, serve, monkeypatch: pytest.MonkeyPatch, never_inflates: None
) -> None:
    monkeypatch.setattr(archive_checks, "SMALL_TOTAL_BYTES", MB)
    (tmp_path / "mirror").mkdir()
    zeros(tmp_path / "mirror/a.zip", 2 * MB)
    assert_not_fetched(serve().url, tmp_path, "decompression bomb")


def test_a_gap_behind_a_member_is_not_fetched_into_memory(tmp_path: Path, serve) -> None:
    """The directory leaves out 24 MB between two members."""
    names = {"office/0.npy": os.urandom(999), "gap": bytes(24 * MB), "office/1.npy": b"x"}
    path = made_zip(tmp_path / "mirror/a.zip", names)
    data = path.read_bytes()
    start = data.index(b"PK\1\2")
    first = data.index(b"PK\1\2", start + 4)
    second = data.index(b"PK\1\2", first + 4)
    end = bytearray(data[-22:])
    end[8:12] = struct.pack("<HH", 2, 2)
    end[12:16] = struct.pack("<I", len(data) - 22 - start - (second - first))
    path.write_bytes(data[:first] + data[second:-22] + end)
    with little_memory(8 * MB):
        assert fetch(serve().url, tmp_path / "got.zip") == []


def test_a_remote_directory_of_absurd_size(
    tmp_path: Path, serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server tells a size of petabytes, and the end record a directory of nearly as much."""
    made_zip(tmp_path / "mirror/a.zip", {"office/0.npy": b"x" * 99})
    record = zipfile.structEndArchive64
    zip64 = struct.pack(record, b"PK\6\6", 44, 45, 45, 0, 0, 1, 1, 1 << 50, 0)
    locator = struct.pack(zipfile.structEndArchive64Locator, b"PK\6\7", 0, 1 << 50, 1)
    end = struct.pack(zipfile.structEndArchive, b"PK\5\6", 0, 0, 1, 1, 2**32 - 1, 2**32 - 1, 0)
    tail = zip64 + locator + end
    size = (1 << 50) + len(tail)

    def read_range(self: Transfer, url: str, start: int, stop: int) -> bytes:
        whole = bytes(max(0, stop - start - len(tail))) + tail
        return whole[: stop - start]

    monkeypatch.setattr(Transfer, "size", lambda self, url: size)
    monkeypatch.setattr(Transfer, "read_range", read_range)
    with little_memory():
        assert_not_fetched(serve().url, tmp_path, "a header asks to read 1125899906842624 bytes")
