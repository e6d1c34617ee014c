"""What the core counts: every name, and what it means. Tests hold the sources to this list."""

from __future__ import annotations

from collections import Counter
from typing import Final

COUNTERS: Final[dict[str, str]] = {
    # sessions
    "syn": "SYNs without ACK that were read",
    "syn_again": "SYNs of a chain that is there already, passed along it",
    "simultaneous_open": "SYNs that came against a chain's direction, passed along it",
    "opened": "chains that began here or came here",
    "established": "chains whose SYN-ACK has passed",
    "restored": "sessions taken up from the journal",
    "closed_closed": "sessions that ended with FINs",
    "closed_reset": "sessions that ended with a RST",
    "closed_idle": "sessions that ended because nothing passed for too long",
    "closed_denied": "sessions whose SYN was answered with a RST",
    "closed_embryonic": "sessions whose SYN was never answered",
    "closed_evicted": "sessions being opened that made room for new ones",
    "closed_refused": "sessions whose chain could not be made",
    "closed_replaced": "sessions that a new one with the same tuple replaced",
    "closed_bypassed": "sessions that were reset because what a dead middlebox held is lost",
    "closed_abandoned": "sessions that were reset because an agent beside this one has gone for good",
    "closed_stopped": "sessions that were ended because the agent stops",
    "reset_late": "RSTs of this host's stack behind FINs that both ends have acknowledged, dropped",
    "reset_past_chain": "RSTs of an end whose session is over, which went past the chain, too",
    "probed_after_reset": "sessions whose endpoints were asked whether they believed a RST",
    "embryonic_evicted": "times that a session being opened made room for a new one",
    # set-up that fails
    "refused": "chains that this host refused to be a hop of",
    "refused_by_peer": "chains that a next hop, or one behind it, refused",
    "no_association": "SYNs that waited in vain for an association",
    "no_agent": "SYNs that a next hop answered without having an agent",
    "sent_natively": "SYNs sent without their chain because the policy says on_fail = open",
    "table_full": "SYNs dropped because the session table is full",
    "fast_open_dropped": "SYNs whose Fast Open data had no room beside the chain header",
    # SYNs that pass without a chain
    "no_policy": "SYNs that no policy wants",
    "tcp_signed": "SYNs with TCP-MD5 or TCP-AO, which nobody may change",
    "mptcp": "SYNs with MPTCP, which passes natively",
    "syn_without_header": "SYNs for a reserved port without a chain header: ordinary TCP",
    "header_not_authentic": "SYNs with a chain header that no peer of ours has signed: ordinary TCP",
    # SYNs that are dropped
    "header_without_association": "chain headers of a peer whose association is gone, dropped until it is back",
    "header_replayed": "chain headers seen before, dropped",
    "tag_unknown": "SYNs with a tag of ours that left a box too late, dropped",
    "syn_late": "SYNs and SYN-ACKs that came behind what the same side has sent since, dropped",
    "syn_stray": "SYNs without a chain header for a session that is over, dropped",
    # other packets
    "malformed": "packets that are no whole IP or TCP packet, dropped",
    "not_tcp": "packets other than TCP, passed",
    "fragment": "fragments, passed",
    "unknown_session": "packets of a session that is not known: passed from the host, dropped from a box",
    "unknown_subsession": "packets to a reserved port that belong to no chain, dropped",
    "icmp_translated": "ICMP errors about chained sessions, translated and passed",
    "icmp_implausible": "ICMP errors with an MTU or a number that cannot be, dropped",
    # changes of chains
    "places_learnt": "times that this agent was told who is on a chain, and did not know it",
    "joined": "sessions that this host has joined while they lived",
    "closed_moved": "sessions that have left this host while they lived",
    "closed_cancelled": "sessions that this host was to join and did not, for the change was given up",
    "proxy_dead": "proxies that were taken for dead while both anchors had two paths, at either anchor",
    "proxy_survived": "of these, changes that were completed all the same, for nothing was lost",
    "change_requested": "changes that this agent, as left anchor, has begun",
    "change_locked": "changes whose lock was granted, at either anchor",
    "change_new_path_up": "changes whose path handshake went through",
    "change_two_paths": "changes that passed the point of no return, at either anchor",
    "change_drained": "changes whose old path is empty on this anchor's side",
    "change_done": "changes that are done, at either anchor",
    "change_refused": "changes whose lock was refused",
    "change_aborted": "changes that were given up before the point of no return",
    "change_stuck": "changes whose old path did not get empty within a minute",
    "frozen_dropped": "packets that a frozen session had no room to hold, dropped; TCP repeats them",
    "rehearsal_late": "late copies out of a path handshake that was over, dropped",
    "change_nacked": "requests for a lock that this agent refused",
    # messages
    "message_implausible": "messages about a subsession or change that is not here, or not from its neighbour",
    "message_of_unknown_peer": "messages of a peer that the configuration does not name",
    "gone": "neighbours that said that they go away",
    # never
    "bug": "events that a state machine has no answer to: please report",
}


def counters() -> Counter[str]:
    """All counters at zero, so that metrics show each from the beginning."""
    return Counter(dict.fromkeys(COUNTERS, 0))
