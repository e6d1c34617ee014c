"""What the control socket offers for live chains: requests in plain values, checked, and given to who does them."""

from __future__ import annotations

from typing import Any, Final, get_args

from dysco.errors import ConfigError
from dysco.service.changes import TIMEOUT_S, ChainChanges, Tell, Terms
from dysco.service.control import Do
from dysco.service.draining import TIMEOUT_S as DRAIN_S
from dysco.service.draining import Draining
from dysco.service.moving import Moving
from dysco.service.planning import Kind, Wish

LONGEST_S: Final = 3600.0
MOST_ADDED: Final = 1 << 30
STATES: Final = ("none", "copy", "freeze")  # in the order of the numbers in `dysco.wire.messages.Change`
_FIELDS: Final = {"insert": ("hops",), "remove": ("box",), "replace": ("box", "hops"), "set": ()}


class ChainCommands:
    """The commands that answer with a stream."""

    def __init__(self, changes: ChainChanges, draining: Draining, moving: Moving) -> None:
        self._changes = changes
        self._draining = draining
        self._moving = moving

    def streams(self) -> dict[str, Do]:
        """The commands by name."""
        return {
            "trace": self._changes.traces,
            "change": self._change,
            "splice": self._splice,
            "drain": self._drain,
            "move": self._move,
        }

    async def _change(
        self,
        tell: Tell,
        session: str,
        kind: str,
        box: str = "",
        hops: list[str] | None = None,
        after: str = "",
        timeout: float = TIMEOUT_S,
        wait: bool = True,
        dry_run: bool = False,
        force: bool = False,
        state: str = "none",
    ) -> dict[str, int]:
        """Change the chains of all sessions that `session` means; the answer counts how they have ended."""
        wish = _wish(kind, box, tuple(hops or ()), after)
        terms = Terms(_seconds(timeout), dry_run, wait, force, _state(state))
        return await self._changes.change(self._changes.select(session), wish, terms, tell)

    async def _splice(
        self,
        tell: Tell,
        left: str,
        right: str,
        added_right: int = 0,
        added_left: int = 0,
        timeout: float = TIMEOUT_S,
    ) -> dict[str, int]:
        """Take out the proxy between the sessions that `left` and `right` mean; the answer counts how it has ended."""
        for name, value in (("added_right", added_right), ("added_left", added_left)):
            if not isinstance(value, int) or abs(value) > MOST_ADDED:
                raise ConfigError(f"{name} is a number of bytes of at most {MOST_ADDED}")
        ended = await self._changes.splice(
            self._changes.single(left, "last"),
            self._changes.single(right, "first"),
            (added_right, added_left),
            _seconds(timeout),
            tell,
        )
        return {ended.outcome: 1}

    async def _move(
        self,
        tell: Tell,
        addresses: list[str],
        timeout: float = TIMEOUT_S,
        wait: bool = True,
        dry_run: bool = False,
    ) -> dict[str, int]:
        """Have other addresses, and take all sessions along; the answer counts how they have ended."""
        terms = Terms(_seconds(timeout), dry_run, wait, force=True)
        return await self._moving.move(tell, addresses, terms)

    async def _drain(
        self, tell: Tell, box: str, to: str = "", timeout: float = DRAIN_S, state: str = "none"
    ) -> dict[str, Any]:
        """Free a box of its sessions; the answer is the last report."""
        return await self._draining.drain(tell, box, to, _seconds(timeout), _state(state))


def _state(state: str) -> int:
    if state not in STATES:
        raise ConfigError(f"{state!r} is no way to move a box's state; there are {', '.join(STATES)}")
    return STATES.index(state)


def _wish(kind: str, box: str, hops: tuple[str, ...], after: str) -> Wish:
    known: Kind | None = next((one for one in get_args(Kind) if one == kind), None)
    if known is None:
        raise ConfigError(f"{kind!r} is no kind of change; there are {', '.join(get_args(Kind))}")
    given = {"box": box, "hops": hops}
    for field in _FIELDS[kind]:
        if not given[field]:
            raise ConfigError(f"a change of kind {kind} needs {field!r}")
    return Wish(known, box, hops, after)


def _seconds(timeout: float) -> float:
    if not isinstance(timeout, int | float) or not 0 < timeout <= LONGEST_S:
        raise ConfigError(f"a timeout lies between 0 and {LONGEST_S:g} seconds")
    return float(timeout)
