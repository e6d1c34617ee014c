"""From a `[[proxy]]` of host.toml to its adapter; own classes are loaded here."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path

from dysco.adapters.base import Adapter
from dysco.adapters.haproxy import HAProxy
from dysco.adapters.nginx import NginxStream
from dysco.adapters.preambles import Fingerprints
from dysco.adapters.relay import NOTHING_SEEN, Relay
from dysco.config import Proxy
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
    source, _, name = proxy.adapter.rpartition(":")
    try:
        if source.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(source).stem, source)
            if spec is None or spec.loader is None:
                raise ImportError(f"{source} is no Python file")
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(source)
        made = getattr(module, name)(proxy)
    except Exception as error:  # the file is the user's: whatever it raises is a fault of the configuration
        raise ConfigError(f"{where}: {proxy.adapter} cannot be loaded: {error!r}") from error
    if not isinstance(made, Adapter):
        raise ConfigError(f"{where}: {proxy.adapter} is no dysco.Adapter")
    return made
