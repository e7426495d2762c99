# ======================================================================================================================
# Bucket: how many a minute (GCRA)
# ======================================================================================================================
#
# The whole state of a bucket is one number, the theoretical arrival time (TAT): when the bucket will be full again. A
# permit costs a fixed interval and moves the TAT on by it; the TAT may run ahead of now by at most `burst` intervals.
# So exactly `burst` permits are free at once, then one an interval. Charging what has already been spent may push the
# TAT further: a debt, which later callers wait out. A TAT in the past is a full bucket, and 0 a fresh one.
#
# Because there is one word, a change is one swap: a process killed at any point leaves either the old TAT or the new
# one. A refusal writes nothing, so callers that are refused do not move the TAT for the others.
#
# A TAT that is further ahead than any use of the bucket could have moved it was written by something else. It is unknown,
# and replaced by that of an empty bucket: then no more than the rate passes, and nothing is locked out for long.
#
# The interval is a minute divided by the rate, rounded up to a whole nanosecond. So the cost of n permits is exactly n
# times that of one, and the rate is never exceeded; it falls short by less than a nanosecond a permit (0.002 % at a
# million a minute).

# Constants ------------------------------------------------------------------------------------------------------------

cdef int64_t MINUTE_NS = 60_000_000_000
cdef int64_t MAX_PER_MINUTE = 1_000_000_000
cdef int64_t MAX_TOLERANCE = 1 << 60                 # 36 years: the longest a full bucket may take to fill
cdef int64_t MAX_DEBT = 3_600_000_000_000            # an hour beyond the time in which a bucket fills: see most_ahead

# Struct ---------------------------------------------------------------------------------------------------------------

cdef struct Limit:
    int64_t per_minute           # < 0: no limit; 0: nothing passes
    int64_t burst                # most permits at once
    int64_t interval             # ns a permit
    int64_t tolerance            # how far the TAT may run ahead: burst * interval

# Functions ------------------------------------------------------------------------------------------------------------

cdef int set_limit(Limit *limit, str what, int64_t per_minute, int64_t burst) except -1:
    if per_minute > MAX_PER_MINUTE:
        raise ValueError(f"{what} must be at most {MAX_PER_MINUTE} a minute, not {per_minute}")
    if burst < 0:
        raise ValueError(f"the burst of {what} must be 0 (a sixth of the rate) or more, not {burst}")
    cdef Limit new
    new.per_minute = max(per_minute, -1)
    new.burst = burst
    new.interval = 0
    new.tolerance = 0
    if per_minute > 0:
        new.interval = (MINUTE_NS + per_minute - 1) // per_minute
        if burst == 0:
            new.burst = max(1, per_minute // 6)
        # With this bound the sums below cannot overflow: now and TAT are at most 2**61, a granted n costs at most
        # 2**60.
        if new.burst > MAX_TOLERANCE // new.interval:
            raise ValueError(
                f"the burst of {what} must be at most {MAX_TOLERANCE // new.interval} at {per_minute} a minute, "
                f"not {burst}"
            )
        new.tolerance = new.burst * new.interval
    limit[0] = new
    return 0


cdef inline int64_t most_ahead(const Limit *limit) noexcept nogil:
    """How far ahead of now a debt or a place in line may move the TAT.

    No provider remembers for so long what was used in a minute, and without a bound a TAT that something else has
    written could not be told from a debt.
    """
    return 2 * limit.tolerance + MAX_DEBT


cdef inline bint is_too_far(const Limit *limit, int64_t ahead) noexcept nogil:
    """Whether no use of a bucket could have moved its TAT so far ahead of now."""
    # An hour more, so that one which another process set by a later reading of the clock is not taken for damage.
    return ahead > most_ahead(limit) + MAX_DEBT


cdef int64_t bucket_mend(const Limit *limit, int64_t *tat, int64_t now) noexcept nogil:
    """Empties a bucket whose TAT is too far ahead; the TAT."""
    cdef int64_t seen = fr_load_i64(tat)
    while is_too_far(limit, max(seen, now) - now):
        if fr_cas_i64(tat, &seen, now + limit.tolerance):
            return now + limit.tolerance
    return seen


cdef inline int64_t bucket_read(const Limit *limit, int64_t *tat, int64_t now) noexcept nogil:
    """The TAT, after mending one that cannot be."""
    cdef int64_t seen = fr_load_i64(tat)
    return bucket_mend(limit, tat, now) if fr_rarely(is_too_far(limit, max(seen, now) - now)) else seen


cdef inline int64_t bucket_wait(const Limit *limit, int64_t *tat, int64_t n, int64_t now) noexcept nogil:
    """What ``bucket_acquire`` would answer, taking nothing."""
    if limit.per_minute < 0 or n == 0:
        return 0
    if n > limit.burst or limit.per_minute == 0:
        return -1
    # Mended here too, because a caller may only ever ask how long to wait.
    return max(0, max(bucket_read(limit, tat, now), now) - now - (limit.tolerance - n * limit.interval))


cdef inline int64_t bucket_acquire(const Limit *limit, int64_t *tat, int64_t n, int64_t now) noexcept nogil:
    """Takes n and returns 0; or takes nothing and returns the ns until n would be free, or -1 for never."""
    cdef int64_t seen, wait, ahead
    if limit.per_minute < 0 or n == 0:
        return 0
    if n > limit.burst or limit.per_minute == 0:
        return -1
    seen = fr_load_i64(tat)
    while True:
        ahead = max(seen, now) - now
        # Whatever was read: neither of these overflows, as a sum with `ahead` could.
        wait = ahead - (limit.tolerance - n * limit.interval)
        if wait > 0:
            # In an emptied bucket, the n cost as long as they cost.
            return wait if bucket_read(limit, tat, now) == seen else n * limit.interval
        # A lost swap has put the newer TAT into `seen`: all of it is computed again from there.
        if fr_cas_i64(tat, &seen, now + ahead + n * limit.interval):
            return 0


cdef inline int64_t bucket_reserve(
    const Limit *limit, int64_t *tat, int64_t n, int64_t max_wait, int64_t now
) noexcept nogil:
    """Takes n now, to be used after the returned ns.

    Or takes nothing and returns -1 for never, -2 - wait if the wait is above ``max_wait``.
    """
    cdef int64_t seen, wait, ahead
    if limit.per_minute < 0 or n == 0:
        return 0
    if n > limit.burst or limit.per_minute == 0:
        return -1
    seen = bucket_read(limit, tat, now)
    while True:
        ahead = max(seen, now) - now
        wait = max(0, ahead - (limit.tolerance - n * limit.interval))
        if wait > min(max_wait, most_ahead(limit) - limit.tolerance):
            return -2 - wait
        if fr_cas_i64(tat, &seen, now + ahead + n * limit.interval):
            return wait


cdef inline void bucket_settle(const Limit *limit, int64_t *tat, int64_t delta, int64_t now) noexcept nogil:
    """Charges ``delta`` more, into debt if need be, or gives back ``-delta``."""
    cdef int64_t seen, cost, most
    if limit.per_minute <= 0 or delta == 0:
        return
    if delta > 0:
        cost = fr_product(delta, limit.interval)
        most = now + most_ahead(limit)
        seen = bucket_read(limit, tat, now)
        while seen < most and not fr_cas_i64(tat, &seen, min(fr_sum(max(seen, now), cost), most)):
            pass
        return
    seen = fr_load_i64(tat)
    cost = fr_product(-delta, limit.interval)
    # A TAT in the past is a full bucket already. Moving it further back would let more than `burst` pass at once.
    while seen > now and not fr_cas_i64(tat, &seen, max(0, seen - cost)):
        pass


cdef inline int64_t bucket_available(const Limit *limit, int64_t *tat, int64_t now) noexcept nogil:
    """Permits free now, rounded down; negative in debt."""
    cdef int64_t room
    if limit.per_minute < 0:
        return INT64_MAX
    if limit.per_minute == 0:
        return 0
    room = limit.tolerance - (max(bucket_read(limit, tat, now), now) - now)
    if room >= 0:
        return room // limit.interval
    return -((-room + limit.interval - 1) // limit.interval)


cdef inline void bucket_tighten(const Limit *limit, int64_t *tat, int64_t remaining, int64_t now) noexcept nogil:
    """Moves the TAT on so that no more than ``remaining`` are free now; never back.

    Never back, because the provider counts calls only when they reach it, and this bucket also those on their way.
    """
    cdef int64_t seen, target
    if limit.per_minute <= 0 or remaining >= limit.burst:
        return
    target = now + limit.tolerance - remaining * limit.interval
    seen = fr_load_i64(tat)
    while seen < target and not fr_cas_i64(tat, &seen, target):
        pass


# Class ----------------------------------------------------------------------------------------------------------------


@cython.final
cdef class Bucket:
    """A limit of so many a minute with a burst, shared by name.

    From fresh, exactly ``burst`` single permits are granted at once; then one an interval (a minute divided by the
    rate, rounded up to a nanosecond). Only the permits taken are shared by name; rate and burst belong to this object.

    Args:
        segment: Where the state lives.
        name: Two buckets of one name in one segment are the same bucket.
        per_minute: The rate, 0 (nothing passes) to 1e9; negative or None: no limit.
        burst: Most permits at once; 0 means a sixth of the rate (ten seconds' worth), at least 1.

    Thread safety: all methods are lock-free; threads and processes together never get more than the limit.
    """

    cdef readonly Segment segment
    cdef readonly str name
    cdef int64_t *tat
    cdef Limit limit

    def __init__(self, Segment segment not None, str name not None, per_minute, burst=0) -> None:
        set_limit(&self.limit, "per_minute", -1 if per_minute is None else integer(per_minute), integer(burst))
        self.tat = &(<Cold *>segment.claim(segment.name_hash(name), KIND_BUCKET)).tat
        self.segment = segment
        self.name = name

    @property
    def per_minute(self) -> int:
        """The rate; -1 when there is no limit."""
        return self.limit.per_minute

    @property
    def burst(self) -> int:
        """Most permits at once."""
        return self.limit.burst

    def acquire(self, n=1, now=0) -> int:
        """Takes ``n`` permits if they are free.

        Returns:
            0: taken. More than 0: nothing taken, ns until ``n`` could be. -1: never (``n`` above the burst, or the
            rate is 0). ``n`` of 0 is always granted.
        """
        return bucket_acquire(&self.limit, self.tat, amount("n", n, 0), moment(now) or fr_clock())

    def reserve(self, n, max_wait, now=0) -> int:
        """Takes ``n`` permits now, to be used after a wait. Earlier reservations wait less, and each sleeps once.

        Returns:
            0 or more: taken, ns to wait. -1: never. -2 - w: nothing taken; the wait w would be above ``max_wait`` ns,
            or above an hour beside the time in which the bucket fills.
        """
        return bucket_reserve(
            &self.limit, self.tat, amount("n", n, 0), patience(max_wait), moment(now) or fr_clock()
        )

    def settle(self, delta, now=0) -> None:
        """Charges ``delta`` permits more (into debt if they are not there), or gives back ``-delta``.

        A debt is cut to what is worked off in an hour, beside the time in which the bucket fills.
        """
        bucket_settle(&self.limit, self.tat, amount("delta", delta, -FR_TIME_MAX), moment(now) or fr_clock())

    def available(self, now=0) -> int:
        """Permits free now, rounded down; negative in debt; 2**63 - 1 without a limit."""
        return bucket_available(&self.limit, self.tat, moment(now) or fr_clock())

    def tighten(self, remaining, now=0) -> None:
        """Lowers the permits free now to ``remaining``, as reported by the provider. Never raises them."""
        bucket_tighten(&self.limit, self.tat, amount("remaining", remaining, 0), moment(now) or fr_clock())
