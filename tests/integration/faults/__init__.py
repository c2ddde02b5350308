"""A run is disturbed, looked at, and brought to its end: used by the matrix and by the tests."""

from collections.abc import Iterator, Sequence

from tests.integration.faults.case import Bench, Fault, Row, tried
from tests.integration.faults.clock import CLOCK
from tests.integration.faults.local import LOCAL
from tests.integration.faults.served import SERVED, InTurn, tried_in_turn
from tests.integration.faults.state import STATE

FAULTS: tuple[Fault | InTurn, ...] = (*LOCAL, *STATE, *SERVED, *CLOCK)


def rows_of(fault: Fault | InTurn, bench: Bench, stages: Sequence[str]) -> Iterator[Row]:
    """Try a fault at some of its stages."""
    if isinstance(fault, InTurn):
        yield from tried_in_turn(fault, bench, stages)
    else:
        yield from (tried(fault, bench, stage) for stage in stages)
