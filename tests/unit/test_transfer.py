"""HTTP transfers, archives and remote zips against a server that drops, errs or lies."""

from __future__ import annotations

import io
import os
import tarfile
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from made_zip import made_zip
from served import logged

from metricgold.config import DownloadConfig
from metricgold.data.archive_writer import ArchiveSet, Member
from metricgold.data.archives import ArchiveError, verify_archive
from metricgold.data.mirror_server import Faults
from metricgold.data.remote_zip import fetch_members
from metricgold.data.transfer import DownloadError, MissingUpstreamError, Transfer

POLICY = DownloadConfig(retries=3, timeout_s=5, backoff_s=0.01, parallel=2)
SIZE = 300_000


@pytest.fixture
def payload(tmp_path: Path) -> bytes:
    data = os.urandom(SIZE)
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror/file.bin").write_bytes(data)
    return data


def _fetch(url: str, part: Path, log: list[str] | None = None) -> int:
    moved: list[int] = []
    with Transfer(POLICY, (log if log is not None else []).append) as transfer:
        transfer.fetch(url, part, moved.append)
    return sum(moved)


def test_a_dropped_connection_is_resumed(tmp_path: Path, payload: bytes, serve) -> None:
    faults = Faults(drop_after=100_000, drops=2)
    part = tmp_path / "got.part"
    assert _fetch(serve(faults).url + "/file.bin", part) == SIZE
    assert part.read_bytes() == payload
    ranges = [entry[2] for entry in logged(faults, 3)]
    assert len(ranges) == 3
    assert ranges[0] is None
    assert all(r is not None and int(r[6:-1]) > 0 for r in ranges[1:])
    assert sum(entry[3] for entry in faults.log) <= SIZE  # nothing was fetched twice


def test_progress_refills_the_patience(tmp_path: Path, payload: bytes, serve) -> None:
    """More drops than ``retries`` are survived while each attempt brings something."""
    faults = Faults(drop_after=30_000, drops=8)
    part = tmp_path / "got.part"
    _fetch(serve(faults).url + "/file.bin", part)
    assert part.read_bytes() == payload
    assert len(logged(faults, POLICY.retries + 2)) > POLICY.retries + 1


def test_what_came_before_a_failure_is_kept(tmp_path: Path, payload: bytes, serve) -> None:
    part = tmp_path / "got.part"
    part.write_bytes(payload[:1234])
    faults = Faults(errors=POLICY.retries)
    with pytest.raises(DownloadError, match=r"file\.bin: HTTP 500 \(gave up after 3 attempts\)"):
        _fetch(serve(faults).url + "/file.bin", part)
    assert part.read_bytes() == payload[:1234]
    again = Faults()
    _fetch(serve(again).url + "/file.bin", part)
    assert part.read_bytes() == payload
    assert logged(again)[0][2] == "bytes=1234-"


def test_errors_500_then_ok(tmp_path: Path, payload: bytes, serve) -> None:
    log: list[str] = []
    part = tmp_path / "got.part"
    _fetch(serve(Faults(errors=2)).url + "/file.bin", part, log)
    assert part.read_bytes() == payload
    assert len([line for line in log if "HTTP 500" in line]) == 2


def test_a_server_without_range_starts_over_and_says_so(
    tmp_path: Path, payload: bytes, serve
) -> None:
    log: list[str] = []
    part = tmp_path / "got.part"
    part.write_bytes(payload[:1000])
    moved = _fetch(serve(Faults(ignore_range=True)).url + "/file.bin", part, log)
    assert part.read_bytes() == payload
    assert moved == SIZE - 1000
    assert any("ignores Range, starting over" in line for line in log)


def test_another_range_than_asked_for_is_refused(tmp_path: Path, payload: bytes, serve) -> None:
    part = tmp_path / "got.part"
    part.write_bytes(payload[:1000])
    server = serve(Faults(shift_range=7))
    with pytest.raises(DownloadError, match=r"file\.bin: asked to go on from 1000, got 1007"):
        _fetch(server.url + "/file.bin", part)
    assert part.read_bytes() == payload[:1000]
    with (
        Transfer(POLICY, [].append) as transfer,
        pytest.raises(DownloadError, match="another byte range"),
    ):
        transfer.read_range(server.url + "/file.bin", 0, 100)


def test_a_finished_part_is_not_fetched_again(tmp_path: Path, payload: bytes, serve) -> None:
    part = tmp_path / "got.part"
    part.write_bytes(payload)
    faults = Faults()
    _fetch(serve(faults).url + "/file.bin", part)
    assert part.read_bytes() == payload
    assert sum(entry[3] for entry in faults.log) == 0


def test_a_part_longer_than_the_file_is_dropped(tmp_path: Path, payload: bytes, serve) -> None:
    part = tmp_path / "got.part"
    part.write_bytes(payload + b"of something else")
    _fetch(serve().url + "/file.bin", part)
    assert part.read_bytes() == payload


def test_a_transfer_that_is_broken_off_goes_on_later(tmp_path: Path, payload: bytes, serve) -> None:
    url, part = serve().url + "/file.bin", tmp_path / "a.part"
    with Transfer(POLICY, [].append) as transfer:
        seen: list[int] = []

        def advance(count: int) -> None:
            """Somebody presses Ctrl-C after the first block."""
            seen.append(count)
            transfer.stop()

        with pytest.raises(
            DownloadError, match=r"file\.bin: broken off; a rerun goes on from here"
        ):
            transfer.fetch(url, part, advance)
        with pytest.raises(DownloadError, match="broken off"):
            transfer.size(url)
    assert 0 < part.stat().st_size == sum(seen) < len(payload)
    faults = Faults()
    with Transfer(POLICY, [].append) as transfer:
        transfer.fetch(serve(faults).url + "/file.bin", part, lambda _: None)
    assert part.read_bytes() == payload
    assert logged(faults)[0][3] == len(payload) - sum(seen)


def test_a_host_gets_no_more_requests_at_once_than_it_is_due(tmp_path: Path) -> None:
    busy = most = 0
    lock = threading.Lock()

    class Slow(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            nonlocal busy, most
            with lock:
                busy += 1
                most = max(most, busy)
            time.sleep(0.05)
            with lock:
                busy -= 1
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    found = {}
    for per_host in (2, 6):
        most = 0
        server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        policy = POLICY.model_copy(update={"per_host": per_host})
        urls = [f"http://127.0.0.1:{server.server_address[1]}/{i}" for i in range(12)]
        with Transfer(policy, [].append) as transfer, ThreadPoolExecutor(6) as pool:
            assert list(pool.map(transfer.size, urls)) == [5] * 12
        server.shutdown()
        thread.join()
        server.server_close()
        found[per_host] = most
    assert found[2] == 2
    assert 2 < found[6] <= 6


def test_404_is_told_at_once(tmp_path: Path, payload: bytes, serve) -> None:
    faults = Faults()
    with pytest.raises(MissingUpstreamError, match=r"nothing\.zip: not there \(HTTP 404\)"):
        _fetch(serve(faults).url + "/nothing.zip", tmp_path / "got.part")
    assert len(logged(faults)) == 1


def test_a_web_page_is_no_archive(tmp_path: Path, payload: bytes, serve) -> None:
    with pytest.raises(DownloadError, match="sent a web page instead of the file"):
        _fetch(serve(Faults(html=True)).url + "/file.bin", tmp_path / "got.part")
    assert not (tmp_path / "got.part").exists() or not (tmp_path / "got.part").stat().st_size


def test_a_dead_host_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DownloadError) as error:
        _fetch("http://127.0.0.1:9/file.bin", tmp_path / "got.part")
    assert "\n" not in str(error.value)
    assert "127.0.0.1:9/file.bin" in str(error.value)


def test_the_server_stays_in_its_folder(tmp_path: Path, payload: bytes, serve) -> None:
    (tmp_path / "secret.txt").write_text("no")
    with Transfer(POLICY, [].append) as transfer, pytest.raises(MissingUpstreamError):
        transfer.read_all(serve().url + "/%2e%2e/secret.txt")


# --- archives -------------------------------------------------------------------------------


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    whole = made_zip(tmp_path / "a.zip", {"x.bin": os.urandom(5000)})
    verify_archive(whole)
    data = whole.read_bytes()
    (tmp_path / "cut.zip").write_bytes(data[:3000])
    (tmp_path / "flipped.zip").write_bytes(data[:900] + bytes([data[900] ^ 1]) + data[901:])
    with pytest.raises(ArchiveError, match="damaged or cut short"):
        verify_archive(tmp_path / "cut.zip")
    with pytest.raises(ArchiveError, match=r"'x\.bin'|CRC"):
        verify_archive(tmp_path / "flipped.zip")


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.9])
def test_tars_cut_short_are_told(tmp_path: Path, name: str, share: float) -> None:
    with ArchiveSet(tmp_path) as archives:
        for i in range(4):
            archives.add(Member(name, f"m{i}.bin", os.urandom(20_000)))
    verify_archive(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ArchiveError, match="damaged or cut short"):
        verify_archive(tmp_path / name)


@pytest.mark.parametrize("member", ["../evil", "/etc/evil", "a/../../evil", "C:evil", "a\\evil"])
def test_members_that_point_outside_are_refused(tmp_path: Path, member: str) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo(member), io.BytesIO())
    with pytest.raises(ArchiveError, match=r"refused, member '.*evil'"):
        verify_archive(path)
    if "\\" not in member:  # zipfile itself rewrites the others
        with pytest.raises(ArchiveError, match=r"refused, member '.*evil'"):
            verify_archive(made_zip(tmp_path / "a.zip", {member: b""}))


def test_links_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "elsewhere"
        archive.addfile(link)
    with pytest.raises(ArchiveError, match="'link' is a link or a device"):
        verify_archive(tmp_path / "a.tar")
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "elsewhere")
    with pytest.raises(ArchiveError, match="'link' is a link"):
        verify_archive(tmp_path / "a.zip")


# --- single members of a remote zip ---------------------------------------------------------


@pytest.fixture
def big_zip(tmp_path: Path) -> dict[str, bytes]:
    members = {}
    for i in range(6):
        members[f"want/{i}.bin"] = os.urandom(20_000)
        members[f"leave/{i}.bin"] = os.urandom(200_000)
    made_zip(tmp_path / "mirror/scene.zip", members)
    return members


def _take(url: str, wanted: list[str], target: Path) -> list[str]:
    with Transfer(POLICY, [].append) as transfer:
        return fetch_members(transfer, url + "/scene.zip", wanted, target, lambda _: None)


def test_only_the_wanted_bytes_travel(tmp_path: Path, big_zip, serve) -> None:
    faults = Faults()
    wanted = [name for name in big_zip if name.startswith("want")]
    target = tmp_path / "got.zip"
    missing = _take(serve(faults).url, [*wanted, "want/99.bin"], target)
    assert missing == ["want/99.bin"]
    with zipfile.ZipFile(target) as archive:
        assert archive.namelist() == wanted
        assert all(archive.read(name) == big_zip[name] for name in wanted)
    sent = sum(entry[3] for entry in faults.log)
    overhead = (1 << 16) + 6 * 1000
    assert (
        6 * 20_000 < sent <= 6 * 20_000 + overhead < (tmp_path / "mirror/scene.zip").stat().st_size
    )
    assert [p.name for p in tmp_path.iterdir() if "members" in p.name] == []


MEGABYTES = {
    "final_hdf5/{}.color.hdf5": 3.4,
    "final_hdf5/{}.diffuse_illumination.hdf5": 3.3,
    "final_hdf5/{}.diffuse_reflectance.hdf5": 2.2,
    "final_hdf5/{}.residual.hdf5": 3.0,
    "final_preview/{}.tonemap.jpg": 0.7,
    "geometry_hdf5/{}.depth_meters.hdf5": 0.25,
    "geometry_hdf5/{}.normal_bump_cam.hdf5": 1.6,
    "geometry_hdf5/{}.normal_bump_world.hdf5": 1.6,
    "geometry_hdf5/{}.normal_cam.hdf5": 1.3,
    "geometry_hdf5/{}.normal_world.hdf5": 1.3,
    "geometry_hdf5/{}.position.hdf5": 3.6,
    "geometry_hdf5/{}.render_entity_id.hdf5": 0.05,
    "geometry_hdf5/{}.tex_coord.hdf5": 2.2,
}
"""Members of one Hypersim frame. Colour and depth have the size of genuine ones; all together 24.5
MB, as 1.9 TB for 77,400 frames say; how the rest divides among the others is made up."""


def test_a_hypersim_scene_takes_at_most_15_percent_of_its_bytes(tmp_path: Path, serve) -> None:
    members = {
        f"ai_001_001/images/scene_cam_00_{name.format(f'frame.{i:04d}')}": os.urandom(
            int(size * 1e6)
        )
        for i in range(4)
        for name, size in MEGABYTES.items()
    }
    made_zip(tmp_path / "mirror/scene.zip", members)
    wanted = [name for name in members if name.endswith((".color.hdf5", ".depth_meters.hdf5"))]
    faults = Faults()
    assert _take(serve(faults).url, wanted, tmp_path / "got.zip") == []
    served = sum(sent for _, _, _, sent in logged(faults, at_least=9))
    whole = (tmp_path / "mirror/scene.zip").stat().st_size
    print(f"{served:,} of {whole:,} bytes served, {served / whole:.2%}")
    assert served <= 0.15 * whole
    verify_archive(tmp_path / "got.zip")


def test_an_interrupted_scene_goes_on(tmp_path: Path, big_zip, serve) -> None:
    wanted = [name for name in big_zip if name.startswith("want")]
    server = serve()
    with Transfer(POLICY, [].append) as transfer:
        count = 0

        def stop_after_three(_: int) -> None:
            nonlocal count
            count += 1
            if count == 3:
                raise KeyboardInterrupt

        url = server.url + "/scene.zip"
        with pytest.raises(KeyboardInterrupt):
            fetch_members(transfer, url, wanted, tmp_path / "got.zip", stop_after_three)
    assert not (tmp_path / "got.zip").exists()
    faults = Faults()
    _take(serve(faults).url, wanted, tmp_path / "got.zip")
    verify_archive(tmp_path / "got.zip")
    assert sum(entry[3] for entry in faults.log) < 3 * 20_000 + (1 << 16) + 3000


def test_a_dropped_range_is_tried_again(tmp_path: Path, big_zip, serve) -> None:
    faults = Faults(drop_after=10_000, drops=1, errors=1)
    _take(serve(faults).url, ["want/0.bin", "want/5.bin"], tmp_path / "got.zip")
    verify_archive(tmp_path / "got.zip")


def test_members_need_a_server_with_range(tmp_path: Path, big_zip, serve) -> None:
    with pytest.raises(DownloadError, match="ignores Range"):
        _take(serve(Faults(ignore_range=True)).url, ["want/0.bin"], tmp_path / "got.zip")


def test_a_member_with_a_wrong_crc_is_told(tmp_path: Path, big_zip, serve) -> None:
    path = tmp_path / "mirror/scene.zip"
    data = bytearray(path.read_bytes())
    data[500] ^= 1  # inside want/0.bin
    path.write_bytes(data)
    with pytest.raises(DownloadError, match=r"scene\.zip: damaged zip .*want/0\.bin"):
        _take(serve().url, ["want/0.bin"], tmp_path / "got.zip")
    assert not (tmp_path / "got.zip").exists()
