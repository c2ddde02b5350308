"""params.yaml: every profile loads; what is wrong is named in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from metricgold.config import DATASET_NAMES, ConfigError, load_config

ROOT = Path(__file__).parents[2]
PARAMS = ROOT / "params.yaml"


@pytest.fixture
def params() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
    return content


@pytest.fixture(autouse=True)
def no_profile_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METRICGOLD_PROFILE", raising=False)


def written(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_every_profile_of_the_repository_loads(params: dict[str, Any]) -> None:
    assert {"demo", "smoke"} <= set(params["profiles"])
    assert params["profile"] in params["profiles"]
    for name in params["profiles"]:
        config = load_config(PARAMS, name)
        assert set(config.datasets) == set(DATASET_NAMES)


@pytest.mark.parametrize(
    ("path", "misspelt"),
    [
        (("train_unet", "optimizer"), "learning_rate"),
        (("codec",), "depth_max"),
        (("datasets", "hypersim"), "wieght"),
        ((), "trian_vae"),
    ],
)
def test_unknown_key_is_refused_by_its_full_name(
    params: dict[str, Any], tmp_path: Path, path: tuple[str, ...], misspelt: str
) -> None:
    section = params["profiles"]["demo"]
    for key in path:
        section = section[key]
    section[misspelt] = 1
    with pytest.raises(ConfigError) as caught:
        load_config(written(tmp_path, params), "demo")
    message = str(caught.value)
    assert ".".join(("unknown key 'profiles.demo", *path, misspelt)) in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("codec", "depth_min_m"), -1.0, "depth_min_m"),
        (("codec", "depth_max_m"), 0.05, "depth_max_m (0.05) must exceed depth_min_m"),
        (("datasets", "tartanair", "weight"), -0.5, "tartanair.weight"),
        (("evaluate", "num_inference_steps"), 0, "num_inference_steps"),
        (("export", "precision"), "int8", "precision"),
        (("seed",), "first", "seed"),
    ],
)
def test_value_out_of_range_is_named(
    params: dict[str, Any], tmp_path: Path, path: tuple[str, ...], value: Any, named: str
) -> None:
    section = params["profiles"]["demo"]
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    with pytest.raises(ConfigError, match=r"params\.yaml") as caught:
        load_config(written(tmp_path, params), "demo")
    assert named in str(caught.value)


def test_missing_key_is_named(params: dict[str, Any], tmp_path: Path) -> None:
    del params["profiles"]["demo"]["export"]["opset"]
    with pytest.raises(ConfigError, match=r"missing key 'profiles\.demo\.export\.opset'"):
        load_config(written(tmp_path, params), "demo")


def test_missing_dataset_is_named(params: dict[str, Any], tmp_path: Path) -> None:
    del params["profiles"]["demo"]["datasets"]["tartanair"]
    with pytest.raises(ConfigError, match="datasets lacks tartanair"):
        load_config(written(tmp_path, params), "demo")


def test_at_least_one_dataset_must_be_used(params: dict[str, Any], tmp_path: Path) -> None:
    for dataset in params["profiles"]["demo"]["datasets"].values():
        dataset["weight"] = 0
    with pytest.raises(ConfigError, match="every dataset has weight 0"):
        load_config(written(tmp_path, params), "demo")


def test_unknown_profile_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"unknown profile 'dmeo'.*demo.*smoke"):
        load_config(PARAMS, "dmeo")


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "params.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("profile: [demo", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"broken\.yaml: not valid YAML"):
        load_config(broken)


def test_environment_chooses_the_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METRICGOLD_PROFILE", "smoke")
    assert load_config(PARAMS) == load_config(PARAMS, "smoke")
    assert load_config(PARAMS, "demo") != load_config(PARAMS, "smoke")


def test_configuration_is_frozen() -> None:
    config = load_config(PARAMS, "smoke")
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 1  # type: ignore[misc]
