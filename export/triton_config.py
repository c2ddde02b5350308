"""``config.pbtxt`` of Triton's models: the fields that are written, and protobuf's text format.

The schema is ``model_config.proto`` of triton-inference-server/common; the tests parse what is
written here with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

Fields = Mapping[str, Any]


class Word(StrEnum):
    """A value that is written without quotes."""

    UINT8 = "TYPE_UINT8"
    INT64 = "TYPE_INT64"
    FP32 = "TYPE_FP32"
    AUTO = "KIND_AUTO"
    CPU = "KIND_CPU"


TYPES = {"uint8": Word.UINT8, "int64": Word.INT64, "float32": Word.FP32}
"""numpy's names of element types to Triton's."""


@dataclass(frozen=True)
class Tensor:
    """An input or output: element type (numpy's name) and lengths, -1 where any; batch first."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def fields(self, batched: bool, whole: bool = True) -> dict[str, Any]:
        """As a model's input or output.

        With ``batched``, Triton adds the batch's axis itself. It knows no tensor without another
        axis, so that of one number a picture is called one of length one; ``whole`` says that
        the graph has no such axis, which an ensemble must not.
        """
        dims = list(self.shape[1:] if batched else self.shape)
        found: dict[str, Any] = {"name": self.name, "data_type": TYPES[self.dtype]}
        found["dims"] = dims or [1]
        if not dims and whole:
            found["reshape"] = {"shape": []}
        return found


@dataclass(frozen=True, kw_only=True)
class Served:
    """One model of the repository.

    Attributes:
        platform: ``onnxruntime_onnx`` or ``tensorrt_plan``.
        file: name of its file in the folder of its version.
        kind: where its instances run.
    """

    name: str
    platform: str
    file: str
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    kind: Word = Word.AUTO

    def config(
        self, max_batch: int, delay_us: int, instances: int, threads: int | None
    ) -> dict[str, Any]:
        """Fields of its ``ModelConfig``; ``max_batch`` of 0 is a graph whose batch is fixed."""
        batched = max_batch > 0
        found: dict[str, Any] = {
            "name": self.name,
            "platform": self.platform,
            "default_model_filename": self.file,
            "max_batch_size": max_batch,
            "input": [t.fields(batched) for t in self.inputs],
            "output": [t.fields(batched) for t in self.outputs],
            "instance_group": [{"count": instances, "kind": self.kind}],
        }
        if batched:
            found["dynamic_batching"] = {"max_queue_delay_microseconds": delay_us}
        if threads is not None and self.platform == "onnxruntime_onnx":
            value = {"string_value": str(threads)}
            found["parameters"] = [{"key": "intra_op_thread_count", "value": value}]
        return found


def ensemble(
    name: str,
    steps: Sequence[Served],
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    max_batch: int,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Fields of an ensemble in which tensors of one name are one tensor.

    Args:
        facts: told to whoever asks the server for the model's configuration.
    """
    batched = max_batch > 0
    return {
        "name": name,
        "platform": "ensemble",
        "max_batch_size": max_batch,
        "input": [t.fields(batched, whole=False) for t in inputs],
        "output": [t.fields(batched, whole=False) for t in outputs],
        "parameters": [
            {"key": key, "value": {"string_value": str(value)}} for key, value in facts.items()
        ],
        "ensemble_scheduling": {
            "step": [
                {
                    "model_name": step.name,
                    "model_version": -1,
                    "input_map": [{"key": t.name, "value": t.name} for t in step.inputs],
                    "output_map": [{"key": t.name, "value": t.name} for t in step.outputs],
                }
                for step in steps
            ]
        },
    }


def text(fields: Fields, indent: str = "") -> str:
    """A message in protobuf's text format.

    >>> print(text({"name": "a", "dims": [3, -1], "kind": Word.CPU}), end="")
    name: "a"
    dims: [3, -1]
    kind: KIND_CPU
    """
    lines = []
    for name, value in fields.items():
        if isinstance(value, Mapping):
            lines.append(f"{indent}{name} {{\n{text(value, indent + '  ')}{indent}}}\n")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            lines.append("".join(text({name: each}, indent) for each in value))
        elif isinstance(value, list):
            lines.append(f"{indent}{name}: [{', '.join(str(int(n)) for n in value)}]\n")
        elif isinstance(value, Word):
            lines.append(f"{indent}{name}: {value.value}\n")
        elif isinstance(value, (int, np.integer)):
            lines.append(f"{indent}{name}: {int(value)}\n")
        else:
            lines.append(f"{indent}{name}: {_quoted(str(value))}\n")
    return "".join(lines)


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
