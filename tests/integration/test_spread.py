"""Preprocessing and evaluation by a real Dask cluster, with real S3, workers killed in mid-run."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
import pytest
import yaml

from flows._stage import server_answers
from metricgold.config import DATASET_NAMES, ProceduralConfig, ProfileConfig
from metricgold.data import download, preprocess, source
from metricgold.workspace import Workspace
from tests.integration.service import command, environment, free_port, run, wait_for
from tests.unit.toy import toy_model

pytestmark = pytest.mark.integration

LOG_LINES = Path(__file__).with_name("spread_log.py")
KEYS = {
    "AWS_ACCESS_KEY_ID": "somebody",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
}
SIGNED = (
    "AWS4-HMAC-SHA256 Credential=somebody/20260101/us-east-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=0"
)
"""What moto asks of readers; it does not check the signature."""
BRIDGE, SUBNET = "mgtest0", "10.203.77"


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@dataclass(frozen=True)
class Project:
    """A folder to run stages in; what one machine makes there has ``shards`` and ``figures``."""

    folder: Path
    config: ProfileConfig
    shards: dict[str, str]
    figures: dict[str, str]

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.folder)

    def made(self) -> dict[str, str]:
        """Hashes of the shards that are there now."""
        return hashes(self.workspace.shards("hypersim"))

    def measured(self) -> dict[str, str]:
        """Hashes of what the stage evaluate left."""
        return evaluated(self.workspace)

    def forget(self) -> None:
        """Remove what the stages wrote."""
        for folder in (self.workspace.shards("hypersim"), self.workspace.predictions):
            shutil.rmtree(folder, ignore_errors=True)


def evaluated(workspace: Workspace) -> dict[str, str]:
    roots = (workspace.predictions / "hypersim", workspace.metrics, workspace.plots)
    return {f"{r.name}/{name}": value for r in roots for name, value in hashes(r).items()}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, tiny_data_config: ProfileConfig) -> Project:
    folder = tmp_path_factory.mktemp("project")
    scenes = ProceduralConfig(train_scenes=4, holdout_scenes=20, frames_per_scene=6, size=(24, 32))
    hypersim = tiny_data_config.datasets["hypersim"].model_copy(update={"procedural": scenes})
    nothing = hypersim.model_copy(update={"weight": 0.0, "procedural": None})
    others = dict.fromkeys(DATASET_NAMES, nothing)
    evaluate = tiny_data_config.evaluate.model_copy(update={"pictures": 2})
    config = tiny_data_config.model_copy(
        update={"datasets": {**others, "hypersim": hypersim}, "evaluate": evaluate}
    )
    params = {
        "profile": "tiny",
        "profiles": {"tiny": config.model_dump(mode="json")},
        "orchestration": {"piece_mb": 0.05, "piece_frames": 1},
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    workspace = Workspace(folder)
    source.run(config, workspace, "hypersim")
    download.run(config, workspace, "hypersim")
    preprocess.run(config, workspace, "hypersim")
    toy_model(fov_matters=True).save_pretrained(workspace.model)
    run(sys.executable, "-m", "flows.evaluate", "--dataset", "hypersim", cwd=folder)
    return Project(folder, config, hashes(workspace.shards("hypersim")), evaluated(workspace))


class Processes:
    """Processes that end with it; their logs lie in ``folder``."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        self.folder, self.env = folder, env
        self._started = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._started.close()

    def text(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")

    def start(self, *arguments: str, name: str, **env: str) -> subprocess.Popen[bytes]:
        """A process, with a log called ``name``."""
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                arguments,
                cwd=self.folder,
                env={**self.env, **env},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._started.callback(self.kill, process)
        return process

    @staticmethod
    def kill(process: subprocess.Popen[bytes]) -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


class Cluster(Processes):
    """A Prefect server, a Dask scheduler and workers, on ``host``."""

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        self.host, self.log = host, folder / "pieces.log"
        self.log.touch()
        self.scheduler = f"{host}:{free_port()}"
        self.api_url = f"http://{host}:{free_port()}/api"
        env = environment(SPREAD_LOG=str(self.log), PREFECT_API_URL=self.api_url)
        super().__init__(folder, env)
        self.workers: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            undo.push(self._started)
            port = self.api_url.rpartition(":")[2].partition("/")[0]
            self.start(
                *(sys.executable, "-m", "prefect", "server", "start"),
                *("--host", self.host, "--port", port),
                name="prefect",
                PREFECT_HOME=str(self.folder / "home"),
                PREFECT_API_URL="",
            )
            host, _, port = self.scheduler.rpartition(":")
            self.start(
                *(command("dask"), "scheduler", "--no-dashboard", "--host", host, "--port", port),
                name="scheduler",
            )
            wait_for(lambda: server_answers(self.api_url), 120, self.text("prefect"))
            undo.pop_all()
        return self

    def add_worker(self, *prefix: str, host: str = "", **env: str) -> subprocess.Popen[bytes]:
        """A worker of one thread, up and registered."""
        name = f"worker{len(self.workers)}"
        worker = self.start(
            *(*prefix, command("dask"), "worker", f"tcp://{self.scheduler}", "--no-nanny"),
            *("--nthreads", "1", "--no-dashboard", "--host", host or self.host),
            *("--preload", str(LOG_LINES)),
            name=name,
            **env,
        )
        self.workers.append(worker)
        wait_for(lambda: "Registered to" in self.text(name), 60, f"{name} is up")
        return worker

    def noted(self, what: str, stage: str, *, by: int | None = None) -> list[str]:
        """Pieces of a stage that were begun, or recorded."""
        lines = [line.split() for line in self.log.read_text(encoding="utf-8").splitlines()]
        return [
            piece
            for kind, of, piece, pid in lines
            if (kind, of) == (what, stage) and by in (None, int(pid))
        ]

    def shown(self, flow_run: str) -> list[tuple[str, str]]:
        """Name and state of each task run that the server has of a flow run."""

        def ask(what: str, **chosen: Any) -> Any:
            url = f"{self.api_url}/{what}/filter"
            return httpx.post(url, json=chosen, timeout=30).raise_for_status().json()

        (found,) = ask("flow_runs", flow_runs={"name": {"any_": [flow_run]}})
        assert found["state_type"] == "COMPLETED"
        tasks = ask("task_runs", flow_runs={"id": {"any_": [found["id"]]}})
        return sorted((task["name"], task["state_type"]) for task in tasks)

    def run_and_kill(self, stage: str, *arguments: str, cwd: Path, nth: int = 2, **env: str) -> str:
        """Run a command, kill the last worker in the middle of its nth piece; what it printed.

        Checks that what the worker had begun and not finished was done once more, and nothing else.
        """
        victim = self.workers[-1].pid
        driver = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            cwd=cwd,
            env={**self.env, **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            wait_for(
                lambda: (
                    driver.poll() is not None or len(self.noted("begun", stage, by=victim)) == nth
                ),
                120,
                "the worker that shall die is at its piece",
            )
            self.kill(self.workers.pop())
            printed, _ = driver.communicate(timeout=150)
        finally:
            driver.kill()
            driver.wait()
        assert driver.returncode == 0, printed
        begun, recorded = (Counter(self.noted(w, stage)) for w in ("begun", "recorded"))
        lost = set(self.noted("begun", stage, by=victim))
        lost -= set(self.noted("recorded", stage, by=victim))
        assert len(lost) == 1, (begun, recorded)
        assert begun == {piece: 1 + (piece in lost) for piece in recorded}, printed
        return printed


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """On the loopback, where all have one file system."""
    pytest.importorskip("prefect_dask")
    with Cluster(tmp_path_factory.mktemp("cluster")) as made:
        made.add_worker()
        made.add_worker()
        yield made


def test_a_lost_worker_costs_its_own_piece_and_nothing_else(
    project: Project, cluster: Cluster
) -> None:
    project.forget()
    runner = {"METRICGOLD_RUNNER": f"dask://{cluster.scheduler}"}
    stage = ("flows.preprocess", "--dataset", "hypersim")
    cluster.run_and_kill("preprocess", *stage, cwd=project.folder, **runner)
    assert len(set(cluster.noted("recorded", "preprocess"))) == 28
    assert project.made() == project.shards
    assert cluster.shown("preprocess@hypersim spread") == sorted(
        (piece, "COMPLETED") for piece in set(cluster.noted("recorded", "preprocess"))
    )

    project.forget()
    env = {**cluster.env, "METRICGOLD_RUNNER": "threads"}
    run(sys.executable, "-m", *stage, cwd=project.folder, env=env)
    assert project.made() == project.shards

    cluster.add_worker()
    stage = ("flows.evaluate", "--dataset", "hypersim")
    cluster.run_and_kill("evaluate", *stage, cwd=project.folder, nth=1, **runner)
    assert len(set(cluster.noted("recorded", "evaluate"))) == 3
    assert project.measured() == project.figures
    assert not list((project.folder / ".work" / "spread").iterdir())


class Bucket:
    """A bucket of moto's S3 server; ``env`` lets others use it."""

    def __init__(self, address: str, client: httpx.Client) -> None:
        self.env = {**KEYS, "AWS_ENDPOINT_URL": address}
        self._client = client
        self._client.put("/data").raise_for_status()

    def put_folder(self, folder: Path, prefix: str) -> None:
        for path in (p for p in folder.rglob("*") if p.is_file()):
            name = path.relative_to(folder).as_posix()
            answer = self._client.put(f"/data/{prefix}/{name}", content=path.read_bytes())
            answer.raise_for_status()

    def keys(self) -> list[str]:
        listed = self._client.get("/data", params={"list-type": "2"}).raise_for_status().text
        return [part.partition("</Key>")[0] for part in listed.split("<Key>")[1:]]

    def hashes(self, prefix: str) -> dict[str, str]:
        return {
            key.removeprefix(f"{prefix}/"): hashlib.sha256(
                self._client.get(f"/data/{key}").raise_for_status().content
            ).hexdigest()
            for key in self.keys()
            if key.startswith(f"{prefix}/")
        }


@contextmanager
def served_bucket(processes: Processes, project: Project, host: str) -> Iterator[Bucket]:
    """A bucket with the project's archives and checkpoint, of a server on ``host``."""
    port = free_port()
    address = f"http://{host}:{port}"
    processes.start(command("moto_server"), "-H", host, "-p", str(port), name="moto")

    def up() -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(address).is_success
        return False

    wait_for(up, 60, "moto's server is up")
    with httpx.Client(base_url=address, headers={"Authorization": SIGNED}, timeout=30) as client:
        bucket = Bucket(address, client)
        bucket.put_folder(project.workspace.raw("hypersim"), "raw")
        bucket.put_folder(project.workspace.model, "model")
        yield bucket


def s3_command(command: str) -> tuple[str, ...]:
    """From bucket to bucket."""
    sources = {
        "preprocess": ("--source", "s3://data/raw"),
        "evaluate": ("--shards", "s3://data/shards", "--model", "s3://data/model"),
    }
    target = {"preprocess": "s3://data/shards", "evaluate": "s3://data/figures"}
    options = (*sources[command], "--target", target[command])
    return ("flows.spread", command, "--dataset", "hypersim", *options)


def check_bucket(bucket: Bucket, project: Project) -> None:
    """The very files of one machine, and nothing that was needed on the way."""
    shards = bucket.hashes("shards")
    shards.pop("stamp.json")
    assert shards == project.shards
    figures = bucket.hashes("figures")
    figures.pop("stamp.json")
    assert sorted(figures.values()) == sorted(project.figures.values())
    tops = {key.partition("/")[0] for key in bucket.keys()}  # noqa: SIM118 (no mapping)
    assert tops == {"raw", "model", "shards", "figures"}


def test_threads_from_bucket_to_bucket(project: Project, tmp_path: Path) -> None:
    pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    with (
        Processes(tmp_path, environment()) as processes,
        served_bucket(processes, project, "127.0.0.1") as bucket,
    ):
        env = environment(**bucket.env)

        def spread(name: str) -> str:
            return run(sys.executable, "-m", *s3_command(name), cwd=project.folder, env=env)

        assert "up to date" not in spread("preprocess") + spread("evaluate")
        check_bucket(bucket, project)
        assert "s3://data/shards: up to date" in spread("preprocess")
        assert "s3://data/figures: up to date" in spread("evaluate")

        refused = subprocess.run(
            [sys.executable, "-m", *s3_command("preprocess")],
            cwd=project.folder,
            env={**env, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert refused.returncode == 1
        (line,) = refused.stderr.strip().splitlines()
        assert line.startswith("error: s3://data/raw/manifest.json: cannot be read: ")


@pytest.fixture
def namespaces() -> Iterator[list[str]]:
    """Two network namespaces, joined to this machine by a bridge: hosts of their own."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the program ip")
    names = ["mgtest-a", "mgtest-b"]

    def ip(*arguments: str, check: bool = True) -> None:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
        if check and done.returncode:
            pytest.skip(f"no network namespace can be made here: {done.stderr.strip()}")

    def clear() -> None:
        for name in names:
            ip("netns", "del", name, check=False)
        ip("link", "del", BRIDGE, check=False)

    clear()
    try:
        ip("link", "add", BRIDGE, "type", "bridge")
        ip("addr", "add", f"{SUBNET}.1/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        for number, name in enumerate(names):
            here, there = f"mgtest{number}h", f"mgtest{number}n"
            ip("netns", "add", name)
            ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
            ip("link", "set", here, "master", BRIDGE, "up")
            ip("-n", name, "addr", "add", f"{SUBNET}.{number + 2}/24", "dev", there)
            ip("-n", name, "link", "set", there, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        clear()


def test_two_hosts_and_a_bucket_one_host_lost(
    project: Project, namespaces: list[str], tmp_path: Path
) -> None:
    for package in ("prefect_dask", "s3fs", "moto"):
        pytest.importorskip(package)
    with (
        Cluster(tmp_path, f"{SUBNET}.1") as cluster,
        served_bucket(cluster, project, cluster.host) as bucket,
    ):
        for number, name in enumerate(namespaces):
            prefix = ("ip", "netns", "exec", name)
            cluster.add_worker(*prefix, host=f"{SUBNET}.{number + 2}", **bucket.env)
        runner = ("--runner", f"dask://{cluster.scheduler}")
        command_line = (*s3_command("preprocess"), *runner)
        cluster.run_and_kill("preprocess", *command_line, cwd=project.folder, **bucket.env)
        command_line = (sys.executable, "-m", *s3_command("evaluate"), *runner)
        run(*command_line, cwd=project.folder, env={**cluster.env, **bucket.env})
        assert cluster.noted("recorded", "evaluate") == ["00000"], "a piece a shard"
        check_bucket(bucket, project)


def test_ray(project: Project, tmp_path: Path) -> None:
    pytest.importorskip("prefect_ray", reason="the extra ray is not installed")
    project.forget()
    with Cluster(tmp_path) as cluster:
        env = {**cluster.env, "METRICGOLD_RUNNER": "ray"}
        stage = (sys.executable, "-m", "flows.preprocess", "--dataset", "hypersim")
        print(run(*stage, cwd=project.folder, env=env))
    assert project.made() == project.shards
