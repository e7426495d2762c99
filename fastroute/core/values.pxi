# ======================================================================================================================
# Values: counters for any number of names, in a bounded number of cells
# ======================================================================================================================
#
# A budget for each value of a tag has as many counters as callers send values. They share a table: half of the
# segment's cells. A value of a window (an owner) may have any of sixteen cells, found by its hash: eight in each of two
# sets. The cell of an owner is given to another one when nothing is reserved in it and its sum can be looked up again:
#
# * of a counter of this machine alone: in the ledger, unless the cell is marked UNRECORDED;
# * of one that many machines share (SHARED): at the bank, which knows what this machine was granted. So the cell can
#   be given away while as much is committed as was granted.
#
# A cell whose window is over is free as soon as nothing is reserved in it. Otherwise the one that was not used for the
# longest time goes. Owners belong to groups, such as the key of a gateway whose calls brought the value. One group may
# have six of the eight cells of a set, so some are left for the others whatever it does.
#
# Giving a cell away is a change of its window, like the begin of the next one: the mark changes and the window becomes
# 0 (vacated), under a new stamp. All that was meant for the owner before is then refused (money.pxi), and a
# reservation that is counted in between changes the mark, so that the cell is not given away. Then the new owner is
# written, and last its claim: the stamp under which it may begin its window. An owner whose claim is of another stamp
# must claim again. So a process killed between any two steps leaves a vacated cell, which anyone may claim.
#
# An owner must not have two cells, or it could spend its limit twice. So claims are made one at a time: a word of the
# header names the worker that is claiming, for a few microseconds. It is not waited for here: a claim that finds
# another one under way is refused, and tried again by its caller. A worker that was killed in there is replaced.
#
# Every field is masked or compared where it is read. A cell whose owner or claim is damaged is lost to its owner, who
# claims another one; a damaged mark of the last use or group changes only which cell goes first.

# Constants ------------------------------------------------------------------------------------------------------------

cdef enum:
    WAYS = 8                     # cells of a set
    CANDIDATES = 16              # cells that an owner may have: two sets
    SHARE = 6                    # cells of a set that one group may have

cdef enum:                       # bits of `use`
    UNRECORDED = 1               # something was spent that the ledger does not know of
    SHARED = 2                   # counted at a bank of many machines
    CLAIM_AT = 2                 # 14 bits: how often the cell was begun when it was claimed, plus 1
    GROUP_AT = 16                # 12 bits: hash of the group; 0: none
    USED_AT = 28                 # 16 bits: last use, in units of 2**30 ns
    END_AT = 44                  # 20 bits: end of the window, in units of 2**40 ns, rounded up

cdef uint64_t VALUES = 0x76616c7565730000             # used like a name's hash; its cells are numbered
cdef uint64_t NO_END = 0xFFFFF

# Functions ------------------------------------------------------------------------------------------------------------


cdef inline bint is_claimed(Purse *purse, uint64_t owner, uint64_t stamp) noexcept nogil:
    """Whether a cell is its owner's to count in, or to begin if its window is 0."""
    if owner == 0:
        return True              # a counter with a name of its own, whatever damage wrote beside it
    if fr_load(&purse.owner) != owner:
        return False
    # One more than how often it was begun, so that a cell that was never claimed does not look like one that was.
    return stamp >> 24 != 0 or (fr_load(&purse.use) >> CLAIM_AT & BEGUN) == (stamp + 1 & BEGUN)


cdef inline bint is_vacant(Purse *purse) noexcept nogil:
    """Whether a cell without a window was vacated, or never used; otherwise its window was damaged."""
    cdef uint64_t mark = fr_load(&purse.committed.mark)
    cdef uint64_t window = fr_load(&purse.window)
    if window >> 32:
        return False
    return window == 0 or ((mark & 3) == MARK_BEGIN and (mark >> 10 & BEGUN) == (window >> 8 & BEGUN))


cdef inline uint64_t used_at(uint64_t use, int64_t now) noexcept nogil:
    return use & ~(<uint64_t>0xFFFF << USED_AT) | (<uint64_t>now >> 30 & 0xFFFF) << USED_AT


cdef inline uint64_t idle(uint64_t use, int64_t now) noexcept nogil:
    return (<uint64_t>now >> 30) - (use >> USED_AT) & 0xFFFF


cdef void touch(Purse *purse, int64_t now) noexcept nogil:
    """Records the use of a cell. Lost in a race, which changes nothing but the order."""
    cdef uint64_t seen = fr_load(&purse.use)
    if idle(seen, now):
        fr_cas(&purse.use, &seen, used_at(seen, now))


cdef uint64_t reserved_cells(uint64_t *table, uint64_t mask, Purse **cells) noexcept nogil:
    """Bits of the candidates in which something is reserved, whatever the window."""
    cdef uint64_t seen, place
    cdef uint64_t number = 0
    cdef uint64_t found = 0
    cdef int i
    cdef Entry *entry
    while True:
        entry = next_entry(table, mask, &number)
        if entry is NULL:
            return found
        seen = fr_load(&entry.state)
        if (seen & PHASE) < COUNTING:
            continue
        place = fr_load(&entry.purse) & mask
        for i in range(CANDIDATES):
            if cells[i] is not NULL and (<uint64_t *>cells[i] - table) // 8 == place:
                found |= <uint64_t>1 << i


cdef bint vacate(uint64_t *table, uint64_t mask, Purse *purse, int64_t value, uint64_t mark) noexcept nogil:
    """Takes the window of a cell away; False if something was counted since value and mark were read."""
    cdef uint64_t begun = fr_load(&purse.window) >> 8 & BEGUN
    cdef uint64_t new = sealed(0, (begun + 1 & BEGUN) << 10 | MARK_BEGIN)
    fr_about_to_write()
    if not fr_cas_pair(&purse.committed, <uint64_t>value, mark, 0, new):
        return False
    follow(table, mask, purse, new)
    return True


cdef Purse *candidate(uint64_t *table, uint64_t mask, uint64_t owner, int i, bint claim) noexcept nogil:
    """The i-th of the cells that an owner may have; NULL: not in use yet, or with ``claim`` that there is no room."""
    cdef uint64_t sets = max((mask + 1) // (2 * WAYS), <uint64_t>2)
    cdef uint64_t first = owner >> 4 & (sets - 1)
    cdef uint64_t second = owner >> 34 & (sets - 1)
    if second == first:
        second = first ^ 1
    cdef uint64_t number = (first if i < WAYS else second) * WAYS + <uint64_t>(i % WAYS) + 1
    return <Purse *>find_cell(table, mask, sub_key(VALUES, KIND_MONEY, number), claim)


cdef Purse *owned_cell(uint64_t *table, uint64_t mask, uint64_t owner) noexcept nogil:
    """The cell that an owner has claimed; NULL if it has none."""
    cdef int i
    cdef Purse *purse
    for i in range(CANDIDATES):
        purse = candidate(table, mask, owner, i, False)
        if purse is not NULL and is_claimed(purse, owner, purse_stamp(table, mask, purse)):
            return purse
    return NULL


cdef int64_t worth(Purse *purse, int64_t value, bint full, uint64_t group, int64_t now) noexcept nogil:
    """How well a candidate may be given away; -1: not at all. ``full``: the group may only have another of its own."""
    cdef uint64_t use, stamp
    if purse is NULL:
        return -1 if full else 1 << 20
    use = fr_load(&purse.use)
    stamp = fr_load(&purse.window) >> 8
    if full and (stamp >> 24 == 0 or (use >> GROUP_AT & 0xFFF) != group):
        return -1
    if stamp >> 24 == 0:
        # Its owner may be looking up what was spent; then it goes last.
        return 0 if is_claimed(purse, fr_load(&purse.owner), stamp) and idle(use, now) < 8 else 1 << 22
    if use >> END_AT <= <uint64_t>now >> 40:
        return 1 << 21
    if use & SHARED:
        return 1 + <int64_t>idle(use, now) if purse_granted(purse, stamp) == value else -1
    return -1 if use & UNRECORDED else 1 + <int64_t>idle(use, now)


cdef Purse *make_room(uint64_t *table, uint64_t mask, uint64_t owner, uint64_t group, int64_t now) noexcept nogil:
    """A cell for a new owner, without a window; NULL if none can be given away. For the one worker that is claiming."""
    cdef Purse *cells[CANDIDATES]
    cdef uint64_t marks[CANDIDATES]
    cdef int64_t values[CANDIDATES]
    cdef uint64_t use, excluded
    cdef int64_t found, highest
    cdef int i, best
    cdef int of_group[2]
    of_group[0] = of_group[1] = 0
    for i in range(CANDIDATES):
        cells[i] = candidate(table, mask, owner, i, False)
        if cells[i] is NULL:
            continue
        # Before the reservations are looked at: whatever is counted from here on changes the mark.
        purse_read(table, mask, cells[i], &values[i], &marks[i])
        use = fr_load(&cells[i].use)
        if group and (use >> GROUP_AT & 0xFFF) == group and fr_load(&cells[i].window) >> 32:
            of_group[i // WAYS] += use >> END_AT > <uint64_t>now >> 40
    # Before the flags are looked at: one that ended without a record has set its flag by then.
    excluded = reserved_cells(table, mask, cells)
    while True:
        best, highest = -1, -1
        for i in range(CANDIDATES):
            if not excluded >> i & 1:
                found = worth(cells[i], values[i], of_group[i // WAYS] >= SHARE, group, now)
                if found > highest:
                    best, highest = i, found
        if best < 0:
            return NULL
        if cells[best] is NULL:
            cells[best] = candidate(table, mask, owner, best, True)
            if cells[best] is not NULL:
                return cells[best]
        elif vacate(table, mask, cells[best], values[best], marks[best]):
            return cells[best]
        # The segment has no room for one more cell, or somebody has counted in this one.
        excluded |= <uint64_t>1 << best


cdef uint64_t owner_of(Segment segment, uint64_t name, uint64_t window) noexcept:
    """The owner of a window of a name; never 0."""
    # With the machine's boot in it, so that a stranger cannot choose names that want the cells of a certain other one.
    return fr_mix(name ^ fr_mix(window ^ fr_mix(segment.made.boot))) | 1


# Classes --------------------------------------------------------------------------------------------------------------


cdef Counter owned_counter(Segment segment, str name, uint64_t owner, Purse *purse):
    cdef Counter counter = Counter.__new__(Counter)
    counter.segment = segment
    counter.name = name
    counter.owner = owner
    counter.purse = purse
    return counter


def find_counter(Segment segment not None, str name not None, window) -> Counter | None:
    """The counter of one window of a name if it has a cell now, begun or not.

    Args:
        segment: Where the state lives.
        name: As of `claim_counter`.
        window: Its number, 1 to 2**32 - 1.
    """
    cdef uint64_t number = <uint64_t>whole("window", integer(window), 1, 0xFFFFFFFF)
    cdef uint64_t owner = owner_of(segment, segment.name_hash(name), number)
    cdef Purse *purse = owned_cell(segment.table, segment.mask, owner)
    return None if purse is NULL else owned_counter(segment, name, owner, purse)


def claim_counter(
    Segment segment not None, str name not None, window, end_ns, *, str group="", bint shared=False, now=0
) -> Counter | None:
    """The counter of one window of a name, in a cell that is taken from another name if need be.

    Any number of names is counted in half of the segment's cells. A cell is taken only if nothing is reserved in it,
    and if its window is over or its sum can be looked up again: in the ledger, or at the bank of many machines.

    Args:
        segment: Where the state lives.
        name: Two counters of one name and window are the same.
        window: Its number, 1 to 2**32 - 1.
        end_ns: When the window ends, on the core's clock. The cell is kept up to 19 minutes longer.
        group: Whose calls bring the name: one group may have three quarters of the cells; empty: no bound.
        shared: The money is that of a bank of many machines (``grant``), not of the ledger.
        now: ns; 0 reads the clock.

    Returns:
        The counter; it has no window if it has just been claimed. None: no cell may be taken from its owner.

    Raises:
        BlockingIOError: Another thread or process is claiming a cell, which takes microseconds. Try again.
        OSError: This processor cannot swap 16 bytes at once.
    """
    if not FR_HAS_PAIRS:
        raise OSError("budgets need a processor that swaps 16 bytes at once (x86-64, 64-bit ARM)")
    cdef uint64_t *table = segment.table
    cdef uint64_t mask = segment.mask
    cdef int64_t time = moment(now) or fr_clock_coarse()
    cdef uint64_t number = <uint64_t>whole("window", integer(window), 1, 0xFFFFFFFF)
    cdef uint64_t owner = owner_of(segment, segment.name_hash(name), number)
    cdef uint64_t end = min((<uint64_t>moment(end_ns) >> 40) + 1, NO_END)
    cdef uint64_t kind = segment.name_hash(group) % 0xFFF + 1 if group else 0
    cdef Purse *purse = owned_cell(table, mask, owner)
    cdef uint64_t mine, use
    cdef fr_pair *granted
    if purse is NULL:
        mine = segment.begin_claim()
        if mine == 0:
            raise BlockingIOError("another cell is being claimed")
        try:
            purse = owned_cell(table, mask, owner)
            if purse is NULL:
                purse = make_room(table, mask, owner, kind, time)
                if purse is NULL:
                    return None
                # The claim last: it makes the cell the new owner's.
                write(&purse.owner, owner)
                granted = &purse.granted
                while not fr_cas_pair(granted, granted.value, granted.mark, 0, 0):
                    pass
                use = end << END_AT | kind << GROUP_AT | (SHARED if shared else 0)
                use |= ((fr_load(&purse.window) >> 8) + 1 & BEGUN) << CLAIM_AT
                write(&purse.use, used_at(use, time))
        finally:
            segment.end_claim(mine)
    touch(purse, time)
    return owned_counter(segment, name, owner, purse)
