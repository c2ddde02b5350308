"""The light autoencoder: how it is trained, kept, chosen, refused and exported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from made_frames import make_frame, write_shards
from PIL import Image
from toy import LIGHT, TOY, toy_model
from typer.testing import CliRunner, Result

from export.manifest import read_manifest
from export.onnx_export import export_checkpoint
from export.parity import ParityError
from export.parity import run as check_parity
from metricgold.cli import app
from metricgold.config import (
    ConfigError,
    ExportConfig,
    LightVaeConfig,
    ProfileConfig,
    TrainLightConfig,
    load_config,
)
from metricgold.errors import UserError
from metricgold.evaluation.predictor_names import PredictorName
from metricgold.evaluation.predictors import PipelinePredictor, parameters_of
from metricgold.model import (
    CheckpointError,
    build_light_vae,
    decode_depth_norm,
    encode,
    vae_factor,
)
from metricgold.pipeline import MetricGoldPipeline
from metricgold.training import latents, light
from metricgold.training.base_model import BaseModel
from metricgold.training.latents import StaleLatentsError
from metricgold.workspace import Workspace

SIZE = (16, 24)
RGB = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
REFUSED = "has no light autoencoder; train one by 'train_light' in params.yaml"


def light_model(**options: Any) -> MetricGoldPipeline:
    return toy_model(fov_matters=True, light=LIGHT, **options)


def profile(**changes: Any) -> ProfileConfig:
    """``smoke`` on one dataset of small frames, watched by nobody."""
    config = load_config("params.yaml", "smoke")
    datasets = {
        name: dataset.model_copy(
            update={"weight": float(name == "tartanair"), "train_size": SIZE, "crop": None}
        )
        for name, dataset in config.datasets.items()
    }
    assert config.train_light is not None
    section = config.train_light.model_copy(update={"network": LIGHT})
    nobody = config.tracking.model_copy(update={"trackers": ()})
    own = {"datasets": datasets, "train_light": section, "tracking": nobody}
    return config.model_copy(update=own | changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """What stage C leaves, and the stage after it."""
    ws = Workspace(tmp_path_factory.mktemp("light"))
    model = toy_model(fov_matters=True)
    BaseModel(model.image_vae, model.unet, model.empty_text_embed).save(ws.base_model)
    model.depth_vae.save_pretrained(ws.depth_vae)
    model.save_pretrained(ws.one_step)
    for split in ("train", "holdout"):
        frames = [make_frame(s, i, SIZE) for s in (1, 2) for i in range(3)]
        write_shards(ws.shards("tartanair"), split, frames)  # type: ignore[arg-type]
    latents.run(profile(), ws)
    light.run(profile(), ws)
    return ws


def batch_of(model: MetricGoldPipeline) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    cells = (TOY.latent_channels, SIZE[0] // 2, SIZE[1] // 2)
    return {
        "rgb": torch.rand(2, 3, *SIZE, generator=generator) * 2 - 1,
        "rgb_latent": torch.randn(2, *cells, generator=generator),
        "depth_latent": torch.randn(2, *cells, generator=generator),
        "depth_norm": torch.rand(2, 1, *SIZE, generator=generator) * 2 - 1,
        "valid_mask": torch.rand(2, 1, *SIZE, generator=generator) < 0.7,
        "sky_mask": torch.zeros(2, 1, *SIZE, dtype=torch.bool),
        "fov_y_deg": torch.tensor([50.0, 80.0]),
    }


def test_latents_and_depth_have_the_full_ones_shapes() -> None:
    model = light_model()
    assert isinstance(model.light_vae, AutoencoderTiny)
    assert vae_factor(model.light_vae) == vae_factor(model.image_vae) == 2
    rgb = torch.rand(2, 3, *SIZE) * 2 - 1
    latent = encode(model.light_vae, rgb)
    assert latent.shape == encode(model.image_vae, rgb).shape
    assert decode_depth_norm(model.light_vae, latent).shape == (2, 1, *SIZE)
    taesd = build_light_vae(LightVaeConfig(), 4).state_dict()
    expected = AutoencoderTiny().state_dict()
    assert {n: v.shape for n, v in taesd.items()} == {n: v.shape for n, v in expected.items()}


OBJECTIVES = (light.ApartObjective, light.ThroughUNetObjective)


def losses_of(
    kind: type[light.LightObjective], **changes: float
) -> tuple[MetricGoldPipeline, light.LightObjective, dict[str, torch.Tensor]]:
    model, config = light_model(), profile()
    assert model.light_vae is not None
    assert config.train_light is not None
    model.light_vae.requires_grad_(True)
    section = config.train_light.model_copy(update=changes)
    objective = kind(model, config.model_copy(update={"train_light": section}))
    return model, objective, objective(0, batch_of(model), torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_gradients_reach_the_light_autoencoder_and_nothing_else(
    kind: type[light.LightObjective],
) -> None:
    model, _, losses = losses_of(kind)
    losses["loss"].backward()
    for name, part in model.components.items():
        if not isinstance(part, torch.nn.Module):
            continue
        reached = [p for p in part.parameters() if p.grad is not None and p.grad.any()]
        assert bool(reached) == (name == "light_vae"), name


def test_the_losses_are_weighed() -> None:
    for kind, weight in zip(OBJECTIVES, (1.0, 0.3), strict=True):
        _, objective, losses = losses_of(kind, latent_loss_weight=0.3)
        expected = weight * losses["latent"] + losses["l1"]
        for name in ("gradient", "scale", "relative"):
            of_stage_c = getattr(objective.one_step.config, f"{name}_loss_weight")
            expected = expected + of_stage_c * losses[name]
        torch.testing.assert_close(losses["loss"], expected)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_depth_teaches_the_encoder_through_the_unet_alone(
    kind: type[light.LightObjective],
) -> None:
    model, _, losses = losses_of(kind)
    assert model.light_vae is not None
    losses["l1"].backward()
    first = next(model.light_vae.encoder.parameters())
    assert (first.grad is not None) == (kind is light.ThroughUNetObjective)


def test_the_stage_trains_it_and_leaves_the_others(trained: Workspace) -> None:
    before = MetricGoldPipeline.from_pretrained(trained.one_step)
    after = MetricGoldPipeline.from_pretrained(trained.model)
    assert before.light_vae is None
    assert after.light_vae is not None
    assert not after.light
    for name in ("image_vae", "depth_vae", "unet", "empty_text"):
        others = getattr(after, name).state_dict()
        for key, value in getattr(before, name).state_dict().items():
            assert torch.equal(others[key], value), f"{name}.{key}"
    torch.manual_seed(0)
    initial = build_light_vae(LIGHT, TOY.latent_channels).state_dict()
    changed = [not torch.equal(v, initial[k]) for k, v in after.light_vae.state_dict().items()]
    assert all(changed)
    for curve in light.CURVES.values():
        header, *rows = (trained.plots / curve).read_text().splitlines()
        assert header.startswith("step,")
        assert len(rows) == 4
    assert not trained.scratch("train_light_latent").exists()


def test_without_the_section_the_checkpoint_is_passed_on(
    trained: Workspace, tmp_path: Path
) -> None:
    ws = Workspace(tmp_path)
    MetricGoldPipeline.from_pretrained(trained.one_step).save_pretrained(ws.one_step)
    light.run(profile(train_light=None), ws)
    assert MetricGoldPipeline.from_pretrained(ws.model).light_vae is None
    for part in ("unet", "image_vae", "depth_vae"):
        name = f"{part}/diffusion_pytorch_model.safetensors"
        assert (ws.model / name).read_bytes() == (ws.one_step / name).read_bytes()
    assert (ws.plots / "train_light.csv").read_text() == "step,loss\n"


def test_pictures_of_another_cache_are_refused(trained: Workspace) -> None:
    config = profile()
    moved = config.cache_latents.augment.model_copy(update={"crop": 1.0, "crop_min_scale": 0.3})
    changed = profile(cache_latents=config.cache_latents.model_copy(update={"augment": moved}))
    with pytest.raises(StaleLatentsError, match="latents of tartanair: made of other frames"):
        light.run(changed, trained)


def test_a_pretrained_one_is_the_start(tmp_path: Path) -> None:
    vae = build_light_vae(LIGHT, TOY.latent_channels)
    vae.save_pretrained(tmp_path / "taesd")
    given = profile().train_light
    assert given is not None
    names = {"network": None, "pretrained": str(tmp_path / "taesd")}
    found = light.initial_light_vae(given.model_copy(update=names), TOY.latent_channels)
    for key, value in vae.state_dict().items():
        assert torch.equal(found.state_dict()[key], value)


def test_offline_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    given = profile().train_light
    assert given is not None
    names = {"network": None, "pretrained": "somebody/no-such-model", "revision": "abc"}
    with pytest.raises(UserError) as told:
        light.initial_light_vae(given.model_copy(update=names), 4)
    wanted = "light autoencoder 'somebody/no-such-model' (revision abc) cannot be had: "
    assert str(told.value).startswith(wanted)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"network": None}, "exactly one of 'network' and 'pretrained'"),
        ({"pretrained": "madebyollin/taesd"}, "exactly one of 'network' and 'pretrained'"),
        ({"network": {"encoder_blocks": [0, 1], "decoder_blocks": [1]}}, "they must be as many"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict[str, Any], said: str) -> None:
    given = profile().train_light
    assert given is not None
    with pytest.raises(ValueError, match=said):
        TrainLightConfig.model_validate(given.model_dump() | changes)


def test_params_must_say_whether_there_is_one(tmp_path: Path) -> None:
    text = Path("params.yaml").read_text(encoding="utf-8")
    (tmp_path / "params.yaml").write_text(text.replace("    train_light: null\n", ""))
    with pytest.raises(ConfigError, match=r"missing key 'profiles\.real_sample\.train_light'"):
        load_config(tmp_path / "params.yaml", "real_sample")


def test_the_pipeline_uses_it_when_told(tmp_path: Path) -> None:
    model = light_model()
    model.save_pretrained(tmp_path)
    full, chosen = (MetricGoldPipeline.from_pretrained(tmp_path, light=v) for v in (None, True))
    assert not full.light
    plain = toy_model(fov_matters=True)(RGB, fov_deg=50).prediction
    np.testing.assert_allclose(full(RGB, fov_deg=50).prediction, plain, rtol=1e-4)
    found = chosen(RGB, fov_deg=50, output_latent=True)
    assert np.abs(found.prediction / plain - 1).max() > 0.01
    with torch.no_grad():
        decoded = decode_depth_norm(chosen.light_vae, found.latent).clamp(-1, 1)[0, 0]
    np.testing.assert_allclose(
        found.prediction[0, ..., 0], chosen.codec.decode(decoded.numpy()), rtol=1e-4
    )
    back = chosen.use_light(False)(RGB, fov_deg=50).prediction
    np.testing.assert_allclose(back, plain, rtol=1e-4)


def test_it_is_read_without_a_warning(tmp_path: Path) -> None:
    light_model().save_pretrained(tmp_path)
    code = "import sys; from metricgold.pipeline import MetricGoldPipeline as P; "
    code += "print(P.from_pretrained(sys.argv[1]).light_vae.config.block_out_channels)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[4, 4]\n"
    assert done.stderr == ""


def test_it_can_be_what_a_checkpoint_says(tmp_path: Path) -> None:
    light_model().use_light().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["light"] is True
    assert MetricGoldPipeline.from_pretrained(tmp_path).light
    assert not MetricGoldPipeline.from_pretrained(tmp_path, light=False).light
    assert MetricGoldPipeline.of(light_model().use_light()).light


@pytest.mark.parametrize("options", [{"num_inference_steps": 3}, {"ensemble_size": 2}])
def test_several_steps_and_ensembles(options: dict[str, int]) -> None:
    pipeline = light_model().use_light()
    both = [
        pipeline([RGB, RGB[:, ::-1]], generator=torch.Generator().manual_seed(1), **options)
        for _ in range(2)
    ]
    assert both[0].prediction.shape == (2, *SIZE, 1)
    np.testing.assert_array_equal(both[0].prediction, both[1].prediction)
    one = light_model().use_light()(RGB).prediction
    assert np.abs(both[0].prediction[:1] - one).max() > 1e-3


def test_a_checkpoint_from_before_it_can_be_read(tmp_path: Path) -> None:
    toy_model().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    del index["light_vae"], index["light"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    pipeline = MetricGoldPipeline.from_pretrained(tmp_path)
    np.testing.assert_allclose(pipeline(RGB).prediction, toy_model()(RGB).prediction, rtol=1e-4)


def test_a_model_without_it_refuses(tmp_path: Path) -> None:
    model = toy_model()
    with pytest.raises(CheckpointError, match=f"this model: {REFUSED}"):
        model.use_light()
    model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=f"{tmp_path}: {REFUSED}"):
        MetricGoldPipeline.from_pretrained(tmp_path, light=True)
    other = LightVaeConfig(width=4, encoder_blocks=(0, 0, 1), decoder_blocks=(1, 0, 0))
    with pytest.raises(CheckpointError, match="have 4 channels a 4 px, the full one's 4 a 2 px"):
        toy_model(light=other).use_light()


def test_parts_can_be_offloaded() -> None:
    """On the CPU, since there is no GPU; that hooks and parts fit is what is seen here."""
    pipeline = light_model().use_light()
    expected = pipeline(RGB, fov_deg=50).prediction
    pipeline.enable_model_cpu_offload(device="cpu")
    for _ in range(2):
        np.testing.assert_allclose(pipeline(RGB, fov_deg=50).prediction, expected, rtol=1e-4)


def test_the_card_and_the_predictor_know_it(tmp_path: Path) -> None:
    model = light_model()
    model.save_pretrained(tmp_path)
    assert "| light autoencoder, for speed | yes: " in (tmp_path / "README.md").read_text()
    toy_model().save_pretrained(tmp_path / "without")
    assert "| light autoencoder, for speed | no |" in (tmp_path / "without/README.md").read_text()
    predictors = [PredictorName.parse(f"{tmp_path}?light={n}").open("cpu") for n in (0, 1)]
    for predictor, pipeline in zip(predictors, (model, light_model().use_light()), strict=True):
        assert isinstance(predictor, PipelinePredictor)
        np.testing.assert_allclose(predictor(RGB), pipeline(RGB).prediction[0, ..., 0], rtol=1e-4)
    counted = [
        [model.unet, model.empty_text, *parts]
        for parts in ([model.image_vae, model.depth_vae], [model.light_vae])
    ]
    assert [p.parameters for p in predictors] == [parameters_of(parts) for parts in counted]
    with pytest.raises(UserError, match="light=yes cannot be read"):
        PredictorName.parse(f"{tmp_path}?light=yes").open()


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(RGB).save("a.png")
    light_model().save_pretrained("with")
    toy_model().save_pretrained("without")
    options = ("--fov-deg", 50, "--format", "npy", "--light", "--checkpoint")
    done = call("infer", "a.png", *options, "with")
    assert done.exit_code == 0, done.output
    expected = light_model().use_light()(RGB, fov_deg=50).prediction[0, ..., 0]
    np.testing.assert_allclose(np.load("outputs/a_depth.npy"), expected, rtol=1e-4)
    refused = call("infer", "a.png", *options, "without")
    assert isinstance(refused.exception, CheckpointError)
    assert f"without: {REFUSED}" in str(refused.exception)
    for name, has in (("with", True), ("without", False)):
        found = json.loads(call("info", "--json", "--checkpoint", name).output)["checkpoint"]
        assert found["has a light autoencoder"] is has
        assert ("light_vae (M parameters)" in found) is has


def test_its_graphs_agree_with_the_pipeline(tmp_path: Path, export_config: ExportConfig) -> None:
    ws = Workspace(tmp_path)
    light_model().save_pretrained(ws.model)
    config = export_config.model_copy(update={"light": True})
    assert export_checkpoint(ws.model, ws.onnx, config).autoencoder == "light"
    assert read_manifest(ws.onnx).autoencoder == "light"
    compared = check_parity(profile(export=config), ws)
    assert len(compared) == 9  # three graphs and end to end at two sizes, the fused one at one
    assert json.loads((ws.metrics / "parity.json").read_text())["autoencoder"] == "light"
    manifest = json.loads((ws.onnx / "manifest.json").read_text())
    (ws.onnx / "manifest.json").write_text(json.dumps(manifest | {"autoencoder": "full"}))
    with pytest.raises(ParityError, match="vae_encoder at 16x24 differs from torch"):
        check_parity(profile(export=config), ws)


def test_an_export_without_it_refuses(tmp_path: Path, export_config: ExportConfig) -> None:
    toy_model().save_pretrained(tmp_path / "model")
    with pytest.raises(CheckpointError, match=REFUSED):
        export_checkpoint(
            tmp_path / "model", tmp_path / "onnx", export_config.model_copy(update={"light": True})
        )
    assert not (tmp_path / "onnx").exists()
