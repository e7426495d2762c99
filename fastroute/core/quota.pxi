# ======================================================================================================================
# Quota: requests and tokens a minute that are not an endpoint's
# ======================================================================================================================
#
# For example the limits of one caller. There is no permit, breaker or latency: a request is paid for when it arrives,
# and its tokens are corrected when it has ended. Both arrival times are in one cell. A quota can be shared with other
# machines as an endpoint's limits are: `Lease` works on `Limited`, the base class of both.

# Classes --------------------------------------------------------------------------------------------------------------


cdef class Limited:
    """Base class of `Quota` and `Endpoint`: limits of requests and tokens a minute."""

    cdef readonly Segment segment
    cdef readonly str name
    cdef EndpointParts parts
    cdef object source             # shares the limits with other machines, see Lease; None: they are not shared

    def __init__(self) -> None:
        raise TypeError("Limited is made as an Endpoint or a Quota")


@cython.final
cdef class Quota(Limited):
    """Requests and tokens a minute, paid together or not at all; state shared by name.

    Args:
        segment: Where the state lives.
        name: Two quotas of one name in one segment are the same quota.
        rpm: Requests a minute; negative: no limit, 0: none.
        request_burst: Most requests at once; 0: a sixth of ``rpm``, at least 1.
        tpm: Tokens a minute; negative: no limit, 0: none.
        token_burst: Most tokens at once; 0: a sixth of ``tpm``, at least 1. A larger request is never admitted.

    Thread safety: all methods are lock-free and may be called from any thread and forked process.
    """

    def __init__(
        self, Segment segment not None, str name not None, *, rpm=-1, request_burst=0, tpm=-1, token_burst=0
    ) -> None:
        if self.segment is not None:
            raise RuntimeError("a Quota cannot be initialised twice")
        cdef EndpointParts *e = &self.parts
        cdef uint64_t *cell
        set_limit(&e.requests, "rpm", integer(rpm), integer(request_burst))
        set_limit(&e.tokens, "tpm", integer(tpm), integer(token_burst))
        cell = segment.claim(segment.name_hash(name), KIND_BUCKET)
        # One cell seen as both structs: of Hot only `tat` is used, the last word, for tokens; of Cold only `tat`, the
        # second word, for requests. The two do not overlap.
        e.hot = <Hot *>cell
        e.cold = <Cold *>cell
        e.max_in_flight = 1        # above 0 for `never_fits`; a quota has no permits
        self.name = name
        self.segment = segment

    def __repr__(self) -> str:
        return f"<Quota {self.name!r}>"

    def pay(self, tokens=0, now=0) -> int:
        """Pays one request and ``tokens``, both or neither.

        Returns:
            0, or negative: minus (wait in ns << 3 | reason) as of `Endpoint.admit`: REQUESTS, TOKENS or TOO_LARGE.
        """
        cdef EndpointParts *e = &self.parts
        cdef int64_t cost = amount("tokens", tokens, 0)
        cdef int64_t time = moment(now) or fr_clock()
        cdef int64_t wait
        cdef int attempt
        if never_fits(e, cost):
            return refusal(REASON_TOO_LARGE, 0)
        if self.source is None:
            wait = bucket_acquire(&e.requests, &e.cold.tat, 1, time)
            if wait:
                return refusal(REASON_REQUESTS, wait)
            wait = bucket_acquire(&e.tokens, &e.hot.tat, cost, time)
            # Killed between the two, the process has used one request for nothing, until the bucket has refilled.
            if wait:
                bucket_settle(&e.requests, &e.cold.tat, -1, time)
                return refusal(REASON_TOKENS, wait)
            return 0
        for attempt in range(16):
            wait = pool_take(e, cost, time)
            if wait == 0:
                if e.low_requests and pool_low(e, time):
                    self.source.low()
                return 0
            if -wait >> 3:
                return wait
            # A refusal without a wait: the pool is empty, but the shared limit was not when it was last asked. Another
            # thread or process may take what `supply` brings, so this is tried more than once, but not for ever.
            wait = self.source.supply(cost, time)
            if wait:
                return wait
        return refusal(REASON_REQUESTS, 0)

    def settle(self, tokens, now=0) -> None:
        """Charges more tokens, into debt if need be, or gives back if negative."""
        cdef int64_t delta = amount("tokens", tokens, -FR_TIME_MAX)
        if self.source is not None:
            pool_charge(&self.parts, 0, delta)
        else:
            bucket_settle(&self.parts.tokens, &self.parts.hot.tat, delta, moment(now) or fr_clock())

    def available_requests(self, now=0) -> int:
        """Requests free now; 2**63 - 1 without a limit."""
        cdef int64_t time = moment(now) or fr_clock()
        cdef int64_t free = bucket_available(&self.parts.requests, &self.parts.cold.tat, time)
        return free if self.parts.pool is NULL else fr_sum(free, pool_good(&self.parts, True, time))

    def available_tokens(self, now=0) -> int:
        """Tokens free now, negative in debt; 2**63 - 1 without a limit."""
        cdef int64_t time = moment(now) or fr_clock()
        cdef int64_t free = bucket_available(&self.parts.tokens, &self.parts.hot.tat, time)
        return free if self.parts.pool is NULL else fr_sum(free, pool_good(&self.parts, False, time))
