"""The data report says of the shards what numpy counts in them, and says it the same every time."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from test_report import Outline

from metricgold.config import DATASET_NAMES, DatasetConfig, ProfileConfig
from metricgold.data import download, preprocess, source
from metricgold.data.dataset import SPLITS
from metricgold.data.registry import get_dataset
from metricgold.data.sample import Frame
from metricgold.data.shards import ShardReader, encode_frame, shard_paths
from metricgold.data.statistics import SplitStatistics, measure
from metricgold.errors import UserError
from metricgold.evaluation import charts, data_report
from metricgold.workspace import Workspace

ROOT = Path(__file__).parents[2]
USED = ("hypersim", "tartanair")
RENDERED = {"train": 12, "holdout": 4}
"""Frames of two scenes, of which fewer are rendered where they are held out."""
CSV_KEYS = {
    "depth": {"": "depth_histogram_m"},
    "fov": {"vertical": "fov_y_deg", "horizontal": "fov_x_deg"},
    "valid_ratio": {"": "valid_ratio"},
}


@pytest.fixture(scope="module")
def config(tiny_data_config: ProfileConfig) -> ProfileConfig:
    """Two datasets of equal weight, the others without; frames of small depth range are refused."""
    unused = DatasetConfig(weight=0, train_size=(16, 24))
    datasets = {
        name: tiny_data_config.datasets[name] if name in USED else unused for name in DATASET_NAMES
    }
    filters = tiny_data_config.preprocess.model_copy(update={"min_depth_range_m": 6.5})
    return tiny_data_config.model_copy(update={"datasets": datasets, "preprocess": filters})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, config: ProfileConfig) -> Workspace:
    """A workspace with the report; read-only, :func:`workspace` is a copy."""
    workspace = Workspace(tmp_path_factory.mktemp("made"))
    for dataset in config.datasets:
        for stage in (source, download, preprocess):
            stage.run(config, workspace, dataset)
    data_report.run(config, workspace)
    return workspace


@pytest.fixture
def workspace(made: Workspace, tmp_path: Path) -> Workspace:
    """Shards only, to be changed."""
    shutil.copytree(made.shards(""), tmp_path / "artifacts" / "shards")
    return Workspace(tmp_path)


@pytest.fixture(scope="module")
def frames(made: Workspace) -> dict[tuple[str, str], list[Frame]]:
    """Every frame of the shards, by dataset and split."""
    return {
        (name, split): list(ShardReader(shard_paths(made.shards(name), split)))
        for name in USED
        for split in SPLITS
    }


@pytest.fixture(scope="module")
def page(made: Workspace) -> str:
    return (made.data_report / "index.html").read_text(encoding="utf-8")


def log_depths(frames: list[Frame]) -> np.ndarray:
    return np.concatenate([np.log(f.depth[f.depth > 0].astype(np.float64)) for f in frames])


def fovs_deg(frames: list[Frame], axis: int) -> list[float]:
    """2 atan(size / (2 focal)), vertical for axis 0, horizontal for axis 1."""
    focals = [f.intrinsics[1 - axis, 1 - axis] for f in frames]
    sizes = [f.depth.shape[axis] for f in frames]
    return [math.degrees(2 * math.atan(s / 2 / f)) for s, f in zip(sizes, focals, strict=True)]


def report_of(workspace: Workspace, dataset: str) -> dict[str, Any]:
    return json.loads((workspace.shards(dataset) / "report.json").read_text(encoding="utf-8"))


def parts(made: Workspace, frames: dict[tuple[str, str], list[Frame]]) -> Iterator[Any]:
    """(what ``report.json`` says, what the shards hold) of every dataset and split."""
    for (name, split), found in frames.items():
        assert found
        yield report_of(made, name)[split], found


# --- report.json, metrics and plots against the shards -----------------------------------------


def test_metrics_equal_what_the_shards_hold(
    made: Workspace, frames: dict[tuple[str, str], list[Frame]]
) -> None:
    written = json.loads((made.metrics / "data.json").read_text(encoding="utf-8"))
    for (name, split), found in frames.items():
        logs = log_depths(found)
        expected = {
            "frames": len(found),
            "scenes": len({f.scene for f in found}),
            "rejected_share": 1 - len(found) / RENDERED[split],
            "log_depth_mean": logs.mean(),
            "log_depth_std": logs.std(),
            "valid_ratio": np.mean([(f.depth > 0).mean() for f in found]),
            "sky_share": np.mean([f.sky_mask.mean() for f in found]),
            "fov_y_deg": np.mean(fovs_deg(found, 0)),
            "fov_x_deg": np.mean(fovs_deg(found, 1)),
        }
        assert written[name][split] == pytest.approx(expected, abs=1e-6), (name, split)
    assert set(written) == set(USED)
    shares = [written[name][split]["rejected_share"] for name in USED for split in SPLITS]
    assert 0 < max(shares) < 1
    assert written["hypersim"]["train"]["fov_y_deg"] != written["tartanair"]["train"]["fov_y_deg"]


def test_depth_histogram_counts_every_valid_pixel_once(
    made: Workspace, frames: dict[tuple[str, str], list[Frame]]
) -> None:
    edges = np.exp(np.linspace(np.log(1e-3), np.log(1e3), 141))
    for said, found in parts(made, frames):
        depths = np.concatenate([f.depth[f.depth > 0] for f in found])
        histogram = said["depth_histogram_m"]
        assert sum(histogram["counts"]) == depths.size == said["log_depth"]["pixels"]
        counts, _ = np.histogram(depths, edges)
        filled = np.flatnonzero(counts)
        kept = slice(filled[0], filled[-1] + 1)
        assert histogram["counts"] == counts[kept].tolist()
        np.testing.assert_allclose(histogram["edges"], edges[kept.start : kept.stop + 1], rtol=1e-5)
        extremes = (said["log_depth"]["min_m"], said["log_depth"]["max_m"])
        np.testing.assert_allclose(extremes, (depths.min(), depths.max()), atol=1e-6)
        median = said["depth_percentiles_m"]["p50"]
        assert median == pytest.approx(np.median(depths), rel=0.011)


def test_histograms_over_frames(
    made: Workspace, frames: dict[tuple[str, str], list[Frame]]
) -> None:
    for said, found in parts(made, frames):
        shares = np.arange(21) / 20
        angles = np.arange(2.5, 180, 5)
        for key, values, edges in (
            ("fov_y_deg", fovs_deg(found, 0), angles),
            ("fov_x_deg", fovs_deg(found, 1), angles),
            ("valid_ratio", [(f.depth > 0).mean() for f in found], shares),
            ("sky_share", [f.sky_mask.mean() for f in found], shares),
        ):
            part = said[key]
            limits = (part["min"], part["max"])
            np.testing.assert_allclose(limits, (np.min(values), np.max(values)), atol=1e-6)
            first = np.flatnonzero(np.isclose(edges, part["edges"][0]))[0]
            counts, _ = np.histogram(values, edges)
            assert part["counts"] == counts[first : first + len(part["counts"])].tolist(), key
            assert sum(part["counts"]) == len(found), key
        height, width = found[0].depth.shape
        assert said["sizes_px"] == {f"{height}x{width}": len(found)}


def test_frames_left_out_are_named(made: Workspace, config: ProfileConfig, page: str) -> None:
    reason, counts = "depth range too small", []
    for name in USED:
        refs = get_dataset(name).index(made.raw(name), config.datasets[name])
        for split in SPLITS:
            said = report_of(made, name)[split]
            kept = ShardReader(shard_paths(made.shards(name), split)).keys
            out = sorted({ref.key for ref in refs if ref.split == split} - set(kept))
            assert said["rejected"] == ({reason: len(out)} if out else {})
            assert said["rejected_examples"] == ({reason: out[:5]} if out else {})
            if out:
                shown = ", ".join(out[:5]) + (", …" if len(out) > 5 else "")
                share = f"{100 * len(out) / RENDERED[split]:.2f} %"
                numbers = f"<td>{len(out)}</td><td>{share}</td>"
                assert f'{numbers}<td class="text">{reason}</td><td class="text">{shown}<' in page
            counts.append(len(out))
    assert max(counts) > 5


def test_plots_are_the_histograms_in_percent(made: Workspace) -> None:
    for name, keys in CSV_KEYS.items():
        with (made.plots / f"data_{name}.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        columns: dict[tuple[str, str, str], list[tuple[float, float]]] = defaultdict(list)
        for row in rows:
            edge, percent = list(row.values())[-2:]
            column = (row["dataset"], row["split"], row.get("direction", ""))
            columns[column].append((float(edge), float(percent)))
        assert set(columns) == {(n, s, d) for n in USED for s in SPLITS for d in keys}
        for (dataset, split, direction), points in columns.items():
            histogram = report_of(made, dataset)[split][keys[direction]]
            counts = np.array(histogram["counts"])
            assert [edge for edge, _ in points] == histogram["edges"]
            expected = [*(100 * counts / counts.sum()), 0]
            np.testing.assert_allclose([p for _, p in points], expected, rtol=1e-5)


def test_dvc_draws_columns_that_there_are(made: Workspace) -> None:
    stage = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]["data_report"]
    drawn = {path: options for entry in stage["plots"] for path, options in entry.items()}
    assert set(drawn) == {f"plots/data_{name}.csv" for name in CSV_KEYS}
    for path, options in drawn.items():
        header = (made.root / path).read_text(encoding="utf-8").splitlines()[0].split(",")
        assert {options["x"], options["y"], "dataset", "split"} <= set(header)
        template = ROOT / ".dvc" / "plots" / f"{options['template']}.json"
        fields = json.loads(template.read_text(encoding="utf-8"))["encoding"]
        assert (fields["x"]["field"], fields["y"]["field"]) == ("<DVC_METRIC_X>", "<DVC_METRIC_Y>")
        assert fields["row"]["field"] == "dataset"


def test_groups_counted_apart_add_up() -> None:
    """As when scenes are streamed: the sum does not depend on where the groups are cut."""
    rng = np.random.default_rng(0)
    together, first, second, merged = (SplitStatistics() for _ in range(4))
    for i in range(6):
        depth = rng.uniform(0.5 + i, 10 + 5 * i, (6, 8)).astype(np.float32)
        sky = rng.random((6, 8)) < 0.1 * i
        k = np.array([[5.0 + i, 0, 3.5], [0, 6.0 + i, 2.5], [0, 0, 1]])
        valid = ~sky
        frame = Frame(f"s/{i}", "s", np.zeros((6, 8, 3), np.uint8), depth, valid, sky, k)
        part = measure(encode_frame(frame, 90))
        together.add(part)
        (first if i < 2 else second).add(part)
    merged.merge(first)
    merged.merge(second)
    assert merged.report() == together.report()
    assert merged.report()["sky_share"]["max"] > 0.1


def test_nothing_counted_is_reported_as_nothing() -> None:
    report = SplitStatistics().report()
    assert set(report) >= {"log_depth", "depth_histogram_m", "fov_y_deg", "valid_ratio"}
    assert not any(report.values())


# --- the page ----------------------------------------------------------------------------------


def test_page_is_complete_self_contained_and_well_formed(page: str) -> None:
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    sheets = [link for link in outline.links if link.startswith("data:image/jpeg;base64,")]
    assert len(sheets) == len(USED) * len(SPLITS)
    assert all(link.startswith("data:") for link in outline.links)
    assert not re.search(r"https?://|url\(|@import|<script", page)
    # depth: together and alone; both fields of view, alone; valid and sky, together
    assert page.count("<svg") == (2 + 2) + 2 * 2 + 2 * 2
    assert "width=device-width" in page
    for text in ("depth [m]", "% of valid pixels", "angle [°]", "% of frames", "hypersim: depth"):
        assert text in page, text


def test_page_states_the_figures(
    page: str, frames: dict[tuple[str, str], list[Frame]], config: ProfileConfig
) -> None:
    for (name, split), found in frames.items():
        logs = log_depths(found)
        cells = (
            f"<td>{logs.mean():.3f}<small>{math.exp(logs.mean()):.3g} m</small></td>"
            f"<td>{logs.std():.3f}<small>× {math.exp(logs.std()):.3g}</small></td>"
        )
        title = {"train": "training", "holdout": "held out"}[split]
        row = rf"<tr><td>{name}</td><td>{title}</td>(?:(?!</tr>).)*{re.escape(cells)}</tr>"
        assert re.search(row, page), (name, split)
        for axis in (0, 1):
            angles = np.array(fovs_deg(found, axis))
            values = (angles.min(), angles.mean(), angles.max())
            assert "".join(f"<td>{v:.1f}</td>" for v in values) in page
        valid = np.mean([(f.depth > 0).mean() for f in found])
        assert f"<td>{100 * valid:.1f} %</td>" in page
    frames_of = {s: sum(len(found) for (_, t), found in frames.items() if t == s) for s in SPLITS}
    assert f"<b>{frames_of['train']}</b><span>training frames" in page
    assert f"<b>{frames_of['holdout']}</b><span>held-out frames" in page
    unused = ", ".join(name for name in DATASET_NAMES if name not in USED)
    assert f"Of weight 0 in this profile, hence not used: {unused}.</p>" in page
    assert "<td>50 %</td>" in page  # the mixture of two equal weights
    assert f"span {config.preprocess.min_depth_range_m:g} m" in page


def test_a_dataset_of_weight_0_needs_no_shards(
    workspace: Workspace, config: ProfileConfig, page: str
) -> None:
    shutil.rmtree(workspace.shards("virtual_kitti"))
    data_report.run(config, workspace)
    assert (workspace.data_report / "index.html").read_text(encoding="utf-8") == page


def test_equal_shards_give_equal_bytes(
    made: Workspace, workspace: Workspace, config: ProfileConfig
) -> None:
    data_report.run(config, workspace)
    names = [f"plots/data_{name}.csv" for name in CSV_KEYS]
    for name in ("artifacts/data_report/index.html", "metrics/data.json", *names):
        assert (workspace.root / name).read_bytes() == (made.root / name).read_bytes(), name
    assert [p.name for p in workspace.data_report.iterdir()] == ["index.html"]


def test_a_split_without_frames_is_left_out(workspace: Workspace, config: ProfileConfig) -> None:
    path = workspace.shards("tartanair") / "report.json"
    report = report_of(workspace, "tartanair")
    report["holdout"] = report_of(workspace, "virtual_kitti")["holdout"]  # of weight 0
    path.write_text(json.dumps(report), encoding="utf-8")
    for shard in shard_paths(workspace.shards("tartanair"), "holdout"):
        shard.unlink()
    data_report.run(config, workspace)
    page = (workspace.data_report / "index.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 3
    assert "<td>tartanair</td><td>training</td>" in page
    assert "<td>tartanair</td><td>held out</td>" not in page


def test_origin_and_warnings_are_shown(workspace: Workspace, config: ProfileConfig) -> None:
    report = report_of(workspace, "tartanair")
    mirrors = ["https://a.example/<x>", "$MIRROR"]
    report["source"], report["warnings"] = "mirrors", ["depth looks like disparity"]
    report["download"] = {"licence": "CC <BY>", "bytes": 1_500_000, "files": 3, "missing": 2}
    report["download"]["mirrors"] = mirrors
    (workspace.shards("tartanair") / "report.json").write_text(json.dumps(report))
    data_report.run(config, workspace)
    page = (workspace.data_report / "index.html").read_text(encoding="utf-8")
    shards = sum(path.stat().st_size for path in workspace.shards("tartanair").glob("*.h5"))
    assert (
        f"<td>tartanair</td><td>3</td><td>2</td><td>1.5 MB</td><td>{shards / 1e3:.1f} kB</td>"
        '<td>50 %</td><td class="text">https://a.example/&lt;x&gt;, $MIRROR</td>'
        '<td class="text">CC &lt;BY&gt;</td>'
    ) in page
    assert "tartanair: depth looks like disparity" in page


def test_missing_and_old_inputs_are_told_in_one_sentence(
    workspace: Workspace, config: ProfileConfig
) -> None:
    for shard in shard_paths(workspace.shards("hypersim"), "train"):
        shard.unlink()
    pattern = r"hypersim: no shard train-\*\.h5, though report\.json counts \d+ frames; run the"
    with pytest.raises(UserError, match=pattern):
        data_report.run(config, workspace)
    path = workspace.shards("hypersim") / "report.json"
    report = report_of(workspace, "hypersim")
    del report["holdout"]["log_depth"]
    path.write_text(json.dumps(report), encoding="utf-8")
    with pytest.raises(UserError, match=r"report\.json: lacks the statistics of split 'holdout'"):
        data_report.run(config, workspace)
    path.unlink()
    with pytest.raises(UserError, match=r"report\.json: no such file; run the stage 'preprocess'"):
        data_report.run(config, workspace)
    assert not workspace.data_report.exists()
    assert not workspace.metrics.exists()


# --- the chart -----------------------------------------------------------------------------------


def test_histogram_chart_places_its_corners() -> None:
    series = [charts.Series("a", [1, 2, 8], [50.0, 25.0])]
    svg = charts.histogram_chart("t", series, "x", "% of y", (1, 16), octaves=True)
    match = re.search(r'points="([^"]+)"', svg)
    assert match is not None
    corners = [tuple(map(float, pair.split(","))) for pair in match[1].split()]
    left, right = charts.LEFT + 4, charts.WIDTH - charts.RIGHT - 4
    base, top = charts.HEIGHT - charts.BOTTOM, charts.TOP + 16
    high, low = (base - (base - top) * v / (1.08 * 50) for v in (50, 25))
    one, three = left + (right - left) / 4, left + (right - left) * 3 / 4  # octaves 1 and 3 of 4
    expected = [(left, base), (left, high), (one, high), (one, low), (three, low), (three, base)]
    np.testing.assert_allclose(corners, expected, atol=0.06)
    labels = re.findall(r">([\d.]+)</text>", svg)
    assert labels == ["0", "20", "40", "1", "2", "4", "8", "16"]
    assert "% of y" in svg


def test_octave_ticks_by_hand() -> None:
    assert charts.octave_ticks(0.2, 9) == [0.25, 0.5, 1, 2, 4, 8]
    assert charts.octave_ticks(1, 4) == [1, 2, 4]
    assert charts.octave_ticks(2.1, 3.9) == []
