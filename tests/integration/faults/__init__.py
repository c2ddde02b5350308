"""A run is disturbed, looked at, and brought to its end: used by the matrix and by the tests."""

from tests.integration.faults.local import LOCAL

FAULTS = LOCAL
