"""Pair finders: which two sessions of a proxy belong together, and whether the proxy may be taken out.

Beside `host`, below `service`. An adapter asks a proxy, its log or the kernel and says what it found; it changes
nothing. Who takes a proxy out is the service, and the protocol checks the numbers again before it does.
"""

from __future__ import annotations

from dysco.adapters.base import Adapter, Pair
from dysco.adapters.make import make
from dysco.adapters.preambles import Fingerprints, Heads

__all__ = ["Adapter", "Fingerprints", "Heads", "Pair", "make"]
