"""``metricgold serve`` as a client meets it: a real process on loopback with a toy model."""

from __future__ import annotations

import http.client
import importlib.util
import io
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.integration.service import ROOT, environment, run, wait_for

pytestmark = pytest.mark.integration

TOKEN = "only-for-this-test"
RGB = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
MODEL = """
import sys
sys.path.insert(0, "tests/unit")
from pathlib import Path
from conftest import EXPORT
from toy import toy_model
from export.onnx_export import export_checkpoint
folder = Path(sys.argv[1])
toy_model(fov_matters=True).save_pretrained(folder / "model")
export_checkpoint(folder / "model", folder / "onnx", EXPORT)
"""
START = """
import sys
for name in ("torch", "diffusers", "onnx", "onnxscript", "matplotlib", "scipy", "gradio"):
    sys.modules[name] = None
from metricgold.cli import main
main()
"""
"""The command in a process that cannot have torch."""

Answer = tuple[int, dict[str, str], bytes]


def picture(kind: str = "PNG", rgb: Any = RGB) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, kind)
    return file.getvalue()


class Running:
    """A server in a process of its own, and a client of it."""

    def __init__(self, model: Path, log: Path, *options: str, **variables: str) -> None:
        self.log = log
        arguments = ["serve", "--model", str(model), "--port", "0", "--threads", "1", *options]
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-c", START, *arguments],
                cwd=ROOT,
                env=environment(**variables),
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self.url = ""
        try:
            self._wait()
        except BaseException:
            self.kill()
            raise

    def _wait(self) -> None:
        wait_for(self._listens, 200, "the server listens")
        self.url = str(self.lines("listening")[0]["url"])
        self.port = int(self.url.rsplit(":", 1)[1].strip("/"))
        wait_for(lambda: self.ask("GET", "/readyz")[0] == 200, 200, "the model is ready")

    def _listens(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return bool(self.lines("listening"))

    def lines(self, event: str) -> list[dict[str, Any]]:
        found = []
        for line in self.log.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                said = json.loads(line)  # nothing but JSON is ever said
                found += [said] if said["event"] == event else []
        return found

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=200)
        try:
            kind = {} if body is None else {"Content-Type": "image/png"}
            connection.request(method, path, body, kind | headers)
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def figure(self, name: str) -> float:
        text = self.ask("GET", "/metrics")[2].decode()
        return next(
            float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} ")
        )

    def kill(self) -> None:
        """For a test that failed."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        assert self.process.wait(200) == 0, self.log.read_text()
        assert [line for line in self.log.read_text().splitlines() if "traceback" in line] == []


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    run(sys.executable, "-c", MODEL, str(folder), cwd=ROOT)
    return folder / "onnx"


@pytest.fixture
def start(model: Path, tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Starts servers of a test's own."""
    opened: list[Running] = []

    def make(*options: str, **variables: str) -> Running:
        log = tmp_path / f"log{len(opened)}.txt"
        opened.append(Running(model, log, *options, **variables))
        return opened[-1]

    yield make
    for server in opened:
        server.kill()


@pytest.fixture(scope="module")
def running(model: Path) -> Iterator[Running]:
    options = ("--max-megapixels", "1", "--places", "64", "--batch-wait", "500")
    server = Running(model, model.parent / "log.txt", *options)
    yield server
    server.end()


@pytest.mark.parametrize("token", [None, TOKEN])
def test_the_openapi_schema_is_kept(
    start: Callable[..., Running], tmp_path: Path, token: str | None
) -> None:
    if importlib.util.find_spec("schemathesis") is None:
        pytest.skip("schemathesis is not installed")
    variables = {} if token is None else {"METRICGOLD_SERVE_TOKEN": token}
    server = start(**variables)
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}openapi.json"]
    command += [
        "--checks",
        "all",
        "--max-examples",
        "60",
        "--seed",
        "1",
        "--request-timeout",
        "100",
    ]
    command += ["--generation-database", "none", "--warnings", "off"]
    if token is not None:
        command += ["--header", f"Authorization: Bearer {token}"]
    env = environment(SCHEMATHESIS_HOOKS="tests.integration.schemathesis_hooks")
    try:
        done = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=280, check=False
        )
    finally:
        server.end()
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "5 selected / 5 total" in done.stdout
    asked = server.lines("request")
    answered = [r["status"] for r in asked if r["route"] == "/v1/depth"]
    assert answered.count(200) >= 30, "pictures were really predicted"
    assert answered.count(422) >= 20, "bad requests were really made"
    assert max(answered) < 500
    assert token is None or answered.count(401) >= 1
    assert TOKEN not in server.log.read_text()


def test_many_clients_share_batches_and_poison_hurts_nobody_else(running: Running) -> None:
    good = picture()
    poison = [b"no picture", good[:200], b"", picture(rgb=np.zeros((1200, 1200, 3), np.uint8))]
    bodies = [poison[i % 4] if i % 5 == 4 else good for i in range(100)]
    expected = running.ask("POST", "/v1/depth?fov_deg=50", good)[2]
    pictures = running.figure("metricgold_batch_pictures_sum")
    batches = running.figure("metricgold_batch_pictures_count")
    with ThreadPoolExecutor(16) as clients:
        answers = list(
            clients.map(lambda b: running.ask("POST", "/v1/depth?fov_deg=50", b), bodies)
        )
    assert len(answers) == 100
    depth = np.load(io.BytesIO(expected))
    for body, (status, _, content) in zip(bodies, answers, strict=True):
        assert status == (200 if body is good else 413 if body is poison[3] else 422)
        if status == 200:
            np.testing.assert_allclose(np.load(io.BytesIO(content)), depth, rtol=1e-5)
        else:
            assert json.loads(content)["error"].endswith(".")
    assert running.figure("metricgold_batch_pictures_sum") - pictures == 80
    assert running.figure("metricgold_batch_pictures_count") - batches < 60, "more than one each"
    assert running.figure("metricgold_requests_inside") == 0


def test_a_refused_upload_sees_why(running: Running) -> None:
    """Even where the answer comes while the client is still sending."""
    for _ in range(5):
        status, _, content = running.ask("POST", "/v1/depth", bytes(40 * 2**20))
        assert status == 413
        assert "at most 32 MB" in json.loads(content)["error"]


def test_who_sends_no_whole_header_is_not_waited_for(start: Callable[..., Running]) -> None:
    server = start("--timeout", "2")
    ask = b"GET /healthz HTTP/1.1\r\nHost: here\r\n"
    for before, sent in ((b"", b""), (b"", ask), (ask + b"\r\n", ask)):
        with socket.create_connection(("127.0.0.1", server.port), timeout=100) as client:
            if before:
                client.sendall(before)
                answer = b""
                while b"alive" not in answer:  # header and body may come apart
                    received = client.recv(4096)
                    assert received, f"closed after {answer!r}"
                    answer += received
            client.sendall(sent)
            assert client.recv(4096) == b"", "the server closes"
    assert server.ask("GET", "/healthz")[0] == 200
    server.end()


def test_what_is_being_answered_is_finished_first(start: Callable[..., Running]) -> None:
    # The first waits for the second, so that both are inside for as long as their networks work.
    server = start("--timeout", "200", "--max-batch", "2", "--batch-wait", "100000")
    path = "/v1/depth?steps=50&ensemble=10&format=json"
    with ThreadPoolExecutor(2) as clients:
        asked = [clients.submit(server.ask, "POST", path, picture()) for _ in range(2)]
        wait_for(lambda: server.figure("metricgold_requests_inside") == 2, 100, "both are inside")
        server.process.send_signal(signal.SIGTERM)
        assert [answer.result()[0] for answer in asked] == [200, 200]
    server.end()
    assert server.lines("ended")
    with pytest.raises(OSError, match="refused"):
        server.ask("GET", "/healthz")


def test_no_one_else_is_let_in_without_a_token(model: Path) -> None:
    command = [sys.executable, "-m", "metricgold", "serve", "--host", "0.0.0.0", "--port", "0"]
    done = subprocess.run(
        [*command, "--model", str(model)],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: --host 0.0.0.0 can be reached by others; give a token")
    assert done.stderr.count("\n") == 1


def test_a_taken_port_and_a_missing_model_are_one_sentence(
    running: Running, tmp_path: Path, model: Path
) -> None:
    def said(*options: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "metricgold", "serve", *options],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert done.returncode == 1
        return done.stderr.splitlines()[-1]

    taken = said("--model", str(model), "--port", str(running.port))
    assert taken == (
        f"error: port {running.port} of 127.0.0.1 is taken or not allowed; name another with --port"
    )
    assert "manifest.json: no such file" in said("--model", str(tmp_path), "--port", "0")
    broken = tmp_path / "onnx"
    broken.mkdir()
    (broken / "manifest.json").write_bytes((model / "manifest.json").read_bytes())
    assert "missing, though the manifest lists it" in said("--model", str(broken), "--port", "0")


@pytest.mark.slow
def test_memory_stays_flat(start: Callable[..., Running]) -> None:
    server = start()
    rgb = np.random.default_rng(1).integers(0, 256, (600, 800, 3), dtype=np.uint8)
    bodies = [picture("JPEG", rgb), picture(), picture("JPEG", rgb)[:-2000], b"poison"]
    formats = ("npy", "npz", "png16", "colour", "json")

    def ask(index: int) -> int:
        path = f"/v1/depth?format={formats[index % 5]}&ensemble={1 + index % 2}"
        return server.ask("POST", path, bodies[index % 4])[0]

    memory = []
    with ThreadPoolExecutor(8) as clients:
        for _ in range(10):
            found = list(clients.map(ask, range(60)))
            assert [found.count(s) for s in (200, 422)] == [30, 30], found
            memory.append(server.figure("process_resident_memory_bytes") / 2**20)
    server.end()
    # The first rounds fill the threads' pools of memory; more than 300 requests lie between these.
    before, after = np.median(memory[1:4]), np.median(memory[7:])
    assert after - before < 0.05 * before, memory


def test_nothing_of_a_picture_is_left_on_the_disk(
    start: Callable[..., Running], tmp_path: Path
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    server = start(TMPDIR=str(scratch))
    for name in ("npy", "png16", "side"):
        assert server.ask("POST", f"/v1/depth?format={name}", picture())[0] == 200
    server.end()
    assert list(scratch.iterdir()) == []
