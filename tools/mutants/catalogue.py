"""Defects that somebody must notice: a guard, a timer or an exact number less, in one place each.

Each says where it is, what stands there (exactly once, so that the catalogue stays in step with the code), and what
stands there instead.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Mutation(NamedTuple):
    """One defect. file: below src/dysco."""

    name: str
    file: str
    text: str
    instead: str


LOCKS, LEFT, RIGHT = "protocol/locks.py", "protocol/left.py", "protocol/right.py"
INSIDE, JOINING, CHANGES = "protocol/inside.py", "protocol/joining.py", "protocol/changes.py"
PATHS = "protocol/paths.py"
SWITCHING, GROUND, ANCHORS = "protocol/switching.py", "protocol/ground.py", "protocol/anchors.py"
EDIT, CHAIN, RECORDS = "wire/edit.py", "protocol/chain.py", "protocol/records.py"

MUTATIONS: Final = (
    # Locks.
    Mutation(
        "a pending lock lets another request pass", LOCKS,
        "(LockState.PENDING, LockInput.OTHER_REQUEST): (LockAction.NACK_BUSY, LockState.PENDING)",
        "(LockState.PENDING, LockInput.OTHER_REQUEST): (LockAction.PASS_ON, LockState.PENDING)",
    ),
    Mutation(
        "a granted lock lets another request pass", LOCKS,
        "(LockState.LOCKED, LockInput.OTHER_REQUEST): (LockAction.NACK_BUSY, LockState.LOCKED)",
        "(LockState.LOCKED, LockInput.OTHER_REQUEST): (LockAction.PASS_ON, LockState.LOCKED)",
    ),
    Mutation(
        "a left anchor refuses instead of holding", LOCKS,
        "(LockState.OWN, LockInput.OTHER_REQUEST): (LockAction.HOLD, LockState.OWN)",
        "(LockState.OWN, LockInput.OTHER_REQUEST): (LockAction.NACK_BUSY, LockState.OWN)",
    ),
    Mutation(
        "a refusal does not free", LOCKS,
        "(LockState.PENDING, LockInput.NACK_LOCK): (LockAction.PASS_ON, LockState.FREE),\n", "",
    ),
    Mutation(
        "a cancel does not free", LOCKS,
        "(LockState.LOCKED, LockInput.CANCEL_LOCK): (LockAction.PASS_ON, LockState.FREE),\n", "",
    ),
    Mutation(
        "a grant does not lock", LOCKS,
        "(LockState.PENDING, LockInput.ACK_LOCK): (LockAction.PASS_ON, LockState.LOCKED)",
        "(LockState.PENDING, LockInput.ACK_LOCK): (LockAction.PASS_ON, LockState.PENDING)",
    ),
    Mutation(
        "a repeated request is not passed on", LOCKS,
        "(LockState.PENDING, LockInput.SAME_REQUEST): (LockAction.PASS_ON, LockState.PENDING),\n", "",
    ),
    Mutation(
        "a granted left anchor forgets whom it holds", LOCKS,
        "(LockState.OWN, LockInput.ACK_LOCK): (LockAction.NACK_HELD, LockState.LOCKED)",
        "(LockState.OWN, LockInput.ACK_LOCK): (LockAction.NOTHING, LockState.LOCKED)",
    ),
    Mutation("leases end at once", LOCKS, "LEASE_S: Final = 30.0", "LEASE_S: Final = 0.001"),
    Mutation("leases never end", INSIDE, "        self._ground.alarm(until, ended)\n", ""),
    Mutation("a renewed lease ends all the same", INSIDE, "right.lock is not lock or lock.until != until", "right.lock is not lock"),
    Mutation(
        "any renewal renews", INSIDE,
        "right.lock is not None and right.lock.request == message.request:\n            self._lease",
        "right.lock is not None:\n            self._lease",
    ),
    Mutation(
        "any grant locks", INSIDE,
        "if lock is None or found is None or lock.request != message.request:",
        "if lock is None or found is None:",
    ),
    Mutation(
        "any refusal or cancel frees", INSIDE,
        "if lock is not None and lock.request == request and step(lock.state, what) is not None:",
        "if lock is not None and step(lock.state, what) is not None:",
    ),
    Mutation(
        "a second request is held, too", INSIDE,
        "if lock.held is not None and lock.held.change.request != change.request:", "if False:",
    ),
    Mutation(
        "a cancelled request stays held", INSIDE,
        "            lock.held = None\n        ends = inside is not None and",
        "            pass\n        ends = inside is not None and",
    ),
    Mutation(
        "a lock is not passed on to the left", INSIDE,
        "        self._lease(chain, lock, now + LEASE_S)\n        self._ground.send(leftward(chain), message)",
        "        self._lease(chain, lock, now + LEASE_S)",
    ),
    Mutation(
        "the forward sum lacks this host's", INSIDE,
        "(message.forward_sum + own[0] + extra[0])", "(message.forward_sum + extra[0])",
    ),
    Mutation(
        "the backward sum has the other sign", INSIDE,
        "(message.backward_sum + own[1] + extra[1])", "(message.backward_sum - own[1] + extra[1])",
    ),
    Mutation("a message is taken from anybody", CHANGES, "        if facing.peer != peer:\n            if not self._past", "        if False:\n            if not self._past"),
    # The left anchor.
    Mutation("a left anchor begins though its lock is taken", LEFT, "if running is not None or (lock is not None and now < lock.until):", "if running is not None:"),
    Mutation(
        "a left anchor commits without the lock", ANCHORS,
        "(LeftState.SETTING_UP, LeftInput.READY): (LeftAction.COMMIT, LeftState.TWO_PATHS),",
        "(LeftState.SETTING_UP, LeftInput.READY): (LeftAction.COMMIT, LeftState.TWO_PATHS),\n"
        "    (LeftState.REQUESTING, LeftInput.READY): (LeftAction.COMMIT, LeftState.TWO_PATHS),",
    ),
    Mutation("a left anchor does not wait for the path handshake", LEFT, "if not (anchor.agreed and anchor.shaken and anchor.knows_stamps):", "if not (anchor.agreed and anchor.knows_stamps):"),
    Mutation("a left anchor repeats nothing", LEFT, "        self._ground.alarm(due, lambda at: self._due(chain, anchor, due, at))\n", ""),
    Mutation("requestLock is not repeated", LEFT, "                if not locked:\n                    self._request(chain, anchor)\n", ""),
    Mutation("syn is not repeated", LEFT, "                if not anchor.agreed:\n                    self._syn(chain, anchor)\n", ""),
    Mutation("ack is not repeated", LEFT, "        if two.peer_cutoff is None or not anchor.peer_done:\n            self._ack(chain, anchor)\n", ""),
    Mutation(
        "a left anchor completes before the right half is empty", LEFT,
        "        elif anchor.may_complete:\n            self._input(chain, anchor, LeftInput.DONE, now)",
        "        else:\n            self._input(chain, anchor, LeftInput.DONE, now)",
    ),
    Mutation("a refused left anchor leaves the new path standing", LEFT, "                    self._cancel(chain, anchor, now, anchor.new)\n", "                    pass\n"),
    Mutation("a refused left anchor keeps its lock", LEFT, "            anchor.old.lock = None  # else", "            pass  # else"),
    Mutation(
        "who was held is forgotten when the own request is refused", LEFT,
        "            ground.again.append((chain, lock.held))", "            pass",
    ),
    Mutation("what came while a kernel was asked is never known", PATHS, "            self.old_rcvd = later(self.old_rcvd, earlier(self.answered, self.peer_cutoff))\n", "            pass\n"),
    Mutation("a left anchor does not remind the old path once the other half is empty", LEFT, "waits = not (two.is_done and anchor.peer_done)", "waits = not anchor.peer_done"),
    Mutation("a left anchor reminds the old path when the other one may be done", LEFT, "waits = not (two.is_done and anchor.peer_done)", "waits = True"),
    Mutation("two that are done tell each other for ever that the session is saved", CHANGES, "if message.verdict != SAVED:", "if True:"),
    Mutation("a lock that was asked for and not answered is kept for ever", INSIDE, "            self._lease(chain, lock, now + LEASE_S)  # the request may be lost, and who has asked begin again\n", "            pass\n"),
    Mutation("a left anchor goes on with the old numbers", LEFT, '        chain.changing.left = None\n        ground.set_tops(chain, "right", where(two))\n', "        chain.changing.left = None\n"),
    # The right anchor.
    Mutation("no window update behind the SYN-ACK", RIGHT, "                self._update(anchor, new)\n            return True\n        is_bare", "            return True\n        is_bare"),
    Mutation("a right anchor grants two at once", RIGHT, 'elif anchor.change.request != message.change.request:\n            return "busy"', "elif False:\n            return None"),
    Mutation("a right anchor forgets its own sums", RIGHT, "new.sums = anchor.sums\n", "new.sums = None\n"),
    Mutation(
        "both sums change places", RIGHT,
        "            sums = (\n                (message.forward_sum + earlier[0]) & MASK32,\n                (message.backward_sum + earlier[1]) & MASK32,",
        "            sums = (\n                (message.backward_sum + earlier[0]) & MASK32,\n                (message.forward_sum + earlier[1]) & MASK32,",
    ),
    Mutation("a right anchor adds no earlier sums", RIGHT, "(message.forward_sum + earlier[0]) & MASK32", "message.forward_sum & MASK32"),
    Mutation("the right cutoff is told in its own numbers", RIGHT, "cutoff = (two.cutoff + anchor.sums[1]) & MASK32", "cutoff = two.cutoff & MASK32"),
    Mutation("the left cutoff is taken for one in its own numbers", RIGHT, "cutoff = (message.cutoff + anchor.sums[0]) & MASK32", "cutoff = message.cutoff & MASK32"),
    Mutation(
        "a right anchor completes before the left half is empty", RIGHT,
        "if anchor.may_complete and anchor.holding is None:", "if anchor.holding is None:",
    ),
    Mutation("a right anchor does not ask what became of a change", RIGHT, "            self._ground.send(anchor.old, query)\n            self._ground.send(anchor.new, query)\n", ""),
    Mutation("data on the new path are not taken for an ack", RIGHT, "                self._input(chain, anchor, RightInput.NEW_DATA, now)\n                return anchor.two is None", "                return True"),
    Mutation("ackAck is not repeated", ANCHORS, "    (RightState.TWO_PATHS, RightInput.ACK): (RightAction.REPEAT, RightState.TWO_PATHS),\n", ""),
    Mutation("ack after the end is not answered", CHANGES, "                self._ground.send(facing, AckAck(chain.chain_id, 0, message.request, cutoff, message.cutoff))\n", "                pass\n"),
    Mutation("oldDone is said once", SWITCHING, "        ground.alarm(due, lambda late: again(late, tries + 1))\n", ""),
    Mutation("an early syn is forgotten", RIGHT, "            self.syn(chain, *early, now)\n", "            pass\n"),
    # Proxies that die.
    Mutation("who is done has lost all it knew", CHANGES, "isinstance(message, RenewLock) and message.request not in self._ground.completed:", "isinstance(message, RenewLock):"),
    Mutation("a left anchor switches behind a reset", LEFT, "if anchor.joined and chain.state in BROKEN:", "if False:"),
    Mutation("a right anchor switches behind a reset", RIGHT, "anchor.joined and chain.state in BROKEN:", "False:"),
    Mutation("a right anchor does not follow where an end has reset the session", RIGHT, "anchor.joined and chain.state in BROKEN:", "chain.state in BROKEN:"),
    # Hosts inside.
    Mutation("a new hop without ack stays for ever", JOINING, "        ground.alarm(now + LEASE_S, lambda at: self._not_committed(chain, inside, at))\n        ground.life.record", "        ground.life.record"),
    Mutation("a path handshake is taken for data", JOINING, "distance(flow.top_seq, rehearsed) > 0", "distance(flow.top_seq, rehearsed) >= 0"),
    Mutation("a cancelled new path stays", INSIDE, "            self._ground.life.close(chain, \"cancelled\", now)\n            return", "            return"),
    Mutation("a cancelled new path is told once", SWITCHING, "if key not in ground.cancelling or tries >= DONE_TRIES:", "if key not in ground.cancelling or tries >= 1:"),
    Mutation("who comes back does not wait for its middlebox", JOINING, "if not _has_parted(one):", "if False:"),
    Mutation("the SYN-ACK of a server is taken for a late one", GROUND, "return at.window == REHEARSED_WINDOW and", "return True or"),
    Mutation("a host leaves the old path when one half is empty", INSIDE, "if inside.left_done and inside.right_done and not before:", "if (inside.left_done or inside.right_done) and not before:"),
    Mutation("a repeated oldDone lets a new hop leave", JOINING, "        ground.pass_on(message.request)\n        ground.life.chains", "        ground.life.chains"),
    # Two paths.
    Mutation("the number at the cutoff goes to the old path", PATHS, "elif distance(at.seq, self.cutoff) >= 0:", "elif distance(at.seq, self.cutoff) > 0:"),
    Mutation("what ends one behind the cutoff is not split", PATHS, "elif distance(end, self.cutoff) <= 0 and", "elif distance(end, self.cutoff) <= 1 and"),
    Mutation("acks on the old path are not clamped", PATHS, "        ack = earlier(at.ack, self.old_rcvd)\n        renumber(packet, at, seq", "        ack = at.ack\n        renumber(packet, at, seq"),
    Mutation("numbers on the old path are not clamped", PATHS, "renumber(packet, at, seq=earlier(at.seq, self.cutoff), ack=ack)", "renumber(packet, at, ack=ack)"),
    Mutation("an ack below the cutoff is believed from the new path", PATHS, "        if distance(at.ack, self.cutoff) >= 0:\n            self.acked", "        if True:\n            self.acked"),
    Mutation("an ack at the cutoff is not believed from the new path", PATHS, "        if distance(at.ack, self.cutoff) >= 0:\n            self.acked", "        if distance(at.ack, self.cutoff) > 0:\n            self.acked"),
    Mutation("the old path is not told what it delivered", PATHS, "            old.append(self._bare_for_old(packet, at))\n            new.append(self._for_new(packet, at))\n            self.bytes_new", "            new.append(self._for_new(packet, at))\n            self.bytes_new"),
    Mutation("an ack at what the old path delivered goes there alone", PATHS, "behind = distance(ack, self.old_rcvd) < 0", "behind = distance(ack, self.old_rcvd) <= 0"),
    Mutation("done one byte too early", PATHS, "distance(self.acked, self.cutoff) >= 0\n", "distance(self.acked, self.cutoff) >= -1\n"),
    Mutation("done before the old path was told", PATHS, "            and distance(self.told_old, self.peer_cutoff) >= 0\n", ""),
    Mutation("RST goes to the new path alone", PATHS, "        return [old], [packet]", "        return [], [packet]"),
    Mutation("SACK blocks of the new path go to the old one", PATHS, "        right = earlier(right, self.old_rcvd)\n", ""),
    Mutation("SACK blocks below the cutoff are believed", PATHS, "        left = later(left, self.cutoff)\n", ""),
    Mutation("a split loses its FIN", EDIT, "    second.data[at.tcp_offset + _FLAGS_OFFSET] &= ~CWR", "    second.data[at.tcp_offset + _FLAGS_OFFSET] &= ~(CWR | FIN)"),
    Mutation("the second part of a split has the number of the first", EDIT, "(at.seq + length) & 0xFFFFFFFF", "at.seq"),
    # Translation.
    Mutation("acks are translated the other way in", CHAIN, "Translation(forward, -backward, stamp", "Translation(forward, backward, stamp"),
    Mutation("acks are translated the other way out", CHAIN, "Translation(backward, -forward, 0", "Translation(backward, forward, 0"),
    Mutation("the cutoff is one too low", SWITCHING, "cutoff = numbers.acked if forced else numbers.sent\n", "cutoff = numbers.acked if forced else numbers.sent - 1\n"),
)  # fmt: skip
# ruff: noqa: E501 - what stands in the code is shown as it stands there
