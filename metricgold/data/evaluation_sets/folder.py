"""A user's own folder as an evaluation set: described by ``dataset.yaml`` as for training.

Every frame is evaluated: nothing is held back for training, and no depth is too far.
"""

from __future__ import annotations

from pathlib import Path

from metricgold.config import DatasetConfig
from metricgold.data.evaluation_sets.base import EvaluationRef, EvaluationSet, sorted_refs
from metricgold.data.folder import Folder, scene_of
from metricgold.data.folder_check import list_files, load_spec
from metricgold.data.folder_spec import match_names
from metricgold.data.sample import Frame

_EVERYTHING = DatasetConfig(weight=1, mirrors=("folder",), train_size=(1, 1))


class OwnFolder(EvaluationSet):
    """Pictures, depth and camera in files of their own (:mod:`metricgold.data.folder_spec`)."""

    name = "folder"
    licence = "the owner's; keep to it"
    homepage = "metricgold/data/folder_spec.py"
    citation = "your own data"
    depth_range_m = (0.0, 1e6)
    expected_frames = 0
    frame_size = (1080, 1920)
    supply = "a folder with dataset.yaml, named by --source"
    lists_all = False

    def frames(self, raw: Path) -> list[EvaluationRef]:
        """Frames that have any of their files: see ``EvaluationSet``."""
        spec = load_spec(raw)
        files = {k: match_names(list_files(raw, p), p) for k, p in spec.patterns().items()}
        complete = {ref.key: ref for ref in Folder().frames(raw, _EVERYTHING)}
        refs = [
            EvaluationRef(key, ref.scene, {"rgb": ref.rgb, "depth": ref.depth}, about=ref)
            for key, ref in complete.items()
        ]
        for name in sorted({name for found in files.values() for name in found}):
            lacking = [
                spec.patterns()[k].replace("{id}", name) for k in files if name not in files[k]
            ]
            if lacking:
                refs.append(EvaluationRef(name, scene_of(name), missing=tuple(lacking)))
        return sorted_refs(refs)

    def _read(self, raw: Path, ref: EvaluationRef) -> Frame:
        return Folder().read(raw, ref.about, _EVERYTHING, self.depth_range_m[1])
