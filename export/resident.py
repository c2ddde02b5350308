"""Latents that stay where the graphs run: between encoder, U-Net and decoder nothing is copied.

A back-end that can keep them is a :class:`ResidentBackend`; any other is wrapped by
:class:`HostValues`, whose values are numpy arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from export import numpy_sampler
from export.backends import Backend


class ResidentBackend(Backend, Protocol):
    """Also runs graphs on values of its own and leaves what they give where it is."""

    def run_resident(self, component: str, inputs: Mapping[str, Any]) -> Any:
        """As ``run``; each input is an array or a value that another call gave."""
        ...

    def combine(self, latent: Any, velocity: Any, of_latent: float, of_velocity: float) -> Any:
        """The sampler's arithmetic, see :func:`export.numpy_sampler.sampling_steps`."""
        ...

    def to_host(self, value: Any) -> NDArray[np.float32]:
        """A value as an array."""
        ...


class HostValues:
    """Any back-end as a :class:`ResidentBackend` whose values are arrays."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def run_resident(self, component: str, inputs: Mapping[str, Any]) -> NDArray[np.float32]:
        """``run`` itself."""
        return self.backend.run(component, inputs)

    def combine(
        self, latent: Any, velocity: Any, of_latent: float, of_velocity: float
    ) -> NDArray[np.float32]:
        """By numpy."""
        return numpy_sampler.combine(latent, velocity, of_latent, of_velocity)

    def to_host(self, value: Any) -> NDArray[np.float32]:
        """The array it is."""
        return value


def resident(backend: Backend) -> ResidentBackend | HostValues:
    """The back-end itself if it keeps values, else with arrays for them."""
    if hasattr(backend, "run_resident"):
        return cast(ResidentBackend, backend)
    return HostValues(backend)
