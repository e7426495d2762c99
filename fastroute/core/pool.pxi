# ======================================================================================================================
# Pool: permits that this machine has leased from a limit that many machines share
# ======================================================================================================================
#
# The bucket of a shared limit is kept elsewhere; what this machine was granted of it ahead lies in a cell of its own,
# from which all its processes take. A balance and the time until which it is good stand side by side and are swapped as
# one (16 bytes), so a lease that has run out is never added to a new one. A balance below zero is a debt: tokens that a
# call took beyond its estimate, to be charged to the shared limit with the next lease.
#
# The endpoint's own two buckets stand still meanwhile as mirrors of the shared ones: their TATs are what was last heard,
# in this machine's time. So how long a refused call has to wait is answered here, without asking anybody. When nobody
# can be asked, the machine goes on with a part of the limit from these mirrors: each permit then costs as many as there
# are machines, which is the limit divided by their number and needs no second bucket.
#
# A process killed between two steps loses permits and never makes any.
#
# How many calls this machine may have under way is leased as well, and a word beside the balances: how many, and until
# when. It grows when other machines have given their part up, and before any of it is given back it is made smaller
# here; a call takes its permit first and counts then, so whoever has made it smaller sees in his turn all that were let
# in before. Beside the word stands a turn, which every change makes larger and which each message to the others names:
# so what was answered to an earlier question is neither believed here nor, sent late, there. A lease that has run out
# is nothing; a machine that can ask nobody gives itself one, of its part.

# Constants ------------------------------------------------------------------------------------------------------------

cdef enum:
    KIND_POOL = 14
    PERMITS_ALONE = 1 << 15      # in a lease of permits: this machine's own part, since nobody could be asked

# Struct ---------------------------------------------------------------------------------------------------------------

cdef struct Pool:                # one cell
    uint64_t key
    uint64_t spare
    fr_pair requests             # balance, and the ns until which it is good
    fr_pair tokens
    fr_pair permits              # until when (us) << 16 | PERMITS_ALONE | how many; and the turn

# Functions ------------------------------------------------------------------------------------------------------------


cdef inline int64_t pair_good(const fr_pair *pair, int64_t now) noexcept nogil:
    """What may be taken; a debt lasts for ever."""
    cdef int64_t until = fr_load_i64(<int64_t *>&pair.mark)
    cdef int64_t balance = fr_load_i64(<int64_t *>&pair.value)
    return balance if until > now else min(balance, <int64_t>0)


cdef bint pair_take(fr_pair *pair, int64_t n, int64_t now) noexcept nogil:
    cdef uint64_t until
    cdef int64_t balance
    while True:
        until = fr_load(&pair.mark)
        balance = fr_load_i64(<int64_t *>&pair.value)
        if <int64_t>until <= now or balance < n:
            return False
        if fr_cas_pair(pair, <uint64_t>balance, until, <uint64_t>(balance - n), until):
            return True


cdef void pair_add(fr_pair *pair, int64_t delta) noexcept nogil:
    """Gives back, or takes what was spent already, into debt if need be."""
    cdef uint64_t until
    cdef int64_t balance
    while True:
        until = fr_load(&pair.mark)
        balance = fr_load_i64(<int64_t *>&pair.value)
        if fr_cas_pair(pair, <uint64_t>balance, until, <uint64_t>max(fr_sum(balance, delta), -FR_TIME_MAX), until):
            return


cdef void pair_grant(fr_pair *pair, int64_t n, int64_t until, int64_t now) noexcept nogil:
    """Adds a lease to what is still good."""
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


cdef inline int64_t lack_wait(const Limit *limit, const int64_t *mirror, int64_t lacking, int64_t now) noexcept nogil:
    return max(0, bucket_wait(limit, mirror, min(lacking, limit.burst), now))


cdef int64_t pool_wait(EndpointParts *e, int64_t tokens, int64_t now) noexcept nogil:
    """A refusal with the wait by what was last heard (0: ask), or 0 if the pool has one request and ``tokens``."""
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
    """The provider says that only so many are left (-1: it does not say)."""
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
    """After a refusal: 0: it stands; 1: others may have a permit to lease; 2: there is one here by now."""
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
    """What this machine holds of an endpoint's shared limits, and the endpoint's side of sharing them.

    With it the endpoint takes permits from the pool; when that is empty, and by what was last heard the shared limit is
    not, it asks ``source``, in the caller's thread:

    * ``supply(tokens, now)``: put at least one request and ``tokens`` into the pool; 0, or a refusal as of ``admit``.
    * ``low()``: the pool is running low; must only take note.
    * ``reserve(tokens, max_wait, now)`` and ``unreserve(tokens, now)``: as of `Endpoint`, from the shared limit itself.
    * ``probe(now)``: 0 if this machine may send the probe of an open breaker, or the ns until it is worth asking again;
      ``extended(lease)``: it may take so many ns; and ``judged(flags)``: a probe has ended, or a result opened (1) or
      closed (2) the breaker. Both must only take note.
    * ``tightened(requests, tokens)`` and ``blocked()``: as the provider said; must only take note.
    * ``permit(now)``: have one more permit leased than are taken; 0, or a refusal. Only with ``permits``.

    Args:
        endpoint: The endpoint, or a quota, of which only the first two are asked; it has one source at a time.
        source: As above, or None: the limits are this machine's alone (again).
        permits: Whether calls at once are shared too.

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
        self.parts.leases_permits = False
        self.parts.pool = NULL if source is None else <uint64_t *>self.pool
        self.parts.leases_permits = permits and source is not None
        endpoint.source = source

    def limits(self) -> tuple[int, int, int, int]:
        """ns a request, most requests at once, ns a token, most tokens at once; -1, 0 where there is no limit."""
        cdef const Limit *r = &self.parts.requests
        cdef const Limit *t = &self.parts.tokens
        return (
            r.interval if r.per_minute >= 0 else -1, r.burst if r.per_minute >= 0 else 0,
            t.interval if t.per_minute >= 0 else -1, t.burst if t.per_minute >= 0 else 0,
        )

    def marks(self, requests, tokens) -> None:
        """Below which balances ``low`` is called."""
        self.parts.low_requests = amount("requests", requests, 0)
        self.parts.low_tokens = amount("tokens", tokens, 0)

    def balance(self, now=0) -> tuple[int, int]:
        """(requests, tokens) that are there to be taken; negative: a debt."""
        cdef int64_t time = moment(now) or fr_clock()
        return (pair_good(&self.pool.requests, time), pair_good(&self.pool.tokens, time))

    def grant(self, requests, tokens, until, now=0) -> None:
        """Adds a lease that is good until a time (ns); what is there and still good is good as long."""
        cdef int64_t time = moment(now) or fr_clock()
        cdef int64_t end = moment(until)
        cdef int64_t r = amount("requests", requests, 0)
        cdef int64_t t = amount("tokens", tokens, 0)
        if r:
            pair_grant(&self.pool.requests, r, end, time)
        if t:
            pair_grant(&self.pool.tokens, t, end, time)

    def heard(self, requests_ahead, tokens_ahead, now=0) -> None:
        """The shared buckets will be full in so many ns."""
        cdef int64_t time = moment(now) or fr_clock()
        fr_store(<uint64_t *>&self.parts.cold.tat, <uint64_t>fr_sum(time, amount("requests_ahead", requests_ahead, 0)))
        fr_store(<uint64_t *>&self.parts.hot.tat, <uint64_t>fr_sum(time, amount("tokens_ahead", tokens_ahead, 0)))

    def drain(self, requests, tokens, now=0) -> tuple[int, int]:
        """Takes what is above these balances out of the pool.

        Returns:
            What of it is still good and should be given back.
        """
        cdef int64_t time = moment(now) or fr_clock()
        return (
            pair_drain(&self.pool.requests, amount("requests", requests, 0), time),
            pair_drain(&self.pool.tokens, amount("tokens", tokens, 0), time),
        )

    def share(self, tokens, machines, until, now=0) -> int:
        """Puts what one call lacks into the pool from this machine's part of the limits, for nobody can be asked.

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
        """``Endpoint.reserve`` of this machine's part of the limits."""
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
        while True:
            turn = fr_load(&self.pool.permits.mark)
            word = fr_load(<uint64_t *>&self.pool.permits.value)
            if turn == fr_load(&self.pool.permits.mark):
                break
        cdef int64_t left = max(0, <int64_t>(word >> 16) * 1000 - time)
        return (
            <int>(word & 0x7FFF) if left else 0, permits_counted(self.parts), turn, left,
            bool(word & PERMITS_ALONE),
        )

    def lease_permits(self, turn, many, until, *, bint alone=False, after=0) -> bool:
        """Sets how many permits are leased until a time (ns), and whether nobody else was asked.

        Returns:
            False: nothing is set, for the turn is no longer this one. If set, it is larger from now on, and than
            ``after``.
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
        """All machines together have no permit left: until a time (ns) this process does not ask again."""
        fr_store(<uint64_t *>&self.parts.full_until, <uint64_t>moment(until))

    def part(self, machines) -> None:
        """The endpoint's retry budget is this machine's part of it: its constant share, one in so many."""
        set_retry_rules(&self.parts.retry, 0.2, 1.0 / whole("machines", integer(machines), 1, 1000000), 10.0)

    def open(self, until_ns, now=0) -> bool:
        """Another machine's breaker has opened: this one is open until then too. False: it is open or on probe."""
        cdef int64_t time = moment(now) or fr_clock()
        cdef int64_t until = moment(until_ns)
        cdef uint64_t *control = self.parts.breaker.control
        cdef uint64_t word = fr_load(control)
        while until > time and control_state(word) == STATE_CLOSED:
            if fr_cas(
                control, &word,
                control_word(
                    STATE_OPEN, 0, min(control_backoff(word) + 1, <uint64_t>BACKOFF_MAX), control_epoch(word) + 1,
                    ms_of(until),
                ),
            ):
                return True
        return False

    def close(self, now=0) -> bool:
        """Another machine's probe went well: this breaker is closed too. False: it was."""
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
