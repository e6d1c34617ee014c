"""What dysco changes in the kernel of a host, as one transaction that can always be undone."""

from dysco.host.netns import Namespace, run_in
from dysco.host.plan import NamespaceBox, Plan, for_agent
from dysco.host.transaction import Transaction, clean

__all__ = ["Namespace", "NamespaceBox", "Plan", "Transaction", "clean", "for_agent", "run_in"]
