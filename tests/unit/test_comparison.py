"""``metricgold evaluate``: several models on the same shards, to tables, JSON and a page."""

from __future__ import annotations

import base64
import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_frames import make_frame, write_shards
from toy import toy_model
from typer.testing import CliRunner, Result

from metricgold.cli import app
from metricgold.data.shards import ShardReader, shard_paths
from metricgold.errors import UserError
from metricgold.evaluation.cost import STEPS, costs
from metricgold.evaluation.metrics import depth_metrics
from metricgold.evaluation.predictor_names import PredictorName
from metricgold.evaluation.predictors import Observation

SIZE = (24, 32)


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(app, ["evaluate", *(str(a) for a in arguments)])


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "shards"
    folder.mkdir()
    write_shards(folder, "train", [make_frame(9, 0, SIZE)])
    frames = [make_frame(scene, i, SIZE) for scene in (1, 2, 3) for i in range(2)]
    write_shards(folder, "holdout", frames)
    predictions = tmp_path / "predictions"
    for frame in frames:
        path = predictions / f"{frame.key}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.where(frame.valid_mask, 1.1 * frame.depth, 1.0))
    return folder


def test_models_side_by_side(shards: Path, tmp_path: Path) -> None:
    toy_model(fov_matters=True).save_pretrained(tmp_path / "checkpoint")
    done = call(
        shards, "-m", "near=folder:predictions", "-m", "ours=checkpoint?ensemble=2&steps=2",
        "-m", "blind=checkpoint?camera=unknown&steps=2", "-m", "relative=folder:predictions"
        "?invariance=depth", "-m", "flat=constant:3", "--pictures", 3, "--clouds", 1, "--sequences",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "6 frames; truth from 0.1 to 80 m is evaluated" in done.output

    reader = ShardReader(shard_paths(shards, "holdout"))
    frames = [reader[i] for i in range(len(reader))]
    found = json.loads(Path("evaluation/results.json").read_text())
    expected = [depth_metrics(np.full(SIZE, 3.0), f.depth, f.valid_mask)["abs_rel"] for f in frames]
    flat = found["models"]["flat"]
    assert flat["figures"]["abs_rel"] == pytest.approx(np.mean(expected))
    assert flat["figures"]["abs_rel_low"] < np.mean(expected) < flat["figures"]["abs_rel_high"]
    assert found["models"]["near"]["figures"]["abs_rel"] == pytest.approx(0.1, rel=1e-3)
    assert found["models"]["near"]["figures"]["temporal_error"] == pytest.approx(0, abs=1e-3)
    relative = found["models"]["relative"]
    assert relative["gives"] == "affine-invariant depth"
    assert "abs_rel" not in relative["figures"]
    assert relative["figures"]["affine_abs_rel"] == pytest.approx(0, abs=1e-3)
    assert found["models"]["ours"]["figures"].keys() >= {"nause", "spearman"}
    ours, blind = (found["models"][m]["figures"]["abs_rel"] for m in ("ours", "blind"))
    assert ours != blind
    assert sum(row["pixels"] for row in flat["by_depth_m"]) == sum(
        int(f.valid_mask.sum()) for f in frames
    )
    assert (found["data"]["frames"], found["data"]["scenes"]) == (6, 3)
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?", found["commit"])
    against = {(d["model"], d["figure"]): d for d in found["differences"]}
    assert against["flat", "abs_rel"]["reference"] == "near"
    assert against["flat", "abs_rel"]["difference"] == pytest.approx(
        np.mean(expected) - 0.1, abs=1e-3
    )
    assert ("relative", "abs_rel") not in against
    assert ("relative", "affine_abs_rel") in against

    rows = list(csv.DictReader(Path("evaluation/per_image.csv").read_text().splitlines()))
    assert len(rows) == 5 * 6
    one = next(r for r in rows if (r["model"], r["key"]) == ("flat", frames[4].key))
    assert float(one["abs_rel"]) == pytest.approx(expected[4], rel=1e-5)
    assert next(r for r in rows if r["model"] == "relative")["abs_rel"] == ""

    page = Path("evaluation/index.html").read_text()
    assert not re.findall(r"(?:src|href)=\"(?!data:)", page)
    assert page.count("data:image/jpeg;base64,") == 3 * 5
    data = json.loads(re.findall(r'<script type="application/json">(.*?)</script>', page)[0])
    assert [c["name"] for c in data["clouds"]] == [
        "truth", "near", "ours", "blind", "relative", "flat",
    ]  # fmt: skip
    points = np.frombuffer(base64.b64decode(data["clouds"][5]["points"]), "<i2").reshape(-1, 3)
    depths = points[:, 2] * data["clouds"][5]["scale"] + data["centre"][2]
    np.testing.assert_allclose(depths, 3.0, atol=0.01)  # a flat cloud at 3 m


def test_the_table_shows_what_was_asked_for(shards: Path) -> None:
    quick = ("-m", "folder:predictions", "--pictures", 0, "--clouds", 0, "--force")
    done = call(shards, *quick, "--sequences")
    assert "frame to frame" in done.output
    assert "no two of these frames" not in done.output
    done = call(shards, *quick, "--sequences", "--frames", 3)  # one of each scene
    assert "no two of these frames follow each other" in done.output
    assert done.output.count("frame to frame") == 1  # that sentence
    assert "frame to frame" not in call(shards, *quick).output


def test_a_function_of_the_folder_one_is_in(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    Path("my_own_depth.py").write_text("def two(rgb):\n    return 0 * rgb[..., 0] + 2.0\n")
    done = call(shards, "-m", "function:my_own_depth:two", "--pictures", 0, "--clouds", 0)
    assert done.exit_code == 0, done.output


def test_the_same_data_has_the_same_hash(shards: Path) -> None:
    def digest(*options: Any) -> str:
        done = call(shards, "-m", "constant:2", "--pictures", 0, "--clouds", 0, "--force", *options)
        assert done.exit_code == 0, done.output
        return json.loads(Path("evaluation/results.json").read_text())["data"]["sha256"]

    assert digest() == digest()
    assert digest() != digest("--frames", 3)


def test_range_of_the_set_and_of_the_user(shards: Path) -> None:
    options = ("-m", "constant:2", "--pictures", 0, "--clouds", 0, "--force")
    (shards / "report.json").write_text(json.dumps({"depth_range_m": [0.001, 3.0]}))
    assert "truth from 0.001 to 3 m" in call(shards, *options).output
    assert "truth from 1 to 2.5 m" in call(
        shards, *options, "--min-depth", 1, "--max-depth", 2.5
    ).output  # fmt: skip
    found = json.loads(Path("evaluation/results.json").read_text())
    rows = found["models"]["constant:2"]["by_depth_m"]
    assert [(row["from"], row["to"]) for row in rows] == [(2, 4)]
    reader = ShardReader(shard_paths(shards, "holdout"))
    inside = [(f.valid_mask & (f.depth <= 2.5)).sum() for f in reader]
    assert rows[0]["pixels"] == sum(inside)
    refused = call(shards, *options, "--min-depth", 5)
    assert isinstance(refused.exception, UserError)
    assert "0 < min < max" in str(refused.exception)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["shards", "-m", "constant:1", "-m", "constant:1"], "two models are called 'constant:1'"),
        (["nothing", "-m", "constant:1"], "nothing: no such file or folder"),
        (["only_train", "-m", "constant:1"], "only_train: has training shards only"),
        (["shards", "-m", "constant:1", "--out", "shards"], "shards: exists already"),
        (["shards", "-m", "constant:1", "--out", "shards", "--force"], "holds other things"),
        (["shards", "-m", "folder:shards"], "no prediction for frame scene_1/000"),
        (["shards", "-m", "constant:1", "--min-depth", "0"], "--min-depth 0 and --max-depth 80"),
        (["shards", "-m", "constant:1", "--max-depth", "0"], "--max-depth 0: 0 < min < max"),
        (["shards", "-m", "constant:1", "--device", "cuda:9"], "--device cuda:9: cannot be used"),
        (["shards", "-m", "constant:1", "--out", "shards/report.txt/x"], "x: cannot be written"),
        (["shards", "-m", "a=checkpoint?ensemble=3"], "a: ensemble_size is 3: one step without"),
        (["shards", "-m", "a=checkpoint?steps=0"], "a: num_inference_steps must be 1 or more"),
    ],
)
def test_what_cannot_be_done_is_said(shards: Path, arguments: list[str], said: str) -> None:
    (shards.parent / "only_train").mkdir()
    (shards / "report.txt").write_text("not a folder")
    toy_model().save_pretrained(shards.parent / "checkpoint")
    write_shards(shards.parent / "only_train", "train", [make_frame(9, 0, SIZE)])
    done = call(*arguments)
    assert isinstance(done.exception, UserError)
    assert said in str(done.exception)
    assert not Path("evaluation").exists()
    assert list(shards.glob("holdout-*"))


def test_costs_are_measured_apart(tmp_path: Path) -> None:
    toy_model().save_pretrained(tmp_path)
    pictures = [Observation("a", np.zeros((*SIZE, 3), np.uint8), None)] * 3
    found = costs(PredictorName.parse(str(tmp_path)), pictures, "cpu")
    assert [c.steps for c in found] == list(STEPS)
    assert all(c.milliseconds > 0 for c in found)
    assert all(c.peak_bytes > 2**26 and c.device == "cpu" for c in found)
    assert len({c.parameters for c in found}) == 1
    (flat,) = costs(PredictorName.parse("constant:2"), pictures, "cpu")
    assert (flat.steps, flat.parameters) == (None, 1)
    with pytest.raises(UserError, match="no MetricGold checkpoint"):
        costs(PredictorName.parse("./none?steps=1"), pictures, "cpu")
