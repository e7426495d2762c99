"""Tells whether the program at the other end of a TCP connection is this process itself.

The kernel's tables of sockets answer that (Linux only). What the other end sends plays no part, so a proxy on
this machine, which sends whatever it is configured to send, is never taken for this process.
"""

from __future__ import annotations

import os
import socket
import struct

_TABLES = ("/proc/self/net/tcp", "/proc/self/net/tcp6")
_DESCRIPTORS = "/proc/self/fd"


def is_own_connection(address: str, port: int, server_port: int) -> bool:
    """Whether this process holds the other end of a loopback connection that it has accepted.

    Args:
        address: the other end's address.
        port: the other end's port.
        server_port: the port that the connection was accepted at.

    Returns:
        False also where that cannot be found out: on other systems than Linux, without ``/proc``, and for a
        connection whose other end is closed.
    """
    ends = {f"{form}:{port:04X}" for form in _forms(address)}
    inodes = set()
    try:
        for table in _TABLES:
            if ends and os.path.exists(table):
                with open(table, encoding="ascii") as lines:
                    for fields in map(str.split, lines):
                        # Both ends of such a connection have an address of this machine's loopback interface.
                        local, remote = fields[1:3]
                        if local in ends and remote.endswith(f":{server_port:04X}"):
                            inodes.add(f"socket:[{fields[9]}]")
        return bool(inodes) and any(_target(name) in inodes for name in os.listdir(_DESCRIPTORS))
    except (OSError, ValueError, IndexError):
        return False


def _forms(address: str) -> tuple[str, ...]:
    """A loopback address as the tables write it: groups of 32 bits in the machine's byte order."""
    try:
        packed = socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)
    except (OSError, ValueError):
        return ()
    mapped = packed[-4:] if packed[:-4] in (b"", b"\0" * 10 + b"\xff\xff") else b""
    if mapped[:1] != b"\x7f" and packed != b"\0" * 15 + b"\1":
        return ()
    # An IPv4 client of a server that listens on IPv6 too is in the one table or in the other.
    forms = (packed,) if not mapped else (mapped, b"\0" * 10 + b"\xff\xff" + mapped)
    return tuple("".join(f"{group:08X}" for (group,) in struct.iter_unpack("=I", form)) for form in forms)


def _target(descriptor: str) -> str:
    try:
        return os.readlink(os.path.join(_DESCRIPTORS, descriptor))
    except OSError:
        return ""  # closed in the meantime by another thread
