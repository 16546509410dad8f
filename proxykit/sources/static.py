"""Addresses from names that are looked up once, when the configuration is read."""

from __future__ import annotations

import socket


def resolve(host: str) -> list[str]:
    """The IPv4 and IPv6 addresses of a name, in the system's order, each once.

    It blocks for as long as the system's resolver takes.

    :raises OSError: the name has no address, or none could be found out.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a label is empty, or longer than 63 characters
        raise OSError(f"it is no host name: {error}") from error
    internet = (socket.AF_INET, socket.AF_INET6)
    return list(dict.fromkeys(str(at[0]) for family, *_, at in found if family in internet))
