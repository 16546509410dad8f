"""The components that come with proxykit: names only, no imports of what they stand for."""

from proxykit.components import Component

tcp = Component("mode", "tcp", "proxykit.modes.tcp:TcpMode", "relay raw TCP, byte for byte")
sni = Component(
    "mode",
    "sni",
    "proxykit.modes.sni:SniMode",
    "relay TLS untouched, to where the server name says",
)
http = Component(
    "mode",
    "http",
    "proxykit.modes.http:HttpMode",
    "proxy HTTP/1 by host and path, many clients on few backend connections",
)

round_robin = Component(
    "balance",
    "round-robin",
    "proxykit.core.balance:RoundRobin",
    "one after the other, the heavier more often",
)
least_connections = Component(
    "balance",
    "least-connections",
    "proxykit.core.balance:LeastConnections",
    "the one with the least in flight for its weight",
)
random_two_choices = Component(
    "balance",
    "random-two-choices",
    "proxykit.core.balance:RandomTwoChoices",
    "the less loaded of two drawn at random",
)
source_hash = Component(
    "balance",
    "source-hash",
    "proxykit.core.balance:SourceHash",
    "the same client always to the same backend, by a consistent hash",
)

dns = Component(
    "source",
    "dns",
    "proxykit.sources.dns:DnsSource",
    "a name in the DNS, asked for again when an answer has run out",
)
file = Component(
    "source",
    "file",
    "proxykit.sources.file:FileSource",
    "a file of addresses, read again when it changes",
)
