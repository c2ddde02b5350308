"""The evaluation sets there are, by name."""

from __future__ import annotations

from metricgold.data.evaluation_sets.base import EvaluationSet
from metricgold.data.evaluation_sets.ddad import Ddad
from metricgold.data.evaluation_sets.diode import Diode
from metricgold.data.evaluation_sets.eth3d import Eth3d
from metricgold.data.evaluation_sets.folder import OwnFolder
from metricgold.data.evaluation_sets.ibims1 import Ibims1
from metricgold.data.evaluation_sets.kitti import Kitti
from metricgold.data.evaluation_sets.middlebury2014 import Middlebury2014
from metricgold.data.evaluation_sets.nuscenes import NuScenes
from metricgold.data.evaluation_sets.nyuv2 import NyuV2
from metricgold.data.evaluation_sets.scannet import ScanNet
from metricgold.data.evaluation_sets.sintel import Sintel
from metricgold.data.evaluation_sets.sun_rgbd import SunRgbd
from metricgold.errors import UserError

EVALUATION_SETS: dict[str, EvaluationSet] = {
    member.name: member
    for member in (
        NyuV2(),
        Kitti("garg"),
        Kitti("eigen"),
        Eth3d(),
        Diode("all"),
        Diode("indoor"),
        Diode("outdoor"),
        Ibims1(),
        SunRgbd(),
        Sintel(),
        Middlebury2014(),
        ScanNet(),
        Ddad(),
        NuScenes(),
        OwnFolder(),
    )
}


def get_evaluation_set(name: str) -> EvaluationSet:
    """The evaluation set called ``name``.

    Raises:
        UserError: there is none; the message lists those there are.
    """
    if name not in EVALUATION_SETS:
        known = ", ".join(EVALUATION_SETS)
        raise UserError(f"unknown evaluation set '{name}'; known sets: {known}")
    return EVALUATION_SETS[name]
