"""Testbeds of network namespaces, described by a file, with agents and bad links."""

from dysco.lab.lab import PREFIX, ROOT, Lab, load
from dysco.lab.nursery import Nursery

__all__ = ["PREFIX", "ROOT", "Lab", "Nursery", "load"]
