"""Predictors by name, as a command line gives them: ``KIND:TARGET?OPTION=VALUE&...``."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from metricgold.errors import UserError
from metricgold.evaluation.predictors import (
    ConstantPredictor,
    Invariance,
    PipelinePredictor,
    Predictor,
)
from metricgold.workspace import checkpoint_of

INVARIANCES = {
    "metric": Invariance.METRIC,
    "depth": Invariance.AFFINE_DEPTH,
    "disparity": Invariance.AFFINE_DISPARITY,
}
CAMERAS = {"known": True, "unknown": False}
LIGHT = {"1": True, "0": False}


def _choice(known: Mapping[str, Any]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        if text not in known:
            raise ValueError(f"take {' or '.join(known)}")
        return known[text]

    return read


def _metricgold(target: str, device: str | None, **options: Any) -> Predictor:
    return PipelinePredictor.from_pretrained(checkpoint_of(target), device, **options)


def _folder(target: str, device: str | None, **options: Any) -> Predictor:
    from metricgold.evaluation.prediction_folder import FolderPredictor

    return FolderPredictor(Path(target).expanduser(), **options)


def _marigold(target: str, device: str | None, **options: Any) -> Predictor:
    from metricgold.evaluation.other_models import MarigoldPredictor

    return MarigoldPredictor.from_pretrained(_local(target), device, **options)


def _transformers(target: str, device: str | None, **options: Any) -> Predictor:
    from metricgold.evaluation.other_models import TransformersPredictor

    return TransformersPredictor.from_pretrained(_local(target), device, **options)


def _function(target: str, device: str | None, **options: Any) -> Predictor:
    from metricgold.evaluation.other_models import FunctionPredictor

    module, _, name = target.partition(":")
    if "" not in sys.path:  # as of 'python -m': modules of the folder that one is in
        sys.path.insert(0, "")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"function:{target}: cannot be imported ({error}); write function:PACKAGE.MODULE:NAME"
        ) from None
    return FunctionPredictor(function, **options)


def _constant(target: str, device: str | None, **options: Any) -> Predictor:
    try:
        return ConstantPredictor(float(target), **options)
    except ValueError as error:
        raise UserError(f"constant:{target}: {error}") from None


@dataclass(frozen=True)
class Kind:
    """A kind of predictor: how it is made and what may be said of it.

    Attributes:
        make: from the target and the device.
        options: by name: what they are called in Python, and how they are read.
        about: for the help.
    """

    make: Callable[..., Predictor]
    options: Mapping[str, tuple[str, Callable[[str], Any]]]
    about: str


_STEPS = {"steps": ("num_inference_steps", int), "ensemble": ("ensemble_size", int)}
_PIPELINE = _STEPS | {"resolution": ("processing_resolution", int), "seed": ("seed", int)}
_INVARIANCE = {"invariance": ("invariance", _choice(INVARIANCES))}

KINDS: dict[str, Kind] = {
    "metricgold": Kind(
        _metricgold,
        _PIPELINE
        | {
            "camera": ("use_fov", _choice(CAMERAS)),
            "tile": ("tile_size", int),
            "light": ("light", _choice(LIGHT)),
        },
        "a checkpoint, folder or repository; this kind is meant where none is said",
    ),
    "folder": Kind(
        _folder,
        _INVARIANCE | {"metres_per_step": ("metres_per_step", float)},
        "predictions made elsewhere, .npy, .npz or 16-bit .png named as the frames",
    ),
    "marigold": Kind(_marigold, _PIPELINE, "a checkpoint of diffusers' MarigoldDepthPipeline"),
    "transformers": Kind(
        _transformers, _INVARIANCE, "a depth estimator such as Depth Anything, ZoeDepth, Depth Pro"
    ),
    "function": Kind(_function, _INVARIANCE, "PACKAGE.MODULE:NAME, from rgb (and K) to depth"),
    "constant": Kind(_constant, {}, "a number of metres"),
}
HELP = "; ".join(f"{name}:… {kind.about}" for name, kind in KINDS.items())


@dataclass(frozen=True)
class PredictorName:
    """A name taken apart.

    Attributes:
        label: what it is called in tables.
        kind, target: see :data:`KINDS`.
        options: as written.
    """

    label: str
    kind: str
    target: str
    options: Mapping[str, str]

    @classmethod
    def parse(cls, text: str) -> PredictorName:
        """Of ``[LABEL=][KIND:]TARGET[?OPTION=VALUE&...]``.

        Raises:
            UserError: there is no target, or an option that the kind does not know.
        """
        spec, label = text, ""
        before, equals, after = text.partition("=")
        if equals and "?" not in before and ":" not in before:
            label, spec = before.strip(), after
        place, _, query = spec.partition("?")
        kind, colon, target = place.partition(":")
        if not colon or kind not in KINDS:
            kind, target = "metricgold", place
        if not target:
            raise UserError(f"{text}: says no model; write KIND:TARGET with {', '.join(KINDS)}")
        options = dict(parse_qsl(query, keep_blank_values=True))
        for name in options:
            if name not in KINDS[kind].options:
                known = ", ".join(KINDS[kind].options) or "none"
                raise UserError(f"{text}: {kind} has no option '{name}'; it has: {known}")
        return cls(label or spec, kind, target, options)

    @property
    def accepted(self) -> list[str]:
        """Names of the options that its kind knows."""
        return list(KINDS[self.kind].options)

    def with_options(self, **options: Any) -> PredictorName:
        """The same with some options changed."""
        changed = dict(self.options) | {name: str(value) for name, value in options.items()}
        return PredictorName(self.label, self.kind, self.target, changed)

    def open(self, device: str | None = None) -> Predictor:
        """The predictor, on a device.

        Raises:
            UserError: it cannot be loaded, or an option cannot be read.
        """
        kind = KINDS[self.kind]
        options = {}
        for name, text in self.options.items():
            argument, read = kind.options[name]
            try:
                options[argument] = read(text)
            except ValueError as error:
                raise UserError(f"{self.label}: {name}={text} cannot be read ({error})") from None
        return kind.make(self.target, device, **options)


def _local(target: str) -> str:
    path = Path(target).expanduser()
    return str(path) if path.exists() else target
