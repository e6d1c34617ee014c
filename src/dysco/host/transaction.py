"""Making a plan's changes and undoing them, so that a crash at any moment leaves what can be undone.

Knows changes, the journal and the locks; not what the changes are for. Theory of operation:

    up     take the locks; read the journal. Changes of it that the plan has are taken over with what they
           saw the first time; the others are undone, backwards, but for those that outlive an agent. Then for each
           change of the plan: look,
           write {do} and wait for the disk, apply. An error undoes everything.
    down   for each {do} without {undone}, backwards: undo, write {undone}. Then delete the journal.
    leave  keep everything, give up the locks: a later `up` takes over, `clean` cleans.

A record names its namespace by cookie, so that a namespace which is gone needs nothing (but for changes that outlive
it), and one that has got the name meanwhile is left alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dysco.errors import DyscoError, HostError
from dysco.host import links  # registers the kinds that a journal may name
from dysco.host.changes import Change, State, from_record
from dysco.host.journal import Journal, Record, boot_id
from dysco.host.lock import Lock, sweep
from dysco.host.netns import Namespace, find, run_in
from dysco.host.netns import cookie as own_cookie
from dysco.host.plan import Plan

__all__ = ["LOCKS", "Done", "Transaction", "clean", "links"]

LOCKS: Final = Path("/run/dysco")
LOCK_NAME: Final = "host.lock"
_FORMAT: Final = 1


@dataclass
class Done:
    """One change of the journal."""

    number: int
    change: Change
    before: State
    cookie: int
    inode: int

    def record(self) -> Record:
        """Give the journal's record of it."""
        return {
            "do": self.number,
            "change": self.change.record(),
            "before": self.before,
            "cookie": self.cookie,
            "inode": self.inode,
        }


class Transaction:
    """The changes of one agent.

    `at` is called at every point where a crash would matter, with the point's name; tests die there.
    """

    def __init__(
        self,
        plan: Plan,
        run_directory: Path,
        *,
        name: str = "an agent",
        locks: Path = LOCKS,
        at: Callable[[str], None] = lambda point: None,
    ) -> None:
        self.plan = plan
        self.directory = run_directory
        self.kept: list[str] = []
        self._name = name
        self._locks_in = locks
        self._at = at
        self._locks: list[Lock] = []
        self._journal = Journal(run_directory)
        self._done: list[Done] = []
        self._next = 1
        self._cookie = 0
        self._namespaces: dict[str | None, Namespace] = {}

    def up(self) -> None:
        """Make every change of the plan; after an error undo everything. Raises HostError and its kinds."""
        self._cookie = run_in(None, own_cookie)
        self._begin()
        try:
            self._take_over()
            for change in self.plan.changes:
                self._do(change)
        except BaseException as error:
            try:
                self._undo_all()
            except DyscoError as second:
                error.add_note(f"and the host could not be put back: {second}")
            self._end()
            raise

    def extend(self, changes: Iterable[Change]) -> None:
        """Make further changes, which are undone with the others. Raises HostError; what was made before it stays."""
        for change in changes:
            self._do(change)

    def withdraw(self, changes: Iterable[Change]) -> None:
        """Undo these of the changes that were made, the last one first. Raises HostError."""
        records = [change.record() for change in changes]
        for entry in reversed(self._done.copy()):
            if entry.change.record() in records:
                self._undo(entry)

    def made(self) -> list[Change]:
        """Give the changes that stand, also those of an agent before this one."""
        return [entry.change for entry in self._done]

    def down(self) -> list[str]:
        """Undo every change and delete the journal; give what was left because others had changed it."""
        try:
            self._undo_all()
        finally:
            self._end()
        return self.kept

    def leave(self) -> None:
        """Keep every change for the next agent."""
        self._journal.close()
        self._end()

    def _begin(self) -> None:
        try:
            for lock in (
                Lock(self.directory / LOCK_NAME, self._name),
                Lock(self._locks_in / f"netns-{self._cookie}.lock", self._name),
            ):
                lock.take()
                self._locks.append(lock)
            sweep(self._locks_in, "netns-*.lock")
            self._load()
        except BaseException:
            self._end()
            raise

    def _load(self) -> None:
        """Read the journal, forget what is undone or of an earlier boot, and write it afresh."""
        records = self._journal.read()
        boot = boot_id()
        if self._journal.damaged:
            self.kept.append(
                f"{self._journal.path}: {self._journal.damaged} damaged records were passed over"
            )
        if records and records[0].get("boot", boot) != boot:
            records = []
        undone = {record["undone"] for record in records if "undone" in record}
        for record in records:
            if "do" in record and record["do"] not in undone:
                try:
                    change = from_record(record["change"])
                    self._done.append(
                        Done(record["do"], change, record["before"], record["cookie"], record["inode"])
                    )
                except KeyError as error:
                    raise HostError(f"{self._journal.path}: a record without {error}") from None
        self._next = max((entry.number for entry in self._done), default=0) + 1
        header: Record = {"format": _FORMAT, "boot": boot, "name": self._name, "cookie": self._cookie}
        self._journal.begin([header, *(entry.record() for entry in self._done)])

    def _take_over(self) -> None:
        """Undo what an earlier plan had and this one has not; keep the rest, with what it saw then."""
        wanted = [(change.record(), self._namespace(change.netns).cookie) for change in self.plan.changes]
        for entry in reversed(self._done.copy()):
            stays = entry.change.outlives_agent and entry.cookie == self._cookie
            if not stays and (entry.change.record(), entry.cookie) not in wanted:
                self._undo(entry)

    def _do(self, change: Change) -> None:
        space = self._namespace(change.netns)
        record = change.record()
        for entry in self._done:
            if entry.change.record() == record and entry.cookie == space.cookie:
                before = entry.before
                break
        else:
            before = space.call(change.look)
            entry = Done(self._next, change, before, space.cookie, space.inode)
            self._next += 1
            self._journal.append(entry.record())
            self._done.append(entry)
        self._at(f"journal {change.show()}")
        space.call(lambda kernel: change.apply(kernel, before))
        self._at(f"made {change.show()}")

    def _undo_all(self) -> None:
        failures = []
        for entry in reversed(self._done.copy()):
            try:
                self._undo(entry)
            except HostError as error:
                failures.append(str(error))
        if failures:
            self._journal.close()
            raise HostError("; ".join(failures))
        self._journal.remove()

    def _undo(self, entry: Done) -> None:
        self._at(f"undo {entry.change.show()}")
        space = self._namespace(None) if entry.change.outlives_namespace else self._found(entry)
        if space is not None:
            kept = space.call(lambda kernel: entry.change.undo(kernel, entry.before))
            if kept is not None:
                self.kept.append(kept)
        self._at(f"undone {entry.change.show()}")
        # Undoing twice does no harm, so that a full disk must not keep the rest from being undone.
        with contextlib.suppress(HostError):
            self._journal.append({"undone": entry.number})
        self._done.remove(entry)

    def _namespace(self, netns: str | None) -> Namespace:
        if netns not in self._namespaces:
            self._namespaces[netns] = Namespace(netns)
        return self._namespaces[netns]

    def _found(self, entry: Done) -> Namespace | None:
        for space in self._namespaces.values():
            if space.cookie == entry.cookie:
                return space
        found = find(entry.cookie, entry.inode, entry.change.netns)
        if found is not None:
            self._namespaces[f"cookie {entry.cookie}"] = found
        return found

    def _end(self) -> None:
        self._journal.close()
        for space in self._namespaces.values():
            space.close()
        self._namespaces.clear()
        while self._locks:
            self._locks.pop().release()


def clean(run_directory: Path, *, locks: Path = LOCKS) -> list[str]:
    """Undo what the journal of a run directory says, from any namespace; give what was left, and why.

    Does nothing if there is no journal. Raises HostError if the agent still runs or the kernel refuses.
    """
    records = Journal(run_directory).read()
    if not Journal(run_directory).path.exists():
        return []
    transaction = Transaction(Plan(()), run_directory, name="dysco tun down", locks=locks)
    transaction._cookie = next((record["cookie"] for record in records if "cookie" in record), 0)
    transaction._begin()
    return transaction.down()
