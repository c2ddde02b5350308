"""Times ``metricgold serve`` with batching and without; writes docs/benchmarks/serve.json.

Usage: python scripts/bench_serve.py [--model artifacts/onnx] [--size 480x640]
                                     [--resolutions 96,192] [--rounds 5] [--out FILE]

Three servers stand beside each other: batches of 8 at most of whoever came while the networks
worked; the same, the first picture waiting 5 ms for others; and one picture at a time. The session
itself is called in this process, from the file's bytes to the array's, one picture after the other.
In each round every way answers the same requests, one way after the other, with 1, 4 and 16
clients. Figures are medians over rounds; ratios are to one picture at a time in the same round.
Clients run on the same machine as the servers and take their share of its cores.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _header import header
from PIL import Image

from export.runtime import DepthSession, open_session
from metricgold.progress import progress_bar
from metricgold.uploads import decode_upload, open_upload

CLIENTS = (1, 4, 16)
ONE_BY_ONE = "one by one"
WAYS = {"batching": (8, 0.0), "batching, waiting 5 ms": (8, 5.0), ONE_BY_ONE: (1, 0.0)}
"""Pictures a batch at most, and milliseconds that the first of them waits."""
REST_S = 0.2
Ask = Callable[[], Any]


class Server:
    """A server in a process of its own."""

    def __init__(self, model: Path, max_batch: int, wait_ms: float, log: Path) -> None:
        arguments = ["serve", "--model", str(model), "--port", "0"]
        arguments += ["--max-batch", str(max_batch), "--batch-wait", str(wait_ms)]
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "metricgold", *arguments], stdout=file, stderr=file
            )
        self.port = 0
        for _ in range(600):
            lines = [json.loads(line) for line in log.read_text().splitlines() if line[:1] == "{"]
            for line in lines:
                if line["event"] == "listening":
                    self.port = int(line["url"].rsplit(":", 1)[1].strip("/"))
            if any(line["event"] == "ready" for line in lines):
                return
            time.sleep(0.1)
        raise SystemExit(f"error: no server within a minute: {log.read_text()}")

    def client(self, path: str, body: bytes) -> Ask:
        """One client with a connection that is kept."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)

        def ask() -> bytes:
            """An array's bytes."""
            connection.request("POST", path, body, {"Content-Type": "image/jpeg"})
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                raise SystemExit(f"error: {answer.status} {content[:200]!r}")
            return content

        return ask

    def batches(self) -> tuple[float, float]:
        """Pictures and batches so far."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
        connection.close()
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if line[:1] != "#")
        name = "metricgold_batch_pictures"
        return float(values[f"{name}_sum"]), float(values[f"{name}_count"])

    def end(self) -> None:
        """Must end well."""
        self.process.terminate()
        if self.process.wait(60) != 0:
            raise SystemExit("error: a server did not end well")


def direct(session: DepthSession, resolution: int, body: bytes) -> Ask:
    """The session without a server."""

    def ask() -> bytes:
        """An array's bytes."""
        rgb, fov_deg = decode_upload(open_upload(body))
        depth = session.infer(rgb, fov_deg=fov_deg, processing_resolution=resolution).depth
        file = io.BytesIO()
        np.save(file, depth)
        return file.getvalue()

    return ask


def run(clients: list[Ask], requests: int) -> tuple[float, list[float]]:
    """Seconds in all, and of each request; every client asks its share, one after the other."""
    seconds: list[list[float]] = [[] for _ in clients]

    def work(index: int) -> None:
        for _ in range(requests // len(clients)):
            began = time.perf_counter()
            clients[index]()
            seconds[index].append(time.perf_counter() - began)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(clients))]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began, [s for each in seconds for s in each]


def row(way: str, clients: int, found: list[tuple[float, list[float]]], batch: float | None) -> Any:
    """Medians over rounds."""
    rates = [len(each) / whole for whole, each in found]
    percentiles = [np.percentile(each, (50, 95)) * 1000 for _, each in found]
    return {
        "way": way,
        "clients": clients,
        "requests_a_second": round(statistics.median(rates), 2),
        "p50_ms": round(statistics.median(float(p[0]) for p in percentiles), 1),
        "p95_ms": round(statistics.median(float(p[1]) for p in percentiles), 1),
        "pictures_a_batch": None if batch is None else round(batch, 2),
    }


def measure(
    servers: dict[str, Server], session: DepthSession, resolution: int, body: bytes, options: Any
) -> list[Any]:
    """Rows of one working size."""
    path = f"/v1/depth?processing_resolution={resolution}"
    todo = [(way, n) for n in CLIENTS for way in servers]
    found: dict[tuple[str, int], list[tuple[float, list[float]]]] = {k: [] for k in todo}
    found["direct", 1] = []
    batches = dict.fromkeys(todo, (0.0, 0.0))
    alone = direct(session, resolution, body)
    alone()
    for server in servers.values():
        run([server.client(path, body) for _ in range(4)], 16)
    for _ in progress_bar(range(options.rounds), description=f"{resolution} px", unit="round"):
        time.sleep(REST_S)
        found["direct", 1].append(run([alone], options.requests))
        for way, count in todo:
            server, before = servers[way], servers[way].batches()
            time.sleep(REST_S)
            asks = [server.client(path, body) for _ in range(count)]
            found[way, count].append(run(asks, options.requests))
            after = server.batches()
            pictures, runs = batches[way, count]
            batches[way, count] = pictures + after[0] - before[0], runs + after[1] - before[1]
    rows = [row("direct", 1, found["direct", 1], None)]
    for way, count in todo:
        pictures, runs = batches[way, count]
        rows.append(row(way, count, found[way, count], pictures / runs))
    for one in rows:
        key = one["clients"]
        if (one["way"], key) in batches and one["way"] != ONE_BY_ONE:
            pairs = zip(found[one["way"], key], found[ONE_BY_ONE, key], strict=True)
            ratios = [off / on for (on, _), (off, _) in pairs]
            one["times_as_many_as_one_by_one"] = round(statistics.median(ratios), 2)
    return rows


def main() -> None:
    """Time everything and write it down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path("artifacts/onnx"))
    parser.add_argument("--size", default="480x640")
    parser.add_argument("--resolutions", default="96,192")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=48, help="a way and round")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks/serve.json"))
    options = parser.parse_args()
    height, width = (int(side) for side in options.size.split("x"))
    coarse = np.random.default_rng(0).integers(0, 256, (height // 16, width // 16, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG")
    session = open_session(options.model, "onnxruntime-cpu")
    result: dict[str, Any] = {
        **header(torch.device("cpu")),
        "threads": os.cpu_count(),
        "load_at_start": os.getloadavg(),
        "picture": [height, width],
        "rounds": options.rounds,
        "requests_a_round": options.requests,
        "results": [],
    }
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no server stays behind
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        servers = {}
        for way, (most, wait_ms) in WAYS.items():
            log = Path(folder) / f"{len(servers)}.log"
            servers[way] = Server(options.model, most, wait_ms, log)
            stack.callback(servers[way].end)
        for resolution in (int(text) for text in options.resolutions.split(",")):
            rows = measure(servers, session, resolution, file.getvalue(), options)
            result["results"].append({"processing_resolution": resolution, "cases": rows})
            for one in rows:
                print(resolution, one, flush=True)
    result["load_at_end"] = os.getloadavg()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
