"""How far a build has come: TensorRT's own phases as one bar, and a clean end on Ctrl-C."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from metricgold.progress import progress_bar


@dataclass
class _Phase:
    parent: str | None
    steps: int
    done: int = 0


class Phases:
    """Phases within phases, as a library reports them, to a share of the whole.

    A step of a phase counts as done in the measure of the phases inside it.
    """

    def __init__(self) -> None:
        self._phases: dict[str, _Phase] = {}

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins; without a parent it is the whole."""
        self._phases[name] = _Phase(parent, max(1, steps))

    def step(self, name: str, number: int) -> None:
        """Step ``number`` (from 0) of a phase is done."""
        if name in self._phases:
            self._phases[name].done = number + 1

    def finish(self, name: str) -> None:
        """A phase is done; of the phase it was in, only that step's completion tells more."""
        if name in self._phases and self._phases[name].parent is not None:
            del self._phases[name]

    def share(self) -> float:
        """Of the whole that is done, 0 to 1."""
        roots = [n for n, p in self._phases.items() if p.parent is None]
        return self._share(roots[-1]) if roots else 0.0

    def _share(self, name: str) -> float:
        phase = self._phases[name]
        inside = [n for n, p in self._phases.items() if p.parent == name]
        within = max((self._share(n) for n in inside), default=0.0)
        return min(1.0, (phase.done + within) / phase.steps)


@contextmanager
def shown(trt: Any, config: Any, component: str) -> Iterator[None]:
    """Show how the build that ``config`` belongs to comes on, where the library tells.

    A bar with the time left on a terminal, nothing elsewhere. Ctrl-C ends the build at its next
    step and then raises ``KeyboardInterrupt``: an exception must not pass through the library.
    """
    bar = progress_bar(
        description=f"building {component}", total=100, unit="%", disable=not sys.stderr.isatty()
    )
    with bar, _held_interrupts() as interrupted:
        monitor = _monitor(trt, bar, interrupted) if hasattr(trt, "IProgressMonitor") else None
        if monitor is not None:
            config.progress_monitor = monitor
        yield
        del monitor  # the library needs it up to here


@contextmanager
def _held_interrupts() -> Iterator[threading.Event]:
    """Ctrl-C sets an event within, and raises ``KeyboardInterrupt`` at the end."""
    interrupted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return

    def held(number: int, frame: FrameType | None) -> None:
        interrupted.set()

    before = signal.signal(signal.SIGINT, held)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
        if interrupted.is_set():  # whatever the library made of the early end
            raise KeyboardInterrupt


def _monitor(trt: Any, bar: Any, interrupted: threading.Event) -> Any:
    lock, phases = threading.Lock(), Phases()

    class Monitor(trt.IProgressMonitor):
        """Called by the library, from several threads."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with lock:
                phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            with lock:
                phases.step(phase_name, step)
                _advance(bar, phases.share())
            return not interrupted.is_set()

        def phase_finish(self, phase_name: str) -> None:
            with lock:
                phases.finish(phase_name)

    return Monitor()


def _advance(bar: Any, share: float) -> None:
    """Never back: a library may begin again."""
    bar.update(max(0, int(100 * share) - bar.n))
