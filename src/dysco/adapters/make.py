"""From a `[[proxy]]` of host.toml to its adapter; own classes are loaded here."""

from __future__ import annotations

from dysco.adapters.base import Adapter
from dysco.adapters.haproxy import HAProxy
from dysco.adapters.nginx import NginxStream
from dysco.adapters.preambles import Fingerprints
from dysco.adapters.relay import NOTHING_SEEN, Relay
from dysco.config import Proxy
from dysco.config.loading import instance
from dysco.errors import ConfigError


def make(proxy: Proxy, heads: Fingerprints = NOTHING_SEEN) -> Adapter:
    """Make the adapter of a proxy; raises ConfigError if its class cannot be loaded."""
    match proxy.adapter:
        case "haproxy":
            assert proxy.socket is not None
            return HAProxy(proxy.socket, line=proxy.line)
        case "nginx-stream":
            assert proxy.log is not None
            return NginxStream(proxy.log, port=proxy.port, pid=proxy.pid_file, heads=heads)
        case "generic":
            return Relay(port=proxy.port, pid=proxy.pid_file, heads=heads)
    return _own(proxy)


def _own(proxy: Proxy) -> Adapter:
    where = f"proxy {proxy.name}"
    made = instance(proxy.adapter, where, proxy)
    if not isinstance(made, Adapter):
        raise ConfigError(f"{where}: {proxy.adapter} is no dysco.Adapter")
    return made
