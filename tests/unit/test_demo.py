"""The logic of the page: uploads, prediction, distances, files, who is let in. No server here."""

from __future__ import annotations

import asyncio
import base64
import io
import math
import os
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from toy import toy_model

from metricgold.commands import demo as command
from metricgold.demo import browser, examples, results, serving, uploads
from metricgold.demo.results import FOCAL_PX, FOV_DEG, Backend, Result, Settings
from metricgold.demo.uploads import Upload, check_upload, read_upload
from metricgold.errors import UserError
from metricgold.imaging import exif_fov_y_deg
from metricgold.outputs import FORMATS, Prediction
from metricgold.uploads import UploadError
from metricgold.workspace import Workspace

RGB = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)


def upload(exif_fov_deg: float | None = None, full_size: tuple[int, int] = (30, 40)) -> Upload:
    return Upload(RGB, full_size, exif_fov_deg, "a", "0")


def result(depth: Any, **known: Any) -> Result:
    """Of a picture of 40x30 px."""
    depth = np.broadcast_to(np.asarray(depth, np.float32), (30, 40))
    return Result(Prediction(RGB, depth, **known), "a", "0", ())


@pytest.fixture(scope="module")
def torch_backend() -> Backend:
    return command.torch_backend(toy_model(fov_matters=True))


def saved(folder: Path, rgb: Any = RGB, name: str = "a.png", **options: Any) -> Path:
    Image.fromarray(rgb).save(folder / name, **options)
    return folder / name


def bomb(path: Path, side: int) -> Path:
    """A PNG of a few bytes whose header promises many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b""))
    return path


def test_an_upload_is_the_picture(tmp_path: Path) -> None:
    found = read_upload(saved(tmp_path, name="my photo!.png"))
    np.testing.assert_array_equal(found.rgb, RGB)
    assert found.name == "my_photo"
    assert (found.full_size, found.exif_fov_deg) == ((30, 40), None)
    assert found.digest == read_upload(saved(tmp_path)).digest
    assert found.digest != read_upload(saved(tmp_path, RGB[::-1])).digest


@pytest.mark.parametrize(("orientation", "size"), [(1, (30, 40)), (6, (40, 30))])
def test_the_camera_of_a_file_is_known(
    tmp_path: Path, orientation: int, size: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 28
    exif[0x0112] = orientation
    path = saved(tmp_path, name="a.jpg", exif=exif)
    focal_px = 28 / math.hypot(36, 24) * 50
    expected = math.degrees(2 * math.atan(size[0] / 2 / focal_px))
    assert check_upload(path) == pytest.approx(expected)
    found = read_upload(path)
    assert found.full_size == size
    assert found.exif_fov_deg == pytest.approx(expected)


def test_a_large_picture_is_scaled_down(tmp_path: Path, torch_backend: Backend) -> None:
    path = saved(tmp_path, np.repeat(RGB[:1], 1000, axis=0).repeat(50, axis=1))
    found = read_upload(path)
    assert found.full_size == (1000, 2000)
    assert found.rgb.shape == (800, 1600, 3)
    fov_deg, _ = results.camera_of(found, Settings(camera=FOCAL_PX, value=500.0))
    assert fov_deg == pytest.approx(90)
    told = results.predict(torch_backend, found, Settings()).told
    assert any("2000x1000 px was scaled down to 1600x800 px" in line for line in told)


def test_what_is_no_picture_gets_a_sentence(tmp_path: Path) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture")
    empty = tmp_path / "empty.jpg"
    empty.touch()
    script = tmp_path / "script.png"  # Pillow would hand this to Ghostscript
    script.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    for path in (text, empty, script):
        for read in (read_upload, check_upload):
            with pytest.raises(UploadError, match=r"^This file is not a picture .*\)\.$"):
                read(path)
    cut = saved(tmp_path)
    cut.write_bytes(cut.read_bytes()[:500])
    assert check_upload(cut) is None  # the header is there
    with pytest.raises(UploadError, match="cannot be read: damaged or cut short") as refused:
        read_upload(cut)
    assert str(tmp_path) not in str(refused.value)


def test_size_limits_are_judged_by_the_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("something was decoded"))
    with pytest.raises(UploadError, match=r"8000x8000 px \(64 megapixels\); at most 50 mega"):
        read_upload(bomb(tmp_path / "large.png", 8000))
    with pytest.raises(UploadError, match="more pixels than any camera"):
        read_upload(bomb(tmp_path / "bomb.png", 60_000))
    with pytest.raises(UploadError, match=r"at most 0.5 megapixels"):
        read_upload(bomb(tmp_path / "small.png", 1000), max_megapixels=0.5)
    monkeypatch.setattr(uploads, "MAX_BYTES", 2**20)
    (tmp_path / "bytes.png").write_bytes(bytes(3 * 2**20))
    with pytest.raises(UploadError, match=r"has 3.0 MB; at most 1 MB"):
        check_upload(tmp_path / "bytes.png")


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("../../etc/passwd", "etc_passwd"),
        ("ä б", "picture"),
        ("x" * 99, "x" * 60),
        ("a-1.b", "a-1.b"),
    ],
)
def test_result_names_are_plain(stem: str, name: str) -> None:
    assert uploads.result_name(stem) == name


def test_a_prediction_is_the_pipelines(torch_backend: Backend) -> None:
    found = results.predict(torch_backend, upload(50.0), Settings(ensemble=2))
    expected = toy_model(fov_matters=True)(
        RGB, fov_deg=50, ensemble_size=2, output_uncertainty=True
    )
    np.testing.assert_allclose(found.prediction.depth, expected.prediction[0, ..., 0], rtol=1e-5)
    assert found.prediction.uncertainty is not None
    np.testing.assert_allclose(
        found.prediction.uncertainty, expected.uncertainty[0, ..., 0], rtol=1e-3, atol=1e-6
    )
    assert "50.0° from the picture's file (EXIF)" in found.told[0]
    assert found.told[-1].startswith("By torch on cpu; ")


def test_steps_and_ensembles(torch_backend: Backend) -> None:
    found = results.predict(torch_backend, upload(50.0), Settings(steps=4, ensemble=3))
    assert found.prediction.uncertainty is not None
    with pytest.raises(UserError, match="has two views of a picture"):
        results.predict(torch_backend, upload(50.0), Settings(ensemble=3))
    for settings in (Settings(steps=1000), Settings(ensemble=11), Settings(ensemble=0)):
        with pytest.raises(UserError, match="must"):
            results.predict(torch_backend, upload(), settings)


def test_exported_graphs_are_a_backend(exported: Workspace, torch_backend: Backend) -> None:
    from export.demo_backend import open_backend

    onnx = open_backend(exported.onnx)
    assert onnx.name == "ONNX Runtime"
    found = [results.predict(b, upload(50.0), Settings()) for b in (onnx, torch_backend)]
    np.testing.assert_allclose(*(f.prediction.depth for f in found), rtol=1e-3)
    assert "onnxruntime-cpu" in found[0].told[-1]
    with pytest.raises(UserError, match="none"):
        open_backend(exported.onnx / "none")


def test_a_missing_backend_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "entry_points", lambda **_: ())
    with pytest.raises(UserError, match="--onnx: nothing installed here runs exported graphs"):
        command.exported_backend(Path("onnx"))


def test_the_camera_that_is_set_counts() -> None:
    known = upload(50.0)
    assert results.camera_of(known, Settings()) == (50.0, "the picture's file (EXIF)")
    assert results.camera_of(known, Settings(camera=FOV_DEG, value=70.0))[0] == 70.0
    fov_deg, _ = results.camera_of(known, Settings(camera=FOCAL_PX, value=15.0))
    assert fov_deg == pytest.approx(90.0)


@pytest.mark.parametrize(
    ("camera", "value", "said"),
    [
        (FOCAL_PX, None, "focal length must be a positive"),
        (FOCAL_PX, -3.0, "focal length must be a positive"),
        (FOCAL_PX, math.nan, "focal length must be a positive"),
        (FOCAL_PX, math.inf, "focal length must be a positive"),
        (FOV_DEG, 0.0, "field of view must lie between"),
        (FOV_DEG, 180.0, "field of view must lie between"),
        (FOV_DEG, None, "field of view must lie between"),
        ("lens", 3.0, "camera must be one of"),
    ],
)
def test_impossible_cameras_get_a_sentence(camera: str, value: float | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        results.camera_of(upload(), Settings(camera=camera, value=value))


def test_an_unknown_camera_is_told(torch_backend: Backend) -> None:
    found = results.predict(torch_backend, upload(), Settings())
    assert found.told[0].startswith("Focal length unknown")
    assert "vertical field of view of 55°" in found.told[0]
    assert (
        "with the assumed field of view" in results.measured(found.prediction, [(1, 2), (3, 4)])[2]
    )


def test_distances_by_hand() -> None:
    ninety = result(2.0, fov_deg=90.0).prediction  # focal length 15 px
    assert results.distance_m(ninety, (5, 7), (20, 7)) == pytest.approx(2.0 * 15 / 15)
    assert results.distance_m(ninety, (5, 7), (5, 27)) == pytest.approx(2.0 * 20 / 15)
    depth = np.full((30, 40), 2.0)
    depth[20, 30] = 5.0
    a = np.array([(3 - 19.5) / 15 * 2, (4 - 14.5) / 15 * 2, 2])
    b = np.array([(30 - 19.5) / 15 * 5, (20 - 14.5) / 15 * 5, 5])
    found = results.distance_m(result(depth, fov_deg=90.0).prediction, (3, 4), (30, 20))
    assert found == pytest.approx(float(np.linalg.norm(a - b)))


def test_what_clicks_tell() -> None:
    error = np.full((30, 40), 0.123, np.float32)
    prediction = result(2.0, fov_deg=90.0, uncertainty=error).prediction
    assert results.measured(prediction, []) == []
    assert results.measured(prediction, [(5, 7)]) == [
        "A (5, 7): 2.00 m ± 0.12 m",
        "Click a second point.",
    ]
    assert results.measured(prediction, [(5, 7), (20, 7)]) == [
        "A (5, 7): 2.00 m ± 0.12 m",
        "B (20, 7): 2.00 m ± 0.12 m",
        "Distance from A to B: 2.00 m in a straight line",
    ]
    far = result(80.0, fov_deg=90.0, depth_max_m=80.0).prediction
    assert results.measured(far, [(0, 0)])[0] == "A (0, 0): 80.00 m or farther"
    assert results.measured(far, [(0, 0), (9, 0)])[2].endswith("line, if A and B are no farther")
    near = np.where(np.arange(40) == 9, 2.0, far.depth).astype(np.float32)
    far = replace(far, depth=near)
    assert results.measured(far, [(0, 0), (9, 0)])[2].endswith("line, if A is no farther")
    for points in ([(40, 0)], [(0, -1)], [(0, 0)] * 3):
        with pytest.raises(UserError, match=r"outside the picture|two points"):
            results.measured(prediction, points)


def test_points_of_a_browser_are_not_believed() -> None:
    assert results.points_of({"points": [[1, 2], [3, 4]]}) == [(1, 2), (3, 4)]
    wrong = (3, [[1, 2]] * 3, [[1]], [[1.5, 2]], [["1", 2]], [[True, 2]], [None])
    for bad in (None, {}, *({"points": points} for points in wrong)):
        with pytest.raises(UserError, match="point"):
            results.points_of(bad)


def test_the_browser_is_sent_depth_to_a_ten_thousandth() -> None:
    depth = np.geomspace(0.1, 80.0, 1200, dtype=np.float32).reshape(30, 40)
    depth[3, 4] = np.nan
    found = browser.log_steps(depth)
    steps = np.frombuffer(base64.b64decode(found["steps"]), "<u2").reshape(30, 40)
    back = found["first"] * np.exp(found["growth"] * (steps - 1.0))
    assert steps[3, 4] == 0
    steps_there = steps > 0
    np.testing.assert_allclose(back[steps_there], depth[steps_there], rtol=1e-4)
    flat = browser.log_steps(np.full((2, 2), 3.0, np.float32))
    assert flat["growth"] == 0
    assert flat["first"] == pytest.approx(3.0)


def test_what_the_browser_is_sent() -> None:
    depth = np.linspace(1, 5, 40)
    found = browser.depth_layers(result(depth, fov_deg=60.0))
    assert (found["width"], found["height"], found["uncertainty"]) == (40, 30, None)
    assert found["near_m"] < found["far_m"]
    picture = Image.open(io.BytesIO(base64.b64decode(found["picture"].partition(",")[2])))
    assert picture.size == (40, 30)
    error = np.zeros((30, 40), np.float32)
    assert browser.depth_layers(result(depth, uncertainty=error))["uncertainty"]["near_m"] > 0
    page = browser.cloud_page(result(depth, fov_deg=60.0))
    assert page.startswith('<iframe class="cloud"')
    assert "<script" not in page  # all of it inside the frame's attribute
    assert "allow-same-origin" not in page
    assert "no point" in browser.cloud_page(result(80.0, depth_max_m=80.0))


def test_the_zip_has_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    depth = np.linspace(1, 1.5, 40)
    shown = result(depth, fov_deg=60.0, uncertainty=np.full((30, 40), 0.1, np.float32))
    path, left_out = results.pack(shown, tmp_path)
    assert left_out == []
    assert path.name == "a_metricgold.zip"
    with zipfile.ZipFile(path) as packed:
        expected = {f"a{ending}" for f in FORMATS.values() for ending in f.endings}
        assert set(packed.namelist()) == expected
        stored = np.load(io.BytesIO(packed.read("a_depth.npy")))
    np.testing.assert_array_equal(stored, shown.prediction.depth)
    monkeypatch.setitem(sys.modules, "OpenEXR", None)
    path, left_out = results.pack(shown, tmp_path)
    assert len(left_out) == 1
    assert left_out[0].startswith("exr is left out: EXR files need the extra 'formats'")
    assert len(list(tmp_path.iterdir())) == 2  # nothing but the two packs
    os.utime(path.parent, (time.time() - 99,) * 2)
    results.forget_packs(tmp_path, 60)
    assert len(list(tmp_path.iterdir())) == 1


def test_examples_state_their_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "SIZE", (36, 48))
    paths = examples.render_examples(tmp_path)
    assert [p.name for p in paths] == ["room.jpg", "kitchen.jpg", "street.jpg"]
    expected = math.degrees(2 * math.atan(18 / (28 / math.hypot(36, 24) * 60)))
    for path in paths:
        assert exif_fov_y_deg(path, 36, 48) == pytest.approx(expected)


def test_logins_and_warnings() -> None:
    assert serving.parse_login(None) is None
    assert serving.parse_login("me:a:b") == ("me", "a:b")
    for bad in ("me", "me:", ":secret", ""):
        with pytest.raises(UserError, match="USER:PASSWORD"):
            serving.parse_login(bad)
    assert serving.warning("127.0.0.1", None) is None
    assert serving.warning("0.0.0.0", ("me", "secret")) is None
    assert "there is no password" in str(serving.warning("0.0.0.0", None))


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 200),
        ("/gradio_api/file=/folder/a.png", 200),
        ("/gradio_api/file=http://10.0.0.1/", 403),
        ("/gradio_api/file=HTTPS:/10.0.0.1/", 403),
        ("/gradio_api/proxy=https://10.0.0.1/", 403),
    ],
)
def test_the_guard(path: str, status: int) -> None:
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(serving.Guard(app)({"type": "http", "path": path}, None, send))
    assert sent[0]["status"] == status
    assert b"default-src 'self'" in dict(sent[0]["headers"])[b"content-security-policy"]


def test_without_gradio_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_set_environment", lambda _: None)
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"pip install 'metricgold\[demo\]'"):
        serving.serve([], 1, host="127.0.0.1", port=1, max_megapixels=1, login=None)


def test_the_command_line_is_quick() -> None:
    code = "import sys, metricgold.cli; assert not {'torch', 'gradio', 'scipy'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
