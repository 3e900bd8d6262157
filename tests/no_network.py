"""Refuse every connection that leaves this machine; run at the start of the tests and of every kernel."""

import socket

_connect = socket.socket.connect


def _is_local(address: object) -> bool:
    return not isinstance(address, tuple) or str(address[0]) in ("127.0.0.1", "::1", "localhost")


def _guarded_connect(self: socket.socket, address: object) -> None:
    if not _is_local(address):
        raise OSError(f"the tests run without a network, but something asked for {address}")
    return _connect(self, address)


def install() -> None:
    """Replace `socket.connect` in this process."""
    socket.socket.connect = _guarded_connect


install()
