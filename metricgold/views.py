"""The views of a picture that an ensemble of a one-step model sees; free of torch."""

from __future__ import annotations


def mirrored_views(count: int) -> list[bool]:
    """Whether each of ``count`` views of a picture is mirrored; the first is as it is.

    One step starts from the camera's rays, so there is no noise to vary. A mirrored picture shows
    the same depths, so the two need no alignment. (Other sizes, noise in place of the rays:
    worse than one view alone, ARCHITECTURE.md has the figures.)

    Raises:
        ValueError: there are not that many views.
    """
    if count > 2:
        raise ValueError(
            f"ensemble_size is {count}: one step without noise has two views of a picture, as it "
            "is and mirrored; take more steps for a larger ensemble"
        )
    return [False, True][:count]
