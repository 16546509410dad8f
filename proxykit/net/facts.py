"""What a plan takes from this machine: see :class:`proxykit.core.capacity.Facts`."""

from __future__ import annotations

from contextlib import suppress
from itertools import chain
from typing import Any

from twisted.internet.task import Clock

from proxykit.components import components
from proxykit.core.capacity import Facts
from proxykit.errors import ConfigError
from proxykit.interfaces import IKnowingSource
from proxykit.model import Backend, Config
from proxykit.net import kernel
from proxykit.net.listener import SPARE_DESCRIPTORS
from proxykit.upkeep import Discover


def facts(config: Config, late: bool = True) -> Facts:
    """Ask the kernel what matters to a configuration. Nothing is sent.

    :param late: whether the service picks a source port when it knows where to, as it does on the
        proxykit reactor.
    :raises ValueError: the kernel says something that cannot be read.
    """
    known = {cluster.name: _known(cluster.discover) for cluster in config.clusters}
    found = {name: backends for name, backends in known.items() if backends}
    # It stands still, so that each address is asked about once.
    source_of = kernel.SourceAddresses(Clock())
    ways = {}
    named = (cluster.backends for cluster in config.clusters)
    addresses = (each.address for each in chain(*named, *found.values()))
    for host in dict.fromkeys(each.host for each in addresses if not each.is_unix):
        with suppress(OSError):
            ways[host] = source_of(host)
    sources = config.sources.addresses
    return Facts(
        kernel.port_range(),
        ways,
        kernel.time_wait_reuse(),
        kernel.descriptors(),
        SPARE_DESCRIPTORS,
        late,
        tuple(address for address in sources if not kernel.is_local(address)),
        kernel.time_waits(),
        found,
    )


def _known(discover: Discover | None) -> tuple[Backend, ...]:
    """What a source finds at this moment; nothing where it cannot tell without waiting."""
    if discover is None:
        return ()
    source: Any = components("source")[discover.by].load()
    if not IKnowingSource.implementedBy(source):
        return ()
    # It was right when the configuration was read.
    with suppress(ConfigError):
        return tuple(source().now(discover.settings))
    return ()
