"""The report from made-up inputs: merging, completeness, determinism, clear errors."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metricgold import files
from metricgold.config import ProfileConfig, load_config
from metricgold.evaluation import charts, report
from metricgold.evaluation.skipped import BY_PIXEL
from metricgold.evaluation.summary import (
    ReportError,
    collect,
    datasets_digest,
    flatten,
    merge_datasets,
)
from metricgold.workspace import Workspace

PARAMS = Path(__file__).parents[2] / "params.yaml"
NAMES = [
    *("abs_rel", "sq_rel", "rmse", "rmse_log", "log10", "delta1", "delta2", "delta3", "silog"),
    *("scale_ratio", "boundary_f1", "boundary_precision", "boundary_recall"),
    *("unknown_fov_abs_rel", "unknown_fov_delta1", "unknown_fov_scale_ratio"),
    *("affine_abs_rel", "affine_delta1", "affine_disparity_abs_rel", "affine_disparity_delta1"),
    *("constant_abs_rel", "constant_delta1", "constant_median_abs_rel", "constant_median_delta1"),
]
STAGES = ("base_model", "train_vae", "train_unet", "train_one_step")


def record(frames: int, scenes: int, abs_rel: float, constant: float) -> dict[str, Any]:
    values = {name: round(0.3 + 0.01 * i, 5) for i, name in enumerate(NAMES)}
    values |= {"frames": frames, "scenes": scenes, "abs_rel": abs_rel, "constant_abs_rel": constant}
    values |= {"abs_rel_low": abs_rel - 0.02, "abs_rel_high": abs_rel + 0.02, "delta1": 0.71}
    values |= {"delta1_low": 0.69, "delta1_high": 0.73, "ratio_to_constant": abs_rel / constant}
    return values | {"constant_depth_m": 2.5, "constant_median_depth_m": 3.0}


def fill(workspace: Workspace) -> None:
    """All inputs of a run, made up."""
    rng = np.random.default_rng(0)
    files.write_json(workspace.metrics / "evaluate_hypersim.json", record(300, 50, 0.2, 0.6))
    files.write_json(workspace.metrics / "evaluate_virtual_kitti.json", record(100, 30, 0.4, 0.5))
    skipped = {"frames": 0, "scenes": 0, "reason": "the dataset has weight 0 in this profile"}
    for left_out in ("tartanair", "folder"):
        files.write_json(workspace.metrics / f"evaluate_{left_out}.json", skipped)
    after = {"abs_rel": 0.031, "delta1": 0.985, "boundary_f1": 0.42, "abs_rel_edges": 0.09}
    before = {"abs_rel": 0.16, "delta1": 0.8, "boundary_f1": 0.2, "abs_rel_edges": 0.3}
    floors = {"floor_before": before, "floor_after": after}
    files.write_json(workspace.metrics / "train_vae.json", floors)
    parity = {"passed": True, "64x96": {"unet": 3.1e-6, "pipeline_max_relative": 1.2e-5}}
    files.write_json(workspace.metrics / "parity.json", parity)
    build = {
        "library_version": "1.7.1",
        "compute_capabilities": ["8.9", "12.0"],
        "engines": {"unet": {"bytes": 5_200_000}, "image_encoder": {"bytes": 900_000}},
    }
    manifest = {"builds": {"tensorrt-rtx": build}, "not_built": {"tensorrt": "no GPU <here>"}}
    files.write_json(workspace.engines / "manifest.json", manifest)
    for i, stage in enumerate(STAGES):
        loss = np.exp(-np.arange(100) / 30) * (1 + 0.2 * rng.normal(size=100)) + 0.05 * (i + 1)
        rows = [(step, float(value)) for step, value in enumerate(loss)]
        files.write_csv(workspace.plots / f"{stage}.csv", ["step", "loss"], rows)
    for dataset in ("hypersim", "virtual_kitti"):
        bounds = [(0.1, 1.0), (1.0, 2.0), (2.0, 4.0), (4.0, 8.0), (8.0, 80.0)]
        errors = [(lo, hi, 1000, 0.15 + 0.01 * hi**0.5, 0.7, 0.6) for lo, hi in bounds]
        for kind, columns in BY_PIXEL.items():
            files.write_csv(workspace.plots / f"evaluate_{dataset}_by_{kind}.csv", columns, errors)
        folder = workspace.predictions / dataset
        folder.mkdir(parents=True)
        panels = []
        for i, share in enumerate((0.0, 50.0, 100.0)):
            noise = rng.integers(0, 255, (48, 216, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"panel_{i:02d}.png")
            panels.append(
                {
                    "file": f"panel_{i:02d}.png",
                    "key": f"s{i}/<cam>",
                    "percentile": share,
                    "abs_rel": 0.1 * i,
                }
            )
        files.write_json(folder / "panels.json", panels)


@pytest.fixture
def config() -> ProfileConfig:
    return load_config(PARAMS, "demo")


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = Workspace(tmp_path)
    fill(made)
    return made


def test_merged_figures_count_frames() -> None:
    merged = merge_datasets({"a": record(300, 50, 0.2, 0.6), "b": record(100, 30, 0.4, 0.5)})
    assert (merged["frames"], merged["scenes"]) == (400, 80)
    assert merged["abs_rel"] == pytest.approx((300 * 0.2 + 100 * 0.4) / 400)
    constant = (300 * 0.6 + 100 * 0.5) / 400
    assert merged["constant_abs_rel"] == pytest.approx(constant)
    assert merged["ratio_to_constant"] == pytest.approx(0.25 / constant, abs=1e-5)
    assert "abs_rel_low" not in merged
    assert "constant_depth_m" not in merged


def test_summary_json(config: ProfileConfig, workspace: Workspace) -> None:
    report.run(config, workspace)
    summary = json.loads((workspace.metrics / "summary.json").read_text())
    assert summary == collect(config, workspace)
    assert summary["abs_rel"] == 0.25
    assert summary["vae_floor_abs_rel"] == 0.031
    assert summary["vae_floor_before_abs_rel"] == 0.16
    assert summary["hypersim_abs_rel"] == 0.2
    assert "tartanair_abs_rel" not in summary
    assert "regression_abs_rel" not in summary
    assert all(isinstance(v, int | float) for v in summary.values())


class Outline(HTMLParser):
    """Collects headings and everything that could be fetched, and checks the nesting."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "srcset", "action")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_complete_self_contained_and_well_formed(
    config: ProfileConfig, workspace: Workspace
) -> None:
    report.run(config, workspace)
    page = (workspace.report / "index.html").read_text(encoding="utf-8")
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    assert len(outline.links) == 1 + 6
    assert all(link.startswith("data:") for link in outline.links)
    assert not re.search(r"https?://|url\(|@import|<script", page)
    assert page.count("<svg") == 4 + 2 * 2
    for text in (
        "0.250",
        "best: AbsRel 0.000",
        "s0/&lt;cam&gt;",
        "no GPU &lt;here&gt;",
        "tensorrt-rtx 1.7.1",
        "tartanair is not evaluated",
        "0.180–0.220",
        "64x96.unet",
        "missed by 0.050",
    ):
        assert text in page, text
    assert "width=device-width" in page


def test_equal_inputs_give_equal_bytes(config: ProfileConfig, workspace: Workspace) -> None:
    def outputs() -> list[bytes]:
        report.run(config, workspace)
        paths = (workspace.report / "index.html", workspace.metrics / "summary.json")
        return [p.read_bytes() for p in paths]

    assert outputs() == outputs()


def test_regression_baseline_is_a_target_where_committed(
    config: ProfileConfig, workspace: Workspace
) -> None:
    path = workspace.root / "docs" / "benchmarks" / "regression_baseline.json"
    figures = {"abs_rel": 0.31, "delta1": 0.6, "datasets": datasets_digest(config)}
    files.write_json(path, figures)
    assert collect(config, workspace)["regression_abs_rel"] == 0.31
    assert "AbsRel of a regression U-Net" in report.build_page(config, workspace)
    files.write_json(path, figures | {"datasets": "of another profile"})
    assert "regression_abs_rel" not in collect(config, workspace)


def test_only_the_evaluation_is_required(config: ProfileConfig, workspace: Workspace) -> None:
    for path in (workspace.metrics / "train_vae.json", workspace.metrics / "parity.json"):
        path.unlink()
    for path in workspace.plots.iterdir():
        path.unlink()
    (workspace.engines / "manifest.json").unlink()
    page = report.build_page(config, workspace)
    assert "<svg" not in page
    assert "Engines" not in page
    assert "not measured" in page  # the floor's target


def test_missing_and_damaged_inputs_are_named(config: ProfileConfig, workspace: Workspace) -> None:
    path = workspace.metrics / "evaluate_hypersim.json"
    path.write_text("{")
    with pytest.raises(ReportError, match=r"evaluate_hypersim\.json: not valid JSON"):
        report.run(config, workspace)
    path.unlink()
    with pytest.raises(ReportError, match=r"evaluate_hypersim\.json: missing; run 'dvc repro"):
        report.run(config, workspace)
    assert not workspace.report.exists()
    with pytest.raises(ReportError, match="no dataset was evaluated"):
        merge_datasets({"a": {"frames": 0, "scenes": 0, "reason": "weight 0"}})


def test_summary_table(workspace: Workspace) -> None:
    lines = report.summary_table(workspace).splitlines()
    assert lines[0].split() == ["hypersim", "virtual_kitti", "all"]
    assert lines[1].split() == ["AbsRel", "0.200", "0.400", "0.250"]
    assert "depth-VAE floor: AbsRel 0.031" in lines[-1]
    assert len({len(line) for line in lines[:-1]}) == 1


def test_flatten() -> None:
    nested = {"a": {"b": 1, "c": [2, {"d": 3}]}, "e": 4}
    assert flatten(nested) == {"a.b": 1, "a.c.0": 2, "a.c.1.d": 3, "e": 4}


def test_ticks_and_median_by_hand() -> None:
    assert charts.nice_ticks(0.0, 1.0) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert charts.nice_ticks(3.0, 1003.0) == pytest.approx([200, 400, 600, 800, 1000])
    assert charts.nice_ticks(2.0, 2.0) == [2.0]
    assert charts.log_ticks(0.3, 300) == pytest.approx([1, 10, 100])
    assert charts.log_ticks(0.02, 0.6) == pytest.approx([0.02, 0.05, 0.1, 0.2, 0.5])
    assert charts.running_median([1, 9, 2, 8, 3], 3) == [5, 2, 8, 3, 5.5]


def test_line_chart_places_its_points() -> None:
    svg = charts.line_chart("t", [charts.Series("a", [0, 10], [1.0, 100.0])], "x", log_y=True)
    points = re.search(r'points="([\d.]+),([\d.]+) ([\d.]+),([\d.]+)"', svg)
    assert points is not None
    x0, y0, x1, y1 = map(float, points.groups())
    assert x0 == charts.LEFT + 4
    assert x1 == charts.WIDTH - charts.RIGHT - 4
    assert y0 == charts.HEIGHT - charts.BOTTOM
    assert y1 == charts.TOP + 16


def test_a_legend_takes_as_many_rows_as_it_needs() -> None:
    def names(count: int) -> tuple[float, list[tuple[float, float]]]:
        series = [charts.Series(f"model {i}", [], [1.0, 2.0], i) for i in range(count)]
        svg = charts.bar_chart("t", ["a", "b"], series, "x")
        top = re.search(r'viewBox="0 (-?\d+) \d+ \d+"', svg)
        assert top is not None
        places = re.findall(r'<text x="([\d.-]+)" y="([\d.-]+)">model', svg)
        assert all(float(w) > 0 for w in re.findall(r'width="([\d.-]+)"', svg))
        return float(top[1]), [(float(x), float(y)) for x, y in places]

    top, places = names(3)
    assert top == 0
    assert len({y for _, y in places}) == 1
    top, places = names(14)
    assert len(places) == 14
    assert top < 0
    assert all(14 <= x < charts.WIDTH and y > top for x, y in places)
    assert len(set(places)) == 14


def test_parity_is_a_row_for_every_graph(config: ProfileConfig, workspace: Workspace) -> None:
    graph = {"component": "unet_step", "size": [64, 96], "max_relative": 1.5e-6, "passed": True}
    record = {
        "passed": True,
        "comparisons": [graph, graph | {"size": [48, 144]}],
        "accuracy": {"onnxruntime-cpu": {"hypersim": {"frames": 24, "abs_rel": 0.21}}},
    }
    files.write_json(workspace.metrics / "parity.json", record)
    page = report.build_page(config, workspace)
    assert "<td>unet_step</td><td>64x96</td><td>1.5e-06</td><td>yes</td>" in page
    assert "<td>48x144</td>" in page
    assert "<td>onnxruntime-cpu</td><td>hypersim</td><td>24</td><td>0.21</td>" in page
    assert "comparisons" not in page
