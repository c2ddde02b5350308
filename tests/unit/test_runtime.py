"""The torch-free session equals the torch pipeline; stale files, absent back-ends are refused."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from toy import toy_model

from export import backends, driver
from export.manifest import BackendUnavailableError, ExportError
from export.runtime import BACKENDS, DepthSession, InferenceError, open_session
from metricgold import geometry
from metricgold.pipeline import MetricGoldPipeline
from metricgold.workspace import Workspace

ROOT = Path(__file__).parents[2]
CPU = "onnxruntime-cpu"


@pytest.fixture(scope="module")
def session(exported: Workspace) -> DepthSession:
    return open_session(exported.onnx, CPU)


@pytest.fixture(scope="module")
def pipeline() -> MetricGoldPipeline:
    return toy_model(fov_matters=True)


def picture(height: int = 37, width: int = 50) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def noise(session: DepthSession, rgb: NDArray[np.uint8], count: int) -> NDArray[np.float32]:
    """What the torch pipeline draws from a generator seeded with 3, one member after another."""
    size = session.infer(rgb).size
    factor = session.manifest.latent_factor
    shape = (1, 4, size[0] // factor, size[1] // factor)
    generator = torch.Generator().manual_seed(3)
    members = [torch.randn(shape, generator=generator) for _ in range(count)]
    return torch.cat(members).numpy()


@pytest.mark.parametrize("fov_deg", [None, 30.0, 95.0])
@pytest.mark.parametrize("size", [(37, 50), (1, 1), (4, 90)])
def test_one_step_equals_the_pipeline(
    session: DepthSession,
    pipeline: MetricGoldPipeline,
    fov_deg: float | None,
    size: tuple[int, int],
) -> None:
    rgb = picture(*size)
    result = session.infer(rgb, fov_deg=fov_deg)
    expected = pipeline(rgb, fov_deg=fov_deg).prediction[0, ..., 0]
    assert result.depth.dtype == np.float32
    assert result.depth.shape == size
    np.testing.assert_allclose(result.depth, expected, rtol=1e-3)
    assert result.uncertainty is None
    assert set(result.seconds) == {"preprocess", "encode", "denoise", "decode", "postprocess"}


@pytest.mark.parametrize("fov_deg", [None, 60.0])
def test_one_step_starts_from_the_rays_of_the_camera(
    session: DepthSession, fov_deg: float | None
) -> None:
    rgb, factor = picture(), session.manifest.latent_factor
    found = session.infer(rgb, fov_deg=fov_deg)
    fov = np.array([math.nan if fov_deg is None else fov_deg])
    rays = geometry.ray_latent(fov, (found.size[0] // factor, found.size[1] // factor))
    given = session.infer(rgb, fov_deg=fov_deg, initial_latents=rays)
    np.testing.assert_array_equal(found.depth, given.depth)
    nothing = session.infer(rgb, fov_deg=fov_deg, initial_latents=np.zeros_like(rays))
    assert np.abs(nothing.depth / found.depth - 1).max() > 1e-4


def test_field_of_view_matters(session: DepthSession) -> None:
    near, far = (session.infer(picture(), fov_deg=f).depth for f in (30.0, 95.0))
    assert np.abs(near / far - 1).max() > 1e-2


def test_four_steps_equal_the_pipeline(session: DepthSession, pipeline: MetricGoldPipeline) -> None:
    rgb = picture()
    expected = pipeline(rgb, 4, generator=torch.Generator().manual_seed(3)).prediction[0, ..., 0]
    actual = session.infer(rgb, steps=4, initial_latents=noise(session, rgb, 1)).depth
    np.testing.assert_allclose(actual, expected, rtol=1e-3)


@pytest.mark.parametrize("members", [2, 3])
def test_ensemble_equals_the_pipeline(
    session: DepthSession, pipeline: MetricGoldPipeline, members: int
) -> None:
    rgb = picture()
    generator = torch.Generator().manual_seed(3)
    expected = pipeline(rgb, 2, ensemble_size=members, generator=generator, output_uncertainty=True)
    latents = noise(session, rgb, members)
    actual = session.infer(rgb, steps=2, ensemble_size=members, initial_latents=latents)
    assert expected.uncertainty is not None
    assert actual.uncertainty is not None
    np.testing.assert_allclose(actual.depth, expected.prediction[0, ..., 0], rtol=1e-3)
    np.testing.assert_allclose(
        actual.uncertainty, expected.uncertainty[0, ..., 0], rtol=1e-3, atol=1e-3
    )


def test_ensemble_of_one_step_equals_the_pipeline(
    session: DepthSession, pipeline: MetricGoldPipeline
) -> None:
    rgb = picture(40, 61)
    options = {"ensemble_size": 2, "fov_deg": 60.0}
    expected = pipeline(rgb, output_uncertainty=True, **options)
    actual = session.infer(rgb, **options)
    assert actual.uncertainty is not None
    np.testing.assert_allclose(actual.depth, expected.prediction[0, ..., 0], rtol=1e-3)
    np.testing.assert_allclose(
        actual.uncertainty, expected.uncertainty[0, ..., 0], rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize(
    "options", [{}, {"ensemble_size": 2}, {"steps": 3, "ensemble_size": 2, "seed": 5}]
)
def test_many_pictures_equal_each_alone(
    session: DepthSession, monkeypatch: pytest.MonkeyPatch, options: dict[str, int]
) -> None:
    sizes = [(37, 50), (50, 37), (40, 54), (37, 50), (80, 20)]
    pictures = [picture(*size) + np.uint8(i) for i, size in enumerate(sizes)]
    fovs = [None, 40.0, 55.0, 90.0, 30.0]
    expected = [session.infer(p, fov_deg=f, **options) for p, f in zip(pictures, fovs, strict=True)]
    batches: list[int] = []
    run = session.backend.run

    def counted(component: str, inputs: backends.Arrays) -> NDArray[np.float32]:
        if component == "depth_decoder":
            batches.append(len(inputs["depth_latent"]))
        return run(component, inputs)

    monkeypatch.setattr(session.backend, "run", counted)
    found = session.infer_many(pictures, fov_deg=fovs, **options)
    members = options.get("ensemble_size", 1)
    assert batches == [n for n in (3, 1, 1) for _ in range(members)]
    for one, alone, rgb in zip(found, expected, pictures, strict=True):
        assert one.depth.shape == rgb.shape[:2]
        assert one.size == alone.size
        np.testing.assert_allclose(one.depth, alone.depth, rtol=1e-5)
        assert (one.uncertainty is None) == (members == 1)
        if one.uncertainty is not None and alone.uncertainty is not None:
            np.testing.assert_allclose(one.uncertainty, alone.uncertainty, rtol=1e-3, atol=1e-5)
    monkeypatch.setattr(session.backend, "max_batch", 2)
    batches.clear()
    session.infer_many(pictures, fov_deg=fovs, **options)
    assert batches == [n for n in (2, 1, 1, 1) for _ in range(members)]


def test_many_pictures_are_checked_before_any_is_computed(
    session: DepthSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session.backend, "run", lambda *_: pytest.fail("something was computed"))
    with pytest.raises(InferenceError, match="fov_deg"):
        session.infer_many([picture(), picture()], fov_deg=[50.0, 180.0])
    with pytest.raises(ValueError, match=r"zip\(\)"):
        session.infer_many([picture()], fov_deg=[])
    assert session.infer_many([], fov_deg=[]) == []


def test_one_step_has_two_views(session: DepthSession) -> None:
    with pytest.raises(InferenceError, match="ensemble_size is 3: one step without noise has two"):
        session.infer(picture(), ensemble_size=3)


def test_seed_decides_the_noise(session: DepthSession) -> None:
    first, again, other = (session.infer(picture(), steps=2, seed=s).depth for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first / other - 1).max() > 1e-4


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"fov_deg": 0.0}, "fov_deg"),
        ({"fov_deg": 180.0}, "fov_deg"),
        ({"fov_deg": float("nan")}, "fov_deg"),
        ({"steps": 0}, "steps"),
        ({"steps": 1001}, "steps"),
        ({"ensemble_size": 0}, "ensemble_size"),
        ({"processing_resolution": -1}, "processing_resolution"),
    ],
)
def test_options_out_of_range_are_named(
    session: DepthSession, options: dict[str, float], named: str
) -> None:
    with pytest.raises(InferenceError, match=named):
        session.infer(picture(), **options)


def test_other_arrays_are_refused(session: DepthSession) -> None:
    with pytest.raises(InferenceError, match="float32"):
        session.infer(picture().astype(np.float32))
    with pytest.raises(InferenceError, match="uint8"):
        session.infer(picture()[..., 0])


def test_auto_says_what_it_took(exported: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "load_driver", lambda: "no NVIDIA driver on this machine")
    lines: list[str] = []
    session = open_session(exported.onnx, report=lines.append)
    assert session.backend.name == CPU
    assert lines == [
        f"back-end {CPU}; not tensorrt, tensorrt-rtx, onnxruntime-cuda: "
        "no NVIDIA driver on this machine"
    ]


@pytest.mark.parametrize("name", [b for b in BACKENDS if b != CPU])
def test_a_named_backend_never_falls_back(
    exported: Workspace, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(driver, "load_driver", lambda: "no NVIDIA driver on this machine")
    with pytest.raises(BackendUnavailableError, match=f"{name}: no NVIDIA driver"):
        open_session(exported.onnx, name)


def test_a_silent_fall_back_of_onnxruntime_is_noticed(
    exported: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = backends._import_onnxruntime()
    monkeypatch.setattr(real, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(backends, "cuda_driver_problem", lambda: None)
    session_class = real.InferenceSession
    monkeypatch.setattr(
        real,
        "InferenceSession",
        lambda path, options, providers: session_class(path, options, ["CPUExecutionProvider"]),
    )
    with pytest.raises(BackendUnavailableError, match="fell back to CPUExecutionProvider"):
        open_session(exported.onnx, "onnxruntime-cuda")


_TELEMETRY = """
import os, sys, tempfile
from export.runtime import open_session
open_session(sys.argv[1], "onnxruntime-cpu")
print(os.listdir(tempfile.gettempdir()))
"""


def test_onnxruntime_tells_nobody_of_its_use(exported: Workspace, tmp_path: Path) -> None:
    """Official builds would keep an identifier in the temporary folder, to send it with events."""
    env = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [sys.executable, "-c", _TELEMETRY, str(exported.onnx)],
        cwd=ROOT,
        env=env | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_unknown_backend(exported: Workspace) -> None:
    with pytest.raises(ExportError, match="unknown back-end 'tpu'"):
        open_session(exported.onnx, "tpu")


def test_stale_missing_and_foreign_files_are_named(exported: Workspace, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"manifest\.json: no such file; run"):
        open_session(tmp_path)
    folder = tmp_path / "onnx"
    shutil.copytree(exported.onnx, folder)
    graph = folder / "unet_step.onnx"
    content = graph.read_bytes()
    graph.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ExportError, match=r"unet_step\.onnx: differs"):
        open_session(folder)
    graph.unlink()
    with pytest.raises(ExportError, match=r"unet_step\.onnx: missing"):
        open_session(folder)
    (folder / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(ExportError, match="format 99, this version reads 4"):
        open_session(folder)
    (folder / "manifest.json").write_text('{"format"')
    with pytest.raises(ExportError, match="cannot be read"):
        open_session(folder)


_WITHOUT_TORCH = """
import sys
for name in (
    "torch", "diffusers", "onnx", "onnxscript", "matplotlib", "scipy", "h5py", "safetensors",
    "pydantic", "yaml", "typer", "click", "rich",
):
    sys.modules[name] = None
from export import trt_infer
sys.exit(trt_infer.main(sys.argv[1:]))
"""


def test_inference_needs_neither_torch_nor_diffusers_nor_a_config(
    exported: Workspace, tmp_path: Path
) -> None:
    from PIL import Image

    Image.fromarray(picture()).save(tmp_path / "photo.png")
    command = [sys.executable, "-c", _WITHOUT_TORCH, str(tmp_path / "photo.png")]
    command += ["--model", str(exported.onnx), "--out", str(tmp_path / "out"), "--steps", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "out" / "photo_depth.npy").shape == (37, 50)
