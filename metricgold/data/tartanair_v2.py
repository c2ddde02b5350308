"""TartanAir V2, the second source of :mod:`metricgold.data.tartanair`: where it differs from V1.

More environments, 640x640 pictures, and depth as the four bytes of a float32 in a PNG's channels
(read as the dataset's tools do; no genuine V2 file was at hand to check it on).
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from metricgold.data.dataset import MAX_FRAME_PIXELS
from metricgold.imaging import decode_picture

MIRRORS = (
    "https://airlab-cloud.andrew.cmu.edu:8080/swift/v1/"
    "AUTH_ac8533a83cff4d48bc8c608ad222d330/tartanair_v2",
)
FOLDER = "v2"
"""Below the mirrors and in the scenes' names, so that V1 and V2 stay apart."""
ENVIRONMENTS = (
    "AbandonedCable", "AbandonedFactory", "AbandonedFactory2", "AbandonedSchool", "AmericanDiner",
    "AncientTowns", "Antiquity3D", "Apocalyptic", "ArchVizTinyHouseDay", "ArchVizTinyHouseNight",
    "BrushifyMoon", "CarWelding", "CastleFortress", "CoalMine", "ConstructionSite", "CountryHouse",
    "CyberPunkDowntown", "Cyberpunk", "DesertGasStation", "Downtown", "EndofTheWorld",
    "FactoryWeather", "Fantasy", "ForestEnv", "Gascola", "GothicIsland", "GreatMarsh",
    "HQWesternSaloon", "HongKong", "Hospital", "House", "IndustrialHangar", "JapaneseAlley",
    "JapaneseCity", "MiddleEast", "ModUrbanCity", "ModernCityDowntown", "ModularNeighborhood",
    "ModularNeighborhoodIntExt", "NordicHarbor", "Ocean", "Office", "OldBrickHouseDay",
    "OldBrickHouseNight", "OldIndustrialCity", "OldScandinavia", "OldTownFall", "OldTownNight",
    "OldTownSummer", "OldTownWinter", "PolarSciFi", "Prison", "Restaurant", "RetroOffice", "Rome",
    "Ruins", "SeasideTown", "SeasonalForestAutumn", "SeasonalForestSpring",
    "SeasonalForestSummerNight", "SeasonalForestWinter", "SeasonalForestWinterNight", "Sewerage",
    "ShoreCaves", "Slaughter", "SoulCity", "Supermarket", "TerrainBlending", "UrbanConstruction",
    "VictorianStreet", "WaterMillDay", "WaterMillNight", "WesternDesertTown",
)  # fmt: skip
"""All but ``AmusementPark``, as in V1."""
HOLDOUT_ENVIRONMENTS = (
    "Office", "RetroOffice", "OldTownFall", "OldTownNight", "OldTownSummer", "OldTownWinter",
)  # fmt: skip
"""Those that may show the worlds that V1 holds out, so that none is trained on in another guise."""
DIFFICULTIES = ("easy", "hard")

IMAGE = re.compile(r"(P\d+)/image_lcam_front/(\d+)_lcam_front\.png$")
DEPTH = re.compile(r"(P\d+)/depth_lcam_front/(\d+)_lcam_front_depth\.png$")


def archive(environment: str, difficulty: str, kind: str) -> str:
    """Path of the ``image`` or ``depth`` zip of one environment below the mirror's base."""
    return f"{environment}/Data_{difficulty}/{kind}_lcam_front.zip"


def read_depth(data: bytes) -> NDArray[np.float32]:
    """z-depth [H, W] in metres from the bytes of a depth PNG.

    The dataset's tools view the pixels as OpenCV gives them (blue, green, red, alpha) as one
    little-endian float32.

    Raises:
        ImageError: it is damaged, or no PNG of four 8-bit channels.
    """
    rgba = decode_picture(data, ("PNG",), ("RGBA",), MAX_FRAME_PIXELS)
    bgra = np.ascontiguousarray(rgba[..., [2, 1, 0, 3]])
    return bgra.view("<f4")[..., 0].astype(np.float32, copy=False)
