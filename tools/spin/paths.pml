/* The bytes of one change, from the switch to the end: cutoffs, two paths, an old path that is drained, or taken back.

     end 0, left anchor ==OLD== a box that adds to numbers ==OLD== right anchor, end 1
                        --NEW------------ nothing --------NEW--

   Each byte has a tag, its place in the stream, which no number on the way tells; the end that sends it repeats it when
   all is silent, until it is acknowledged. A path holds ROOM bytes and ROOM acknowledgements in each direction, in order;
   LOSSES of any of them are lost. Messages are repeated, so one is a fact that the other anchor learns late, or never if
   the path it goes along is dead. Sequence numbers wrap at MOD.

   Numbers: DF is added to forward numbers on their way to the right, DB to backward ones on their way to the left; by the
   box on the old path, by the right anchor on the new one, which translates cutoffs, too.

   Checked: an end takes each byte once, in order; nothing is acknowledged that was not sent, on the old path not even
   what was sent on the new one; when an anchor lets the old path go, all below both cutoffs has come. No state at rest
   has a byte that did not come, or two paths. A change is taken back (TAKEN_BACK) only by an anchor that knows
   that the other one will not switch. */

#include "tables.pml"

#ifndef BYTES0
#define BYTES0 3
#endif
#ifndef BYTES1
#define BYTES1 2
#endif
#ifndef ROOM
#define ROOM 2
#endif
#ifndef LOSSES
#define LOSSES 1
#endif
#ifndef DF
#define DF 3
#endif
#ifndef DB
#define DB 14             /* -2 */
#endif
#define MOD 16
#define OLD 0
#define NEW 1
#define BYTES(d) (d == 0 -> BYTES0 : BYTES1)
#define DELTA(d) (d == 0 -> DF : DB)
/* The number of byte 0 of direction d (0: forward) at side x: each end begins just before the wrap. */
#define FIRST(x, d) ((MOD - 1 + (x == d -> 0 : DELTA(d))) % MOD)
#define queue(d, path) ((d) * 2 + (path))

chan data[4] = [ROOM] of { byte, byte };    /* number where it was sent, tag */
chan acks[4] = [ROOM] of { byte };          /* of direction d: number where it was sent */
byte next_byte[2], acked[2];                /* of direction d, at its sender */
byte taken[2], old_rcvd[2];                 /* at its receiver; the highest on the old path */
byte sent_old[2];                           /* how many have gone along the old path */
bool owes[2];                               /* an acknowledgement */
mtype anchor[2];                            /* state of the left and the right anchor */
byte cutoff[2], peer_cutoff[2];             /* of the byte at which x switches; of the other's, as x knows it */
bool knows[2], told_old[2], done[2], let_go[2];
bool said_ack, said_ack_ack, asked_back, given_up, dead;
byte losses = LOSSES;

hidden byte number, tag, place, got;

#define switched(x) (anchor[x] == TWO_PATHS)
#define silent (empty(data[0]) && empty(data[1]) && empty(data[2]) && empty(data[3]) && \
  empty(acks[0]) && empty(acks[1]) && empty(acks[2]) && empty(acks[3]))
#define is_new(x) (let_go[x] || (switched(x) && place >= cutoff[x]))
#define translated(path, d) (path == NEW -> ON_NEW(d) : DELTA(d))
#ifdef BROKEN_DELTAS
#define ON_NEW(d) DELTA(1 - (d))            /* each sum at the wrong anchor */
#else
#define ON_NEW(d) DELTA(d)
#endif

inline send(x) {                            /* the byte at `place` */
  if
  :: is_new(x) ->
     if
     :: dead -> skip
     :: else -> data[queue(x, NEW)]!((FIRST(x, x) + place) % MOD), place
     fi
  :: else ->
     data[queue(x, OLD)]!((FIRST(x, x) + place) % MOD), place;
     if
     :: place >= sent_old[x] -> sent_old[x] = place + 1
     :: else
     fi
  fi
}

inline switch_over(x) {
  anchor[x] = TWO_PATHS; cutoff[x] = next_byte[x]
}

inline accept(x, path) {                    /* a byte for side x */
  place = (number + translated(path, 1 - x) + MOD - FIRST(x, 1 - x)) % MOD;
  if
  :: path == NEW && x == 1 && anchor[1] == WAITING && !given_up -> switch_over(1); said_ack_ack = 1
  :: else
  fi;
  if
  :: path == NEW && !switched(x) && !let_go[x]      /* nobody takes it */
  :: else ->
     if
     :: path == OLD && place < MOD / 2 && place >= old_rcvd[1 - x] -> old_rcvd[1 - x] = place + 1
     :: else
     fi;
     if
     :: place == taken[1 - x] -> assert(tag == place); taken[1 - x]++
     :: else
     fi;
     owes[x] = 1
  fi;
  place = 0
}

inline acknowledge(x) {
  owes[x] = 0; got = taken[1 - x];
  if
  :: let_go[x] || (switched(x) && got >= old_rcvd[1 - x]) ->
     if
     :: dead -> skip
     :: else -> acks[queue(1 - x, NEW)]!((FIRST(x, 1 - x) + got) % MOD)
     fi
  :: else
  fi;
  if
  :: !let_go[x] ->
#ifndef BROKEN_CLAMP
     if
     :: got > old_rcvd[1 - x] -> got = old_rcvd[1 - x]
     :: else
     fi;
#endif
     acks[queue(1 - x, OLD)]!((FIRST(x, 1 - x) + got) % MOD);
     told_old[x] = switched(x) && knows[x] && got >= peer_cutoff[x]
  :: else
  fi;
  got = 0
}

inline hear(x, path) {                      /* an acknowledgement for side x */
  got = (number + 2 * MOD - translated(path, x) - FIRST(x, x)) % MOD;
  if
  :: path == NEW && !let_go[x] && (!switched(x) || got < cutoff[x])     /* not to be believed yet */
  :: else ->
     assert(got <= next_byte[x]);
     assert(path == NEW || got <= sent_old[x]);
     if
     :: got > acked[x] -> acked[x] = got
     :: else
     fi
  fi;
  got = 0
}

proctype Side(byte x) {
  do
  /* The end. */
  :: atomic { next_byte[x] < BYTES(x) && nfull(data[queue(x, OLD)]) && nfull(data[queue(x, NEW)]) ->
       place = next_byte[x]; next_byte[x]++; send(x); place = 0 }
  :: atomic { timeout && acked[x] < next_byte[x] && !owes[0] && !owes[1] ->
       place = acked[x]; send(x); place = 0 }
  :: atomic { owes[x] && nfull(acks[queue(1 - x, OLD)]) && nfull(acks[queue(1 - x, NEW)]) -> acknowledge(x) }
  :: atomic { nempty(data[queue(1 - x, OLD)]) -> data[queue(1 - x, OLD)]?number, tag;
       if
       :: let_go[x]
       :: else -> accept(x, OLD)
       fi }
  :: atomic { nempty(data[queue(1 - x, NEW)]) -> data[queue(1 - x, NEW)]?number, tag; accept(x, NEW) }
  :: atomic { nempty(acks[queue(x, OLD)]) -> acks[queue(x, OLD)]?number;
       if
       :: let_go[x]
       :: else -> hear(x, OLD)
       fi }
  :: atomic { nempty(acks[queue(x, NEW)]) -> acks[queue(x, NEW)]?number; hear(x, NEW) }
  /* The anchor. */
  :: atomic { x == 0 && anchor[0] == SETTING_UP -> switch_over(0); said_ack = 1 }
  :: atomic { x == 1 && said_ack && !dead && !given_up && anchor[1] == WAITING -> switch_over(1); said_ack_ack = 1 }
  :: atomic { x == 1 && said_ack && !dead && switched(1) && !knows[1] ->
       knows[1] = 1; peer_cutoff[1] = (FIRST(0, 0) + cutoff[0] + ON_NEW(0) + MOD - FIRST(1, 0)) % MOD; owes[1] = 1 }
  :: atomic { x == 0 && said_ack_ack && !dead && switched(0) && !knows[0] ->
       knows[0] = 1; peer_cutoff[0] = (FIRST(1, 1) + cutoff[1] + ON_NEW(1) + MOD - FIRST(0, 1)) % MOD; owes[0] = 1 }
  :: atomic { switched(x) && !done[x] && knows[x] && acked[x] >= cutoff[x] && taken[1 - x] >= peer_cutoff[x] &&
       told_old[x] -> done[x] = 1 }
  :: atomic { done[x] && done[1 - x] && switched(x) ->
       assert(taken[0] >= cutoff[0] && taken[1] >= cutoff[1]);
       assert(acked[x] >= cutoff[x]);
       let_go[x] = 1; anchor[x] = ONE_PATH }
#ifdef TAKING_BACK
  :: atomic { x == 0 && switched(0) && !knows[0] && !asked_back -> asked_back = 1 }
#ifdef BROKEN_BACK
  :: atomic { x == 1 && asked_back && !given_up && !let_go[1] -> given_up = 1 }
#else
  :: atomic { x == 1 && asked_back && !given_up && anchor[1] == WAITING -> given_up = 1; anchor[1] = ONE_PATH }
#endif
  :: atomic { x == 0 && given_up && switched(0) -> anchor[0] = ONE_PATH }
#endif
  :: atomic { acked[0] == BYTES0 && acked[1] == BYTES1 && taken[0] == BYTES0 && taken[1] == BYTES1 &&
       ((let_go[0] && let_go[1]) || (given_up && anchor[0] == ONE_PATH && !let_go[1])) && silent && !owes[0] && !owes[1] -> break }
  od
}

proctype Loss() {
end:
  do
  :: atomic { losses > 0 && nempty(data[0]) -> data[0]?number, tag; losses-- }
  :: atomic { losses > 0 && nempty(data[1]) -> data[1]?number, tag; losses-- }
  :: atomic { losses > 0 && nempty(data[2]) -> data[2]?number, tag; losses-- }
  :: atomic { losses > 0 && nempty(data[3]) -> data[3]?number, tag; losses-- }
  :: atomic { losses > 0 && nempty(acks[0]) -> acks[0]?number; losses-- }
  :: atomic { losses > 0 && nempty(acks[1]) -> acks[1]?number; losses-- }
  :: atomic { losses > 0 && nempty(acks[2]) -> acks[2]?number; losses-- }
  :: atomic { losses > 0 && nempty(acks[3]) -> acks[3]?number; losses-- }
#ifdef TAKING_BACK
  :: atomic { !dead && anchor[1] == WAITING -> dead = 1;
       do
       :: nempty(data[1]) -> data[1]?number, tag
       :: nempty(data[3]) -> data[3]?number, tag
       :: nempty(acks[1]) -> acks[1]?number
       :: nempty(acks[3]) -> acks[3]?number
       :: else -> break
       od }
#endif
  od
}

init {
  atomic { anchor[0] = SETTING_UP; anchor[1] = WAITING; run Side(0); run Side(1); run Loss() }
}
