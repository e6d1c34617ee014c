"""What to chain where: match expressions, policies, hop groups, and why a session goes where it goes.

Knows five-tuples and names; knows nothing of packets, sessions, configuration files or the state of the
network, which is handed in as a `View`.
"""

from __future__ import annotations

from dysco.policy.ast import Ast
from dysco.policy.clauses import Clause, clauses, union
from dysco.policy.explain import Explanation, Verdict
from dysco.policy.parse import MatchError, parse
from dysco.policy.predicate import predicate
from dysco.policy.rules import AllHealthy, Choice, ChosenHop, Group, Place, PolicySet, Rule, View

__all__ = [
    "AllHealthy",
    "Ast",
    "Choice",
    "ChosenHop",
    "Clause",
    "Explanation",
    "Group",
    "MatchError",
    "Place",
    "PolicySet",
    "Rule",
    "Verdict",
    "View",
    "clauses",
    "parse",
    "predicate",
    "union",
]
