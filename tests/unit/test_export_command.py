"""The command line of the export, its fallback to another opset, the licence it passes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from toy import toy_model

from export import onnx_export, trial
from export.describe import NOT_STATED, licence_of
from export.graphs import GRAPH_KEY, METADATA_KEY, OpsetError
from export.manifest import ExportError, read_manifest
from export.onnx_export import export_checkpoint, main
from metricgold.config import ExportConfig


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    toy_model().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def quick(export_config: ExportConfig) -> ExportConfig:
    return export_config.model_copy(update={"dynamic": False, "fused": False})


def fail_at_23(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.onnx.export

    def export(*arguments: Any, opset_version: int, **options: Any) -> Any:
        if opset_version == 23:
            raise RuntimeError("no such operator")
        return real(*arguments, opset_version=opset_version, **options)

    monkeypatch.setattr(torch.onnx, "export", export)


def test_an_opset_that_cannot_be_exported_falls_back_aloud(
    checkpoint: Path,
    quick: ExportConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fail_at_23(monkeypatch)
    with pytest.raises(OpsetError, match=r"failed at opset 23 \(no such operator\)"):
        export_checkpoint(checkpoint, tmp_path / "onnx", quick, fall_back=False)
    assert not (tmp_path / "onnx").exists()
    manifest = export_checkpoint(checkpoint, tmp_path / "onnx", quick)
    assert "(no such operator); try --opset 20; falling back to opset 20" in capsys.readouterr().out
    assert manifest.opset == read_manifest(tmp_path / "onnx").opset == 20
    for graph in manifest.components.values():
        model = onnx.load(tmp_path / "onnx" / graph.onnx_file)
        assert model.opset_import[0].version == 20
        metadata = {p.key: p.value for p in model.metadata_props}
        assert json.loads(metadata[METADATA_KEY])["opset"] == 20
        assert metadata[GRAPH_KEY] == model.graph.name == graph.onnx_file.removesuffix(".onnx")


def test_graphs_that_onnx_runtime_refuses_fall_back_too(
    checkpoint: Path,
    quick: ExportConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real = trial.OnnxRuntimeBackend

    def backend(folder: Path, graphs: Any) -> Any:
        if read_manifest(folder).opset == 23:
            raise ExportError("ONNX Runtime refuses the graph")
        return real(folder, graphs)

    monkeypatch.setattr(trial, "OnnxRuntimeBackend", backend)
    assert export_checkpoint(checkpoint, tmp_path / "onnx", quick).opset == 20
    assert "refuses the graph; falling back to opset 20" in capsys.readouterr().out


def test_flags_reach_the_export(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: list[Any] = []

    def export(checkpoint: Path, out: Path, config: ExportConfig, *, fall_back: bool) -> Any:
        given.append((checkpoint, config, fall_back))
        raise ExportError("enough")

    monkeypatch.setattr(onnx_export, "export_checkpoint", export)
    line = ["weights", "--opset", "20", "--precision", "fp16", "--attention", "fp32"]
    line += ["--fixed", "64x96", "--fused"]
    for arguments in (line, ["--dynamic", "--no-fused"]):
        with pytest.raises(ExportError, match="enough"):
            main(arguments)
    (checkpoint, config, fall_back), (_, other, other_falls_back) = given
    assert checkpoint == Path("weights")
    assert (config.opset, config.precision, config.attention) == (20, "fp16", "fp32")
    assert (config.dynamic, config.engine_size, config.fused) == (False, (64, 96), True)
    assert fall_back is False, "a named opset never falls back"
    assert (other.dynamic, other.fused, other_falls_back) == (True, False, True)


@pytest.mark.parametrize("text", ["64", "64x", "0x64", "64x96x3", "ax5"])
def test_a_size_that_is_none_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--fixed", text])
    assert f"'{text}' is not height x width in pixels" in capsys.readouterr().err


@pytest.mark.parametrize("opset", ["17", "25", "x"])
def test_an_opset_that_is_none_is_refused(opset: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--opset", opset])
    assert "argument --opset: invalid" in capsys.readouterr().err


def test_the_licence_comes_from_the_model_card(checkpoint: Path) -> None:
    assert licence_of(checkpoint) == NOT_STATED
    card = checkpoint / "README.md"
    named = "license: other\nlicense_name: weights-of-mine\nlicense_link: https://example.org/l\n"
    card.write_text(card.read_text().replace("---\n", f"---\n{named}", 1))
    assert licence_of(checkpoint) == "other weights-of-mine https://example.org/l"
    card.write_text("---\n: : not yaml [\n---\n")
    assert licence_of(checkpoint) == NOT_STATED


def test_the_licence_comes_from_the_index_otherwise(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "other")
    (tmp_path / "other" / "README.md").unlink()
    index = tmp_path / "other" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"license": "openrail++"}))
    assert licence_of(tmp_path / "other") == "openrail++"
