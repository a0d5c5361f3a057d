"""The HTTP server: uvicorn's, but a connection that arrives during shutdown is answered or refused, never reset."""

import asyncio
import ctypes
import socket
import struct
import sys
import time
from contextlib import suppress
from typing import cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol


SETTLE_SECONDS = 0.5  # several round trips: handshakes that have begun complete
MAX_FIRST_REQUEST_SECONDS = 5
SO_ATTACH_FILTER = 26  # asm-generic/socket.h
# A classic BPF program: load the flags of the TCP header, drop a segment with SYN and without ACK, pass all others.
DROP_SYN = [
    (0x30, 0, 0, 13),  # load byte 13
    (0x54, 0, 0, 0x12),  # keep SYN and ACK
    (0x15, 0, 1, 0x02),  # SYN alone?
    (0x06, 0, 0, 0),
    (0x06, 0, 0, 0xFFFFFFFF),
]


class Server(uvicorn.Server):
    """uvicorn's server with a shutdown that loses no connection which the operating system has accepted.

    Closing a listening socket resets the connections that wait in its queue, and uvicorn closes those whose request it
    has not received yet. So new connections are held back first, and the server goes on until each connection that was
    made has got an answer; then the socket is closed, and new connections are refused.
    """

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer the connections that were made, refuse others, and shut down."""
        for listener in sockets or ():
            hold_new_connections(listener)
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        await asyncio.sleep(SETTLE_SECONDS)
        deadline = time.monotonic() + MAX_FIRST_REQUEST_SECONDS
        while self._awaits_first_request() and time.monotonic() < deadline and not self.force_exit:
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)

    def _awaits_first_request(self) -> bool:
        # `http="auto"` chooses this protocol or that of httptools, whose connections have the same attribute.
        connections = cast(set[H11Protocol], self.server_state.connections)
        return any(connection.cycle is None for connection in connections)


def hold_new_connections(listener: socket.socket) -> None:
    """Drop requests for new connections; clients repeat them after a second, and are refused if it is closed by then.

    Connections whose handshake has begun are not affected. Only Linux can do this, and some sandboxes do not let it;
    there nothing happens.

    Args:
        listener (`socket.socket`): A listening TCP socket.
    """
    if sys.platform != "linux":
        return
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *instruction) for instruction in DROP_SYN))
    pointer = struct.pack("HP", len(DROP_SYN), ctypes.addressof(program))
    with suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, pointer)
