"""The views of a picture that an ensemble of a one-step model sees; free of torch."""

from __future__ import annotations

SCALES = (1.0, 0.8, 1.25)
"""Sizes to look at a picture in, one pair of views after the other."""


def views(count: int, scales: tuple[float, ...] = SCALES) -> list[tuple[float, bool]]:
    """Scale, and whether mirrored, of ``count`` views of a picture; the first is as it is.

    One step starts from the camera's rays, so there is no noise to vary. Neither a mirrored
    picture nor one of another size shows another depth: such members need no alignment.

    Raises:
        ValueError: there are not that many views.
    """
    found = [(scale, mirrored) for scale in scales for mirrored in (False, True)]
    if count > len(found):
        raise ValueError(
            f"ensemble_size is {count}: one step without noise has at most {len(found)} views of a "
            "picture; take more steps for a larger ensemble"
        )
    return found[:count]
