"""The ``--listen`` address of verbs that serve."""

from __future__ import annotations

from agentres.model.errors import UsageError


def parse_address(text: str) -> tuple[str, int]:
    """Parse ``9105``, ``127.0.0.1:9105`` or ``[::1]:9105`` into address and port; pure.  UsageError."""
    address, colon, port = text.rpartition(":")
    bracketed = address.startswith("[") and address.endswith("]")
    if not bracketed and ":" in address:
        raise UsageError(f"--listen {text}: expected IPv6 in brackets, as in [::1]:9105")
    address = address[1:-1] if bracketed else address
    if (colon and not address) or not (port.isascii() and port.isdigit() and len(port) <= 5):
        raise UsageError(f"--listen {text}: expected PORT or ADDR:PORT, as in 127.0.0.1:9105")
    if int(port) > 65535:
        raise UsageError(f"--listen {text}: expected a port up to 65535")
    return address or "127.0.0.1", int(port)
