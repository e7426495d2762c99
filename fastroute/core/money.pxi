# ======================================================================================================================
# Money: counters that cannot be overdrawn, and the reservations against them
# ======================================================================================================================
#
# A counter is one cell. Its `committed` is what has been spent plus what is reserved. A reservation is admitted by one
# swap that finds it within the limit, so `committed` never passes the limit, whatever other processes do. A reservation
# is a cell of its own that says whose it is, how much, until when, and whether the request was sent.
#
# Two cells cannot be changed at once, and a process may be killed between them. So beside the counter's number is a
# mark that names the change that made it, and both are swapped as one (16 bytes). A process that finds a mark first
# brings the marked reservation up to date and only then makes a change of its own. So at any time a change has been
# made if and only if the mark names it or its reservation says so, and a reaper can tell which:
#
#   killed while                left behind                              what reaping does
#   being filled in             TAKEN                                    frees it; nothing was counted
#   being counted               COUNTING, the mark elsewhere             frees it; nothing was counted
#                               COUNTING, the mark names it              makes it HELD, then as below
#   held, nothing sent          HELD                                     gives the money back
#   on its way or answered      HELD and SENT                            frees it; the whole amount stays spent
#   being settled               SETTLING                                 as HELD, with SENT or without
#                               CLOSING, the mark elsewhere              makes the change that it names
#                               CLOSING, the mark names it               frees it; the change was made
#   beginning a window          the mark says BEGIN                      writes the window and its alerts
#
# One window follows another in the same cell. Every reservation holds the counter's stamp (the window, and how often
# the cell was begun). A reservation with another stamp belongs to a window that is over and no longer counted: it is
# only freed. A change of stamp changes the mark, so a swap meant for the window before fails.
#
# What is spent is not stored: it is `committed` minus what is reserved, read while the mark does not change.
#
# The memory may be a file, and whoever on the machine can write that file can write anything into these cells. So no
# number that was read here is used before it was checked: an index is masked, and the cell there must be of the right
# kind; the number, the mark and the window of a counter carry check bytes, the fields of a reservation a check word. A
# changed byte always shows in them. A counter in which they do not fit is unknown and must not count on: its window is
# taken away (`purse_void`), so that the next caller looks up what was spent and begins it anew. A reservation in which
# they do not fit is unknown too: it is freed, and what it had reserved stays spent.
#
# A ticket: bits 0-23 the reservation's cell, 24-55 its turn.

cdef extern from "money.h" nogil:
    ctypedef struct fr_pair:
        uint64_t value
        uint64_t mark
    const bint FR_HAS_PAIRS
    bint fr_cas_pair(fr_pair *pair, uint64_t value, uint64_t mark, uint64_t new_value, uint64_t new_mark) noexcept
    uint64_t fr_seal(uint64_t turn, uint64_t amount, uint64_t lease, uint64_t purse, uint64_t stamp) noexcept
    void fr_about_to_write() noexcept
    void fr_die_after(int64_t writes) noexcept

# Constants ------------------------------------------------------------------------------------------------------------

OVER_LIMIT = REASON_OVER_LIMIT
OTHER_WINDOW = REASON_OTHER_WINDOW

cdef int64_t MAX_NANO = 1_000_000_000_000_000_000     # a thousand million dollars; nine such amounts fit in a word
MOST_NANO = MAX_NANO
cdef int64_t LATE_NS = 3_600_000_000_000              # how long after its lease a reservation may still be settled

cdef enum:
    KIND_MONEY = 10
    KIND_RESERVATION = 11
    MAX_RESERVATIONS = 65536
    GAP = 8                      # numbers without a cell (of a damaged key) that a walk over all of them steps over
    MAX_ALERTS = 8

cdef enum:                       # why a reservation was refused, negative
    REASON_OVER_LIMIT = -1
    REASON_OTHER_WINDOW = -2

cdef enum:                       # low four bits of a reservation's state
    FREE = 0
    TAKEN = 1
    COUNTING = 2
    HELD = 3
    SETTLING = 4
    CLOSING = 5
    PHASE = 15
    SENT = 16                    # the request may have reached the provider
    LATE = 32                    # the lease ran out after sending: counted as spent, may still be settled

cdef enum:                       # low two bits of a mark; 0: none yet
    MARK_COUNT = 1
    MARK_CLOSE = 2
    MARK_BEGIN = 3

cdef enum:
    BEGUN = 0x3FFF               # how often a counter was begun: 14 bits, in its window and in a mark
    TURNS = 0x3FFFFFFF           # of a reservation's turn, what has room in a mark

cdef uint64_t RESERVATIONS = 0x7265736572766500       # used like a name's hash; its cells are numbered

# Structs --------------------------------------------------------------------------------------------------------------

cdef struct Purse:               # one cell: the money of one window
    uint64_t key
    uint64_t window              # window << 32 | check byte << 24 | how often begun << 8 | alerts given
    fr_pair committed            # nano-dollars spent and reserved, and the mark of the last change, see `sealed`
    uint64_t owner               # whose cell it is, see values.pxi; 0: a counter with a name of its own
    uint64_t use                 # of an owned cell: flags, claim, group, last use and end, see values.pxi
    fr_pair granted              # nano-dollars granted by a bank of many machines, and the stamp, see `sealed`

cdef struct Entry:               # one cell: one reservation
    uint64_t key
    uint64_t state               # turn << 32 | worker's slot << 8 | LATE | SENT | phase
    int64_t amount               # nano-dollars reserved
    int64_t cost                 # what it is settled to; valid while CLOSING
    int64_t lease                # ns on the core's clock: after that it may be taken away
    uint64_t purse               # index of the counter's cell
    uint64_t stamp               # the counter's window and how often begun, when this was counted
    uint64_t seal                # check word over turn, amount, lease, purse and stamp

# Functions ------------------------------------------------------------------------------------------------------------


cdef inline bint turn_to(uint64_t *word, uint64_t seen, uint64_t new) noexcept nogil:
    fr_about_to_write()
    return fr_cas(word, &seen, new)


cdef inline void write(uint64_t *word, uint64_t value) noexcept nogil:
    fr_about_to_write()
    fr_store(word, value)


cdef inline uint64_t freed(uint64_t state) noexcept nogil:
    # Under the next turn: the check word is of this one, so a changed byte cannot make the reservation held again.
    return (state & ~<uint64_t>0xFFFFFFFF) + (<uint64_t>1 << 32)


cdef inline uint64_t in_phase(uint64_t state, uint64_t phase) noexcept nogil:
    return (state & ~<uint64_t>PHASE) | phase


cdef inline uint64_t mark_of(uint64_t cell, uint64_t state, uint64_t kind) noexcept nogil:
    # With the turn in it, so that a mark never names a later reservation in the same cell (for 2**30 turns).
    return (state >> 32 & TURNS) << 26 | cell << 2 | kind


cdef inline uint64_t sealed(int64_t value, uint64_t mark) noexcept nogil:
    """The mark with a check byte over itself and the number beside it: all bytes of both together give 0."""
    return mark | fr_fold(<uint64_t>value ^ mark) << 56


cdef inline uint64_t window_word(uint64_t window, uint64_t begun, uint64_t alerts) noexcept nogil:
    cdef uint64_t word = window << 32 | (begun & BEGUN) << 8
    return word | fr_fold(word) << 24 | alerts


cdef inline bint window_fits(uint64_t word) noexcept nogil:
    # The check byte does not cover the alerts: they are set one by one.
    return fr_fold(word & ~<uint64_t>0xFF) == 0 and (word >> 8 & 0xFFFF) <= BEGUN


cdef inline uint64_t *cell_at(uint64_t *table, uint64_t mask, uint64_t index, uint64_t kind) noexcept nogil:
    """The cell of an index that was read from shared memory; NULL if it is not a cell of that kind."""
    cdef uint64_t *cell = table + 8 * (index & mask)
    return cell if (fr_load(cell) & 15) == kind else NULL


cdef void purse_void(Purse *purse) noexcept nogil:
    """Takes the window of a damaged counter away, so that all who count in it are refused and it is begun anew."""
    cdef uint64_t seen = fr_load(&purse.window)
    # Begun once more by this, so that no reservation of before has the stamp of what is begun next.
    while seen >> 32 or not window_fits(seen):
        if turn_to(&purse.window, seen, window_word(0, (seen >> 8) + 1, 0)):
            return
        seen = fr_load(&purse.window)


cdef void purse_pin(Purse *purse, uint64_t stamp) noexcept nogil:
    """Records that a counter has money spent that no ledger knows of, so that an owned cell is kept until its end."""
    cdef uint64_t seen = fr_load(&purse.use)
    while fr_load(&purse.owner) and fr_load(&purse.window) >> 8 == stamp and not seen & UNRECORDED:
        if turn_to(&purse.use, seen, seen | UNRECORDED):
            return
        seen = fr_load(&purse.use)


cdef void follow(uint64_t *table, uint64_t mask, Purse *purse, uint64_t mark) noexcept nogil:
    """Brings up to date what a counter's mark names. Idempotent; any number of threads may do it at once."""
    cdef uint64_t kind = mark & 3
    cdef uint64_t seen, begun, before, after
    cdef uint64_t *word
    if kind == MARK_BEGIN:
        begun = mark >> 10 & BEGUN
        seen = fr_load(&purse.window)
        while (seen >> 8 & BEGUN) == (begun - 1 & BEGUN):
            if turn_to(&purse.window, seen, window_word(mark >> 24 & UINT32_MAX, begun, mark >> 2 & 0xFF)):
                return
            seen = fr_load(&purse.window)
    elif kind:
        word = cell_at(table, mask, mark >> 2 & 0xFFFFFF, KIND_RESERVATION)
        if word is NULL:
            return
        word = &(<Entry *>word).state
        before = COUNTING if kind == MARK_COUNT else CLOSING
        seen = fr_load(word)
        while (seen >> 32 & TURNS) == (mark >> 26 & TURNS) and (seen & PHASE) == before:
            after = in_phase(seen, HELD) if kind == MARK_COUNT else freed(seen)
            if turn_to(word, seen, after):
                return
            seen = fr_load(word)


cdef inline bint purse_read(uint64_t *table, uint64_t mask, Purse *purse, int64_t *value, uint64_t *mark) noexcept nogil:
    """Reads number and mark of one change, and follows the mark. False: they do not fit, and the window is void."""
    while True:
        mark[0] = fr_load(&purse.committed.mark)
        value[0] = fr_load_i64(<int64_t *>&purse.committed.value)
        if fr_rarely(value[0] < 0 or fr_fold(<uint64_t>value[0] ^ mark[0]) != 0):
            # Two loads may also be of two changes; then there is another mark by now.
            if fr_load(&purse.committed.mark) != mark[0]:
                continue
            purse_void(purse)
            return False
        follow(table, mask, purse, mark[0])
        return True


cdef uint64_t purse_stamp(uint64_t *table, uint64_t mask, Purse *purse) noexcept nogil:
    """The counter's stamp, that of no window if the counter is damaged."""
    cdef int64_t value
    cdef uint64_t seen
    purse_read(table, mask, purse, &value, &seen)
    seen = fr_load(&purse.window)
    if not window_fits(seen):
        purse_void(purse)
        seen = fr_load(&purse.window)
    return seen >> 8


cdef bint purse_begin(
    uint64_t *table, uint64_t mask, Purse *purse, uint64_t owner, uint64_t seen, uint64_t window, int64_t spent,
    uint64_t alerts,
) noexcept nogil:
    """Begins a window with what has been spent in it so far; False if the counter's stamp is not ``seen``."""
    cdef uint64_t mark, new
    cdef int64_t value, first
    while True:
        purse_read(table, mask, purse, &value, &mark)
        if fr_load(&purse.window) >> 8 != seen or not is_claimed(purse, owner, seen):
            return False
        first = spent
        if seen >> 24 == 0 and not (owner and is_vacant(purse)):
            # It is new, or was damaged. Then there may be reservations of the same window, for requests that are not in
            # ``spent`` yet. They end under another stamp, so they stay counted in full.
            first = min(first + outstanding(table, mask, purse, window), MAX_NANO)
        new = sealed(first, window << 24 | ((seen & BEGUN) + 1 & BEGUN) << 10 | alerts << 2 | MARK_BEGIN)
        fr_about_to_write()
        if fr_cas_pair(&purse.committed, <uint64_t>value, mark, <uint64_t>first, new):
            follow(table, mask, purse, new)
            return True


cdef Entry *next_entry(uint64_t *table, uint64_t mask, uint64_t *number) noexcept nogil:
    """The first reservation from a number on, and sets that to the one after it; NULL after the last."""
    cdef uint64_t end = min(number[0] + GAP, <uint64_t>MAX_RESERVATIONS)
    cdef Entry *entry
    while number[0] < end:
        entry = <Entry *>find_cell(table, mask, sub_key(RESERVATIONS, KIND_RESERVATION, number[0]), False)
        number[0] += 1
        if entry is not NULL:
            return entry
    return NULL


cdef Purse *entry_read(uint64_t *table, uint64_t mask, const Entry *entry, uint64_t state, Entry *found) noexcept nogil:
    """Copies a reservation's fields and returns its counter; NULL if they do not belong to this state of it."""
    # Copied first and checked then: the copy cannot change between check and use.
    found.amount = fr_load_i64(&entry.amount)
    found.lease = fr_load_i64(&entry.lease)
    found.purse = fr_load(&entry.purse)
    found.stamp = fr_load(&entry.stamp)
    if fr_load(&entry.seal) != fr_seal(
        state >> 32, <uint64_t>found.amount, <uint64_t>found.lease, found.purse, found.stamp
    ):
        return NULL
    if not 0 <= found.amount <= MAX_NANO:
        return NULL
    return <Purse *>cell_at(table, mask, found.purse, KIND_MONEY)


cdef int64_t purse_granted(Purse *purse, uint64_t stamp) noexcept nogil:
    """What a bank has granted in the window of a stamp; 0 if nothing, or if it is damaged."""
    cdef uint64_t mark
    cdef int64_t value
    while True:
        mark = fr_load(&purse.granted.mark)
        value = fr_load_i64(<int64_t *>&purse.granted.value)
        if fr_load(&purse.granted.mark) == mark:
            return value if 0 <= value <= MAX_NANO and stamp >> 24 and mark == sealed(value, stamp) else 0


cdef int64_t outstanding(uint64_t *table, uint64_t mask, Purse *purse, uint64_t window) noexcept nogil:
    """What is reserved of a counter in a window, whatever the counter's stamp is now."""
    cdef uint64_t seen
    cdef uint64_t number = 0
    cdef int64_t total = 0
    cdef Entry *entry
    cdef Entry found
    while True:
        entry = next_entry(table, mask, &number)
        if entry is NULL:
            return total
        seen = fr_load(&entry.state)
        if (seen & PHASE) >= COUNTING and entry_read(table, mask, entry, seen, &found) is purse:
            if found.stamp >> 24 == window:
                total = min(total + found.amount, MAX_NANO)


cdef Entry *entry_take(uint64_t *table, uint64_t mask, uint32_t *hint, uint64_t slot) noexcept nogil:
    """A free reservation, now TAKEN by a worker; NULL when there is no room for one more."""
    cdef uint32_t number = hint[0]
    cdef uint32_t step
    cdef bint wrapped = False
    cdef Entry *entry = NULL
    cdef uint64_t seen
    for step in range(2 * MAX_RESERVATIONS):
        if number < <uint32_t>MAX_RESERVATIONS:
            entry = <Entry *>find_cell(table, mask, sub_key(RESERVATIONS, KIND_RESERVATION, number), wrapped)
        if entry is NULL or number >= <uint32_t>MAX_RESERVATIONS:
            if wrapped:
                break
            # Past the last cell that was ever used: search from the first on before claiming a new cell, which would
            # stay claimed for ever.
            wrapped = True
            number = 0
            continue
        seen = fr_load(&entry.state)
        if (seen & PHASE) == FREE and turn_to(&entry.state, seen, (seen & ~<uint64_t>0xFFFFFFFF) | slot << 8 | TAKEN):
            hint[0] = number + 1
            return entry
        number += 1
    return NULL


cdef int64_t purse_reserve(
    uint64_t *table, uint64_t mask, Purse *purse, uint64_t owner, Entry *entry, uint64_t stamp, int64_t amount,
    int64_t most, int64_t lease,
) noexcept nogil:
    """Counts a reservation that was TAKEN, if no more than ``most`` is committed before it."""
    # Filled in before it is COUNTING: of a COUNTING reservation a reaper reads the fields.
    cdef uint64_t cell = (<uint64_t *>entry - table) // 8
    cdef uint64_t state = fr_load(&entry.state)
    cdef uint64_t place = (<uint64_t *>purse - table) // 8
    cdef uint64_t mark, new, named
    cdef int64_t value, sum
    cdef int64_t reason
    write(<uint64_t *>&entry.amount, <uint64_t>amount)
    write(<uint64_t *>&entry.lease, <uint64_t>lease)
    write(&entry.purse, place)
    write(&entry.stamp, stamp)
    write(&entry.seal, fr_seal(state >> 32, <uint64_t>amount, <uint64_t>lease, place, stamp))
    state = in_phase(state, COUNTING)
    write(&entry.state, state)
    named = mark_of(cell, state, MARK_COUNT)
    while True:
        # The order matters: a window that began after the mark was read has changed the mark; one that began before
        # is seen, because the mark was followed first. The owner changes only after the mark has.
        reason = 0
        if (
            not purse_read(table, mask, purse, &value, &mark)
            or fr_load(&purse.window) >> 8 != stamp
            or (owner and fr_load(&purse.owner) != owner)
        ):
            reason = REASON_OTHER_WINDOW
        elif value > most:
            # A refusal needs no swap, so the number is checked here to be the one that belongs to this window.
            if fr_load(&purse.committed.mark) != mark:
                continue
            reason = REASON_OVER_LIMIT
        if reason:
            turn_to(&entry.state, state, freed(state))
            return reason
        sum = value + min(amount, INT64_MAX - value)
        new = sealed(sum, named)
        fr_about_to_write()
        if fr_cas_pair(&purse.committed, <uint64_t>value, mark, <uint64_t>sum, new):
            follow(table, mask, purse, new)
            return <int64_t>(cell | state >> 32 << 24)


cdef void entry_close(uint64_t *table, uint64_t mask, Entry *entry, uint64_t state) noexcept nogil:
    """Makes the change that a CLOSING reservation names, if it was not made yet. For its owner, or its reaper."""
    cdef Entry found
    cdef Purse *purse = entry_read(table, mask, entry, state, &found)
    cdef uint64_t named = mark_of((<uint64_t *>entry - table) // 8, state, MARK_CLOSE)
    cdef int64_t cost = min(max(fr_load_i64(&entry.cost), <int64_t>0), MAX_NANO)
    cdef uint64_t mark, new
    cdef int64_t value, rest
    if purse is NULL:
        turn_to(&entry.state, state, freed(state))
        return
    while True:
        # A counter that does not fit gets another stamp by this, which ends the loop below.
        purse_read(table, mask, purse, &value, &mark)
        # Freed by following the mark: another process has found this change made, so it must not be made twice.
        if fr_load(&entry.state) != state:
            return
        if fr_load(&purse.window) >> 8 != found.stamp:
            turn_to(&entry.state, state, freed(state))
            return
        rest = max(value - found.amount, 0)
        rest += min(cost, INT64_MAX - rest)
        new = sealed(rest, named)
        fr_about_to_write()
        if fr_cas_pair(&purse.committed, <uint64_t>value, mark, <uint64_t>rest, new):
            follow(table, mask, purse, new)
            return


cdef bint entry_settle(
    uint64_t *table, uint64_t mask, Entry *entry, uint64_t seen, uint64_t slot, int64_t cost
) noexcept nogil:
    """Settles a HELD reservation whose state is ``seen`` (-1: to its whole amount); False if it was settled before."""
    cdef uint64_t state
    # What is committed stays: freeing the reservation makes it spent. If the amount is damaged and not that of before,
    # `entry_close` sees it.
    if cost < 0 or cost == fr_load_i64(&entry.amount):
        return turn_to(&entry.state, seen, freed(seen))
    state = in_phase(seen & ~<uint64_t>0xFF00 | slot << 8, SETTLING)
    # Of two threads that settle at once only one gets past here, so only one writes the cost.
    if not turn_to(&entry.state, seen, state):
        return False
    write(<uint64_t *>&entry.cost, <uint64_t>cost)
    write(&entry.state, in_phase(state, CLOSING))
    entry_close(table, mask, entry, in_phase(state, CLOSING))
    return True


cdef void entry_reap(uint64_t *table, uint64_t mask, Entry *entry, uint64_t slot) noexcept nogil:
    """Ends the reservation of a dead worker. Only one process at a time reaps a worker (`Segment.reap`)."""
    cdef uint64_t seen = fr_load(&entry.state)
    cdef uint64_t turn = seen >> 32
    cdef uint64_t phase, mark
    cdef int64_t value
    cdef Entry found
    cdef Purse *purse
    while True:
        phase = seen & PHASE
        # Of another turn: the slot may have a new owner by now, who has taken it.
        if (seen >> 8 & 0xFF) != slot or phase == FREE or seen >> 32 != turn:
            return
        if phase == COUNTING or phase == CLOSING:
            purse = entry_read(table, mask, entry, seen, &found)
            if purse is not NULL:
                purse_read(table, mask, purse, &value, &mark)
                if fr_load(&entry.state) != seen:
                    seen = fr_load(&entry.state)
                    continue
        if phase == CLOSING:
            entry_close(table, mask, entry, seen)
        elif phase == TAKEN or phase == COUNTING or phase > CLOSING or seen & SENT:
            purse = entry_read(table, mask, entry, seen, &found)
            if seen & SENT and purse is not NULL:
                purse_pin(purse, found.stamp)
            turn_to(&entry.state, seen, freed(seen))
        elif phase == HELD:
            entry_settle(table, mask, entry, seen, slot, 0)
        else:
            # SETTLING but not SENT: whether the cost was written is unknown, and as nothing was sent it is 0.
            write(<uint64_t *>&entry.cost, 0)
            turn_to(&entry.state, seen, in_phase(seen, CLOSING))
        seen = fr_load(&entry.state)


cdef void reap_reservations(uint64_t *table, uint64_t mask, int slot) noexcept nogil:
    """Ends every reservation that a dead worker holds."""
    cdef uint64_t number = 0
    cdef Entry *entry
    while True:
        entry = next_entry(table, mask, &number)
        if entry is NULL:
            return
        entry_reap(table, mask, entry, slot)


cdef int64_t purse_reserved(uint64_t *table, uint64_t mask, Purse *purse, int64_t *committed) noexcept nogil:
    """What is reserved, and what was committed at that time."""
    # Read again while other processes make changes, but not for ever: after 64 rounds the figures may be off by what
    # changed in between. They are only shown to people; limits are held by `purse_reserve`.
    cdef uint64_t number, mark, stamp, seen
    cdef int64_t reserved
    cdef int attempt
    cdef Entry *entry
    cdef Entry found
    for attempt in range(64):
        if not purse_read(table, mask, purse, committed, &mark):
            committed[0] = 0
            return 0
        stamp = fr_load(&purse.window) >> 8
        reserved = 0
        number = 0
        while True:
            entry = next_entry(table, mask, &number)
            if entry is NULL:
                break
            seen = fr_load(&entry.state)
            # Before the costlier check, because most of them are free.
            if not HELD <= (seen & PHASE) <= CLOSING or seen & LATE or fr_load(&entry.stamp) != stamp:
                continue
            # The check word covers the turn: what was read belongs to the state that was read.
            if entry_read(table, mask, entry, seen, &found) is purse:
                reserved += min(found.amount, INT64_MAX - reserved)
        if fr_load(&purse.committed.mark) == mark:
            break
    return min(reserved, committed[0])


# Classes --------------------------------------------------------------------------------------------------------------


def sweep_reservations(Segment segment not None, now=0) -> int:
    """Ends reservations whose lease has run out: one that was sent stays spent, any other is given back.

    A reservation that was sent can still be settled for an hour after its lease. Reservations of dead workers are ended
    by `Segment.reap`.

    Args:
        segment: All its reservations are looked at.
        now: ns; 0 reads the clock.

    Returns:
        How many were ended.
    """
    cdef int64_t time = moment(now) or fr_clock()
    cdef uint64_t slot = <uint64_t>segment.worker()
    cdef uint64_t seen
    cdef uint64_t number = 0
    cdef Entry *entry
    cdef Entry found
    cdef Purse *purse
    cdef int swept = 0
    while True:
        entry = next_entry(segment.table, segment.mask, &number)
        if entry is NULL:
            break
        seen = fr_load(&entry.state)
        if (seen & PHASE) != FREE and segment.is_free(seen >> 8 & 0xFF):
            # Nobody has that slot, so this is damage: whoever took it is not known and will not end it.
            entry_reap(segment.table, segment.mask, entry, seen >> 8 & 0xFF)
            continue
        # A reservation taken anew in between has another turn, so the swap from `seen` fails. One that does not fit has
        # no known lease: its owner ends it, or whoever reaps its owner.
        if (seen & PHASE) != HELD:
            continue
        purse = entry_read(segment.table, segment.mask, entry, seen, &found)
        if purse is NULL or found.lease > time:
            continue
        if not seen & SENT:
            swept += entry_settle(segment.table, segment.mask, entry, seen, slot, 0)
        elif not seen & LATE:
            swept += turn_to(&entry.state, seen, seen | LATE)
        elif time - found.lease > LATE_NS:
            purse_pin(purse, found.stamp)
            turn_to(&entry.state, seen, freed(seen))
    return swept


def die_after(writes) -> None:
    """For tests: kills this process just before its n-th write to counters and reservations. 0: never."""
    fr_die_after(amount("writes", writes, 0))


@cython.final
cdef class Counter:
    """Money spent and reserved in one window, shared by name; nano-dollars throughout.

    A new counter has no window: the first caller looks up elsewhere (the ledger) what has been spent in it and calls
    ``begin``. Each caller gives its own limit; only the money is shared.

    A counter of `claim_counter` owns its cell for a while only. When another owner has it, ``lost`` is true, the
    counter has no window, and every change is refused as one for another window.

    Args:
        segment: Where the state lives.
        name: Two counters of one name in one segment are the same counter.

    Raises:
        OSError: This processor cannot swap 16 bytes at once.

    Thread safety: all methods are lock-free; threads and processes together never commit more than the limit that
    each of them gives.
    """

    cdef readonly Segment segment
    cdef readonly str name
    cdef Purse *purse
    cdef uint64_t owner            # 0: the cell is this name's for ever
    cdef uint32_t hint             # where this process last saw a free reservation

    def __init__(self, Segment segment not None, str name not None) -> None:
        if not FR_HAS_PAIRS:
            raise OSError("budgets need a processor that swaps 16 bytes at once (x86-64, 64-bit ARM)")
        self.purse = <Purse *>segment.claim(segment.name_hash(name), KIND_MONEY)
        self.segment = segment
        self.name = name

    @property
    def stamp(self) -> int:
        """The window and how often the cell was begun; 0 before the first. Other methods take it as an argument."""
        cdef uint64_t stamp = purse_stamp(self.segment.table, self.segment.mask, self.purse)
        # Read in this order: the owner changes only after the stamp has.
        return stamp if self.owner == 0 or fr_load(&self.purse.owner) == self.owner else 0

    @property
    def window(self) -> int:
        """The number of the window; 0 before the first, and after damage."""
        return self.stamp >> 24

    @property
    def damaged(self) -> bool:
        """Whether it has no window because its cell was damaged: what it had counted is unknown until ``begin``."""
        cdef uint64_t stamp = self.stamp
        if self.owner and is_vacant(self.purse):
            return False
        return stamp >> 24 == 0 and (stamp & BEGUN != 0 or fr_load(&self.purse.committed.mark) != 0)

    def begin(self, stamp, window, spent, alerts=0) -> bool:
        """Begins a window in place of the one there.

        Args:
            stamp: Read before ``spent`` was looked up. If the window has been begun by another caller since, nothing
                changes.
            window: Its number, 1 to 2**32 - 1.
            spent: Spent in it so far, 0 to ``MOST_NANO``. After damage, what is reserved is added to it.
            alerts: Bits of the alerts that were given already.

        Returns:
            Whether this call began it.
        """
        cdef int64_t number = integer(window)
        cdef int64_t bits = integer(alerts)
        if not 1 <= number <= 0xFFFFFFFF:
            raise ValueError(f"window must be 1 to 2**32 - 1, not {window}")
        if not 0 <= bits < 1 << MAX_ALERTS:
            raise ValueError(f"alerts must be 0 to 255, not {alerts}")
        return purse_begin(
            self.segment.table, self.segment.mask, self.purse, self.owner, PyLong_AsUnsignedLongLong(stamp),
            <uint64_t>number, money("spent", spent), bits,
        )

    def reserve(self, stamp, amount, most, lease) -> int:
        """Reserves ``amount`` if no more than ``most`` is committed before.

        Args:
            stamp: The window it is meant for.
            amount: 0 to ``MOST_NANO``.
            most: Usually the limit less ``amount``; negative lets nothing in.
            lease: Until when, ns on the core's clock. After that `sweep_reservations` may end the reservation, so it
                must be later than the request can end.

        Returns:
            0 or more: a ticket, in this process only. ``OVER_LIMIT``, or ``OTHER_WINDOW``: the counter is at another
            stamp.

        Raises:
            SegmentFullError: There is no room for one more reservation.
        """
        cdef uint64_t slot = <uint64_t>self.segment.worker()
        cdef uint64_t at = PyLong_AsUnsignedLongLong(stamp)
        cdef int64_t nano = money("amount", amount)
        cdef int64_t before = integer(most)
        cdef int64_t until = moment(lease)
        cdef Entry *entry = entry_take(self.segment.table, self.segment.mask, &self.hint, slot)
        if entry is NULL:
            raise SegmentFullError("the segment has no room for one more reservation; make it with more cells")
        cdef int64_t answer = purse_reserve(
            self.segment.table, self.segment.mask, self.purse, self.owner, entry, at, nano, before, until
        )
        try:
            return answer
        except MemoryError:  # there is no memory for the number, by which alone the caller could settle it
            if answer >= 0:
                entry_settle(self.segment.table, self.segment.mask, entry, fr_load(&entry.state), slot, 0)
            raise

    def sent(self, ticket) -> bool:
        """Records that the request is about to be sent: if it is never settled, the whole amount counts as spent.

        Returns:
            False if the reservation has ended: its lease ran out, or it was settled. Then nothing may be sent.
        """
        cdef uint64_t seen
        cdef Entry *entry = self.entry_of(ticket)
        if entry is NULL:
            return False
        while True:
            seen = fr_load(&entry.state)
            if not self.held(seen, ticket) or seen & LATE:
                return False
            if seen & SENT or turn_to(&entry.state, seen, seen | SENT):
                return True

    def settle(self, ticket, cost=-1, *, bint recorded=True) -> bool:
        """Replaces the amount reserved by the real cost; -1 keeps the amount reserved.

        Args:
            ticket: Of ``reserve``.
            cost: 0 to ``MOST_NANO``.
            recorded: Whether the ledger has it, so that it can be looked up again. Otherwise an owned cell is kept
                until its window ends.

        Returns:
            False, and nothing changed, if that was done before or the ticket is not one of this process.
        """
        cdef uint64_t seen
        cdef int64_t nano = integer(cost)
        if nano != -1:
            nano = money("cost", cost)
        cdef Entry *entry = self.entry_of(ticket)
        if entry is NULL:
            return False
        while True:
            seen = fr_load(&entry.state)
            if not self.held(seen, ticket):
                return False
            if self.owner and not recorded and nano:
                # Before the reservation ends: until then the cell cannot be given to another owner.
                purse_pin(self.purse, fr_load(&entry.stamp))
            # Fails only when the state has changed since it was read: another thread has sent or settled it, or a sweep
            # has marked it late. Then it is looked at again.
            if entry_settle(self.segment.table, self.segment.mask, entry, seen, seen >> 8 & 0xFF, nano):
                return True

    def alert(self, stamp, bit) -> bool:
        """True for the one caller that should give an alert (0 to 7) of the window; each is given once."""
        cdef int64_t number = integer(bit)
        cdef uint64_t at = PyLong_AsUnsignedLongLong(stamp)
        cdef uint64_t seen = fr_load(&self.purse.window)
        if not 0 <= number < MAX_ALERTS:
            raise ValueError(f"bit must be 0 to 7, not {bit}")
        while seen >> 8 == at and not seen >> number & 1:
            if turn_to(&self.purse.window, seen, seen | <uint64_t>1 << number):
                return True
            seen = fr_load(&self.purse.window)
        return False

    @property
    def lost(self) -> bool:
        """Whether the cell is not this counter's any more: claim another one."""
        cdef uint64_t stamp = purse_stamp(self.segment.table, self.segment.mask, self.purse)
        return not is_claimed(self.purse, self.owner, stamp)

    @property
    def granted(self) -> int:
        """Nano-dollars that were granted in the counter's window by the bank of many machines; see ``grant``."""
        return purse_granted(self.purse, self.stamp)

    def grant(self, stamp, nano) -> bool:
        """Adds to what was granted in the window of a stamp; False, and nothing added, if another one has begun."""
        cdef uint64_t at = PyLong_AsUnsignedLongLong(stamp)
        cdef int64_t more = money("nano", nano)
        cdef uint64_t mark
        cdef int64_t value, sum
        while self.stamp == at:
            mark = fr_load(&self.purse.granted.mark)
            value = fr_load_i64(<int64_t *>&self.purse.granted.value)
            sum = min(purse_granted(self.purse, at) + more, MAX_NANO)
            fr_about_to_write()
            if fr_cas_pair(&self.purse.granted, <uint64_t>value, mark, <uint64_t>sum, sealed(sum, at)):
                return True
        return False

    @property
    def committed(self) -> int:
        """Spent and reserved in the window; means nothing while it is ``damaged``."""
        cdef int64_t value
        cdef uint64_t mark
        return value if purse_read(self.segment.table, self.segment.mask, self.purse, &value, &mark) else 0

    def figures(self) -> tuple[int, int]:
        """(spent, reserved), exact if nothing changes while it reads. Reads every reservation of the segment."""
        cdef int64_t committed = 0
        cdef int64_t reserved = purse_reserved(self.segment.table, self.segment.mask, self.purse, &committed)
        return (committed - reserved, reserved)

    cdef Entry *entry_of(self, object ticket) except? NULL:
        cdef int64_t value = ticket_of(ticket)
        cdef uint64_t cell = value & 0xFFFFFF
        cdef Entry *entry = <Entry *>(self.segment.table + 8 * cell)
        if cell > self.segment.mask or (fr_load(&entry.key) & 15) != KIND_RESERVATION:
            return NULL
        return entry

    cdef bint held(self, uint64_t state, int64_t ticket) noexcept:
        """Whether a state is that of a ticket held by this process."""
        cdef uint64_t slot = <uint64_t>self.segment.worker_if_any()
        return (
            state >> 32 == <uint64_t>ticket >> 24 and (state & PHASE) == HELD
            and slot != 0 and (state >> 8 & 0xFF) == slot
        )


cdef inline int64_t money(str what, object value) except? -1:
    cdef int64_t nano = PyLong_AsLongLong(value)
    if not 0 <= nano <= MAX_NANO:
        if nano == -1 and PyErr_Occurred():
            return -1
        raise ValueError(f"{what} must be 0 to {MAX_NANO} nano-dollars, not {value}")
    return nano
