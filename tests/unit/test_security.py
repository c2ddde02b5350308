"""What is never done: unpickling, shells, code from strings, servers open to everybody."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flows import serve
from flows._environment import NO_TELEMETRY, prepare_environment
from metricgold.config import OrchestrationConfig
from metricgold.errors import UserError
from metricgold.model import LOADING

ROOT = Path(__file__).parents[2]
SOURCES = sorted(p for f in ("metricgold", "export", "flows") for p in (ROOT / f).rglob("*.py"))
UNPICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
OWN_SCRATCH = {"metricgold/data/streaming.py"}
"""Pickles that the module itself wrote a moment before, below .work; nothing from elsewhere."""
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "torch.hub.load",
}
LOADERS = {"AutoencoderKL.from_pretrained", "UNet2DConditionModel.from_pretrained"}


def calls(tree: ast.AST) -> Iterator[tuple[str, dict[str, ast.expr], ast.Call]]:
    """Every call with its dotted name and keywords."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            keywords = {k.arg: k.value for k in node.keywords if k.arg}
            yield ast.unparse(node.func), keywords, node


def constant(node: ast.expr | None) -> Any:
    return node.value if isinstance(node, ast.Constant) else None


def faults(tree: ast.AST) -> list[str]:
    """What a module does that it should not."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in UNPICKLING]
        elif isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in UNPICKLING:
            found.append(str(node.module))
    for name, keywords, node in calls(tree):
        if name in FORBIDDEN_CALLS or name.endswith(".read_pickle"):
            found.append(name)
        if name.endswith("torch.load") and constant(keywords.get("weights_only")) is not True:
            found.append("torch.load without weights_only=True")
        if constant(keywords.get("allow_pickle")) is True:
            found.append(f"{name} with allow_pickle")
        if constant(keywords.get("shell")) is True:
            found.append(f"{name} with shell=True")
        if constant(keywords.get("trust_remote_code")) is True:
            found.append(f"{name} with trust_remote_code")
        if name in LOADERS:
            starred = [ast.unparse(k.value) for k in node.keywords if k.arg is None]
            if "LOADING" not in starred:
                found.append(f"{name} without LOADING")
    return found


def test_no_source_unpickles_or_runs_strings() -> None:
    assert len(SOURCES) > 100
    assert LOADING["use_safetensors"] is True
    found = {}
    for path in SOURCES:
        relative = path.relative_to(ROOT).as_posix()
        wrong = faults(ast.parse(path.read_text(encoding="utf-8")))
        if wrong and not (relative in OWN_SCRATCH and wrong == ["pickle"]):
            found[relative] = wrong
    assert found == {}


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "subprocess.run(text, shell=True)",
        "os.system(text)",
        "eval(text)",
        "AutoencoderKL.from_pretrained(path)",
        "x.from_pretrained(path, trust_remote_code=True)",
        "yaml.load(text, yaml.Loader)",
    ],
)
def test_the_check_itself_finds_what_it_is_for(code: str) -> None:
    assert len(faults(ast.parse(code))) == 1


def test_the_server_is_open_to_others_only_with_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(serve.SERVER_TOKEN, raising=False)
    serve.refuse_open_server("127.0.0.1")
    for host in ("0.0.0.0", "192.168.1.5", "::"):
        with pytest.raises(UserError, match=r"set PREFECT_SERVER_API_AUTH_STRING=USER:PASSWORD"):
            serve.refuse_open_server(host)
    monkeypatch.setenv(serve.SERVER_TOKEN, "me:secret")
    serve.refuse_open_server("0.0.0.0")
    command = serve.server_command("http://127.0.0.1:4200/api")
    assert command[command.index("--host") + 1] == "127.0.0.1"


def test_schedule_from_the_command_line() -> None:
    given = OrchestrationConfig.model_validate({"schedule": {"cron": "0 1 * * *"}})

    def schedule(*arguments: str, settings: OrchestrationConfig = given) -> Any:
        return serve.with_options(settings, serve.parse(arguments)).schedule

    assert schedule() == given.schedule
    found = schedule("--cron", "0 3 * * 0", "--timezone", "Europe/Zurich")
    assert (found.cron, found.timezone) == ("0 3 * * 0", "Europe/Zurich")
    assert schedule("--timezone", "Europe/Zurich").cron == "0 1 * * *"
    assert schedule("--cron", "") is None
    with pytest.raises(UserError, match="--timezone without --cron"):
        schedule("--timezone", "UTC", settings=OrchestrationConfig())


@pytest.mark.parametrize("wrong", [{"cron": "0 3 * *"}, {"cron": "0 3 * * 0", "timezone": "Mars"}])
def test_an_unreadable_schedule_is_one_sentence(wrong: dict[str, str]) -> None:
    from flows.deployments import pipeline_deployments

    with pytest.raises(UserError, match=r"orchestration\.schedule: ") as caught:
        pipeline_deployments(OrchestrationConfig.model_validate({"schedule": wrong}))
    assert "\n" not in str(caught.value)


def test_the_library_imports_neither_prefect_nor_dvc_nor_torch() -> None:
    code = (
        "import sys, metricgold, metricgold.cli\n"
        "heavy = {'torch', 'diffusers', 'numpy', 'prefect', 'dvc'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_stage_without_a_server_imports_neither_prefect_nor_dvc() -> None:
    code = (
        "import sys, flows._stage, flows.train_vae\n"
        "heavy = {'torch', 'prefect', 'dvc'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_telemetry_is_off_unless_the_user_says_otherwise() -> None:
    environ: dict[str, str] = {}
    prepare_environment(environ)
    assert {k: environ[k] for k in NO_TELEMETRY} == NO_TELEMETRY
    assert NO_TELEMETRY["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert "analytics = false" in (ROOT / ".dvc" / "config").read_text(encoding="utf-8")
    assert "analytics_enabled = false" in (ROOT / "prefect.toml").read_text(encoding="utf-8")


def script(name: str) -> ModuleType:
    """A file of scripts/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_licences_are_judged() -> None:
    problem = script("licences").problem
    assert problem("a", "MIT License") is None
    assert problem("a", "LGPL-2.1-or-later") is None
    assert "not allowed" in problem("a", "GNU Affero General Public License v3 (AGPLv3)")
    assert "not allowed" in problem("a", "CC-BY-NC, non-commercial")
    assert "not known" in problem("a", "GPL-3.0-only")
    assert "not known" in problem("a", "Permit of my own")
    assert "says nothing" in problem("a", "")


def test_a_package_that_was_not_looked_up_is_not_called_harmless() -> None:
    verdict = script("audit").verdict
    good = {"name": "a", "version": "1", "vulns": []}
    bad = {"name": "b", "version": "2", "vulns": [{"id": "X-1", "fix_versions": ["3"]}]}
    skipped = {"name": "c", "skip_reason": "not found"}
    assert verdict({"dependencies": [good]})[0] == 0
    assert verdict({"dependencies": [good, bad, skipped]})[0] == 1
    status, lines = verdict({"dependencies": [good, skipped]})
    assert status == 3
    assert "NOT CHECKED: 1 of 2, the first is c: not found" in lines
    assert verdict({"dependencies": []})[0] == 3
