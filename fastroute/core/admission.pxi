# ======================================================================================================================
# Admission: permits, and the way of a call through an endpoint's cells
# ======================================================================================================================
#
# An endpoint is a hot cell (what ranking reads), a cold cell, two of the breaker's window, four of latencies, and the
# permits. A permit is a 16-bit entry: the worker's slot in the low byte, 0 when free; in the next seven bits a turn
# that grows each time the entry is taken; and a top bit for a call that is a breaker's probe, or asks to be. It is
# taken and given back by one swap, so the limit is exact over all processes. A permit of a killed worker carries its
# slot, so that `Segment.reap` can give it back, and the lease of a probe with it. A ticket holds slot and turn, so a
# second `finish` of one ticket finds an entry that has changed and does nothing.
#
# What a worker has paid ahead for calls that still wait is noted in a cell for each worker and endpoint, so that it can
# be paid back if the worker is killed.
#
# A ticket: bits 0-11 the permit's index, 12-19 slot, 20-27 probe and turn, 28-39 the breaker's ticket.

# Constants ------------------------------------------------------------------------------------------------------------

BLOCKED = REASON_BLOCKED
BREAKER = REASON_BREAKER
BUSY = REASON_BUSY
REQUESTS = REASON_REQUESTS
TOKENS = REASON_TOKENS
TOO_LARGE = REASON_TOO_LARGE

cdef enum:                       # the low three bits of a refusal
    REASON_BLOCKED = 1
    REASON_BREAKER = 2
    REASON_BUSY = 3
    REASON_REQUESTS = 4
    REASON_TOKENS = 5
    REASON_TOO_LARGE = 6

cdef enum:
    MAX_IN_FLIGHT = 4096
    CELL_PERMITS = 28            # 16-bit entries in one cell
    PERMIT_CELLS = 147           # enough for MAX_IN_FLIGHT
    PERMIT_TURN = 0x7F00
    PERMIT_PROBE = 0x8000

cdef enum:
    BEARABLE_AT_FIRST = 20
    ROUND = 15                   # latencies by which an endpoint's latency without a queue is measured
    RECENT = 20                  # the latest ones, which are compared with it
    LEAST_SAMPLES = 15
    SHRINK_EVERY_MS = 1000       # a burst of refusals is one sign of overload, not one for each call under way

cdef enum:
    FLAG_OPENED = 1
    FLAG_CLOSED = 2

# Grows each time an endpoint of this process is configured: rankings compare it to know when to copy weights again.
cdef uint64_t configurations = 0

# Structs --------------------------------------------------------------------------------------------------------------

cdef struct Settings:            # as given, so that one can be changed and the rest kept
    int64_t rpm
    int64_t request_burst
    int64_t tpm
    int64_t token_burst
    int64_t max_in_flight
    double weight
    int64_t failures
    double rate
    int64_t min_calls
    double window_s
    double open_s
    double max_open_s
    double reset_s
    double probe_lease_s
    int64_t probes_to_close
    double ramp_s
    double tau_s
    bint adaptive

cdef struct Waiting:             # one cell: what one worker has paid ahead at one endpoint, for calls that wait
    uint64_t key
    uint64_t requests
    uint64_t request_interval    # what one of them moved the arrival time by, ns
    uint64_t tokens
    uint64_t token_interval
    uint64_t spare[3]

cdef struct EndpointParts:
    Hot *hot
    Cold *cold
    Limit requests
    Limit tokens
    BreakerRules rules
    BreakerCells breaker
    LatencyCells latency
    RetryRules retry
    double inverse_weight
    int32_t max_in_flight
    int32_t hint                 # where this process last saw a free permit; a race over it costs a longer search only
    int32_t permit_cells         # how many of `permits` are claimed
    int32_t reach                # permits below this may be held: above max_in_flight after that was lowered
    bint adaptive                # whether `bearable` counts
    uint64_t *reference          # latency without a queue, see adapt()
    uint64_t *bearable           # float calls at once that it copes with | stamp of the last decrease; 0: not known yet
    uint64_t *permits[PERMIT_CELLS]
    uint64_t *pool               # what is leased of limits that many machines share, see pool.pxi; NULL: not shared
    bint leases_permits          # whether permits are leased too
    uint64_t *told[2]            # requests and tokens that the provider allows: float count | window in ms; NULL: a quota
    uint64_t told_seen[2]        # the words by which `requests` and `tokens` above were set in this process
    bint follows[2]              # no limit is configured, so the provider's is used
    int64_t full_until           # until then (ns) no other machine is asked for a permit: the last answer was "none"
    int64_t low_requests         # below these balances the pool should be filled up
    int64_t low_tokens

# Permits --------------------------------------------------------------------------------------------------------------


cdef inline uint16_t *permit_place(uint64_t **cells, int index) noexcept nogil:
    return <uint16_t *>(cells[index // CELL_PERMITS] + 1) + index % CELL_PERMITS


cdef inline int64_t permit_take(EndpointParts *e, int slot, bint probe) noexcept nogil:
    """The lower 28 bits of a ticket, or -1 when all permits are taken."""
    cdef int index = e.hint
    cdef int step
    cdef uint16_t *place
    cdef uint16_t seen, new
    if index >= e.max_in_flight:
        index = 0
    for step in range(e.max_in_flight):
        place = permit_place(e.permits, index)
        seen = fr_load_u16(place)
        if seen & 0xFF == 0:
            # A swap lost here moves on to the next entry: searching on is quicker than fighting for this one.
            new = <uint16_t>((seen + 0x100 & PERMIT_TURN) | slot | (PERMIT_PROBE if probe else 0))
            if fr_cas_u16(place, seen, new):
                e.hint = index + 1
                # Two steps; killed between them, a process leaves the count wrong by one until `mend_in_flight`. The
                # count only orders endpoints. The limit is held by the permits themselves.
                fr_add_i32(&e.hot.in_flight, 1)
                refresh_load(e.hot)
                return index | <int64_t>slot << 12 | <int64_t>(new >> 8) << 20
        index += 1
        if index >= e.max_in_flight:
            index = 0
    return -1


cdef inline int cell_permits_held(const uint64_t *cell) noexcept nogil:
    """How many of a cell's permits are taken."""
    # Four at a time: 255 added to a slot above 0 carries into the bit above its byte. The multiplication sums the four.
    cdef int word
    cdef uint64_t taken = 0
    for word in range(1, 8):
        taken += (((fr_load(cell + word) & <uint64_t>0x00FF00FF00FF00FF) + <uint64_t>0x00FF00FF00FF00FF) >> 8) & <uint64_t>0x0001000100010001
    return <int>(taken * <uint64_t>0x0001000100010001 >> 48)


cdef int permits_counted(const EndpointParts *e) noexcept nogil:
    """All permits taken, including those above a limit that was lowered since."""
    cdef int number
    cdef int count = 0
    for number in range(e.permit_cells):
        count += cell_permits_held(e.permits[number])
    return count


cdef int permits_held(EndpointParts *e, int first, int end) noexcept nogil:
    cdef int index
    cdef int count = 0
    for index in range(first, end):
        count += (fr_load_u16(permit_place(e.permits, index)) & 0xFF) != 0
    return count


cdef int64_t permit_take_lowered(EndpointParts *e, int slot, bint probe) noexcept nogil:
    """Takes a permit while some above a lowered limit may still be held, which count too.

    It takes first and counts afterwards: of two callers at once both may be refused, but never both let in.
    """
    # That needs the swap and the loads after it to be sequentially consistent: see atomics.h.
    cdef int64_t permit
    if permits_held(e, e.max_in_flight, e.reach) == 0:
        e.reach = e.max_in_flight
        return permit_take(e, slot, probe)
    permit = permit_take(e, slot, probe)
    if permit >= 0 and permits_held(e, 0, e.reach) > e.max_in_flight:
        permit_return(e, permit, slot)
        return -1
    return permit


cdef int64_t permit_take_leased(EndpointParts *e, int slot, bint probe, int64_t now) noexcept nogil:
    """Takes one of the permits that this machine has leased: takes first and counts afterwards, as above."""
    cdef int64_t permit
    while True:
        permit = permit_take(e, slot, probe) if e.reach == e.max_in_flight else permit_take_lowered(e, slot, probe)
        if permit < 0 or permits_counted(e) <= permits_leased(e, now):
            return permit
        permit_return(e, permit, slot)
        # Two callers that found one permit left may both have given theirs back. Counting again, the later of them sees
        # it free and takes it; refusing both would leave a leased permit unused.
        if permits_counted(e) >= permits_leased(e, now):
            return -1


cdef inline bint permit_return(EndpointParts *e, int64_t ticket, int slot) noexcept nogil:
    """Gives the permit of a ticket back; False if it is not this process's, or was given back before."""
    cdef int index = ticket & 0xFFF
    cdef uint16_t turn = ticket >> 12 & 0xFF00
    # A forked child has another slot than the ticket says: it cannot end its parent's calls.
    if (ticket >> 12 & 0xFF) != slot or slot == 0 or index >= e.permit_cells * CELL_PERMITS:
        return False
    if not fr_cas_u16(permit_place(e.permits, index), turn | <uint16_t>slot, turn & PERMIT_TURN):
        return False
    e.hint = index
    fr_add_i32(&e.hot.in_flight, -1)
    refresh_load(e.hot)
    return True


cdef int probes_held(uint64_t *table, uint64_t mask, uint64_t key) noexcept nogil:
    cdef uint64_t number
    cdef uint64_t *cell
    cdef uint16_t seen
    cdef int lane
    cdef int count = 0
    for number in range(<uint64_t>PERMIT_CELLS):
        cell = find_cell(table, mask, sub_key(key, KIND_PERMITS, number), False)
        if cell is NULL:
            break
        for lane in range(CELL_PERMITS):
            seen = fr_load_u16(<uint16_t *>(cell + 1) + lane)
            count += seen & 0xFF != 0 and seen & PERMIT_PROBE != 0
    return count


cdef void reap_probe(uint64_t *table, uint64_t mask, Hot *hot) noexcept nogil:
    """Ends the lease of a probe whose dead owner's permit is about to be freed.

    The breaker's word has no room for an owner. But a probe holds a marked permit from before it asks the breaker until
    after it has reported (a stream until it ends). So if the dead worker's marked permit is the only one, the lease is
    its own. If there is another one, it is not known whose the lease is, and it is left to run out.
    """
    cdef uint64_t word = fr_load(&hot.breaker)
    if control_state(word) == STATE_HALF_OPEN and word >> 26 and probes_held(table, mask, hot.key) == 1:
        fr_cas(
            &hot.breaker, &word,
            control_word(STATE_HALF_OPEN, control_count(word), control_backoff(word), control_epoch(word), 0),
        )


cdef void refund(int64_t *tat, uint64_t *count, uint64_t interval, int64_t now) noexcept nogil:
    """Gives back to a bucket what was paid ahead for calls that wait."""
    cdef uint64_t paid = fr_load(count)
    cdef int64_t seen, cost
    # The note first: a reaper killed after this step gives nothing back, and the bucket refills with time. In the other
    # order the next reaper would pay back a second time.
    while not fr_cas(count, &paid, 0):
        pass
    cost = fr_product(<int64_t>(paid & INT64_MAX), <int64_t>(interval & INT64_MAX))
    seen = fr_load_i64(tat)
    while cost and seen > now and not fr_cas_i64(tat, &seen, max(0, seen - cost)):
        pass


cdef void reap_permits(uint64_t *table, uint64_t mask, int slot) noexcept nogil:
    """Frees every permit that a worker holds, and gives back what it paid for calls that wait, at all endpoints."""
    cdef uint64_t number
    cdef uint64_t index = 0
    cdef uint64_t *hot
    cdef uint64_t *cell
    cdef Waiting *waiting
    cdef uint16_t *place
    cdef uint16_t seen
    cdef int lane
    cdef int64_t now = fr_clock()
    while True:
        hot = next_listed(table, mask, &index)
        if hot is NULL:
            return
        waiting = <Waiting *>find_cell(table, mask, sub_key(hot[0], KIND_WAITING, slot), False)
        if waiting is not NULL:
            cell = find_cell(table, mask, sub_key(hot[0], KIND_LEDGER, 0), False)
            if cell is not NULL:
                refund(&(<Cold *>cell).tat, &waiting.requests, fr_load(&waiting.request_interval), now)
            refund(&(<Hot *>hot).tat, &waiting.tokens, fr_load(&waiting.token_interval), now)
        for number in range(<uint64_t>PERMIT_CELLS):
            cell = find_cell(table, mask, sub_key(hot[0], KIND_PERMITS, number), False)
            if cell is NULL:
                break
            if cell_permits_held(cell) == 0:
                continue
            for lane in range(CELL_PERMITS):
                place = <uint16_t *>(cell + 1) + lane
                seen = fr_load_u16(place)
                if (seen & 0xFF) != slot:
                    continue
                # Before the permit is freed, which says whose probe it is.
                if seen & PERMIT_PROBE:
                    reap_probe(table, mask, <Hot *>hot)
                if fr_cas_u16(place, seen, seen & PERMIT_TURN):
                    fr_add_i32(&(<Hot *>hot).in_flight, -1)
                    refresh_load(<Hot *>hot)


cdef int permits_taken(uint64_t *table, uint64_t mask, uint64_t key) noexcept nogil:
    cdef uint64_t number
    cdef uint64_t *cell
    cdef int count = 0
    for number in range(<uint64_t>PERMIT_CELLS):
        cell = find_cell(table, mask, sub_key(key, KIND_PERMITS, number), False)
        if cell is NULL:
            break
        count += cell_permits_held(cell)
    return count


cdef void free_strays(uint64_t *table, uint64_t mask, const Worker *workers, Hot *hot) noexcept nogil:
    """Frees permits of slots that no worker has: something else has written them, and nobody would give them back."""
    cdef uint64_t number
    cdef uint64_t *cell
    cdef uint16_t *place
    cdef uint16_t seen
    cdef int lane
    for number in range(<uint64_t>PERMIT_CELLS):
        cell = find_cell(table, mask, sub_key(hot.key, KIND_PERMITS, number), False)
        if cell is NULL:
            return
        if cell_permits_held(cell) == 0:
            continue
        for lane in range(CELL_PERMITS):
            place = <uint16_t *>(cell + 1) + lane
            seen = fr_load_u16(place)
            if seen & 0xFF and <uint32_t>fr_load(&workers[seen & 0xFF].owner) == 0:
                fr_cas_u16(place, seen, seen & PERMIT_TURN)


cdef void mend_hot(uint64_t *table, uint64_t mask, Hot *hot) noexcept nogil:
    """Replaces what cannot have been written here, and would stay, by what stands for unknown."""
    cdef uint64_t word = fr_load(&hot.ewma)
    if word and fr_within(fr_value(word), FR_LONGEST) == 0:
        fr_cas(&hot.ewma, &word, 0)
    word = fr_load(&hot.block)
    if fr_fold(word) != 0:
        fr_cas(&hot.block, &word, 0)
    if fr_within(fr_load_float(&hot.spread), FR_LONGEST) != fr_load_float(&hot.spread):
        fr_store_float(&hot.spread, 0)
    if fr_within(fr_load_float(&hot.score), FR_HIGHEST_LOAD) != fr_load_float(&hot.score):
        fr_store_float(&hot.score, 0)
    if fr_within(fr_load_float(&hot.load), FR_HIGHEST_LOAD) != fr_load_float(&hot.load):
        refresh_load(hot)
    # A probe holds a marked permit from before it asks the breaker until after it has reported. So a lease without one
    # is nobody's, and would keep the endpoint from being probed for as long as it lasts.
    word = fr_load(&hot.breaker)
    if control_state(word) == STATE_HALF_OPEN and word >> 26 and probes_held(table, mask, hot.key) == 0:
        fr_cas(
            &hot.breaker, &word,
            control_word(STATE_HALF_OPEN, control_count(word), control_backoff(word), control_epoch(word), 0),
        )


cdef void mend_endpoints(uint64_t *table, uint64_t mask, const Worker *workers) noexcept nogil:
    """Corrects in-flight counts that a process left wrong when it was killed between a permit and its count.

    A count is changed only if it and the permits were the same when read twice. A call that begins or ends unnoticed
    all the same makes it wrong by one until the next time. What something else has written into an endpoint's cells is
    mended first.
    """
    cdef uint64_t index = 0
    cdef Hot *hot
    cdef int taken
    cdef int32_t seen
    while True:
        hot = <Hot *>next_listed(table, mask, &index)
        if hot is NULL:
            return
        free_strays(table, mask, workers, hot)
        mend_hot(table, mask, hot)
        seen = fr_load_i32(&hot.in_flight)
        taken = permits_taken(table, mask, hot.key)
        if seen != taken and taken == permits_taken(table, mask, hot.key):
            fr_cas_i32(&hot.in_flight, &seen, taken)
            refresh_load(hot)


# Functions ------------------------------------------------------------------------------------------------------------


cdef inline double bearable_of(const EndpointParts *e, uint64_t word) noexcept nogil:
    # A limit under 1 would refuse every call, and only calls that end can raise it.
    cdef double limit = fr_value(word)
    return min(limit if 1.0 <= limit <= MAX_IN_FLIGHT else BEARABLE_AT_FIRST, <double>e.max_in_flight)


cdef inline double bearable_now(const EndpointParts *e) noexcept nogil:
    return bearable_of(e, fr_load(e.bearable))


# The word `reference`: in the upper half the latency in seconds (float); bits 28-31 how many latencies of this round are
# in it, ROUND when it is complete; 16-27 the most calls at once in this round; 0-15 when it began, in quarters of a second.


cdef inline int reference_count(uint64_t word) noexcept nogil:
    return <int>(word >> 28 & 0xF)


cdef inline double reference_most(uint64_t word) noexcept nogil:
    return <double>max(word >> 16 & 0xFFF, <uint64_t>1)


cdef inline double held_limit(const EndpointParts *e) noexcept nogil:
    """Calls at once that are let in now: fewer while the latency without a queue is measured."""
    cdef uint64_t word = fr_load(e.reference)
    cdef double limit = bearable_now(e)
    return min(limit, reference_most(word)) if word and reference_count(word) < ROUND else limit


cdef inline bint is_burdened(const EndpointParts *e) noexcept nogil:
    return e.adaptive and in_flight_of(e.hot) >= <int>held_limit(e)


cdef void measure(EndpointParts *e, double x, double limit, int64_t now) noexcept nogil:
    """Takes a latency into the round, or begins a round: the first with all calls, later ones with half of the limit."""
    cdef uint64_t word = fr_load(e.reference)
    cdef uint64_t tick = <uint64_t>(now // 250000000) & 0xFFFF
    cdef uint64_t most, count
    cdef double mean, since
    while True:
        mean = latency_of(word)
        count = reference_count(word)
        most = word >> 16 & 0xFFF
        since = 0.25 * <double>((tick - word) & 0xFFFF)
        if word == 0:
            most = <uint64_t>min(max(limit, 1.0), 4095.0)
            mean = 0.0
        elif count < ROUND:
            # Calls that end soon after a round has begun were let in before it. Then all count: to leave out those
            # that took longer than the round has lasted would leave long answers out and not short ones.
            if count == 0 and since < 2.0 * mean:
                return
            count += 1
            mean = x if count == 1 else mean + (x - mean) / count
            tick = word & 0xFFFF
        elif since >= min(max(20.0 * mean, 10.0), 600.0) and 2 * in_flight_of(e.hot) + 2 >= limit:
            most = <uint64_t>min(max(limit * 0.5, 1.0), 4095.0)
            count = 0
        else:
            return
        if fr_cas(e.reference, &word, fr_pack(<float>mean, <uint32_t>(count << 28 | most << 16 | tick))):
            return


cdef bint is_queueing(const EndpointParts *e) noexcept nogil:
    """Whether the latest calls took half as long again as those with half as many at once."""
    cdef uint64_t word = fr_load(e.reference)
    cdef double latencies[SAMPLES]
    cdef double total = 0.0
    cdef int count, i
    if reference_count(word) < ROUND:
        return False
    count = min(samples_read(&e.latency, latencies), RECENT)
    if count < LEAST_SAMPLES:
        return False
    for i in range(count):
        total += latencies[i]
    return total / count > 1.5001 * latency_of(word)       # exactly half as much again is not more, however it is rounded


cdef void adapt(EndpointParts *e, int outcome, double x, int64_t now) noexcept nogil:
    """Additive increase, multiplicative decrease (AIMD), between 1 and max_in_flight.

    A result that was throttled or failed takes a tenth, at most once a second. One that was OK adds 1 / limit, so that
    a full round of calls adds 1; only while at least half of the limit is in use, for otherwise it proves nothing about
    the limit.

    An endpoint may also be too slow for that many without refusing any. So from time to time (20 times its latency, at
    least 10 s) the limit is halved for a round of calls. As long as the latest calls take more than 1.5 times as long
    as those, the limit shrinks instead of growing, but not below what it was in the round, where it was well.
    """
    cdef uint32_t stamp = fr_millis(now)
    cdef uint64_t word = fr_load(e.bearable)
    cdef double limit
    cdef double least = 1.0
    cdef bint queueing = False
    if outcome == OUTCOME_OK and x > 0:
        measure(e, x, bearable_now(e), now)
        queueing = is_queueing(e)
        least = reference_most(fr_load(e.reference))
    while True:
        limit = bearable_of(e, word)
        if queueing:
            if word and fr_elapsed(stamp, fr_stamp(word)) < SHRINK_EVERY_MS * 1e-3:
                return
            if fr_cas(e.bearable, &word, fr_pack(<float>max(limit * 0.9, min(limit, least)), stamp)):
                return
        elif outcome == OUTCOME_OK:
            if 2 * in_flight_of(e.hot) + 2 < limit:
                return
            if fr_cas(e.bearable, &word, fr_pack(<float>min(limit + 1 / limit, <double>e.max_in_flight), fr_stamp(word))):
                return
        elif outcome == OUTCOME_IGNORED or outcome == OUTCOME_USELESS or (word and fr_elapsed(stamp, fr_stamp(word)) < SHRINK_EVERY_MS * 1e-3):
            return
        elif fr_cas(e.bearable, &word, fr_pack(<float>max(limit * 0.9, 1.0), stamp)):
            return


cdef inline int64_t refusal(int reason, int64_t wait) noexcept nogil:
    # Held at 2**59 ns (18 years), so that shifted it still fits.
    return -(min(max(wait, 0), <int64_t>1 << 59) << 3 | reason)


cdef inline void usage_add(EndpointParts *e, double tokens, int64_t now) noexcept nogil:
    cdef uint32_t stamp = fr_millis(now)
    cdef uint64_t word = fr_load(&e.cold.usage)
    cdef double usage
    while True:
        usage = fr_within(fr_value(word), FR_MOST_TOKENS) * fr_decay(fr_elapsed(stamp, fr_stamp(word)) / FR_USAGE_TAU) + tokens
        if fr_cas(&e.cold.usage, &word, fr_pack(<float>min(max(usage, 0.0), FR_MOST_TOKENS), stamp)):
            return


cdef inline double usage_at(const EndpointParts *e, int64_t now) noexcept nogil:
    cdef uint64_t word = fr_load(&e.cold.usage)
    return fr_within(fr_value(word), FR_MOST_TOKENS) * fr_decay(
        fr_elapsed(fr_millis(now), fr_stamp(word)) / FR_USAGE_TAU
    )


cdef void adopt_told(EndpointParts *e, int which) noexcept nogil:
    """Sets this process's limit of requests (0) or tokens (1) to the one that the provider last reported.

    Any process may have received the report. Limits that many machines share are not changed by what one of them was
    told.
    """
    cdef Limit *limit = &e.tokens if which else &e.requests
    cdef uint64_t word = fr_load(e.told[which])
    cdef double told = fr_value(word)
    cdef int64_t most
    e.told_seen[which] = word
    # Also false for NaN. A number that nothing here has written counts as unknown: sums with it could overflow.
    if not 1.0 <= told <= <double>MAX_PER_MINUTE or fr_stamp(word) > 86400000 or e.pool is not NULL:
        limit.per_minute = -1
        limit.burst = limit.interval = limit.tolerance = 0
        return
    most = <int64_t>told
    limit.interval = max(<int64_t>fr_stamp(word) * 1000000 // most, 1)
    limit.per_minute = max(MINUTE_NS // limit.interval, 1)
    limit.burst = most
    limit.tolerance = limit.interval * most


cdef inline void follow_told(EndpointParts *e) noexcept nogil:
    """Adopts what the provider has reported to another process since."""
    if e.follows[0] and fr_load(e.told[0]) != e.told_seen[0]:
        adopt_told(e, 0)
    if e.follows[1] and fr_load(e.told[1]) != e.told_seen[1]:
        adopt_told(e, 1)


cdef void tell_limit(EndpointParts *e, int which, int64_t most, double window_s, int64_t now) noexcept nogil:
    """Sets a limit that the provider reports, for all processes; 0: it reports none any more.

    Permits that are used stay used: the TAT is moved so that it runs ahead by as many of the new intervals.
    """
    cdef Limit *limit = &e.tokens if which else &e.requests
    cdef int64_t *tat = &e.hot.tat if which else &e.cold.tat
    cdef uint64_t seen = fr_load(e.told[which])
    cdef uint64_t word = fr_pack(<float>most, <uint32_t>(window_s * 1e3)) if most > 0 else 0
    cdef int64_t before = limit.interval
    cdef int64_t at
    # A window computed from a reset in whole seconds differs a little each time, which is not a new limit.
    if word and most == <int64_t>fr_value(seen) and abs(<double>fr_stamp(seen) - window_s * 1e3) <= 0.2 * fr_stamp(seen):
        return
    if word == seen or not fr_cas(e.told[which], &seen, word):
        return                   # another process has set a newer one
    adopt_told(e, which)
    at = bucket_read(limit, tat, now)
    while before and limit.interval and at > now:
        if fr_cas_i64(tat, &at, now + <int64_t>(<double>(at - now) / before * limit.interval)):
            break


cdef inline int64_t to_pay(const EndpointParts *e, int64_t tokens) noexcept nogil:
    """Tokens to take from the bucket: of a limit that only the provider reports, at most what the bucket can hold."""
    # A request that is larger by estimate is sent all the same. No configured limit refuses it, and estimates are high.
    return min(tokens, e.tokens.burst) if e.follows[1] and e.tokens.per_minute >= 0 else tokens


cdef inline bint never_fits(const EndpointParts *e, int64_t tokens) noexcept nogil:
    """Whether no waiting would let such a request in."""
    return (
        e.max_in_flight == 0
        or e.requests.per_minute == 0
        or (
            e.tokens.per_minute >= 0 and tokens > 0 and not e.follows[1]
            and (tokens > e.tokens.burst or e.tokens.per_minute == 0)
        )
    )


cdef int64_t endpoint_wait(EndpointParts *e, int64_t tokens, bint reserved, int64_t now) noexcept nogil:
    """What ``endpoint_admit`` would answer, taking nothing; 0 for yes. Reasons in the same order as there."""
    cdef int64_t wait
    follow_told(e)
    if never_fits(e, 0 if reserved else tokens):
        return refusal(REASON_TOO_LARGE, 0)
    wait = block_left(fr_load(&e.hot.block), now)
    if wait:
        return refusal(REASON_BLOCKED, wait)
    wait = breaker_peek(&e.rules, fr_load(&e.hot.breaker), now)
    if wait < 0:
        return refusal(REASON_BREAKER, -wait)
    if permits_held(e, 0, e.reach) >= e.max_in_flight or is_burdened(e):
        return refusal(REASON_BUSY, 0)
    if e.leases_permits and fr_load_i64(&e.full_until) > now and permits_counted(e) >= permits_leased(e, now):
        return refusal(REASON_BUSY, 0)
    if reserved:
        return 0
    if e.pool is not NULL:
        return pool_wait(e, tokens, now)
    wait = bucket_wait(&e.requests, &e.cold.tat, 1, now)
    if wait:
        return refusal(REASON_REQUESTS, wait)
    wait = bucket_wait(&e.tokens, &e.hot.tat, to_pay(e, tokens), now)
    if wait:
        return refusal(REASON_TOKENS, wait)
    return 0


cdef int64_t endpoint_admit(EndpointParts *e, int slot, int64_t tokens, bint reserved, int64_t now) noexcept nogil:
    cdef uint64_t word = fr_load(&e.hot.block)
    cdef int64_t permit, wait
    cdef int64_t gate = 0
    cdef bint probe = control_state(fr_load(&e.hot.breaker)) != STATE_CLOSED
    follow_told(e)
    if never_fits(e, 0 if reserved else tokens):
        return refusal(REASON_TOO_LARGE, 0)
    if word:
        wait = block_left(word, now)
        if wait:
            return refusal(REASON_BLOCKED, wait)
    # From what costs nothing to undo to what costs most: looking, then the permit, then the buckets. Tokens that are
    # taken and given back would have others refused in between.
    if probe:
        # The one probe should go to a caller that nothing else is going to refuse.
        wait = endpoint_wait(e, tokens, reserved, now)
        if wait:
            return wait
    else:
        gate = breaker_allow(&e.rules, e.breaker.control, now)
        if gate < 0:
            return refusal(REASON_BREAKER, -gate)
    if is_burdened(e):
        permit = -1
    else:
        if e.leases_permits:
            permit = permit_take_leased(e, slot, probe, now)
        else:
            permit = permit_take(e, slot, probe) if e.reach == e.max_in_flight else permit_take_lowered(e, slot, probe)
    if permit < 0:
        if gate & 1:
            breaker_record(&e.rules, &e.breaker, gate, OUTCOME_IGNORED, now)
        return refusal(REASON_BUSY, 0)
    if probe:
        # Only now, with a marked permit in hand: if this process is killed at any time from here on, the permit shows
        # whose probe it was (`reap_probe`).
        gate = breaker_allow(&e.rules, e.breaker.control, now)
        if gate < 0:
            permit_return(e, permit, slot)
            return refusal(REASON_BREAKER, -gate)
    if not reserved:
        if e.pool is not NULL:
            wait = pool_take(e, tokens, now)
        elif (wait := bucket_acquire(&e.requests, &e.cold.tat, 1, now)) == 0:
            wait = bucket_acquire(&e.tokens, &e.hot.tat, to_pay(e, tokens), now)
            if wait:
                bucket_settle(&e.requests, &e.cold.tat, -1, now)
                wait = refusal(REASON_TOKENS, wait)
        else:
            wait = refusal(REASON_REQUESTS, wait)
        if wait:
            permit_return(e, permit, slot)
            if gate & 1:
                breaker_record(&e.rules, &e.breaker, gate, OUTCOME_IGNORED, now)
            return wait
    if tokens:
        usage_add(e, <double>tokens, now)
    return permit | gate << 28


cdef int64_t endpoint_reserve(
    EndpointParts *e, Waiting *waiting, int64_t tokens, int64_t max_wait, int64_t now
) noexcept nogil:
    # The request may go when both buckets have what it needs, so the longer wait counts.
    cdef int64_t first, second
    follow_told(e)
    if never_fits(e, tokens):
        return refusal(REASON_TOO_LARGE, 0)
    tokens = to_pay(e, tokens)
    first = bucket_reserve(&e.requests, &e.cold.tat, 1, max_wait, now)
    if first < 0:
        return refusal(REASON_REQUESTS, -2 - first)
    second = bucket_reserve(&e.tokens, &e.hot.tat, tokens, max_wait, now)
    if second < 0:
        bucket_settle(&e.requests, &e.cold.tat, -1, now)
        return refusal(REASON_TOKENS, -2 - second)
    if waiting is not NULL:
        # After paying: a process killed in between loses one place until the bucket has refilled. In the other order a
        # reaper would give back what was never paid, and let one call too many in. The intervals go along because a
        # reaper knows the segment only, not the limits.
        fr_store(&waiting.request_interval, <uint64_t>e.requests.interval)
        fr_store(&waiting.token_interval, <uint64_t>e.tokens.interval)
        fr_add(&waiting.requests, 1)
        fr_add(&waiting.tokens, <uint64_t>tokens)
    return max(first, second)


cdef inline void take_off(uint64_t *count, uint64_t n) noexcept nogil:
    """Subtracts n, but not below 0: a forked child may end a wait that its parent has noted in another cell."""
    cdef uint64_t seen = fr_load(count)
    while seen and not fr_cas(count, &seen, seen - min(seen, n)):
        pass


cdef inline void stop_waiting(Waiting *waiting, int64_t tokens) noexcept nogil:
    if waiting is not NULL:
        take_off(&waiting.requests, 1)
        take_off(&waiting.tokens, <uint64_t>tokens)


cdef inline int probe_end(EndpointParts *e, int64_t ticket, int slot, int outcome, int64_t now) noexcept nogil:
    """Records a probe's result while its permit is still held.

    If the process is killed between the two, the permit shows whose probe it was. Other results are recorded after the
    permit is given back, which proves that the ticket was not used before. A probe needs no such proof: the breaker
    counts it once.
    """
    cdef int index = ticket & 0xFFF
    if not ticket >> 28 & 1 or slot == 0 or index >= e.permit_cells * CELL_PERMITS:
        return -1
    if fr_load_u16(permit_place(e.permits, index)) != <uint16_t>((ticket >> 12 & 0xFF00) | slot):
        return -1
    return breaker_record(&e.rules, &e.breaker, ticket >> 28, outcome, now)


cdef int endpoint_finish(
    EndpointParts *e, int slot, int64_t ticket, int outcome, double latency_s, int64_t token_delta, int64_t now
) noexcept nogil:
    # The coarse clock is several times cheaper and exact enough for all but a bucket's arrival time.
    cdef int64_t coarse = now or fr_clock_coarse()
    cdef int state = probe_end(e, ticket, slot, outcome, coarse)
    if not permit_return(e, ticket, slot):
        return 0
    if not ticket >> 28 & 1:
        state = breaker_record(&e.rules, &e.breaker, ticket >> 28, outcome, coarse)
    result_record(&e.latency, outcome, latency_s, coarse)
    if state == STATE_CLOSED:
        health_mend(&e.latency)
    if e.adaptive:
        adapt(e, outcome, latency_s, coarse)
    if token_delta:
        if e.pool is not NULL:
            pool_charge(e, 0, token_delta)
        else:
            bucket_settle(&e.tokens, &e.hot.tat, token_delta, now or fr_clock())
        usage_add(e, <double>token_delta, coarse)
    return flags_of(state)


cdef inline int flags_of(int state) noexcept nogil:
    return FLAG_OPENED if state == STATE_OPEN else FLAG_CLOSED if state == STATE_CLOSED else 0


cdef void endpoint_undo(EndpointParts *e, int slot, int64_t ticket, int64_t tokens, int64_t now) noexcept nogil:
    probe_end(e, ticket, slot, OUTCOME_IGNORED, now)
    # Only who gives the permit back pays the rest back, so an `undo` after a `finish` gives nothing back twice.
    if not permit_return(e, ticket, slot):
        return
    if e.pool is not NULL:
        pool_charge(e, -1, -tokens)
    else:
        bucket_settle(&e.requests, &e.cold.tat, -1, now)
        bucket_settle(&e.tokens, &e.hot.tat, -to_pay(e, tokens), now)
    if tokens:
        usage_add(e, -<double>tokens, now)


cdef float failing_load(
    const Hot *hot, uint64_t measured, uint64_t failing, double inverse_tau, uint32_t stamp
) noexcept nogil:
    """``measured_load`` of an endpoint with failures; a function of its own, so that the other can be inlined."""
    cdef int32_t in_flight = in_flight_of(hot)
    cdef double failure, load
    cdef bint unhealthy
    failure = failing_rate(failing) * fr_decay(fr_elapsed(stamp, fr_stamp(failing)) * inverse_tau)
    unhealthy = is_unhealthy(failing, stamp)
    load = fr_value(measured)
    if load > 0:
        load = (load + fr_load_float(&hot.spread)) * fr_decay(fr_elapsed(stamp, fr_stamp(measured)) * inverse_tau)
    elif in_flight or failure >= FR_FORGIVEN or unhealthy:
        load = FR_UNMEASURED
    else:
        return 0.0
    if unhealthy:
        load *= FR_LAST
    return <float>(load * (in_flight + 1) / (success_of(failure) * success_of(failure)))


cdef inline float measured_load(const Hot *hot, double inverse_tau, uint32_t stamp) noexcept nogil:
    """(ewma + spread) * (calls in flight + 1) / success**2, faded to a time stamp; less is better.

    An endpoint that was never measured has load 0 while idle, so that it is tried; a high load while a call is under
    way, so that one call tries it and not all of them; and a high load while its failures are recent, so that an
    endpoint that only fails does not stay first. Multiplied by FR_LAST while it is unhealthy.
    """
    cdef uint64_t measured = fr_load(&hot.ewma)
    cdef uint64_t failing = fr_load(&hot.failure)
    if failing:
        return failing_load(hot, measured, failing, inverse_tau, stamp)
    # Without failures the load kept ready only has to be faded.
    if measured == 0:
        return fr_load_float(&hot.load)
    return <float>(fr_load_float(&hot.load) * fr_decay(fr_elapsed(stamp, fr_stamp(measured)) * inverse_tau))


cdef inline double load_with_decay(const EndpointParts *e, int64_t now) noexcept nogil:
    """``measured_load`` divided by the weight, and by the ramp of a breaker that closed lately."""
    return (
        measured_load(e.hot, e.latency.inverse_tau, fr_millis(now)) * e.inverse_weight
        / breaker_ramp(&e.rules, fr_load(&e.hot.breaker), now)
    )


cdef inline float load_without_decay(const Hot *hot, float inverse_weight) noexcept nogil:
    """The load as the last call left it, without fading and ramp, divided by the weight."""
    return fr_load_float(&hot.load) * inverse_weight
