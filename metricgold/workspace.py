"""Where every stage reads and writes: one object, relative to the repository root."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Workspace:
    """Folders of one project. ``root`` is where ``dvc.yaml`` and ``params.yaml`` lie."""

    root: Path = Path()

    def source(self, dataset: str) -> Path:
        """Procedural archives in native format, or the byte budget of a real mirror."""
        return self.root / "artifacts" / "source" / dataset

    def raw(self, dataset: str) -> Path:
        """Downloaded, verified archives and ``manifest.json``."""
        return self.root / "artifacts" / "raw" / dataset

    def shards(self, dataset: str) -> Path:
        """``train.h5``/``holdout.h5`` (or numbered) and ``report.json``."""
        return self.root / "artifacts" / "shards" / dataset

    @property
    def data_report(self) -> Path:
        """The HTML report on the shards."""
        return self.root / "artifacts" / "data_report"

    @property
    def base_model(self) -> Path:
        """The base model: image VAE, text-to-image U-Net, empty prompt."""
        return self.root / "artifacts" / "base_model"

    @property
    def depth_vae(self) -> Path:
        """The fine-tuned depth VAE."""
        return self.root / "artifacts" / "depth_vae"

    @property
    def latents(self) -> Path:
        """The latent cache, one HDF5 file a dataset."""
        return self.root / "artifacts" / "latents"

    @property
    def unet(self) -> Path:
        """Stage B: a complete multi-step checkpoint."""
        return self.root / "artifacts" / "unet"

    @property
    def one_step(self) -> Path:
        """Stage C: a complete one-step checkpoint, without a light autoencoder."""
        return self.root / "artifacts" / "one_step"

    @property
    def model(self) -> Path:
        """The checkpoint that is evaluated and exported: stage C's, and the light autoencoder."""
        return self.root / "artifacts" / "metricgold"

    @property
    def onnx(self) -> Path:
        """Exported graphs and their manifest."""
        return self.root / "artifacts" / "onnx"

    @property
    def engines(self) -> Path:
        """TensorRT engines and their manifest."""
        return self.root / "artifacts" / "engines"

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.root / "artifacts" / "report"

    @property
    def promotion(self) -> Path:
        """Decisions on challengers, the latest last by name."""
        return self.root / "artifacts" / "promotion"

    @property
    def predictions(self) -> Path:
        """Per-frame results and pictures of the evaluation."""
        return self.root / "artifacts" / "evaluation"

    @property
    def metrics(self) -> Path:
        """Small JSON files that DVC shows as metrics; committed."""
        return self.root / "metrics"

    @property
    def plots(self) -> Path:
        """CSV and PNG files that DVC shows as plots."""
        return self.root / "plots"

    def scratch(self, stage: str) -> Path:
        """Checkpoints of a stage that is still running; never an output."""
        return self.root / ".work" / stage


def checkpoint_of(name: str) -> Path | str:
    """A folder if it exists or looks like one, else a repository of the hub."""
    looks_local = name.startswith((".", "/", "~", "artifacts")) or name.count("/") != 1
    return Path(name).expanduser() if looks_local or Path(name).exists() else name
