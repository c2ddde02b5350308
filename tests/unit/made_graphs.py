"""An export folder with a true manifest and a graph that is none, for what reads hashes only."""

from __future__ import annotations

from pathlib import Path

from export.manifest import GraphFile, Manifest, SchedulerTable, sha256_of


def write_graphs(folder: Path, checkpoint_sha256: str, name: str) -> None:
    """Graph and manifest of a model called ``name``."""
    folder.mkdir(parents=True)
    graph = folder / "unet_step.onnx"
    graph.write_text(f"graph of {name}")
    table = SchedulerTable(
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        num_train_timesteps=1,
        final_alpha_cumprod=1.0,
        timesteps={"1": [0]},
        alphas_cumprod="0.5",
    )
    files = {graph.name: sha256_of(graph)}
    Manifest(
        precision="fp32",
        attention="fp32",
        opset=23,
        dynamic=True,
        static_size=None,
        depth_min_m=0.1,
        depth_max_m=80.0,
        size_multiple=2,
        latent_factor=2,
        latent_channels=4,
        processing_resolution=24,
        num_inference_steps=1,
        fov={},
        preprocessing={},
        versions={},
        licence="not stated",
        checkpoint_sha256=checkpoint_sha256,
        scheduler=table,
        components={"unet_step": GraphFile(files=files, bytes=1, inputs={}, output={})},
    ).write(folder)
