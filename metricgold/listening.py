"""What every server of the project agrees on: which addresses are this machine's own."""

from __future__ import annotations

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Addresses that only this machine reaches."""


def port_taken(host: str, port: int) -> str:
    """The sentence for an address that cannot be listened on."""
    return f"port {port} of {host} is taken or not allowed; name another with --port"
