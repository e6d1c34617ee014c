"""Middleboxes in Python: what a user subclasses.

A `Middlebox` sees packets, a `StreamMiddlebox` the bytes of each direction; a class is named in host.toml as
`python = "module:Class"` or `"file.py:Class"` and made once for the agent. Both run in the agent's event loop: they
must not block.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum

from dysco.errors import LocalError
from dysco.wire.packet import Packet
from dysco.wire.tuples import FiveTuple

__all__ = ["Direction", "FiveTuple", "Middlebox", "Packet", "Session", "StreamMiddlebox"]


class Direction(Enum):
    """Forward is from the sender of the SYN to its receiver."""

    FORWARD = "forward"
    BACKWARD = "backward"


@dataclass(frozen=True, slots=True)
class Session:
    """The session that a packet or a chunk belongs to, as the five-tuple that its SYN had at this box."""

    tuple: FiveTuple

    def __str__(self) -> str:
        return str(self.tuple)


Leave = Callable[[FiveTuple, str], Awaitable[None]]


class Leaver:
    """What both kinds of boxes can ask of their agent for a session that lives."""

    leave_with: Leave | None = None  # the agent sets it before the first session

    async def remove_me(self, session: Session) -> None:
        """Take this box out of the chain of a session; it goes on without it, byte for byte.

        Returns when no more packets come. Await it in a task of its own: `packet` and `data` must not wait. Raises
        RemoteError if another agent refuses, TimedOutError, LocalError.
        """
        await self._leave(session, "")

    async def replace_me(self, session: Session, other: str) -> None:
        """Put another box (a peer, `peer/box`, an address) into this one's place, as `remove_me` takes it out."""
        await self._leave(session, other)

    async def _leave(self, session: Session, other: str) -> None:
        if self.leave_with is None:
            raise LocalError("this box does not run in an agent")
        await self.leave_with(session.tuple, other)


class Middlebox(Leaver):
    """Sees every packet of every session that passes; subclass and override what is needed."""

    def opened(self, session: Session) -> None:
        """A session begins: its SYN is about to be seen, or any packet if the agent was started anew."""

    def choose(self, session: Session) -> list[str] | None:
        """Choose the hops behind this box before the SYN leaves: names as in a policy; None leaves them."""
        return None

    def packet(self, session: Session, direction: Direction, packet: Packet) -> Packet | list[Packet] | None:
        """Return the packet, changed or not, several, or None to drop it. The default passes it."""
        return packet

    def export_state(self, session: Session) -> bytes | None:
        """Give what this box knows of a session to its replacement on another host; None: not now, ask again.

        The session may go on here afterwards: forget nothing before `closed`. It is called if the box has
        `state = "python"`; what it gives is `import_state`'s argument over there, as it is.
        """
        return b""

    def import_state(self, session: Session, state: bytes) -> None:
        """Take what the box before has known of a session that is open here; maybe several times, the last counts.

        The bytes come from another host: check them, and raise ValueError if they make no sense.
        """

    def closed(self, session: Session) -> None:
        """The session is gone."""


class StreamMiddlebox(Leaver):
    """Sees the bytes of the stream in order, and may change, grow, shrink or hold them back.

    One object serves all sessions; `session` tells them apart. TCP is not terminated: both ends see one session, and
    what `data` returns is repeated to the receiver until it has arrived. What is held back was acknowledged to the
    sender; hold back only what cannot be decided yet, for a sender may wait for an answer to it. A box that raises
    ends the session with resets, and so does a restart of the agent: nobody else knows what the ends have seen.
    """

    def opened(self, session: Session) -> None:
        """A session begins."""

    def choose(self, session: Session) -> list[str] | None:
        """Choose the hops behind this box before the SYN leaves; None leaves them."""
        return None

    def data(self, session: Session, direction: Direction, chunk: bytes) -> bytes:
        """Take the next bytes of a direction; return what goes on in their place, maybe nothing yet."""
        return chunk

    def end(self, session: Session, direction: Direction) -> bytes:
        """The direction ends; return what was held back."""
        return b""

    def may_leave(self, session: Session) -> bool:
        """Whether the session may leave this box now: nothing is held back, and what comes may pass unchanged.

        It is asked when somebody wants the box taken out of a live session, again and again for two seconds; after a
        yes bytes go by the box. The default says no, for a box that holds something back would lose it.
        """
        return False

    def export_state(self, session: Session) -> bytes | None:
        """Give what this box knows of a session to its replacement on another host; None: not now, ask again.

        Bytes that are held back do not move, so say None while there are any. The rest as for a `Middlebox`.
        """
        return b""

    def import_state(self, session: Session, state: bytes) -> None:
        """Take what the box before has known; as for a `Middlebox`."""

    def closed(self, session: Session) -> None:
        """The session is gone."""
