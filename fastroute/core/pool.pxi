# ======================================================================================================================
# Pool: permits that this machine has leased from a limit that many machines share
# ======================================================================================================================
#
# The bucket of a shared limit is kept elsewhere (state/redis/). What this machine was granted of it in advance is in a
# cell of its own, from which all its processes take. A balance and the time until which it is good are side by side and
# swapped as one (16 bytes), so an expired lease is never added to a new one. A balance below zero is a debt: tokens
# that a call took beyond its estimate, to be charged to the shared limit with the next lease.
#
# The endpoint's own two buckets are not charged while the limit is shared. They mirror the shared buckets: their TATs
# are what the last answer said, in this machine's time. So the wait of a refused call is known here without asking.
# When the shared state cannot be reached, the machine goes on with its part of the limit, taken from these mirrors:
# each permit then costs as many as there are machines, which divides the limit by their number without a second bucket.
#
# A process killed between two steps loses permits and never makes any. A balance, a time or a turn that no lease can have
# brought is unknown: `Lease.balance` and `Lease.permits`, which are asked once a second, replace it by no lease at all.
#
# How many calls this machine may have under way is leased as well. A word beside the balances says how many, and until
# when. It grows after other machines have given up their part, and is made smaller here before any of it is given back.
# A call takes its permit first and counts afterwards, so the process that made the number smaller sees every call that
# was let in before. Beside the word is a turn, which grows with every change and is part of each message to the shared
# state: an answer to an earlier question is ignored here, and a message that arrives late is ignored there. An expired
# lease counts as none. A machine that cannot reach the shared state gives itself its own part.

# Constants ------------------------------------------------------------------------------------------------------------

cdef enum:
    KIND_POOL = 14
    PERMITS_ALONE = 1 << 15      # in a lease of permits: this machine's own part, as the shared state was out of reach

cdef int64_t MAX_LEASE = 3_600_000_000_000            # an hour; leases last for seconds
cdef uint64_t MAX_TURN = <uint64_t>1 << 50            # the shared state counts turns in floating point

# Struct ---------------------------------------------------------------------------------------------------------------

cdef struct Pool:                # one cell
    uint64_t key
    uint64_t spare
    fr_pair requests             # balance, and the ns until which it is good
    fr_pair tokens
    fr_pair permits              # until when (us) << 16 | PERMITS_ALONE | how many; and the turn

# Functions ------------------------------------------------------------------------------------------------------------


cdef inline int64_t pair_good(const fr_pair *pair, int64_t now) noexcept nogil:
    """What may be taken now. A debt does not expire with the lease."""
    # Two loads, which may be of different changes: good enough to look at. What is taken is decided by a swap of both.
    cdef int64_t until = fr_load_i64(<int64_t *>&pair.mark)
    cdef int64_t balance = fr_load_i64(<int64_t *>&pair.value)
    return balance if until > now else min(balance, <int64_t>0)


cdef bint pair_take(fr_pair *pair, int64_t n, int64_t now) noexcept nogil:
    cdef uint64_t until
    cdef int64_t balance
    while True:
        # A lost swap of a pair does not say what it found (on ARM it may even fail for no reason): read again.
        until = fr_load(&pair.mark)
        balance = fr_load_i64(<int64_t *>&pair.value)
        if <int64_t>until <= now or balance < n:
            return False
        if fr_cas_pair(pair, <uint64_t>balance, until, <uint64_t>(balance - n), until):
            return True


cdef void pair_add(fr_pair *pair, int64_t delta) noexcept nogil:
    """Gives back, or charges what was spent already, into debt if the balance is too small."""
    cdef uint64_t until
    cdef int64_t balance
    while True:
        until = fr_load(&pair.mark)
        balance = fr_load_i64(<int64_t *>&pair.value)
        if fr_cas_pair(pair, <uint64_t>balance, until, <uint64_t>max(fr_sum(balance, delta), -FR_TIME_MAX), until):
            return


cdef void pair_mend(fr_pair *pair, const Limit *limit, int64_t now) noexcept nogil:
    """Replaces a balance that no leases can have brought, or one that would be good for ever, by none."""
    cdef int64_t until, balance, debt
    if limit.per_minute <= 0:
        return
    debt = fr_sum(limit.burst, 2 * MAX_DEBT // limit.interval)
    while True:
        until = fr_load_i64(<int64_t *>&pair.mark)
        balance = fr_load_i64(<int64_t *>&pair.value)
        if until <= now + MAX_LEASE and -debt <= balance <= fr_product(4, limit.burst):
            return
        if fr_cas_pair(pair, <uint64_t>balance, <uint64_t>until, 0, 0):
            return


cdef void pair_grant(fr_pair *pair, int64_t n, int64_t until, int64_t now) noexcept nogil:
    """Adds a lease to what is still good."""
    # What expired is dropped: permits leased a while ago, used now together with the new ones, would be a burst above
    # the shared limit. A debt is carried over, because the tokens were used.
    cdef uint64_t seen
    cdef int64_t balance, good
    while True:
        seen = fr_load(&pair.mark)
        balance = fr_load_i64(<int64_t *>&pair.value)
        good = balance if <int64_t>seen > now else min(balance, <int64_t>0)
        if fr_cas_pair(
            pair, <uint64_t>balance, seen, <uint64_t>fr_sum(good, n), <uint64_t>max(<int64_t>seen, until)
        ):
            return


cdef int64_t pair_drain(fr_pair *pair, int64_t keep, int64_t now) noexcept nogil:
    """Takes out what is above ``keep`` and returns as much of it as is still good."""
    cdef uint64_t until
    cdef int64_t balance
    while True:
        until = fr_load(&pair.mark)
        balance = fr_load_i64(<int64_t *>&pair.value)
        if balance <= keep:
            return 0
        if fr_cas_pair(pair, <uint64_t>balance, until, <uint64_t>keep, until):
            return balance - keep if <int64_t>until > now else 0


cdef inline int64_t lack_wait(const Limit *limit, int64_t *mirror, int64_t lacking, int64_t now) noexcept nogil:
    return max(0, bucket_wait(limit, mirror, min(lacking, limit.burst), now))


cdef int64_t pool_wait(EndpointParts *e, int64_t tokens, int64_t now) noexcept nogil:
    """0 if the pool has one request and ``tokens``; else a refusal with the wait that the mirrors give.

    A wait of 0 in it means: the shared limit had some left when it was last asked, so ask again.
    """
    cdef Pool *pool = <Pool *>e.pool
    cdef int64_t lacking
    if e.requests.per_minute >= 0:
        lacking = 1 - pair_good(&pool.requests, now)
        if lacking > 0:
            return refusal(REASON_REQUESTS, lack_wait(&e.requests, &e.cold.tat, lacking, now))
    if e.tokens.per_minute >= 0 and tokens:
        lacking = tokens - pair_good(&pool.tokens, now)
        if lacking > 0:
            return refusal(REASON_TOKENS, lack_wait(&e.tokens, &e.hot.tat, lacking, now))
    return 0


cdef int64_t pool_take(EndpointParts *e, int64_t tokens, int64_t now) noexcept nogil:
    """Takes one request and ``tokens``, both or neither; 0, or what ``pool_wait`` says."""
    cdef Pool *pool = <Pool *>e.pool
    # `pool_wait` looks after the take has failed. If it finds enough by then, another process has brought some: asking
    # again is right.
    if e.requests.per_minute >= 0 and not pair_take(&pool.requests, 1, now):
        return pool_wait(e, tokens, now) or refusal(REASON_REQUESTS, 0)
    if e.tokens.per_minute < 0 or tokens == 0 or pair_take(&pool.tokens, tokens, now):
        return 0
    if e.requests.per_minute >= 0:
        pair_add(&pool.requests, 1)
    return pool_wait(e, tokens, now) or refusal(REASON_TOKENS, 0)


cdef inline void pool_charge(EndpointParts *e, int64_t requests, int64_t tokens) noexcept nogil:
    """Charges more, or gives back if negative."""
    cdef Pool *pool = <Pool *>e.pool
    if requests and e.requests.per_minute >= 0:
        pair_add(&pool.requests, -requests)
    if tokens and e.tokens.per_minute >= 0:
        pair_add(&pool.tokens, -tokens)


cdef void pool_tighten(EndpointParts *e, int64_t requests, int64_t tokens) noexcept nogil:
    """Lowers the balances to what the provider reports as remaining (-1: not reported)."""
    cdef Pool *pool = <Pool *>e.pool
    if requests >= 0:
        pair_drain(&pool.requests, requests, 0)
    if tokens >= 0:
        pair_drain(&pool.tokens, tokens, 0)


cdef inline int64_t pool_good(EndpointParts *e, bint requests, int64_t now) noexcept nogil:
    cdef Pool *pool = <Pool *>e.pool
    if requests:
        return pair_good(&pool.requests, now) if e.requests.per_minute > 0 else 0
    return pair_good(&pool.tokens, now) if e.tokens.per_minute > 0 else 0


cdef inline bint pool_low(EndpointParts *e, int64_t now) noexcept nogil:
    cdef Pool *pool = <Pool *>e.pool
    return (
        (e.requests.per_minute > 0 and pair_good(&pool.requests, now) < e.low_requests)
        or (e.tokens.per_minute > 0 and pair_good(&pool.tokens, now) < e.low_tokens)
    )


cdef inline int permits_leased(const EndpointParts *e, int64_t now) noexcept nogil:
    """How many calls this machine may have under way."""
    cdef uint64_t word = fr_load(<uint64_t *>&(<Pool *>e.pool).permits.value)
    return <int>(word & 0x7FFF) if <int64_t>(word >> 16) * 1000 > now else 0


cdef inline int permits_lacking(const EndpointParts *e, int64_t now) noexcept nogil:
    """After a refusal. 0: it stands; 1: other machines may give a permit up; 2: one has become free here."""
    cdef int held = permits_counted(e)
    if not e.leases_permits or held >= e.max_in_flight or is_burdened(e):
        return 0
    if held < permits_leased(e, now):
        return 2
    return fr_load_i64(&e.full_until) <= now


cdef inline int64_t times(int64_t n, int64_t machines, int64_t most) noexcept nogil:
    return min(fr_product(n, machines), most)


# Class ----------------------------------------------------------------------------------------------------------------


@cython.final
cdef class Lease:
    """The part of an endpoint's shared limits that this machine holds, and the endpoint's side of sharing them.

    With a lease, the endpoint takes permits from the pool. When the pool is empty but the shared limit was not when it
    was last asked, the endpoint calls ``source``, in the caller's thread:

    * ``supply(tokens, now)``: put at least one request and ``tokens`` into the pool. Returns 0, or a refusal as
      ``admit`` does.
    * ``low()``: the pool is running low. Must return at once, without I/O.
    * ``reserve(tokens, max_wait, now)`` and ``unreserve(tokens, now)``: as in `Endpoint`, from the shared limit itself.
    * ``probe(now)``: 0 if this machine may send the probe of an open breaker, or the ns until it is worth asking again.
      ``extended(lease)``: the probe may take so many ns. ``judged(flags)``: a probe has ended, or a result opened (1)
      or closed (2) the breaker. The last two must return at once, without I/O.
    * ``tightened(requests, tokens)`` and ``blocked()``: the provider reported a limit or an exclusion. Must return at
      once, without I/O.
    * ``permit(now)``: lease one more permit than are taken. Returns 0, or a refusal. Only with ``permits``.

    Args:
        endpoint: The endpoint; or a quota, for which only the first two are called. It has one source at a time.
        source: As above, or None: the limits are not shared (any more).
        permits: Whether the limit of calls at once is shared too.

    Raises:
        OSError: This processor cannot swap 16 bytes at once.

    Thread safety: all methods are lock-free, in all processes that share the segment.
    """

    cdef readonly Limited endpoint
    cdef EndpointParts *parts
    cdef Pool *pool

    def __init__(self, Limited endpoint not None, source, *, bint permits=False) -> None:
        if not FR_HAS_PAIRS:
            raise OSError("limits of many machines need a processor that swaps 16 bytes at once (x86-64, 64-bit ARM)")
        cdef Segment segment = endpoint.segment
        self.pool = <Pool *>segment.claim(segment.name_hash(endpoint.name), KIND_POOL)
        self.parts = &endpoint.parts
        self.endpoint = endpoint
        # In this order: a thread that finds `leases_permits` set reads the pool without checking it.
        self.parts.leases_permits = False
        self.parts.pool = NULL if source is None else <uint64_t *>self.pool
        self.parts.leases_permits = permits and source is not None
        endpoint.source = source
        for which in range(2):
            if self.parts.follows[which]:
                adopt_told(self.parts, which)

    def limits(self) -> tuple[int, int, int, int]:
        """ns a request, most requests at once, ns a token, most tokens at once; -1, 0 where there is no limit."""
        cdef const Limit *r = &self.parts.requests
        cdef const Limit *t = &self.parts.tokens
        return (
            r.interval if r.per_minute >= 0 else -1, r.burst if r.per_minute >= 0 else 0,
            t.interval if t.per_minute >= 0 else -1, t.burst if t.per_minute >= 0 else 0,
        )

    def marks(self, requests, tokens) -> None:
        """Sets the balances below which ``low`` is called."""
        self.parts.low_requests = amount("requests", requests, 0)
        self.parts.low_tokens = amount("tokens", tokens, 0)

    def balance(self, now=0) -> tuple[int, int]:
        """(requests, tokens) that may be taken now; negative: a debt."""
        cdef int64_t time = moment(now) or fr_clock()
        pair_mend(&self.pool.requests, &self.parts.requests, time)
        pair_mend(&self.pool.tokens, &self.parts.tokens, time)
        return (pair_good(&self.pool.requests, time), pair_good(&self.pool.tokens, time))

    def grant(self, requests, tokens, until, now=0) -> None:
        """Adds a lease that is good until a time (ns). It extends what is in the pool and still good."""
        cdef int64_t time = moment(now) or fr_clock()
        cdef int64_t end = moment(until)
        cdef int64_t r = amount("requests", requests, 0)
        cdef int64_t t = amount("tokens", tokens, 0)
        if r:
            pair_grant(&self.pool.requests, r, end, time)
        if t:
            pair_grant(&self.pool.tokens, t, end, time)

    def heard(self, requests_ahead, tokens_ahead, now=0) -> None:
        """Sets the mirrors: the shared buckets will be full in so many ns."""
        # Plain stores: a later answer replaces an earlier one, and the mirrors only tell how long to wait.
        cdef int64_t time = moment(now) or fr_clock()
        fr_store(<uint64_t *>&self.parts.cold.tat, <uint64_t>fr_sum(time, amount("requests_ahead", requests_ahead, 0)))
        fr_store(<uint64_t *>&self.parts.hot.tat, <uint64_t>fr_sum(time, amount("tokens_ahead", tokens_ahead, 0)))

    def drain(self, requests, tokens, now=0) -> tuple[int, int]:
        """Takes out of the pool what is above these balances.

        Returns:
            The part of it that has not expired and should be given back to the shared limit.
        """
        cdef int64_t time = moment(now) or fr_clock()
        return (
            pair_drain(&self.pool.requests, amount("requests", requests, 0), time),
            pair_drain(&self.pool.tokens, amount("tokens", tokens, 0), time),
        )

    def share(self, tokens, machines, until, now=0) -> int:
        """Fills the pool with what one call lacks from this machine's part of the limits, when the source is down.

        Returns:
            0, or a refusal as of ``admit``.
        """
        cdef EndpointParts *e = self.parts
        cdef int64_t time = moment(now) or fr_clock()
        cdef int64_t end = moment(until)
        cdef int64_t many = whole("machines", integer(machines), 1, 1000000)
        cdef int64_t r = max(0, 1 - pair_good(&self.pool.requests, time)) if e.requests.per_minute >= 0 else 0
        cdef int64_t t = 0
        cdef int64_t cost, wait
        if e.tokens.per_minute >= 0:
            t = max(0, amount("tokens", tokens, 0) - pair_good(&self.pool.tokens, time))
        cost = times(r, many, e.requests.burst)
        wait = bucket_acquire(&e.requests, &e.cold.tat, cost, time)
        if wait:
            return refusal(REASON_REQUESTS, wait)
        wait = bucket_acquire(&e.tokens, &e.hot.tat, times(t, many, e.tokens.burst), time)
        if wait:
            bucket_settle(&e.requests, &e.cold.tat, -cost, time)
            return refusal(REASON_TOKENS, wait)
        pair_grant(&self.pool.requests, r, end, time)
        pair_grant(&self.pool.tokens, t, end, time)
        return 0

    def share_ahead(self, tokens, machines, max_wait, now=0) -> int:
        """``Endpoint.reserve`` from this machine's part of the limits, when the source is down."""
        cdef EndpointParts *e = self.parts
        cdef int64_t time = moment(now) or fr_clock()
        cdef int64_t many = whole("machines", integer(machines), 1, 1000000)
        cdef int64_t longest = patience(max_wait)
        cdef int64_t cost = times(1, many, e.requests.burst)
        cdef int64_t paid = times(amount("tokens", tokens, 0), many, e.tokens.burst)
        cdef int64_t first, second
        if never_fits(e, tokens):
            return refusal(REASON_TOO_LARGE, 0)
        first = bucket_reserve(&e.requests, &e.cold.tat, cost, longest, time)
        if first < 0:
            return refusal(REASON_REQUESTS, -2 - first)
        second = bucket_reserve(&e.tokens, &e.hot.tat, paid, longest, time)
        if second < 0:
            bucket_settle(&e.requests, &e.cold.tat, -cost, time)
            return refusal(REASON_TOKENS, -2 - second)
        return max(first, second)

    def permits(self, now=0) -> tuple[int, int, int, int, bool]:
        """(leased, taken, turn, ns for which the lease is good, whether it is this machine's own part)."""
        cdef int64_t time = moment(now) or fr_clock()
        cdef uint64_t turn, word
        # Both halves of one change: a lease is only changed together with its turn.
        while True:
            turn = fr_load(&self.pool.permits.mark)
            word = fr_load(<uint64_t *>&self.pool.permits.value)
            if turn != fr_load(&self.pool.permits.mark):
                continue
            if turn < MAX_TURN and <int64_t>(word >> 16) * 1000 - time <= MAX_LEASE:
                break
            # No lease, under a turn that the next answer of the shared state raises.
            fr_cas_pair(&self.pool.permits, word, turn, 0, turn + 1 if turn < MAX_TURN else 1)
        cdef int64_t left = max(0, <int64_t>(word >> 16) * 1000 - time)
        return (
            <int>(word & 0x7FFF) if left else 0, permits_counted(self.parts), turn, left,
            bool(word & PERMITS_ALONE),
        )

    def lease_permits(self, turn, many, until, *, bint alone=False, after=0) -> bool:
        """Sets how many permits are leased until a time (ns).

        Args:
            turn: The turn on which this decision was based.
            many: Permits, 0 to 4096.
            until: ns on the core's clock.
            alone: The number is this machine's own part, set without asking the others.
            after: The new turn is larger than this, and than ``turn``.

        Returns:
            False, and nothing set, if the turn has changed since.
        """
        cdef uint64_t seen = unsigned(turn)
        cdef uint64_t after_turn = unsigned(after)
        cdef uint64_t word = fr_load(<uint64_t *>&self.pool.permits.value)
        cdef uint64_t count = <uint64_t>whole("many", integer(many), 0, MAX_IN_FLIGHT)
        cdef uint64_t new = <uint64_t>(moment(until) // 1000) << 16 | (PERMITS_ALONE if alone else 0) | count
        while fr_load(&self.pool.permits.mark) == seen:
            if fr_cas_pair(&self.pool.permits, word, seen, new, max(seen, after_turn) + 1):
                return True
            word = fr_load(<uint64_t *>&self.pool.permits.value)
        return False

    def full(self, until) -> None:
        """Records that all machines together have no permit left: this process does not ask again until then (ns)."""
        fr_store(<uint64_t *>&self.parts.full_until, <uint64_t>moment(until))

    def part(self, machines) -> None:
        """Makes the constant part of the retry budget this machine's share of it: divides it by ``machines``."""
        set_retry_rules(&self.parts.retry, 0.2, 1.0 / whole("machines", integer(machines), 1, 1000000), 10.0)

    def open(self, until_ns, now=0) -> bool:
        """Opens the breaker until a time, as another machine's has opened. False if it is not closed."""
        # A breaker that is open or half-open keeps its own time: it has seen failures itself, or has a probe under way.
        cdef int64_t time = moment(now) or fr_clock()
        cdef int64_t until = moment(until_ns)
        cdef uint64_t *control = self.parts.breaker.control
        cdef uint64_t word = fr_load(control)
        while until > time and control_state(word) == STATE_CLOSED:
            if fr_cas(
                control, &word,
                control_word(
                    STATE_OPEN, 0, min(control_backoff(word) + 1, <uint64_t>BACKOFF_MAX), control_epoch(word) + 1,
                    ms_of(min(until, time + self.parts.rules.max_open)),
                ),
            ):
                return True
        return False

    def close(self, now=0) -> bool:
        """Closes the breaker, as another machine's probe has succeeded. False if it was closed."""
        cdef int64_t time = moment(now) or fr_clock()
        cdef uint64_t *control = self.parts.breaker.control
        cdef uint64_t word = fr_load(control)
        cdef int64_t index
        while control_state(word) != STATE_CLOSED:
            for index in range(WINDOW_WORDS):
                fr_store(self.parts.breaker.window[index // 5] + index % 5, 0)
            if fr_cas(
                control, &word,
                control_word(
                    STATE_CLOSED, 0, control_backoff(word), control_epoch(word) + 1, max(ms_of(time), <uint64_t>1)
                ),
            ):
                return True
        return False
