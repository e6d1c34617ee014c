/* The state tables of locks and of both anchors. tests/model/test_spin.py holds each line of the form
   "(state == OLD && input == INPUT) -> action = ACTION; state = NEW" against dysco.protocol.locks and .anchors. */

mtype = { FREE, PENDING, OWN, LOCKED };
mtype = { REQUEST, SAME_REQUEST, OTHER_REQUEST, OWN_REQUEST, ACK_LOCK, NACK_LOCK, CANCEL_LOCK, RENEW_LOCK, LEASE, DONE };
mtype = { NOTHING, PASS_ON, HOLD, NACK_BUSY, NACK_HELD, PASS_HELD };
mtype = { ONE_PATH, REQUESTING, SETTING_UP, TWO_PATHS, CANCELLING, REQUESTED, WAITING };
mtype = { START, READY, FAIL, ACK_CANCEL, TIMER, REQUEST_LOCK, SYN, ACK, NEW_DATA };
mtype = { WAIT, DROP, COMMIT, CANCEL, COMPLETE, GRANT, AGREE, REPEAT, IGNORE };

hidden mtype state, input, action;

inline lock_table() {
  if
  :: (state == FREE && input == REQUEST) -> action = PASS_ON; state = PENDING
  :: (state == FREE && input == OWN_REQUEST) -> action = PASS_ON; state = OWN
  :: (state == FREE && input == NACK_LOCK) -> action = PASS_ON; state = FREE
  :: (state == FREE && input == CANCEL_LOCK) -> action = PASS_ON; state = FREE
  :: (state == PENDING && input == SAME_REQUEST) -> action = PASS_ON; state = PENDING
  :: (state == PENDING && input == OTHER_REQUEST) -> action = NACK_BUSY; state = PENDING
  :: (state == PENDING && input == ACK_LOCK) -> action = PASS_ON; state = LOCKED
  :: (state == PENDING && input == NACK_LOCK) -> action = PASS_ON; state = FREE
  :: (state == PENDING && input == CANCEL_LOCK) -> action = PASS_ON; state = FREE
  :: (state == PENDING && input == LEASE) -> action = NOTHING; state = FREE
  :: (state == OWN && input == OTHER_REQUEST) -> action = HOLD; state = OWN
  :: (state == OWN && input == ACK_LOCK) -> action = NACK_HELD; state = LOCKED
  :: (state == OWN && input == NACK_LOCK) -> action = PASS_HELD; state = FREE
  :: (state == OWN && input == CANCEL_LOCK) -> action = PASS_HELD; state = FREE
  :: (state == LOCKED && input == SAME_REQUEST) -> action = PASS_ON; state = LOCKED
#ifdef BROKEN_LOCK
  :: (state == LOCKED && input == OTHER_REQUEST) -> action = PASS_ON; state = LOCKED
#else
  :: (state == LOCKED && input == OTHER_REQUEST) -> action = NACK_BUSY; state = LOCKED
#endif
  :: (state == LOCKED && input == ACK_LOCK) -> action = PASS_ON; state = LOCKED
  :: (state == LOCKED && input == NACK_LOCK) -> action = PASS_ON; state = FREE
  :: (state == LOCKED && input == CANCEL_LOCK) -> action = PASS_ON; state = FREE
  :: (state == LOCKED && input == RENEW_LOCK) -> action = PASS_ON; state = LOCKED
  :: (state == LOCKED && input == LEASE) -> action = NOTHING; state = FREE
  :: (state == LOCKED && input == DONE) -> action = NOTHING; state = FREE
  :: else -> action = IGNORE
  fi
}

inline left_table() {
  if
  :: (state == ONE_PATH && input == START) -> action = REQUEST; state = REQUESTING
  :: (state == REQUESTING && input == ACK_LOCK) -> action = WAIT; state = SETTING_UP
  :: (state == REQUESTING && input == NACK_LOCK) -> action = DROP; state = ONE_PATH
  :: (state == REQUESTING && input == FAIL) -> action = CANCEL; state = CANCELLING
  :: (state == SETTING_UP && input == READY) -> action = COMMIT; state = TWO_PATHS
  :: (state == SETTING_UP && input == FAIL) -> action = CANCEL; state = CANCELLING
  :: (state == TWO_PATHS && input == ACK_CANCEL) -> action = CANCEL; state = CANCELLING
  :: (state == TWO_PATHS && input == DONE) -> action = COMPLETE; state = ONE_PATH
  :: (state == CANCELLING && input == ACK_CANCEL) -> action = DROP; state = ONE_PATH
  :: (state == CANCELLING && input == TIMER) -> action = DROP; state = ONE_PATH
  :: else -> action = IGNORE
  fi
}

inline right_table() {
  if
  :: (state == ONE_PATH && input == REQUEST_LOCK) -> action = GRANT; state = REQUESTED
  :: (state == REQUESTED && input == REQUEST_LOCK) -> action = REPEAT; state = REQUESTED
  :: (state == REQUESTED && input == SYN) -> action = AGREE; state = WAITING
  :: (state == REQUESTED && input == CANCEL_LOCK) -> action = DROP; state = ONE_PATH
  :: (state == REQUESTED && input == LEASE) -> action = DROP; state = ONE_PATH
  :: (state == WAITING && input == REQUEST_LOCK) -> action = REPEAT; state = WAITING
  :: (state == WAITING && input == SYN) -> action = REPEAT; state = WAITING
  :: (state == WAITING && input == CANCEL_LOCK) -> action = DROP; state = ONE_PATH
  :: (state == WAITING && input == ACK) -> action = COMMIT; state = TWO_PATHS
  :: (state == WAITING && input == NEW_DATA) -> action = COMMIT; state = TWO_PATHS
  :: (state == TWO_PATHS && input == ACK) -> action = REPEAT; state = TWO_PATHS
  :: (state == TWO_PATHS && input == DONE) -> action = COMPLETE; state = ONE_PATH
  :: else -> action = IGNORE
  fi
}
