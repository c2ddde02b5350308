"""Names of the formats that predictions are written in; imports nothing, so that help is quick."""

from __future__ import annotations

ABOUT = {
    "npy": "float32 metres",
    "npz": "depth, uncertainty, masks and K in one file",
    "exr": "float32 metres, channel Z",
    "png16": "16-bit picture, metres a step in the .json beside it",
    "colour": "colours with a scale bar in metres",
    "side": "picture, depth and uncertainty side by side",
    "normals": "normals",
    "ply": "coloured point cloud, camera frame",
    "glb": "coloured point cloud for viewers of glTF",
    "mesh": "mesh, open at edges",
}
"""Name to what it is; :data:`metricgold.outputs.FORMATS` writes them."""

DEFAULT_FORMATS = ("npy", "png16", "colour")
