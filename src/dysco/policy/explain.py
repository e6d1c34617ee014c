"""Why a session goes where it goes, as values, as text and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dysco.wire.tuples import FiveTuple, show_address


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one policy says: `taken`, `no match` (detail: what fails), `disabled`, `shadowed` (by)."""

    policy: str
    priority: int
    match: str
    verdict: str
    detail: str = ""

    def __str__(self) -> str:
        match self.verdict:
            case "taken":
                return f"{self.policy}: taken, matches {self.match or 'every session'}"
            case "no match":
                return f"{self.policy}: no match, not true: {self.detail}"
            case "disabled":
                return f"{self.policy}: matches, but is not enabled"
        return f"{self.policy}: matches too, but {self.detail} comes first"


@dataclass(frozen=True, slots=True)
class Explanation:
    """The policy that takes a session, or None; its hops as (name, address, reason); all verdicts."""

    session: FiveTuple
    verdicts: tuple[Verdict, ...]
    policy: str | None = None
    hops: tuple[tuple[str, bytes, str], ...] = ()
    on_fail: str = ""
    egress: str = ""
    failure: str = ""

    def as_text(self) -> str:
        """Render for people, some lines without a final line feed."""
        lines = [f"session  tcp {self.session}"]
        if self.policy is None:
            lines.append("policy   none: the session is not chained")
        else:
            lines.append(f"policy   {self.policy}")
            if self.failure:
                outcome = "goes without the chain" if self.on_fail == "open" else "is refused"
                lines.append(
                    f"chain    none: {self.failure}; the session {outcome} (on_fail = {self.on_fail})"
                )
            for number, (name, address, reason) in enumerate(self.hops, 1):
                shown = show_address(address)
                label = name if name == shown else f"{name} {shown}"
                head = "chain   " if number == 1 else "        "
                lines.append(f"{head} {number}. {label}" + (f"  ({reason})" if reason else ""))
            if not self.failure:
                lines.append(f"on_fail  {self.on_fail}")
                lines.append(f"egress   {self.egress}")
        lines += [
            f"{'why     ' if index == 0 else '        '} {verdict}"
            for index, verdict in enumerate(self.verdicts)
        ]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Render as values that `json` can write."""
        return {
            "session": str(self.session),
            "policy": self.policy,
            "hops": [
                {"name": name, "address": show_address(address), "reason": reason}
                for name, address, reason in self.hops
            ],
            "on_fail": self.on_fail or None,
            "egress": self.egress or None,
            "failure": self.failure or None,
            "policies": [
                {
                    "name": one.policy,
                    "priority": one.priority,
                    "match": one.match,
                    "verdict": one.verdict,
                    "detail": one.detail or None,
                }
                for one in self.verdicts
            ],
        }
