"""Every TCP socket of this machine, as the kernel shows them (sock_diag(7)).

One request, and then one read after the other until all has been shown. The older of the two forms
of the request is used, for it shows IPv4 and IPv6 in one go, and keeps no reader waiting while the
kernel looks through what it does not show. A filter leaves out, in the kernel, whatever has no port
of the range that is asked about: above all the sockets of clients.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

#: linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h, net/tcp_states.h.
_NETLINK_SOCK_DIAG = 4
_TCPDIAG_GETSOCK = 18
_REQUEST, _DUMP = 0x1, 0x300
_ERROR, _DONE = 2, 3
_REQ_BYTECODE = 1
_S_GE, _S_LE = 2, 3
TIME_WAIT, LISTEN = 6, 10
#: All states but CLOSE and SYN_RECV: those have no port of their own, or are somebody else's.
_STATES = 0xFFF & ~(1 << 7) & ~(1 << 3) & ~1

#: What the kernel fills at once, if it gets as much room.
READ_BYTES = 32768
_HEADER = struct.Struct("=IHHII")
_START, _NUMBER = struct.Struct("=IH"), struct.Struct("=i")
# A header's length and type; state; the source port; destination port, source and destination
# address in one piece, for that is what a budget is of; the inode, which an orphan has not.
_ROW = struct.Struct("=IH11xB2x2s34s28xI")
_ROW_BYTES = _HEADER.size + 72
#: A header, and what has gone wrong: 0: nothing.
_END_BYTES = _HEADER.size + _NUMBER.size


class Dump:
    """One question.

    :param low: of the ports that are asked about, the first; ``high``: the last.
    :raises OSError: the kernel does not answer such questions here.
    """

    def __init__(self, low: int, high: int) -> None:
        if not hasattr(socket, "AF_NETLINK"):
            raise OSError("there is no netlink here")
        # Twice, for the port comes as an operand of its own, in the place of a jump.
        code = struct.pack(
            "=BBHBBHBBHBBH", _S_GE, 8, 20, 0, 0, low, _S_LE, 8, 12, 0, 0, high
        )  # fmt: skip
        body = struct.pack("=52xII", _STATES, 0) + struct.pack("=HH", 4 + len(code), _REQ_BYTECODE)
        body += code
        header = _HEADER.pack(16 + len(body), _TCPDIAG_GETSOCK, _REQUEST | _DUMP, 1, 0)
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
        try:
            self._socket.send(header + body)
        except OSError:
            self._socket.close()
            raise
        self._buffer = bytearray(READ_BYTES)
        self.done = False

    def fileno(self) -> int:
        """Readable as long as there is more."""
        return self._socket.fileno()

    def read(self) -> Iterator[tuple[int, int, bytes, int]]:
        """One read: of each socket its state, its port, port and addresses, and its inode.

        :raises OSError: the kernel says that it cannot go on.
        """
        size = self._socket.recv_into(self._buffer)
        return self._rows(size)

    def _rows(self, size: int) -> Iterator[tuple[int, int, bytes, int]]:
        buffer, at, unpack = self._buffer, 0, _ROW.unpack_from
        while at < size:
            left = size - at
            length, kind = _START.unpack_from(buffer, at) if left >= _HEADER.size else (0, 0)
            is_end = kind in (_DONE, _ERROR)
            if not (_END_BYTES if is_end else _ROW_BYTES) <= length <= left:
                raise OSError("a message of netlink is cut off")
            if is_end:
                number = -_NUMBER.unpack_from(buffer, at + _HEADER.size)[0]
                if number:
                    raise OSError(number, os.strerror(number))
                self.done = True
                return
            _, _, state, port, way, inode = unpack(buffer, at)
            yield state, int.from_bytes(port, "big"), way, inode
            at += (length + 3) & ~3

    def close(self) -> None:
        """Enough."""
        self._socket.close()


def way(source: str, destination: str, port: int) -> tuple[bytes, ...]:
    """The ways in which :meth:`Dump.read` may show the addresses of one connection.

    :param destination: empty: only the source counts, and is given alone.
    """
    here, there = _packed(source), _packed(destination) if destination else (b"", b"")
    dest = port.to_bytes(2, "big")
    if not destination:
        return here
    return tuple(dest + one + other for one, other in zip(here, there, strict=True))


def source_part(way: bytes) -> bytes:
    """The source in what a read gives for both."""
    return way[2:18]


def _packed(host: str) -> tuple[bytes, ...]:
    """An address as sockets of its own family have it and, of IPv4, as those of IPv6 have it."""
    host = host.partition("%")[0]
    if ":" in host:
        return (socket.inet_pton(socket.AF_INET6, host),)
    four = socket.inet_pton(socket.AF_INET, host)
    return four + bytes(12), bytes(10) + b"\xff\xff" + four
