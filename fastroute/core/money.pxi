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
# A ticket: bits 0-23 the reservation's cell, 24-55 its turn.

cdef extern from "money.h" nogil:
    ctypedef struct fr_pair:
        uint64_t value
        uint64_t mark
    const bint FR_HAS_PAIRS
    bint fr_cas_pair(fr_pair *pair, uint64_t value, uint64_t mark, uint64_t new_value, uint64_t new_mark) noexcept
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

cdef uint64_t RESERVATIONS = 0x7265736572766500       # used like a name's hash; its cells are numbered

# Structs --------------------------------------------------------------------------------------------------------------

cdef struct Purse:               # one cell: the money of one window
    uint64_t key
    uint64_t window              # window << 32 | how often begun << 8 | alerts given
    fr_pair committed            # nano-dollars spent and reserved, and the mark of the last change
    uint64_t spare[4]

cdef struct Entry:               # one cell: one reservation
    uint64_t key
    uint64_t state               # turn << 32 | worker's slot << 8 | LATE | SENT | phase
    int64_t amount               # nano-dollars reserved
    int64_t cost                 # what it is settled to; valid while CLOSING
    int64_t lease                # ns on the core's clock: after that it may be taken away
    uint64_t purse               # index of the counter's cell
    uint64_t stamp               # the counter's window and how often begun, when this was counted
    uint64_t spare

# Functions ------------------------------------------------------------------------------------------------------------


cdef inline bint turn_to(uint64_t *word, uint64_t seen, uint64_t new) noexcept nogil:
    fr_about_to_write()
    return fr_cas(word, &seen, new)


cdef inline void write(uint64_t *word, uint64_t value) noexcept nogil:
    fr_about_to_write()
    fr_store(word, value)


cdef inline uint64_t freed(uint64_t state) noexcept nogil:
    return state & ~<uint64_t>0xFFFFFFFF


cdef inline uint64_t in_phase(uint64_t state, uint64_t phase) noexcept nogil:
    return (state & ~<uint64_t>PHASE) | phase


cdef inline uint64_t mark_of(uint64_t cell, uint64_t state, uint64_t kind) noexcept nogil:
    # With the turn in it, so that a mark never names a later reservation in the same cell (for 2**32 turns).
    return (state >> 32) << 26 | cell << 2 | kind


cdef inline uint64_t *cell_at(uint64_t *table, uint64_t mask, uint64_t index) noexcept nogil:
    """The cell of an index that was read from shared memory, which something else may have written to."""
    return table + 8 * (index & mask)


cdef void follow(uint64_t *table, uint64_t mask, Purse *purse, uint64_t mark) noexcept nogil:
    """Brings up to date what a counter's mark names. Idempotent; any number of threads may do it at once."""
    cdef uint64_t kind = mark & 3
    cdef uint64_t seen, begun, before, after
    cdef uint64_t *word
    if kind == MARK_BEGIN:
        begun = mark >> 10 & 0xFFFF
        seen = fr_load(&purse.window)
        while (seen >> 8 & 0xFFFF) == (begun - 1 & 0xFFFF):
            if turn_to(&purse.window, seen, mark >> 26 << 32 | begun << 8 | (mark >> 2 & 0xFF)):
                return
            seen = fr_load(&purse.window)
    elif kind:
        word = &(<Entry *>cell_at(table, mask, mark >> 2 & 0xFFFFFF)).state
        before = COUNTING if kind == MARK_COUNT else CLOSING
        seen = fr_load(word)
        while seen >> 32 == mark >> 26 and (seen & PHASE) == before:
            after = in_phase(seen, HELD) if kind == MARK_COUNT else freed(seen)
            if turn_to(word, seen, after):
                return
            seen = fr_load(word)


cdef bint purse_begin(
    uint64_t *table, uint64_t mask, Purse *purse, uint64_t seen, uint64_t window, int64_t spent, uint64_t alerts
) noexcept nogil:
    """Begins a window with what has been spent in it so far; False if the counter's stamp is not ``seen``."""
    cdef uint64_t mark, value, new
    while True:
        mark = fr_load(&purse.committed.mark)
        follow(table, mask, purse, mark)
        value = fr_load(&purse.committed.value)
        if fr_load(&purse.window) >> 8 != seen:
            return False
        new = window << 26 | ((seen & 0xFFFF) + 1 & 0xFFFF) << 10 | alerts << 2 | MARK_BEGIN
        fr_about_to_write()
        if fr_cas_pair(&purse.committed, value, mark, <uint64_t>spent, new):
            follow(table, mask, purse, new)
            return True


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
        if (seen & PHASE) == FREE and turn_to(&entry.state, seen, ((seen >> 32) + 1 << 32) | slot << 8 | TAKEN):
            hint[0] = number + 1
            return entry
        number += 1
    return NULL


cdef int64_t purse_reserve(
    uint64_t *table, uint64_t mask, Purse *purse, Entry *entry, uint64_t stamp, int64_t amount, int64_t most,
    int64_t lease,
) noexcept nogil:
    """Counts a reservation that was TAKEN, if no more than ``most`` is committed before it."""
    # Filled in before it is COUNTING: of a COUNTING reservation a reaper reads the fields.
    cdef uint64_t cell = (<uint64_t *>entry - table) // 8
    cdef uint64_t state = fr_load(&entry.state)
    cdef uint64_t mark, new
    cdef int64_t value
    cdef int64_t reason
    write(<uint64_t *>&entry.amount, <uint64_t>amount)
    write(<uint64_t *>&entry.lease, <uint64_t>lease)
    write(&entry.purse, (<uint64_t *>purse - table) // 8)
    write(&entry.stamp, stamp)
    state = in_phase(state, COUNTING)
    write(&entry.state, state)
    new = mark_of(cell, state, MARK_COUNT)
    while True:
        # The order matters: a window that began after the mark was read has changed the mark; one that began before
        # is seen, because the mark was followed first.
        mark = fr_load(&purse.committed.mark)
        follow(table, mask, purse, mark)
        value = fr_load_i64(<int64_t *>&purse.committed.value)
        reason = 0
        if fr_load(&purse.window) >> 8 != stamp:
            reason = REASON_OTHER_WINDOW
        elif value > most:
            # A refusal needs no swap, so the number is checked here to be the one that belongs to this window.
            if fr_load(&purse.committed.mark) != mark:
                continue
            reason = REASON_OVER_LIMIT
        if reason:
            turn_to(&entry.state, state, freed(state))
            return reason
        fr_about_to_write()
        if fr_cas_pair(&purse.committed, <uint64_t>value, mark, <uint64_t>(value + min(amount, INT64_MAX - value)), new):
            follow(table, mask, purse, new)
            return <int64_t>(cell | state >> 32 << 24)


cdef void entry_close(uint64_t *table, uint64_t mask, Entry *entry, uint64_t state) noexcept nogil:
    """Makes the change that a CLOSING reservation names, if it was not made yet. For its owner, or its reaper."""
    cdef Purse *purse = <Purse *>cell_at(table, mask, fr_load(&entry.purse))
    cdef uint64_t new = mark_of((<uint64_t *>entry - table) // 8, state, MARK_CLOSE)
    cdef uint64_t mark
    cdef int64_t value, rest
    while True:
        mark = fr_load(&purse.committed.mark)
        follow(table, mask, purse, mark)
        # Freed by following the mark: another process has found this change made, so it must not be made twice.
        if fr_load(&entry.state) != state:
            return
        value = fr_load_i64(<int64_t *>&purse.committed.value)
        if fr_load(&purse.window) >> 8 != entry.stamp:
            turn_to(&entry.state, state, freed(state))
            return
        rest = max(value - entry.amount, 0)
        rest += min(entry.cost, INT64_MAX - rest)
        fr_about_to_write()
        if fr_cas_pair(&purse.committed, <uint64_t>value, mark, <uint64_t>rest, new):
            follow(table, mask, purse, new)
            return


cdef bint entry_settle(
    uint64_t *table, uint64_t mask, Entry *entry, uint64_t seen, uint64_t slot, int64_t cost
) noexcept nogil:
    """Settles a HELD reservation whose state is ``seen`` (-1: to its whole amount); False if it was settled before."""
    cdef uint64_t state
    # What is committed stays: freeing the reservation makes it spent.
    if cost < 0 or cost == entry.amount:
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
    cdef uint64_t seen, phase
    cdef Purse *purse
    while True:
        seen = fr_load(&entry.state)
        phase = seen & PHASE
        if (seen >> 8 & 0xFF) != slot or phase == FREE:
            return
        if phase == COUNTING or phase == CLOSING:
            purse = <Purse *>cell_at(table, mask, fr_load(&entry.purse))
            follow(table, mask, purse, fr_load(&purse.committed.mark))
            if fr_load(&entry.state) != seen:
                continue
        if phase == CLOSING:
            entry_close(table, mask, entry, seen)
        elif phase == TAKEN or phase == COUNTING or seen & SENT:
            turn_to(&entry.state, seen, freed(seen))
        elif phase == HELD:
            entry_settle(table, mask, entry, seen, slot, 0)
        else:
            # SETTLING but not SENT: whether the cost was written is unknown, and as nothing was sent it is 0.
            write(<uint64_t *>&entry.cost, 0)
            turn_to(&entry.state, seen, in_phase(seen, CLOSING))


cdef void reap_reservations(uint64_t *table, uint64_t mask, int slot) noexcept nogil:
    """Ends every reservation that a dead worker holds."""
    cdef uint64_t number
    cdef Entry *entry
    for number in range(<uint64_t>MAX_RESERVATIONS):
        entry = <Entry *>find_cell(table, mask, sub_key(RESERVATIONS, KIND_RESERVATION, number), False)
        if entry is NULL:
            return
        entry_reap(table, mask, entry, slot)


cdef int64_t purse_reserved(uint64_t *table, uint64_t mask, Purse *purse, int64_t *committed) noexcept nogil:
    """What is reserved, and what was committed at that time."""
    # Read again while other processes make changes, but not for ever: after 64 rounds the figures may be off by what
    # changed in between. They are only shown to people; limits are held by `purse_reserve`.
    cdef uint64_t cell = (<uint64_t *>purse - table) // 8
    cdef uint64_t number, mark, stamp, seen
    cdef int64_t reserved, amount
    cdef int attempt
    cdef Entry *entry
    for attempt in range(64):
        mark = fr_load(&purse.committed.mark)
        follow(table, mask, purse, mark)
        committed[0] = fr_load_i64(<int64_t *>&purse.committed.value)
        stamp = fr_load(&purse.window) >> 8
        reserved = 0
        for number in range(<uint64_t>MAX_RESERVATIONS):
            entry = <Entry *>find_cell(table, mask, sub_key(RESERVATIONS, KIND_RESERVATION, number), False)
            if entry is NULL:
                break
            seen = fr_load(&entry.state)
            if (seen & PHASE) < HELD or seen & LATE or fr_load(&entry.purse) != cell or fr_load(&entry.stamp) != stamp:
                continue
            amount = fr_load_i64(&entry.amount)
            # Of the same turn after as before: the amount belongs to the state that was read.
            if fr_load(&entry.state) >> 32 == seen >> 32:
                reserved += min(amount, INT64_MAX - reserved)
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
    cdef int64_t lease
    cdef uint64_t slot = <uint64_t>segment.worker()
    cdef uint64_t number, seen
    cdef Entry *entry
    cdef int swept = 0
    for number in range(<uint64_t>MAX_RESERVATIONS):
        entry = <Entry *>find_cell(
            segment.table, segment.mask, sub_key(RESERVATIONS, KIND_RESERVATION, number), False
        )
        if entry is NULL:
            break
        seen = fr_load(&entry.state)
        lease = fr_load_i64(&entry.lease)
        # A reservation taken anew in between has another turn, so the swap from `seen` fails.
        if (seen & PHASE) != HELD or lease > time:
            continue
        if not seen & SENT:
            swept += entry_settle(segment.table, segment.mask, entry, seen, slot, 0)
        elif not seen & LATE:
            swept += turn_to(&entry.state, seen, seen | LATE)
        elif time - lease > LATE_NS:
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
        follow(self.segment.table, self.segment.mask, self.purse, fr_load(&self.purse.committed.mark))
        return fr_load(&self.purse.window) >> 8

    @property
    def window(self) -> int:
        """The number of the window; 0 before the first."""
        return self.stamp >> 24

    def begin(self, stamp, window, spent, alerts=0) -> bool:
        """Begins a window in place of the one there.

        Args:
            stamp: Read before ``spent`` was looked up. If the window has been begun by another caller since, nothing
                changes.
            window: Its number, 1 to 2**32 - 1.
            spent: Spent in it so far, 0 to ``MOST_NANO``.
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
            self.segment.table, self.segment.mask, self.purse, PyLong_AsUnsignedLongLong(stamp), <uint64_t>number,
            money("spent", spent), bits,
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
        return purse_reserve(
            self.segment.table, self.segment.mask, self.purse, entry, at, nano, before, until
        )

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

    def settle(self, ticket, cost=-1) -> bool:
        """Replaces the amount reserved by the real cost; -1 keeps the amount reserved.

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
    def committed(self) -> int:
        """Spent and reserved in the window."""
        return fr_load_i64(<int64_t *>&self.purse.committed.value)

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
