"""The network interface by which other machines reach this one."""

from __future__ import annotations

import os
import socket
from typing import NamedTuple

import psutil

VARIABLE = "GLOO_SOCKET_IFNAME"
"""The variable by which a user names an interface to torch."""
_ANYWHERE = "192.0.2.1"
"""An address that stands for all others (RFC 5737). Nothing is sent there."""


class Interface(NamedTuple):
    """An interface with its address."""

    name: str
    address: str


def interface() -> Interface:
    """The interface that GLOO_SOCKET_IFNAME names, else that of this host's name, else that of the default route.

    Hosts often resolve their own name to loopback, where no other machine finds them; loopback is the last choice.
    """
    found = [
        Interface(name, address.address)
        for name, addresses in psutil.net_if_addrs().items()
        for address in addresses
        if address.family == socket.AF_INET
    ]
    named = os.environ.get(VARIABLE, "").split(",")[0]
    asked = [one for one in found if one.name == named]
    wanted = [address for address in (_of_name(), _of_route()) if not address.startswith("127.")]
    reached = [one for address in wanted for one in found if one.address == address]
    return next(iter([*asked, *reached]), Interface("lo", "127.0.0.1"))


def _of_name() -> str:
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"


def _of_route() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((_ANYWHERE, 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])
