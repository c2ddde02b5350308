"""What the service answers in JSON; the OpenAPI schema is made from these."""

from __future__ import annotations

from pydantic import BaseModel, Field


class Problem(BaseModel):
    """Why there is no depth."""

    error: str = Field(description="One sentence that says what is wrong and what to do.")


class Camera(BaseModel):
    """The camera that the depth is for."""

    fov_y_deg: float | None = Field(description="Vertical field of view; null: unknown.")
    source: str = Field(description="fov_deg, focal_px, EXIF or unknown.")


class Size(BaseModel):
    """In pixels."""

    width: int
    height: int


class Summary(BaseModel):
    """A prediction without its pixels; every other format carries it in a header."""

    size: Size = Field(description="Of the picture and of its depth.")
    working_size: Size = Field(description="What the networks saw.")
    depth_min_m: float
    depth_median_m: float
    depth_max_m: float
    model_min_m: float = Field(description="The nearest depth the model can say.")
    model_max_m: float = Field(description="The farthest; sky, and all beyond, is there.")
    sky_share: float = Field(description="Share of the pixels at the far end.")
    uncertainty_median_m: float | None = Field(description="Of an ensemble; null for one member.")
    metres_per_step: float | None = Field(description="Of the format png16; null for others.")
    camera: Camera
    steps: int
    ensemble: int
    backend: str
    batch: int = Field(description="Pictures that went through the networks together.")
    seconds: dict[str, float] = Field(
        description="Wall-clock time by stage; this picture's share in the networks."
    )


class ModelInfo(BaseModel):
    """The model that is being served."""

    depth_min_m: float
    depth_max_m: float
    precision: str
    accuracy: str | None = Field(description="What quantised graphs cost; null for others.")
    opset: int
    backend: str
    max_batch: int
    steps: int
    processing_resolution: int
    size_multiple: int
    dynamic: bool
    static_size: Size | None
    licence: str | None = Field(description="null: the export does not state one.")
    checkpoint_sha256: str
    graphs: dict[str, str] = Field(description="Each graph's sha256.")
    versions: dict[str, str]


class Health(BaseModel):
    """Of the process."""

    status: str
