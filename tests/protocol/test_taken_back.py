"""A host of the new path dies when the change is being committed: it is taken back, or the asker hears why it waits.

a (client) == b == c == d (server), and e, f to put in, as in living.py; or b as a right anchor, as in test_locks.py
"""

from __future__ import annotations

import pytest

from dysco.protocol.changing import Phase
from dysco.protocol.events import ChangeMoved
from dysco.protocol.flow import UNDERLAY
from dysco.protocol.left import SILENT, SILENT_S, TAKEN_BACK, Left
from dysco.protocol.right import Right
from dysco.sim.link import Fault
from dysco.wire.messages import Ack, AckCancel, LockStatus, Progress, RightRequest
from dysco.wire.packet import build_tcp
from protocol.living import Living
from protocol.test_locks import CHAIN, HERE, LEFT, NEW_HOP, NEW_PATH, RIGHT, Talk, wait_for_ack

WITHIN_S = SILENT_S + 3.0  # much less than a change may take by itself
BACK = LockStatus(CHAIN, LEFT, HERE.request, TAKEN_BACK, LEFT, 5000)
GIVEN_UP = AckCancel(CHAIN, LEFT, HERE.request)


class Committing(Living):
    """A change that d asks for, of which some links are cut at the moment when the left anchor switches."""

    def cut_at_commit(
        self,
        *new: str,
        dead: str = "",
        links: tuple[tuple[str, str], ...] = (),
        data: tuple[tuple[str, str], ...] = (),
    ) -> int:
        before, happened = Left._commit, []

        def commit(left, chain, anchor, now):  # type: ignore[no-untyped-def]
            if dead:
                self.kill(dead)
            for link in links:
                self.network.link("data", *link).up = self.network.link("control", *link).up = False
            for link in data:
                self.network.link("data", *link).up = False
            happened.append(now)
            before(left, chain, anchor, now)

        self.say(self.rng.randbytes(200_000))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Left, "_commit", commit)
            request = self.change("d", "a", "c", *new)
            self.wait(1.0)
        assert len(happened) == 1
        return request

    def heal(self, *links: tuple[str, str]) -> None:
        for link in links:
            self.network.link("data", *link).up = self.network.link("control", *link).up = True

    def told(self, request: int) -> list[tuple[str, str, str]]:
        return [
            (event.phase, event.by, event.reason)
            for name, event in self.heard
            if name == "d" and isinstance(event, ChangeMoved) and event.request == request
        ]


@pytest.mark.parametrize("steady", [True, False])
@pytest.mark.parametrize("family", [4, 6])
def test_a_change_whose_new_box_dies_at_the_commit_is_taken_back(family: int, *, steady: bool) -> None:
    live = Committing(family=family, steady=steady)
    request = live.cut_at_commit("e", dead="e")
    live.talk(wait=WITHIN_S)
    assert live.outcome("d", request) == ("aborted", "a", SILENT)
    assert live.chain() == "abcd"
    again = live.change("d", "a", "c", "f")
    live.talk()
    assert live.outcome("d", again)[0] == "done"
    assert live.chain() == "afcd"


@pytest.mark.parametrize("seed", range(20))
def test_messages_and_packets_are_lost_while_it_is_taken_back(seed: int) -> None:
    live = Committing()
    live.rng.seed(seed)
    request = live.cut_at_commit("e", dead="e")
    for one in "abcd":
        for other in "abcd":
            for kind in ("data", "control"):
                live.network.link(kind, one, other).fault = Fault(
                    delay_s=0.01, loss=0.3, repeat=0.2, late=0.2
                )
    live.talk(30_000, wait=120.0)
    assert live.outcome("d", request) == ("aborted", "a", SILENT)
    assert live.chain() == "abcd"


def test_a_new_host_that_has_heard_of_the_commit_leaves_again() -> None:
    live = Committing()
    request = live.cut_at_commit("e", "f", dead="f")
    live.talk(wait=WITHIN_S)
    assert live.outcome("d", request)[0] == "aborted"
    assert len(list(live.agent("e").sessions())) == 0


@pytest.mark.parametrize("mover", ["ends", "box"])
def test_a_change_that_the_right_anchor_has_followed_is_not_taken_back(mover: str) -> None:
    """Its answers are lost, and it must not say that it would not switch."""
    live = Committing()
    links = (("e", "a"),) if mover == "box" else (("c", "e"),)
    request = live.cut_at_commit("e", links=links)
    live.wait(2 * WITHIN_S)
    [silent] = [one for one in live.told(request) if one[0] == "stuck"]
    assert silent == ("stuck", "a", f"{SILENT}, and data wait for it")
    assert live.outcome("d", request)[0] not in ("done", "aborted")
    live.heal(*links)
    live.talk(wait=60.0)
    assert live.outcome("d", request)[0] == "done"
    assert live.chain() == "aecd"


@pytest.mark.parametrize("is_empty", [True, False])
def test_who_has_asked_hears_of_a_new_box_that_dies_after_the_switch(*, is_empty: bool) -> None:
    """What counts goes along the old path, too: the change may be done; else an event says why it does not go on."""
    live = Committing()
    cut = () if is_empty else (("b", "c"),)
    before, after = Right._commit, []

    def commit(right, chain, anchor, now):  # type: ignore[no-untyped-def]
        before(right, chain, anchor, now)
        live.kill("e")
        after.append(now)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Right, "_commit", commit)
        request = live.cut_at_commit("e", data=cut)
    assert len(after) == 1
    live.notice("e")
    live.wait(WITHIN_S)
    if is_empty:
        assert live.outcome("d", request)[0] in ("done", "stuck")
    else:
        assert "stuck" in [phase for phase, _, _ in live.told(request)]


# The right anchor.


def switches(talk: Talk) -> bool:
    [chain] = talk.rig.agent._life.chains.values()
    talk.rig.agent.receive_message("a", Ack(CHAIN, NEW_HOP, HERE.request, 5000, 0, False), talk.rig.now)
    talk.rig.feed(UNDERLAY, build_tcp(NEW_PATH, 1001, 8994, 24, 64240, b"", b"data"))
    roles = chain.changing
    return roles is not None and roles.right is not None and roles.right.two is not None


def test_a_right_anchor_that_has_not_switched_forgets_the_change_and_says_so_again() -> None:
    """If it has asked itself, it waits for the left anchor to tell why."""
    talk = wait_for_ack((0, 0))
    talk.rig.events()
    for _ in range(2):
        talk.say((">>", "a", BACK), ("<<", "a", GIVEN_UP))
        assert not switches(talk)
        talk.rig.take()
        talk.rig.messages.clear()
    [over] = [one for one in talk.rig.events() if isinstance(one, ChangeMoved)]
    assert (over.phase, over.by) == ("aborted", "")


def test_a_right_anchor_that_has_switched_does_not_answer() -> None:
    talk = wait_for_ack((0, 0))
    assert switches(talk)
    talk.rig.take()
    talk.rig.messages.clear()
    talk.say((">>", "a", BACK))
    assert switches(talk)


def test_nobody_answers_for_a_change_of_which_he_knows_nothing() -> None:
    talk = Talk()
    talk.say((">>", "a", BACK))


def test_a_right_anchor_answers_for_a_change_that_is_done() -> None:
    """Who has asked asks again, for a host between both anchors is dead."""
    talk = wait_for_ack((0, 0))
    talk.rig.agent._changes._ground.completed[HERE.request] = 5000
    wish = RightRequest(CHAIN, RIGHT, HERE, False)
    done = Progress(CHAIN, RIGHT, HERE.request, Phase.DONE, True)
    talk.say((">>", "d", wish), ("<<", "d", done))
