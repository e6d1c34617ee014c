/* Two changes of one session that contend: locks, both anchors, cancelling, leases.

     host 0 --0-- host 1 --1-- host 2 --2-- host 3        numbers of subsessions; change c makes subsession NEW(c)

   A change replaces subsessions FIRST to LAST. A message is a bit on its subsession, so messages overtake each other;
   up to FAULTS of them are lost or come twice, or a left anchor gives up for slowness before the point of no return.
   What is repeated is repeated when all is silent, which is what timers of 200 ms mean beside a network that delivers.
   A lease ends when all is silent and its left anchor can no longer commit: its 30 s begin after the 10 s of a commit
   have begun. Between `ack` and the end the anchors renew.

   Checked: who commits holds every lock of its segment; two that overlap never have two paths at once; sums arrive
   whole; without a fault one of two is done; all comes to rest: nothing locked, both anchors of
   one mind. */

#include "tables.pml"

#ifndef HOSTS
#define HOSTS 4
#endif
#ifndef FAULTS
#define FAULTS 1
#endif
#define FIRST0 0
#define LAST0 1
#ifndef FIRST1
#define FIRST1 1
#endif
#ifndef LAST1
#define LAST1 2
#endif

#define SUBS (HOSTS + 1)
#define NONE 15
#define FIRST(c) (c == 0 -> FIRST0 : FIRST1)
#define LAST(c) (c == 0 -> LAST0 : LAST1)
#define NEW(c) (HOSTS - 1 + c)
#define FOLLOWS (FIRST1 >= HOSTS - 1 || LAST1 >= HOSTS - 1)  /* the second change names what the first has made */

/* Messages. To the right: */
#define RequestLock 0
#define CancelLock 1
#define Syn 2
#define Ack 3
#define NewData 4
#define Undecided 5       /* lockStatus */
#define Cancelled 6
#define Committed 7
#define OldDoneRight 8
#define DoneAckRight 9
/* To the left: */
#define AckLock 10
#define NackLock 11
#define AckCancel 12
#define SynAck 13
#define NackSyn 14
#define AckAck 15
#define LockQuery 16
#define OldDoneLeft 17
#define DoneAckLeft 18

int net[2 * SUBS];
#define at(c, s) net[(c) * SUBS + (s)]
#define put(m, c, s) at(c, s) = at(c, s) | (1 << m)
#define has(m, c, s) (at(c, s) & (1 << m))
#define take(m, c, s) at(c, s) = at(c, s) & ~(1 << m)

#define pass(m, c, s) if :: s != NONE -> put(m, c, s) :: else fi  /* on, or nowhere at an end of the chain */

byte faults = FAULTS;
byte left_host[SUBS], right_host[SUBS];     /* of a subsession */
byte left_sub[HOSTS], right_sub[HOSTS];     /* of a host, as it stands */
bool gone[HOSTS];
mtype lock[HOSTS] = FREE;                   /* of the subsession to the right of a host */
byte holder[HOSTS], held[HOSTS];            /* change; change + 1 or 0 */
byte inside[HOSTS];                         /* change + 1 or 0 */
bool left_done[HOSTS], right_done[HOSTS];
byte early[HOSTS];
mtype left[2] = ONE_PATH, right[2] = ONE_PATH;
bool agreed[2], knows_left[2], knows_right[2], drained_left[2], drained_right[2], peer_left[2], peer_right[2];
bool told_old_left[2], told_new_left[2], told_old_right[2], told_new_right[2];
bool completed_left[2], completed_right[2];
byte outcome[2];                            /* 0 open, 1 done, 2 refused or cancelled */
byte carried[2 * SUBS], granted[2], added[HOSTS];  /* sums: in requestLock, at the right anchor, by its translation */

hidden byte h, n, i;

#define BOX(host) (1 << (host))             /* what a box adds: each another number, so that none is lost or twice */
#define EXPECT0 BOX(1)
#ifndef EXPECT1
#define EXPECT1 BOX(2)
#endif

inline hand_on(c) {                         /* requestLock, from or through host h */
  carried[c * SUBS + right_sub[h]] = n;
  pass(RequestLock, c, right_sub[h])
}

inline right_input(c, what) {
  state = right[c]; input = what;
  right_table();
  right[c] = state;
  if
  :: action == GRANT || (action == REPEAT && what == REQUEST_LOCK) -> put(AckLock, c, LAST(c))
  :: action == AGREE || (action == REPEAT && what == SYN) -> put(SynAck, c, NEW(c))
  :: action == COMMIT || (action == REPEAT && what == ACK) -> put(AckAck, c, NEW(c))
  :: action == COMPLETE ->
     left_sub[h] = NEW(c);
     added[h] = granted[c];
     completed_right[c] = true; granted[c] = 0
  :: else
  fi
}

#define is_right(c, host) (right[c] != ONE_PATH && right_host[LAST(c)] == host)
#define is_left(c, host) (left[c] != ONE_PATH && left_host[FIRST(c)] == host)

inline look_right(c) {
  if
  :: right[c] == TWO_PATHS && drained_right[c] && peer_right[c] -> right_input(c, DONE)
  :: else
  fi
}

inline got_syn(c) {                         /* at host h */
  if
  :: gone[h] || left_sub[h] != LAST(c) -> put(NackSyn, c, NEW(c))
  :: else ->
     if
     :: is_right(c, h) -> right_input(c, SYN)
     :: is_right(1 - c, h) -> put(NackSyn, c, NEW(c))
     :: else -> early[h] = c + 1
     fi
  fi
}

inline request_at(c) {                      /* at host h, over its left subsession, with the sum n */
  if
  :: left_sub[h] == LAST(c) ->
     if
     :: is_right(1 - c, h) -> pass(NackLock, c, left_sub[h])
     :: else ->
        granted[c] = n + added[h];
        assert(granted[c] == (c == 0 -> EXPECT0 : EXPECT1));
        right_input(c, REQUEST_LOCK);
        if
        :: early[h] == c + 1 -> early[h] = 0; got_syn(c)
        :: else
        fi
     fi
  :: left_sub[h] != LAST(c) && right_sub[h] == NONE -> pass(NackLock, c, left_sub[h])
#ifndef BROKEN_SUMS
  :: left_sub[h] != LAST(c) && right_sub[h] != NONE && is_right(1 - c, h) && right[1 - c] == TWO_PATHS ->
     pass(NackLock, c, left_sub[h])
#endif
  :: else ->
     state = lock[h];
     if
     :: lock[h] == FREE -> input = REQUEST
     :: lock[h] != FREE && holder[h] == c -> input = SAME_REQUEST
     :: else -> input = OTHER_REQUEST
     fi;
     lock_table();
     if
     :: action == HOLD && (held[h] == 0 || held[h] == c + 1) -> held[h] = c + 1
     :: action == PASS_ON ->
        lock[h] = state; holder[h] = c;
        if :: inside[h] == 0 -> inside[h] = c + 1; left_done[h] = false; right_done[h] = false :: else fi;
        n = n + BOX(h) + added[h];
        hand_on(c)
     :: else -> pass(NackLock, c, left_sub[h])
     fi
  fi
}

inline got_request_lock(c, s) {
  n = carried[c * SUBS + s];
  if
  :: gone[h] || (left_sub[h] != s && !(is_right(1 - c, h) && s == NEW(1 - c))) ->
     if :: completed_right[c] && right_host[LAST(c)] == h :: else -> put(NackLock, c, s) fi
  :: else -> request_at(c)
  fi
}

inline free_lock() { lock[h] = FREE; holder[h] = 0; inside[h] = 0 }

inline release(c, what) {
  state = lock[h]; input = what;
  lock_table();
  if :: holder[h] == c && action != IGNORE && lock[h] != FREE -> free_lock() :: else fi
}

inline drop_left(c) {                       /* the new path is forgotten, the session stays as it is */
  left[c] = ONE_PATH;
  outcome[c] = 2; agreed[c] = false;
#ifdef BROKEN_DROP
  lock[h] = FREE; holder[h] = 0;
#else
  if :: holder[h] == c -> lock[h] = FREE; holder[h] = 0 :: else fi;
#endif
  if
  :: held[h] != 0 ->
     i = held[h] - 1; held[h] = 0;          /* as if it came again */
     if :: left_sub[h] != NONE -> put(RequestLock, i, left_sub[h]) :: else fi
  :: else
  fi
}

inline left_input(c, what) {                /* at host h */
  state = left[c]; input = what;
  left_table();
  left[c] = state;
  if
  :: action == CANCEL ->
     state = lock[h]; input = CANCEL_LOCK;
     lock_table();
     lock[h] = state;
     put(CancelLock, c, FIRST(c));
     put(CancelLock, c, NEW(c))
  :: action == DROP ->
     if :: what == NACK_LOCK -> put(CancelLock, c, NEW(c)) :: else fi;
     drop_left(c)
  :: action == COMMIT ->
     i = 0;
     do                                     /* every subsession of the segment is locked for this change */
     :: i < HOSTS - 1 ->
        if
        :: i >= FIRST(c) && i <= LAST(c) && FIRST(c) < HOSTS - 1 ->
           assert(lock[left_host[i]] == LOCKED && holder[left_host[i]] == c)
        :: else
        fi;
        i++
     :: else -> break
     od;
#ifndef DISJOINT
     assert(left[1 - c] != TWO_PATHS || FOLLOWS);
#endif
     put(Ack, c, NEW(c));
     put(NewData, c, NEW(c))                /* any data that go on the new path now */
  :: action == COMPLETE ->
     right_sub[h] = NEW(c);
     lock[h] = FREE; holder[h] = 0;
     completed_left[c] = true;
     outcome[c] = 1
  :: else
  fi
}

inline look_left(c) {
  if
  :: left[c] == TWO_PATHS && drained_left[c] && peer_left[c] -> left_input(c, DONE)
  :: else
  fi
}

inline got_ack_lock(c, s) {
  if
  :: is_left(c, h) ->
     if
     :: left[c] == REQUESTING ->
        state = lock[h]; input = ACK_LOCK;
        lock_table();
        lock[h] = state;
        if :: action == NACK_HELD && held[h] != 0 -> put(NackLock, held[h] - 1, left_sub[h]); held[h] = 0 :: else fi;
        left_input(c, ACK_LOCK)
     :: else
     fi
  :: !is_left(c, h) && !gone[h] && right_sub[h] == s && holder[h] == c && left_sub[h] != NONE ->
     state = lock[h]; input = ACK_LOCK;
     lock_table();
     if :: action != IGNORE -> lock[h] = state; pass(AckLock, c, left_sub[h]) :: else fi
  :: else
  fi
}

inline got_nack_lock(c, s) {
  if
  :: is_left(c, h) -> left_input(c, NACK_LOCK)
  :: !is_left(c, h) && !gone[h] && right_sub[h] == s && left_sub[h] != NONE &&
     !(inside[h] == c + 1 && (left_done[h] || right_done[h])) ->
     release(c, NACK_LOCK);
     pass(NackLock, c, left_sub[h])
  :: else
  fi
}

inline got_cancel_lock(c, s) {
  if
  :: gone[h] || s == LAST(c) || s == NEW(c) || left_sub[h] != s ->
     if :: is_right(c, h) && !gone[h] -> right_input(c, CANCEL_LOCK) :: else fi;
     put(AckCancel, c, s)
  :: else ->
     if :: held[h] == c + 1 -> held[h] = 0 :: else fi;
     pass(CancelLock, c, right_sub[h]);
     if :: inside[h] == c + 1 -> release(c, CANCEL_LOCK) :: else fi
  fi
}

inline got_ack_cancel(c, s) {
  if
  :: is_left(c, h) && s == FIRST(c) -> left_input(c, ACK_CANCEL)
  :: !is_left(c, h) && !gone[h] && right_sub[h] == s && left_sub[h] != NONE -> pass(AckCancel, c, left_sub[h])
  :: else
  fi
}

inline got_ack(c) {
  if
  :: is_right(c, h) ->
     right_input(c, ACK);
     if :: right[c] == TWO_PATHS -> knows_right[c] = true :: else fi;
     look_right(c)
  :: !is_right(c, h) && completed_right[c] -> put(AckAck, c, NEW(c))
  :: else
  fi
}

inline got_old_done(c, s, rightward) {      /* at host h, which is the end of s in that direction */
  if
  :: rightward && is_right(c, h) ->
     put(DoneAckLeft, c, s);
     if :: right[c] == TWO_PATHS -> peer_right[c] = true; look_right(c) :: else fi
  :: !rightward && is_left(c, h) ->
     put(DoneAckRight, c, s);
     if :: left[c] == TWO_PATHS -> peer_left[c] = true; look_left(c) :: else fi
  :: rightward && (gone[h] || (completed_right[c] && right_host[LAST(c)] == h)) -> put(DoneAckLeft, c, s)
  :: !rightward && (gone[h] || (completed_left[c] && left_host[FIRST(c)] == h)) -> put(DoneAckRight, c, s)
  :: else ->                                /* a host of the old path; it leaves when both have said it */
     inside[h] = c + 1;
     if
     :: rightward -> left_done[h] = true; pass(OldDoneRight, c, right_sub[h])
     :: else -> right_done[h] = true; pass(OldDoneLeft, c, left_sub[h])
     fi;
     if :: left_done[h] && right_done[h] -> gone[h] = true; free_lock() :: else fi
  fi
}

inline got_done_ack(c, s, rightward) {
  if
  :: !rightward && left_host[FIRST(c)] == h ->
     if :: s == NEW(c) -> told_new_left[c] = true :: else -> told_old_left[c] = true fi
  :: rightward && right_host[LAST(c)] == h ->
     if :: s == NEW(c) -> told_new_right[c] = true :: else -> told_old_right[c] = true fi
  :: else ->
     if
     :: gone[h]
     :: !gone[h] && rightward -> pass(DoneAckRight, c, right_sub[h])
     :: !gone[h] && !rightward -> pass(DoneAckLeft, c, left_sub[h])
     fi
  fi
}

inline got_lock_query(c, s) {
  if
  :: is_left(c, h) ->
     if :: left[c] == TWO_PATHS -> put(Committed, c, s) :: else -> put(Undecided, c, s) fi
  :: !is_left(c, h) && !gone[h] && inside[h] == c + 1 -> pass(LockQuery, c, left_sub[h])
  :: else -> put(Cancelled, c, s)
  fi
}

inline got_lock_status(c, s, what) {
  if
  :: is_right(c, h) ->
     if
     :: what == Cancelled -> right_input(c, CANCEL_LOCK)
     :: what == Committed -> got_ack(c)
     :: else
     fi
  :: !is_right(c, h) && !gone[h] && inside[h] == c + 1 && s != NEW(c) -> pass(what, c, right_sub[h])
  :: else
  fi
}

#define come(m) has(m, c, s) -> h = to; if :: take(m, c, s) :: faults > 0 -> faults-- fi
#define come_back(m) has(m, c, s) -> h = from; if :: take(m, c, s) :: faults > 0 -> faults-- fi

proctype Link(byte c; byte s; byte from; byte to) {
  byte lost;
end:
  do
  :: atomic { come(RequestLock); got_request_lock(c, s) }
  :: atomic { come(CancelLock); got_cancel_lock(c, s) }
  :: atomic { come(Syn); got_syn(c) }
  :: atomic { come(Ack); got_ack(c) }
  :: atomic { come(NewData); if :: right[c] == WAITING -> right_input(c, NEW_DATA) :: else fi }
  :: atomic { come(Undecided); got_lock_status(c, s, Undecided) }
  :: atomic { come(Cancelled); got_lock_status(c, s, Cancelled) }
  :: atomic { come(Committed); got_lock_status(c, s, Committed) }
  :: atomic { come(OldDoneRight); got_old_done(c, s, true) }
  :: atomic { come(DoneAckRight); got_done_ack(c, s, true) }
  :: atomic { come_back(AckLock); got_ack_lock(c, s) }
  :: atomic { come_back(NackLock); got_nack_lock(c, s) }
  :: atomic { come_back(AckCancel); got_ack_cancel(c, s) }
  :: atomic { come_back(SynAck); if :: is_left(c, h) -> agreed[c] = true :: else fi }
  :: atomic { come_back(NackSyn); if :: is_left(c, h) -> left_input(c, FAIL) :: else fi }
  :: atomic { come_back(AckAck); if :: left[c] == TWO_PATHS -> knows_left[c] = true; look_left(c) :: else fi }
  :: atomic { come_back(LockQuery); got_lock_query(c, s) }
  :: atomic { come_back(OldDoneLeft); got_old_done(c, s, false) }
  :: atomic { come_back(DoneAckLeft); got_done_ack(c, s, false) }
  :: atomic {
       faults > 0 && at(c, s) != 0 ->
       faults--;
       lost = 0;
       do
       :: has(lost, c, s) -> break
       :: (at(c, s) >> (lost + 1)) != 0 -> lost++
       od;
       take(lost, c, s);
       lost = 0
     }
  od
}

proctype Left(byte c; byte me) {
end:
  do
  :: atomic {                               /* somebody wishes the change */
       outcome[c] == 0 && left[c] == ONE_PATH && (c == 0 || !FOLLOWS || outcome[0] != 0) ->
       h = me;
       if
       :: gone[h] || right_sub[h] != FIRST(c) || lock[h] != FREE -> outcome[c] = 2
       :: else ->
          lock[h] = OWN; holder[h] = c;
          n = 0;
          left_input(c, START);
          hand_on(c);
          put(Syn, c, NEW(c))
       fi
     }
  :: atomic { left[c] == SETTING_UP && agreed[c] -> h = me; left_input(c, READY) }
  :: atomic { faults > 0 && (left[c] == REQUESTING || left[c] == SETTING_UP) -> faults--; h = me; left_input(c, FAIL) }
  :: atomic {                               /* this half of the old path is empty */
       left[c] == TWO_PATHS && knows_left[c] && !drained_left[c] ->
       h = me;
       drained_left[c] = true;
       put(OldDoneRight, c, FIRST(c));
       put(OldDoneRight, c, NEW(c));
       look_left(c)
     }
  :: atomic { timeout && left[c] == REQUESTING -> h = me; n = 0; hand_on(c); if :: !agreed[c] -> put(Syn, c, NEW(c)) :: else fi }
  :: atomic { timeout && left[c] == SETTING_UP && !agreed[c] -> put(Syn, c, NEW(c)) }
  :: atomic { timeout && left[c] == CANCELLING -> put(CancelLock, c, FIRST(c)); put(CancelLock, c, NEW(c)) }
  :: atomic { timeout && left[c] == CANCELLING -> h = me; left_input(c, TIMER) }
  :: atomic { timeout && left[c] == TWO_PATHS && (!knows_left[c] || !peer_left[c]) -> put(Ack, c, NEW(c)) }
  :: atomic {
       timeout && drained_left[c] && !(told_old_left[c] && told_new_left[c]) ->
       put(OldDoneRight, c, FIRST(c));
       put(OldDoneRight, c, NEW(c))
     }
  od
}

#ifdef BROKEN_LEASE
#define lease_ends(c) (left[c] != TWO_PATHS && right[c] != TWO_PATHS)
#else
#define lease_ends(c) (timeout && left[c] != REQUESTING && left[c] != SETTING_UP && left[c] != TWO_PATHS && right[c] != TWO_PATHS)
#endif

proctype Right(byte c; byte me) {
end:
  do
  :: atomic {
       right[c] == TWO_PATHS && knows_right[c] && !drained_right[c] ->
       h = me;
       drained_right[c] = true;
       put(OldDoneLeft, c, LAST(c));
       put(OldDoneLeft, c, NEW(c));
       look_right(c)
     }
  :: atomic { timeout && right[c] == WAITING -> put(LockQuery, c, LAST(c)); put(LockQuery, c, NEW(c)) }
  :: atomic { timeout && right[c] == TWO_PATHS && !knows_right[c] -> put(AckAck, c, NEW(c)) }
  :: atomic {
       timeout && drained_right[c] && !(told_old_right[c] && told_new_right[c]) ->
       put(OldDoneLeft, c, LAST(c));
       put(OldDoneLeft, c, NEW(c))
     }
  :: atomic { right[c] == REQUESTED && lease_ends(c) -> h = me; right_input(c, LEASE) }
  od
}

proctype Lease(byte me) {
end:
  do
  :: atomic { (lock[me] == PENDING || lock[me] == LOCKED) && lease_ends(holder[me]) -> h = me; free_lock() }
  :: atomic { timeout && lock[me] == FREE && inside[me] != 0 && !gone[me] && outcome[0] != 0 && outcome[1] != 0 -> inside[me] = 0 }
  od
}

#define ended(c) (outcome[c] != 0 && left[c] == ONE_PATH && right[c] == ONE_PATH && \
  completed_left[c] == completed_right[c] && \
  (!completed_left[c] || (told_old_left[c] && told_new_left[c] && told_old_right[c] && told_new_right[c])))
#define idle(host) (gone[host] || (lock[host] == FREE && held[host] == 0 && inside[host] == 0))
#define quiet(c) (at(c, 0) == 0 && at(c, 1) == 0 && at(c, 2) == 0 && at(c, HOSTS - 1) == 0 && at(c, HOSTS) == 0)
#define rest (ended(0) && ended(1) && idle(0) && idle(1) && idle(2) && idle(HOSTS - 1) && quiet(0) && quiet(1))

proctype Monitor() {
  rest ->
#if FAULTS == 0
  assert(outcome[0] == 1 || outcome[1] == 1)
#else
  skip
#endif
}

init {
  atomic {
    i = 0;
    do
    :: i < HOSTS - 1 -> left_host[i] = i; right_host[i] = i + 1; i++
    :: else -> break
    od;
    left_host[NEW(0)] = left_host[FIRST0]; right_host[NEW(0)] = right_host[LAST0];
    left_host[NEW(1)] = left_host[FIRST1]; right_host[NEW(1)] = right_host[LAST1];
    i = 0;
    do
    :: i < HOSTS -> left_sub[i] = (i == 0 -> NONE : i - 1); right_sub[i] = (i == HOSTS - 1 -> NONE : i); i++
    :: else -> break
    od;
    i = 0;
    do
    :: i < SUBS -> run Link(0, i, left_host[i], right_host[i]); run Link(1, i, left_host[i], right_host[i]); i++
    :: else -> break
    od;
    run Left(0, left_host[FIRST0]); run Left(1, left_host[FIRST1]);
    run Right(0, right_host[LAST0]); run Right(1, right_host[LAST1]);
    i = 0;
    do
    :: i < HOSTS - 1 -> run Lease(i); i++
    :: else -> break
    od;
    run Monitor()
  }
}

#ifdef LIVE
ltl ends { <> rest }
#endif
