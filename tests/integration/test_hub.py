"""A checkpoint goes to a Hugging Face hub (a small one on loopback) and comes back from it."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
REPOSITORY = "someone/depth"
PROGRAM = """
import sys
sys.path.insert(0, "tests/unit")
import numpy as np
from toy import toy_model
from metricgold.pipeline import MetricGoldPipeline
rgb = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
if sys.argv[1] == "push":
    pipeline = toy_model(fov_matters=True)
    pipeline.push_to_hub("someone/depth", private=True)
else:
    pipeline = MetricGoldPipeline.from_pretrained("someone/depth")
pipeline.set_progress_bar_config(disable=True)
np.save(sys.argv[2], pipeline(rgb, fov_deg=50).prediction)
"""


class Hub(ThreadingHTTPServer):
    """What huggingface_hub asks for when it creates, commits to and reads one repository."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Requests)
        self.files: dict[str, bytes] = {}
        self.created: dict[str, Any] = {}
        self.tokens: set[str | None] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Requests(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def answer(self, content: Any, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(200)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self) -> None:
        self.server.tokens.add(self.headers["Authorization"])
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            self.server.created = json.loads(body)
            self.answer({"url": f"{self.server.url}/{REPOSITORY}", "name": REPOSITORY})
        elif "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            self.answer(
                {
                    "files": [
                        {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                        for f in asked
                    ]
                }
            )
        elif "/commit/" in self.path:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.server.files[entry["value"]["path"]] = base64.b64decode(
                        entry["value"]["content"]
                    )
            self.answer({"commitUrl": f"{self.server.url}/{REPOSITORY}/commit/1", "commitOid": "1"})
        else:
            self.answer({"type": "user", "name": "someone"})

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/"):
            siblings = [{"rfilename": name} for name in sorted(self.server.files)]
            entries = [
                {"type": "file", "path": n, "size": len(d), "oid": str(hash(d))}
                for n, d in sorted(self.server.files.items())
            ]
            if "/tree/" in self.path:
                return self.answer(entries)
            return self.answer(
                {"id": REPOSITORY, "modelId": REPOSITORY, "sha": "1" * 40, "siblings": siblings}
            )
        name = re.sub(r"^.*/resolve/[^/]+/", "", self.path)
        data = self.server.files.get(name)
        if data is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return None
        return self.answer(data, ETag=f'"{hash(data)}"', X_Repo_Commit="1" * 40)

    def do_HEAD(self) -> None:
        self.do_GET()


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def run(hub: Hub, home: Path, *arguments: str) -> str:
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_TOKEN": "hf_of_this_test",
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(ROOT),
    }
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_to_the_hub_and_back(hub: Hub, tmp_path: Path) -> None:
    run(hub, tmp_path / "a", "push", str(tmp_path / "pushed.npy"))
    assert hub.created.get("visibility") == "private", hub.created
    assert "Bearer hf_of_this_test" in hub.tokens
    card = hub.files["README.md"].decode()
    assert "pipeline_tag: depth-estimation" in card
    assert "0.1 m to 80 m" in card
    assert {Path(n).suffix for n in hub.files} == {".json", ".md", ".safetensors"}
    index = json.loads(hub.files["model_index.json"])
    assert index["_class_name"] == "MetricGoldPipeline"
    run(hub, tmp_path / "b", "pull", str(tmp_path / "pulled.npy"))
    depths = [np.load(tmp_path / name) for name in ("pushed.npy", "pulled.npy")]
    np.testing.assert_allclose(depths[1], depths[0], rtol=1e-4)
