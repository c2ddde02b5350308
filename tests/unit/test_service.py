"""The HTTP service over a toy model: depth, formats, limits, refusals, what is noted. No socket."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from export.manifest import ExportError
from export.runtime import DepthSession, open_session
from export.service import model, serving, watching
from export.service.app import create_app
from export.service.limits import Limits
from export.service.metrics import Metrics
from export.service.model import Model, Options
from export.service.service import Service
from metricgold.cli import app as command_line
from metricgold.errors import UserError
from metricgold.workspace import Workspace

CPU = "onnxruntime-cpu"
RGB = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
TOKEN = "kJ3-secret"


def file_of(rgb: Any = RGB, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, kind, **options)
    return file.getvalue()


class Client:
    """Speaks ASGI with the app in this very process."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def ask(
        self,
        path: str,
        body: bytes | None = None,
        kind: str = "image/png",
        *,
        headers: dict[str, str] | None = None,
        chunk: int = 4096,
        pause_s: float = 0.0,
        stay_s: float = 3600.0,
        leave: threading.Event | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body; the client sends in chunks.

        It goes after ``stay_s``, or when ``leave`` is set.
        """
        path, _, query = path.partition("?")
        sent = {"host": "127.0.0.1", **(headers or {})}
        if body is not None:
            sent |= {"content-type": kind}
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "GET" if body is None else "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(k.lower().encode(), v.encode()) for k, v in sent.items()],
            "server": ("127.0.0.1", 80),
            "client": ("127.0.0.1", 1),
        }
        parts = [body[i : i + chunk] for i in range(0, len(body), chunk)] if body else [b""]
        messages: list[Any] = []

        async def receive() -> Any:
            if parts:
                await asyncio.sleep(pause_s)
                part = parts.pop(0)
                return {"type": "http.request", "body": part, "more_body": bool(parts)}
            if leave is None:
                await asyncio.sleep(stay_s)
            else:
                while not leave.is_set():
                    await asyncio.sleep(0.001)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            messages.append(message)

        await self.app(scope, receive, send)
        start = messages[0]
        found = {k.decode().lower(): v.decode() for k, v in start["headers"]}
        return start["status"], found, b"".join(m.get("body", b"") for m in messages[1:])


class Server:
    """A service that can be asked from synchronous code; its loop has a thread of its own."""

    def __init__(self, folder: Path, token: str | None = None, **limits: Any) -> None:
        bounds = Limits(**limits)
        self.metrics = Metrics()
        self.model = Model(
            folder, CPU, bounds, report=lambda _: None, counted=self.metrics.batch, threads=1
        )
        self.service: Service
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._ended = asyncio.Event()
        started = threading.Event()

        async def live() -> None:
            self.service = Service(self.model, bounds, self.metrics)
            self.client = Client(
                watching.Watched(create_app(self.service, token), self.metrics, bounds)
            )
            async with self.service.lifespan(None):
                started.set()
                await self._ended.wait()

        self._life = asyncio.run_coroutine_threadsafe(live(), self._loop)
        assert started.wait(30)

    def until_ready(self) -> None:
        until(lambda: self.model.ready or self.service.failure is not None)
        assert self.service.failure is None

    def ask(self, *arguments: Any, **options: Any) -> tuple[int, dict[str, str], bytes]:
        work = self.client.ask(*arguments, **options)
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def ask_all(
        self, asked: Sequence[tuple[Any, ...]], together: int = 0
    ) -> list[tuple[int, dict[str, str], bytes]]:
        """Answers of requests made at once; the networks wait until ``together`` are queued."""

        async def all_of() -> Any:
            batcher = self.service.batcher
            usual, batcher._wait_s = batcher._wait_s, 3600.0 if together else batcher._wait_s
            answers = asyncio.gather(*(self.client.ask(*a) for a in asked))
            async with asyncio.timeout(60):
                while len(batcher) < together:
                    await asyncio.sleep(0.001)
                if together:
                    batcher._wait_s = 0.0
                    batcher._arrived.set()
                found = await answers
            batcher._wait_s = usual
            return found

        return asyncio.run_coroutine_threadsafe(all_of(), self._loop).result(60)  # type: ignore[no-any-return]

    def figure(self, name: str) -> float:
        """One line of /metrics."""
        for line in self.ask("/metrics")[2].decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
        raise AssertionError(name)

    def end(self) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._life.result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()


class Clock:
    """Stands in for the time that a request has: it is up when a test says so, not before.

    Its ``seconds`` are a number that nothing else waits for.
    """

    seconds = 61.5

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._running: list[asyncio.Timeout] = []
        usual = asyncio.timeout

        def timeout(seconds: float | None) -> asyncio.Timeout:
            if seconds != self.seconds:
                return usual(seconds)
            self._running.append(usual(None))
            return self._running[-1]

        monkeypatch.setattr(asyncio, "timeout", timeout)

    def time_is_up(self, server: Server) -> None:
        """For every request that is in the house."""

        def end() -> None:
            for timeout in self._running:
                with contextlib.suppress(RuntimeError):  # it has ended
                    timeout.reschedule(server._loop.time())

        server._loop.call_soon_threadsafe(end)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(scope="module")
def session(exported: Workspace) -> DepthSession:
    return open_session(exported.onnx, CPU)


@pytest.fixture(scope="module")
def server(exported: Workspace) -> Iterator[Server]:
    made = Server(exported.onnx, max_megapixels=0.05, max_bytes=2**20)
    made.until_ready()
    yield made
    made.end()


@pytest.fixture
def blocked(
    exported: Workspace, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> Iterator[tuple[Server, threading.Event]]:
    """A server whose networks wait for an event; it has two places, and time by ``clock``."""
    made = Server(exported.onnx, places=2, timeout_s=Clock.seconds)
    made.until_ready()
    go, predict = threading.Event(), made.model.session.infer_many

    def slow(*arguments: Any, **options: Any) -> Any:
        assert go.wait(120)
        return predict(*arguments, **options)

    monkeypatch.setattr(made.model.session, "infer_many", slow)
    yield made, go
    go.set()
    made.end()


def problem(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, str]:
    assert answer[1]["content-type"] == "application/json"
    return answer[0], json.loads(answer[2])["error"]


def summary_of(answer: tuple[int, dict[str, str], bytes]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(answer[1]["x-metricgold-summary"])
    return found


def form(content: bytes, name: str = "image", file: bool = True) -> tuple[bytes, str]:
    """A form's body and its type."""
    shown = '; filename="a.png"' if file else ""
    head = f'--B\r\nContent-Disposition: form-data; name="{name}"{shown}\r\n\r\n'
    return head.encode() + content + b"\r\n--B--\r\n", "multipart/form-data; boundary=B"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_pictures_depth_is_the_sessions(server: Server, session: DepthSession, kind: str) -> None:
    content = file_of(kind=kind)
    answer = server.ask("/v1/depth?fov_deg=50", content, f"image/{kind.lower()}")
    assert answer[0] == 200
    assert answer[1]["content-type"] == "application/x-npy"
    rgb = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    expected = session.infer(rgb, fov_deg=50.0).depth
    depth = np.load(io.BytesIO(answer[2]))
    np.testing.assert_allclose(depth, expected, rtol=1e-5)
    summary = summary_of(answer)
    assert summary["camera"] == {"fov_y_deg": 50.0, "source": "fov_deg"}
    assert summary["size"] == {"width": 40, "height": 30}
    assert summary["depth_min_m"] == pytest.approx(float(expected.min()), rel=1e-5)
    assert (summary["backend"], summary["steps"], summary["ensemble"]) == (CPU, 1, 1)
    assert set(summary["seconds"]) >= {"read", "picture", "wait", "encode", "denoise", "decode"}
    assert "denoise;dur=" in answer[1]["server-timing"]


def test_a_form_does_as_well_as_a_body(server: Server) -> None:
    raw = server.ask("/v1/depth", file_of())
    sent = server.ask("/v1/depth", *form(file_of()))
    assert sent[0] == 200
    np.testing.assert_array_equal(np.load(io.BytesIO(sent[2])), np.load(io.BytesIO(raw[2])))


def test_every_format(server: Server, session: DepthSession) -> None:
    expected = session.infer(RGB, ensemble_size=2)
    assert expected.uncertainty is not None

    def asked(name: str) -> tuple[int, dict[str, str], bytes]:
        return server.ask(f"/v1/depth?format={name}&ensemble=2", file_of())

    with np.load(io.BytesIO(asked("npz")[2])) as packed:
        np.testing.assert_allclose(packed["depth"], expected.depth, rtol=1e-5)
        np.testing.assert_allclose(packed["uncertainty"], expected.uncertainty, rtol=1e-3)
    deep = asked("png16")
    unit = summary_of(deep)["metres_per_step"]
    steps = np.asarray(Image.open(io.BytesIO(deep[2])))
    np.testing.assert_allclose(steps * unit, expected.depth, atol=0.51 * unit, rtol=1e-5)
    for name in ("colour", "side", "normals"):
        shown = asked(name)
        assert shown[1]["content-type"] == "image/png"
        assert Image.open(io.BytesIO(shown[2])).mode == "RGB"
    plain = asked("json")
    assert plain[1]["content-type"] == "application/json"
    assert "x-metricgold-summary" not in plain[1]
    said = json.loads(plain[2])
    assert said["uncertainty_median_m"] == pytest.approx(
        float(np.median(expected.uncertainty)), rel=1e-3
    )
    assert said["metres_per_step"] is None
    assert problem(asked("bmp"))[0] == 422


def test_the_camera_is_the_requests_else_the_files(server: Server) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 24
    photo = file_of(kind="JPEG", exif=exif)

    def camera(query: str, content: bytes) -> Any:
        return summary_of(server.ask(f"/v1/depth{query}", content, "image/jpeg"))["camera"]

    assert camera("", file_of()) == {"fov_y_deg": None, "source": "unknown"}
    found = camera("", photo)
    assert found["source"] == "EXIF"
    focal = 24 / np.hypot(36, 24) * np.hypot(30, 40)
    assert found["fov_y_deg"] == pytest.approx(2 * np.degrees(np.arctan(15 / focal)))
    found = camera("?focal_px=15", photo)
    assert found == {"fov_y_deg": pytest.approx(90.0), "source": "focal_px"}
    both = server.ask("/v1/depth?focal_px=15&fov_deg=3", photo)
    assert problem(both)[1].startswith("fov_deg and focal_px say the same thing")


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("?steps=0", "steps: "),
        ("?steps=x", "steps: "),
        ("?ensemble=99", "ensemble: "),
        ("?ensemble=3", "ensemble_size is 3: one step without noise has two views"),
        ("?fov_deg=180", "fov_deg: "),
        ("?fov_deg=nan", "fov_deg"),
        ("?focal_px=-1", "focal_px: "),
        ("?processing_resolution=9999", "processing_resolution: "),
    ],
)
def test_impossible_options_get_a_sentence(server: Server, query: str, said: str) -> None:
    status, sentence = problem(server.ask(f"/v1/depth{query}", file_of()))
    assert status == 422
    assert said in sentence


def test_the_networks_size_is_bounded(server: Server) -> None:
    wide = file_of(np.zeros((4, 4000, 3), np.uint8))
    status, sentence = problem(server.ask("/v1/depth?processing_resolution=0", wide))
    assert status == 422
    assert "4000x4 px; at most 2048 px" in sentence


def test_what_is_no_picture_gets_a_sentence(server: Server) -> None:
    cut = file_of()[:200]
    assert problem(server.ask("/v1/depth", b"no picture"))[1].startswith("This file is not a pict")
    empty = problem(server.ask("/v1/depth", b""))
    assert empty == (422, "There is no picture: the body is empty.")
    assert problem(server.ask("/v1/depth", cut)) == (422, problem(server.ask("/v1/depth", cut))[1])
    assert "damaged or cut short" in problem(server.ask("/v1/depth", cut))[1]
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    assert problem(server.ask("/v1/depth", script))[0] == 422
    bitmap = file_of(kind="BMP")  # a format that the page takes and the service does not
    assert problem(server.ask("/v1/depth", bitmap))[0] == 422
    for kind in ("text/plain", "", "image/svg+xml", "application/octet-stream"):
        assert problem(server.ask("/v1/depth", file_of(), kind))[0] == 415


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (form(b"x", name="file"), "no file in a part named 'image'"),
        (form(b""), "the form's part 'image' is empty"),
        (form(b"x", file=False), "no file in a part named 'image'"),
        ((b"--B\r\nnonsense", "multipart/form-data; boundary=B"), ""),
        ((b"x", "multipart/form-data"), "cannot be read"),
    ],
)
def test_bad_forms_get_a_sentence(server: Server, body: tuple[bytes, str], said: str) -> None:
    status, sentence = problem(server.ask("/v1/depth", *body))
    assert status == 422
    assert said in sentence


def test_too_much_is_refused_before_it_is_decoded(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = file_of(np.zeros((300, 300, 3), np.uint8))
    with monkeypatch.context() as context:
        context.setattr(Image.Image, "load", lambda _: pytest.fail("something was decoded"))
        status, sentence = problem(server.ask("/v1/depth", large))
        assert status == 413
        assert "300x300 px (0.09 megapixels); at most 0.05 megapixels" in sentence
    declared = {"content-length": str(2 * 2**20)}
    for headers in ({}, declared):
        status, sentence = problem(server.ask("/v1/depth", bytes(2 * 2**20), headers=headers))
        assert status == 413
        assert "at most 1 MB" in sentence
        status, _ = problem(server.ask("/v1/depth", *form(bytes(2 * 2**20)), headers=headers))
        assert status == 413


def test_pictures_of_one_size_go_together_and_a_bad_one_fails_alone(
    server: Server, session: DepthSession
) -> None:
    pictures = [RGB + np.uint8(i) for i in range(4)]
    other = np.ascontiguousarray(RGB.transpose(1, 0, 2))
    asked = [(f"/v1/depth?fov_deg={40 + i}", file_of(p)) for i, p in enumerate(pictures)]
    asked += [("/v1/depth?ensemble=2", file_of()), ("/v1/depth", file_of(other))]
    asked += [("/v1/depth", b"poison"), ("/v1/depth", file_of()[:300])]
    answers = server.ask_all(asked, together=6)
    assert [a[0] for a in answers] == [200] * 6 + [422] * 2
    assert [summary_of(a)["batch"] for a in answers[:6]] == [4, 4, 4, 4, 1, 1]
    for i, (answer, rgb) in enumerate(zip(answers, pictures, strict=False)):
        depth = np.load(io.BytesIO(answer[2]))
        np.testing.assert_allclose(depth, session.infer(rgb, fov_deg=40.0 + i).depth, rtol=1e-5)


def test_large_pictures_go_in_smaller_batches(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    height, width = server.model.session.working_size(RGB)
    monkeypatch.setattr(model, "BATCH_MEGAPIXELS", 2.5 * height * width / 1e6)
    answers = server.ask_all([("/v1/depth", file_of())] * 5, together=5)
    assert sorted(summary_of(a)["batch"] for a in answers) == [1, 2, 2, 2, 2]
    monkeypatch.setattr(model, "BATCH_MEGAPIXELS", 1e-9)
    assert server.ask("/v1/depth", file_of())[0] == 200


def test_a_failure_in_a_batch_is_its_own(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    predict = server.model.session.infer_many

    def picky(pictures: Any, **options: Any) -> Any:
        if any((p == 0).all() for p in pictures):
            raise ExportError("non-finite depth")
        return predict(pictures, **options)

    monkeypatch.setattr(server.model.session, "infer_many", picky)
    asked = [("/v1/depth", file_of(p)) for p in (RGB, np.zeros_like(RGB), RGB)]
    assert [a[0] for a in server.ask_all(asked, together=3)] == [200, 500, 200]


def test_a_full_house_sends_away(
    blocked: tuple[Server, threading.Event], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, go = blocked
    submit, submitted = server.service.batcher.submit, []

    def counted(*arguments: Any) -> Any:
        submitted.append(arguments)
        return submit(*arguments)

    monkeypatch.setattr(server.service.batcher, "submit", counted)
    with ThreadPoolExecutor(1) as others:
        asking = others.submit(server.ask_all, [("/v1/depth", file_of())] * 5)
        until(lambda: len(submitted) == 2)  # both were read
        clock.time_is_up(server)
        answers = asking.result(60)
    assert sorted(a[0] for a in answers) == [503, 503, 503, 504, 504]
    for answer in answers:
        status, sentence = problem(answer)
        if status == 503:
            assert sentence == "All places are taken; come again soon."
            assert int(answer[1]["retry-after"]) >= 1
        else:
            assert "no depth within 61.5 s" in sentence
    assert server.figure("metricgold_requests_inside") == 0
    assert server.figure("metricgold_queue_pictures") == 0
    go.set()
    assert server.ask("/v1/depth", file_of())[0] == 200


def test_a_slow_sender_is_not_waited_for(
    blocked: tuple[Server, threading.Event], clock: Clock
) -> None:
    server, _ = blocked
    with ThreadPoolExecutor(1) as others:
        asking = others.submit(server.ask, "/v1/depth", file_of(), chunk=16, pause_s=3600.0)
        until(lambda: server.figure("metricgold_requests_inside") == 1)
        clock.time_is_up(server)
        answer = asking.result(60)
    assert problem(answer) == (408, "The picture was not sent within 61.5 s.")
    assert server.figure("metricgold_requests_inside") == 0


def test_who_goes_is_forgotten(blocked: tuple[Server, threading.Event]) -> None:
    """Though nothing comes out of the networks and no time is up."""
    server, go = blocked
    answers = [server.ask("/v1/depth", file_of(), stay_s=0.1) for _ in range(2)]
    assert [a[0] for a in answers] == [499, 499]
    assert server.figure("metricgold_queue_pictures") == 0
    assert server.figure("metricgold_requests_inside") == 0
    go.set()
    assert summary_of(server.ask("/v1/depth", file_of()))["batch"] == 1


@pytest.mark.parametrize("how", ["time is up", "client goes"])
def test_the_networks_stop_when_nobody_waits(exported: Workspace, clock: Clock, how: str) -> None:
    server = Server(exported.onnx, timeout_s=Clock.seconds)
    server.until_ready()
    ran: list[str] = []
    third, answered = threading.Event(), threading.Event()
    backend: Any = server.model.session.backend._backend  # type: ignore[attr-defined]
    run = backend.run

    def held(component: str, inputs: Any) -> Any:
        ran.append(component)
        if len(ran) == 3:
            third.set()
            assert answered.wait(120)
        return run(component, inputs)

    backend.run = held
    with ThreadPoolExecutor(1) as others:
        leave = {} if how == "time is up" else {"leave": third}
        asking = others.submit(server.ask, "/v1/depth?steps=50", file_of(), **leave)
        assert third.wait(60)
        if how == "time is up":
            clock.time_is_up(server)
        assert asking.result(60)[0] == (504 if how == "time is up" else 499)
    answered.set()
    assert server.ask("/v1/depth", file_of())[0] == 200, "the next one is served at once"
    one_step = ["vae_encoder", "unet_step", "depth_decoder"]
    assert ran == ["vae_encoder", "unet_step", "unet_step", *one_step]
    server.end()


def test_a_server_that_loads_says_so(exported: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    go, opened = threading.Event(), Model.open

    def slow(loaded: Model) -> None:
        assert go.wait(30)
        opened(loaded)

    monkeypatch.setattr(Model, "open", slow)
    server = Server(exported.onnx)
    try:
        assert server.ask("/healthz")[0] == 200
        assert server.ask("/readyz")[0] == 503
        for answer in (server.ask("/v1/depth", file_of()), server.ask("/v1/model")):
            assert problem(answer) == (503, "The model is being loaded; come again soon.")
            assert "retry-after" in answer[1]
        go.set()
        server.until_ready()
        assert server.ask("/readyz")[0] == 200
        assert server.ask("/v1/depth", file_of())[0] == 200
    finally:
        go.set()
        server.end()


def test_a_model_that_cannot_be_opened_ends_the_server(exported: Workspace, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"manifest\.json: no such file"):
        Model(tmp_path, CPU, Limits())
    (tmp_path / "manifest.json").write_bytes((exported.onnx / "manifest.json").read_bytes())
    server = Server(tmp_path)
    told = threading.Event()
    server.service.on_failure = told.set
    deadline = time.monotonic() + 30
    while server.service.failure is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert "missing, though the manifest lists it" in str(server.service.failure)
    assert server.ask("/readyz")[0] == 503
    server.end()


def test_what_is_served_is_told(server: Server, exported: Workspace) -> None:
    said = json.loads(server.ask("/v1/model")[2])
    manifest = server.model.manifest
    assert (said["depth_min_m"], said["depth_max_m"]) == (0.1, manifest.depth_max_m)
    assert said["graphs"] == {n: g.onnx_sha256 for n, g in manifest.components.items()}
    assert said["checkpoint_sha256"] == manifest.checkpoint_sha256
    assert (said["backend"], said["max_batch"], said["precision"]) == (CPU, 8, "fp32")


def test_figures_are_counted(server: Server) -> None:
    before = server.figure("metricgold_batch_pictures_sum")
    batches = server.figure("metricgold_batch_pictures_count")
    server.ask_all([("/v1/depth", file_of())] * 3, together=3)
    assert server.figure("metricgold_batch_pictures_sum") == before + 3
    assert server.figure("metricgold_batch_pictures_count") == batches + 1
    kind = server.ask("/metrics")[1]["content-type"]
    assert kind == "text/plain; version=0.0.4; charset=utf-8"
    assert server.figure('metricgold_requests_total{route="/v1/depth",status="200"}') >= 3
    assert server.figure('metricgold_stage_seconds_count{stage="denoise"}') >= 3
    assert server.figure("process_resident_memory_bytes") > 2**20
    assert server.ask("/no/such/route")[0] == 404
    assert server.figure('metricgold_requests_total{route="other",status="404"}') == 1


def test_a_request_is_one_line_without_its_picture(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "export.service"):
        server.ask("/v1/depth?fov_deg=50&format=json", *form(file_of()))
    (record,) = [r for r in caplog.records if r.getMessage() == "request"]
    line = json.loads(watching.JsonLines().format(record))
    assert line.pop("seconds") >= 0
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info",
        "event": "request",
        "method": "POST",
        "route": "/v1/depth",
        "status": 200,
        "bytes": len(file_of()),
        "width": 40,
        "height": 30,
        "batch": 1,
    }


def test_only_who_has_the_token_is_let_in(exported: Workspace) -> None:
    server = Server(exported.onnx, TOKEN)
    try:
        server.until_ready()
        right = {"authorization": f"Bearer {TOKEN}"}
        wrong = [{}, {"authorization": "Bearer x"}, {"authorization": f"Basic {TOKEN}"}]
        wrong += [{"authorization": f"Bearer {TOKEN}é"}, {"authorization": TOKEN}]
        for headers in wrong:
            answer = server.ask("/v1/depth", file_of(), headers=headers)
            assert problem(answer)[0] == 401
            assert answer[1]["www-authenticate"] == "Bearer"
            assert server.ask("/metrics", headers=headers)[0] == 401
            assert server.ask("/v1/model", headers=headers)[0] == 401
        assert server.ask("/v1/depth", file_of(), headers=right)[0] == 200
        assert server.ask("/metrics", headers=right)[0] == 200
        for path in ("/healthz", "/readyz"):
            assert server.ask(path)[0] == 200
        assert TOKEN not in server.ask("/openapi.json")[2].decode()
    finally:
        server.end()


def test_exposure_needs_a_token() -> None:
    for host in ("127.0.0.1", "localhost", "::1"):
        serving.check_exposure(host, None)
    serving.check_exposure("0.0.0.0", TOKEN)
    for host in ("0.0.0.0", "192.168.1.2", "::", ""):
        with pytest.raises(UserError, match="give a token with --token or METRICGOLD_SERVE_TOKEN"):
            serving.check_exposure(host, None)
    for bad in ("a b", "ä", "a\n"):
        with pytest.raises(UserError, match="printable ASCII") as refused:
            serving.check_exposure("127.0.0.1", bad)
        assert bad not in str(refused.value)


def test_a_static_export_takes_one_picture_at_a_time(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.model.session.backend, "max_batch", 1)
    assert server.model.max_batch == 1
    monkeypatch.setattr(server.model.session.backend, "max_batch", 100)
    assert server.model.max_batch == 8


def test_equal_options_share_a_batch(server: Server) -> None:
    def key(rgb: Any = RGB, **options: Any) -> Any:
        return server.model.batch_key(rgb, Options(**options))

    assert key() == key(RGB[:29])  # of one working size
    assert key() != key(RGB.transpose(1, 0, 2))
    assert key() != key(steps=2)
    assert key() != key(ensemble=2)


def test_the_command_says_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(metadata, "entry_points", lambda **_: ())
    done = CliRunner().invoke(command_line, ["serve"])
    assert isinstance(done.exception, UserError)
    assert "install this project again" in str(done.exception)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r"pip install 'metricgold\[serve\]'"):
        serving.serve(
            tmp_path, backend=CPU, engines=None, threads=1, host="127.0.0.1", port=0, token=None
        )


def test_the_service_imports_neither_torch_nor_the_exporter() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'diffusers', 'onnx', 'onnxscript', 'scipy', 'gradio', 'prefect'):\n"
        "    sys.modules[name] = None\n"
        "import export.service.app, export.service.service, export.service.serving\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
