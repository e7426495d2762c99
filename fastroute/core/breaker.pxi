# ======================================================================================================================
# Breaker: whether to send there at all
# ======================================================================================================================
#
# One control word holds state, count, back-off, epoch and one time, so that every change is a single swap:
#
#   bits  0- 1  state: CLOSED, OPEN, HALF_OPEN
#   bits  2- 9  count: failures in a row (CLOSED), probes that went well (HALF_OPEN)
#   bits 10-14  k: openings in a row; the next opening lasts open_s * 2**k
#   bits 15-25  epoch: grows with every change of state and every probe
#   bits 26-63  time in ms, rounded up: closed since (CLOSED, 0: never opened), open until (OPEN), lease of the probe
#               until (HALF_OPEN, 0: no probe under way)
#
# A ticket is the epoch in which a call was let through, so a result that comes back in another epoch is late and
# changes nothing: it neither prolongs an opening nor closes one. (The epoch wraps after 2048 changes; a result would
# have to be exactly that late to be mistaken.) A probe is one ticket of a half-open breaker. Its lease ends even if
# its owner was killed, so the breaker cannot stay half-open for ever. The outcomes of the window are in ten words
# beside the control word, each swapped alone. They are cleared just before the breaker is closed.
#
# A time further ahead than the rules can have set it is unknown, and counts as over: the next caller is the probe, which
# shows how the endpoint is and writes the word anew. A fourth state is taken for a half-open one.

# Constants ------------------------------------------------------------------------------------------------------------

OK = OUTCOME_OK
FAILURE = OUTCOME_FAILURE
IGNORED = OUTCOME_IGNORED
THROTTLED = OUTCOME_THROTTLED
USELESS = OUTCOME_USELESS

CLOSED = STATE_CLOSED
OPEN = STATE_OPEN
HALF_OPEN = STATE_HALF_OPEN

cdef enum:
    OUTCOME_OK = 0
    OUTCOME_FAILURE = 1
    OUTCOME_IGNORED = 2
    OUTCOME_THROTTLED = 3
    OUTCOME_USELESS = 4          # an answer that is of no use: it lowers the rank, but the breaker does not count it

cdef enum:
    STATE_CLOSED = 0
    STATE_OPEN = 1
    STATE_HALF_OPEN = 2

cdef enum:
    COUNT_MAX = 255
    BACKOFF_MAX = 31
    EPOCH_MASK = 0x7FF
    WINDOW_WORDS = 10            # five in each of two cells
    WINDOW_COUNT_MAX = 0xFFFFF   # 20 bits each for calls and failures of one bucket
    MS = 1000000

cdef int64_t SECOND_NS = 1_000_000_000
cdef int64_t DAY_NS = 86_400_000_000_000
cdef uint64_t MAX_BLOCK_US = (<uint64_t>1 << 48) - 1  # nine years of uptime

# Struct ---------------------------------------------------------------------------------------------------------------

cdef struct BreakerRules:        # all times in ns
    int64_t failures             # this many failures in a row open it
    double rate                  # or this share of failures in the window,
    int64_t min_calls            # once it has seen so many results
    int64_t window               # length of one of the window's ten buckets
    uint64_t window_reciprocal
    int64_t open                 # the first opening lasts half to all of this
    int64_t max_open             # and no opening longer than this
    int64_t reset                # closed for so long: the next opening is a first one again
    int64_t lease                # a probe that has not reported after this is given up
    int64_t probes               # so many good probes, one after the other, close it
    int64_t ramp                 # after closing, full load comes back over this time
    uint64_t salt                # hash of the name: gives each breaker a jitter of its own

cdef struct BreakerCells:
    uint64_t *control
    uint64_t *block
    uint64_t *window[2]          # five words in each

# Functions ------------------------------------------------------------------------------------------------------------

cdef double seconds(str what, double value, double low, double high) except? -1:
    if not low <= value <= high:
        raise ValueError(f"{what} must be {low:g} to {high:g} seconds, not {value!r}")
    return value


cdef int64_t whole(str what, int64_t value, int64_t low, int64_t high) except? -1:
    if value < low or value > high:
        raise ValueError(f"{what} must be {low} to {high}, not {value}")
    return value


cdef int set_rules(
    BreakerRules *rules, int64_t failures, double rate, int64_t min_calls, double window_s, double open_s,
    double max_open_s, double reset_s, double probe_lease_s, int64_t probes_to_close, double ramp_s,
) except -1:
    cdef BreakerRules new
    new.failures = whole("failures", failures, 1, COUNT_MAX)
    if not 0.0 < rate <= 1.0:
        raise ValueError(f"rate must be above 0 and at most 1, not {rate!r}")
    new.rate = rate
    new.min_calls = whole("min_calls", min_calls, 1, WINDOW_COUNT_MAX)
    new.window = <int64_t>(seconds("window_s", window_s, 0.01, 86400.0) * 1e9) // WINDOW_WORDS
    new.window_reciprocal = fr_reciprocal(new.window)
    new.open = <int64_t>(seconds("open_s", open_s, 0.001, 86400.0) * 1e9)
    new.max_open = <int64_t>(seconds("max_open_s", max_open_s, open_s, 86400.0) * 1e9)
    new.reset = <int64_t>(seconds("reset_s", reset_s, 0.0, 86400.0) * 1e9)
    new.lease = <int64_t>(seconds("probe_lease_s", probe_lease_s, 0.001, 86400.0) * 1e9)
    new.probes = whole("probes_to_close", probes_to_close, 1, COUNT_MAX)
    new.ramp = <int64_t>(seconds("ramp_s", ramp_s, 0.0, 86400.0) * 1e9)
    new.salt = rules.salt
    rules[0] = new
    return 0


cdef inline uint64_t control_word(uint64_t state, uint64_t count, uint64_t k, uint64_t epoch, uint64_t ms) noexcept nogil:
    return state | count << 2 | k << 10 | (epoch & EPOCH_MASK) << 15 | ms << 26


cdef inline uint64_t control_state(uint64_t word) noexcept nogil:
    return word & 3


cdef inline uint64_t control_count(uint64_t word) noexcept nogil:
    return word >> 2 & 0xFF


cdef inline uint64_t control_backoff(uint64_t word) noexcept nogil:
    return word >> 10 & 0x1F


cdef inline uint64_t control_epoch(uint64_t word) noexcept nogil:
    return word >> 15 & EPOCH_MASK


cdef inline int64_t control_time(uint64_t word) noexcept nogil:
    return <int64_t>(word >> 26) * MS


cdef inline int64_t control_left(const BreakerRules *rules, uint64_t word, int64_t now) noexcept nogil:
    """ns until the time of a word that is not CLOSED; 0 or less if that is over."""
    cdef int64_t left = control_time(word) - now
    # A second more, for clocks read in another order and for what another machine reports. A probe's lease is extended
    # to the time that its call may take, a day at most.
    return left if left <= (rules.max_open if control_state(word) == STATE_OPEN else DAY_NS) + SECOND_NS else 0


cdef inline uint64_t ms_of(int64_t time) noexcept nogil:
    return min(<uint64_t>(time + MS - 1) // MS, (<uint64_t>1 << 38) - 1)


cdef int64_t breaker_allow(const BreakerRules *rules, uint64_t *control, int64_t now) noexcept nogil:
    """A ticket (epoch << 1 | probe), or minus the ns until it is worth asking again. ``now`` of 0 reads the clock."""
    cdef uint64_t word = fr_load(control)
    cdef uint64_t epoch, count
    cdef int64_t left
    # A closed breaker, nearly always: one load, no clock, no write.
    if control_state(word) == STATE_CLOSED:
        return control_epoch(word) << 1
    if now == 0:
        now = fr_clock_coarse()
    while True:
        if control_state(word) == STATE_CLOSED:
            return control_epoch(word) << 1
        left = control_left(rules, word, now)
        if left > 0:
            return -left
        # The bits hold good probes only while half-open.
        count = control_count(word) if control_state(word) == STATE_HALF_OPEN else 0
        # Of all callers that come here at once one wins the swap and is the probe; the others see its lease and wait.
        # A probe whose lease ran out is replaced under a new epoch, so that its result, should it still come, is not
        # taken for the new probe's.
        epoch = control_epoch(word) + 1 & EPOCH_MASK
        if fr_cas(
            control, &word,
            control_word(STATE_HALF_OPEN, count, control_backoff(word), epoch, ms_of(now + rules.lease)),
        ):
            return epoch << 1 | 1


cdef inline int64_t breaker_peek(const BreakerRules *rules, uint64_t word, int64_t now) noexcept nogil:
    """Whether a call may go, changing nothing: 0: yes, 1: yes, as the probe, negative: minus the ns to wait."""
    cdef int64_t left
    if control_state(word) == STATE_CLOSED:
        return 0
    left = control_left(rules, word, now)
    return -left if left > 0 else 1


cdef bint breaker_hurry(uint64_t *control, int64_t now) noexcept nogil:
    """Moves the end of an opening to now; False if the breaker is not open."""
    cdef uint64_t word = fr_load(control)
    while control_state(word) == STATE_OPEN:
        if control_time(word) <= now or fr_cas(
            control, &word, (word & ((<uint64_t>1 << 26) - 1)) | <uint64_t>(now // 1000000) << 26
        ):
            return True
    return False


cdef inline void window_add(
    const BreakerRules *rules, const BreakerCells *cells, bint failure, int64_t now
) noexcept nogil:
    """Counts one result in the bucket of now: bucket number (24 bits) | calls (20 bits) | failures (20 bits)."""
    cdef uint64_t number = fr_divide(now, rules.window, rules.window_reciprocal)
    cdef uint32_t index = number % WINDOW_WORDS
    cdef uint64_t *place = cells.window[index // 5] + index % 5
    cdef uint64_t word = fr_load(place)
    cdef uint64_t new
    number &= 0xFFFFFF
    while True:
        if word >> 40 == number:
            # A full counter would carry into its neighbour.
            if (word >> 20 & WINDOW_COUNT_MAX) == WINDOW_COUNT_MAX:
                return
            new = word + (1 << 20) + failure
        else:
            # A number a little above this one is a later bucket: this result came too late to count. A number far above
            # is a much older bucket, from before the 24 bits wrapped, and is replaced.
            if word << 24 and ((word >> 40) - number & 0xFFFFFF) < 1024:
                return
            new = number << 40 | 1 << 20 | failure
        if fr_cas(place, &word, new):
            return


cdef inline bint window_trips(const BreakerRules *rules, const BreakerCells *cells, int64_t now) noexcept nogil:
    cdef uint64_t number = fr_divide(now, rules.window, rules.window_reciprocal)
    cdef uint64_t word
    cdef int64_t calls = 0
    cdef int64_t failures = 0
    cdef int index
    for index in range(WINDOW_WORDS):
        word = fr_load(cells.window[index // 5] + index % 5)
        if (number - (word >> 40) & 0xFFFFFF) < WINDOW_WORDS:
            calls += word >> 20 & WINDOW_COUNT_MAX
            failures += word & WINDOW_COUNT_MAX
    return calls >= rules.min_calls and <double>failures / <double>calls >= rules.rate


cdef uint64_t opened_word(const BreakerRules *rules, uint64_t word, uint64_t opened, int64_t now) noexcept nogil:
    """The control word of an opening that lasts half to all of d = min(max_open, open * 2**opened)."""
    # Jitter, so that breakers which opened together do not all send their probes at the same moment. A mix rather than
    # a random number: the core takes no randomness of its own, and equal inputs can be tested.
    cdef int64_t d = rules.open
    cdef uint64_t k = opened
    while k > 0 and d < rules.max_open:
        d *= 2
        k -= 1
    d = min(d, rules.max_open)
    cdef double fraction = fr_fraction(fr_mix(rules.salt ^ fr_mix(<uint64_t>now ^ control_epoch(word) << 48)))
    d = d // 2 + <int64_t>(fraction * <double>(d - d // 2))
    return control_word(STATE_OPEN, 0, min(opened + 1, <uint64_t>BACKOFF_MAX), control_epoch(word) + 1, ms_of(now + d))


cdef int breaker_record(
    const BreakerRules *rules, const BreakerCells *cells, int64_t ticket, int outcome, int64_t now
) noexcept nogil:
    """The state that this result led to, or -1 if the state stays. ``now`` of 0 reads the clock."""
    cdef uint64_t word = fr_load(cells.control)
    cdef uint64_t count, k
    if <int64_t>control_epoch(word) != ticket >> 1:
        return -1
    if now == 0:
        now = fr_clock_coarse()
    if ticket & 1:
        return probe_record(rules, cells, ticket, outcome, now)
    if outcome > OUTCOME_FAILURE or control_state(word) != STATE_CLOSED:
        return -1
    # The window first: the failure that trips it must be among those counted. Killed after this, the process has
    # counted one result in the window and not in the row of failures, which changes no more than one result can.
    window_add(rules, cells, outcome == OUTCOME_FAILURE, now)
    while control_state(word) == STATE_CLOSED and <int64_t>control_epoch(word) == ticket >> 1:
        k = control_backoff(word)
        if outcome == OUTCOME_OK:
            # The usual case writes nothing, so calls that go well do not fight for the cell. A breaker that has been
            # closed for long enough forgets that it was ever open.
            if word >> 26 == 0 and control_count(word) == 0:
                return -1
            if word >> 26 and not -SECOND_NS < now - control_time(word) < max(rules.reset, rules.ramp):
                if fr_cas(cells.control, &word, control_word(STATE_CLOSED, 0, 0, control_epoch(word), 0)):
                    return -1
            elif control_count(word) == 0:
                return -1
            elif fr_cas(cells.control, &word, control_word(STATE_CLOSED, 0, k, control_epoch(word), word >> 26)):
                return -1
            continue
        count = control_count(word) + 1
        if <int64_t>count >= rules.failures or window_trips(rules, cells, now):
            if now - control_time(word) >= rules.reset:
                k = 0
            if fr_cas(cells.control, &word, opened_word(rules, word, k, now)):
                return STATE_OPEN
        elif fr_cas(
            cells.control, &word, control_word(STATE_CLOSED, min(count, COUNT_MAX), k, control_epoch(word), word >> 26)
        ):
            return -1
    return -1


cdef int probe_record(
    const BreakerRules *rules, const BreakerCells *cells, int64_t ticket, int outcome, int64_t now
) noexcept nogil:
    cdef uint64_t word = fr_load(cells.control)
    cdef uint64_t new, count
    cdef int result, index
    # Read again: since the caller compared the epoch, the probe may have been replaced or have reported.
    while control_state(word) == STATE_HALF_OPEN and <int64_t>control_epoch(word) == ticket >> 1:
        if word >> 26 == 0:
            return -1                # this probe has reported already
        count = control_count(word)
        result = -1
        if outcome == OUTCOME_FAILURE:
            result = STATE_OPEN
            new = opened_word(rules, word, control_backoff(word), now)
        elif outcome != OUTCOME_OK:
            # It says neither that the endpoint works nor that it does not. A lease of 0 gives the place to the next.
            new = control_word(STATE_HALF_OPEN, count, control_backoff(word), control_epoch(word), 0)
        elif <int64_t>count + 1 < rules.probes:
            new = control_word(STATE_HALF_OPEN, count + 1, control_backoff(word), control_epoch(word), 0)
        else:
            result = STATE_CLOSED
            # Before the swap: closed with the old failures in its window, the breaker would open again at the first new
            # one. A process killed between the two loses nothing: the window of a half-open breaker is not read.
            for index in range(WINDOW_WORDS):
                fr_store(cells.window[index // 5] + index % 5, 0)
            new = control_word(
                STATE_CLOSED, 0, control_backoff(word), control_epoch(word) + 1, max(ms_of(now), <uint64_t>1)
            )
        if fr_cas(cells.control, &word, new):
            return result
    return -1


cdef inline void probe_extend(uint64_t *control, int64_t ticket, int64_t until) noexcept nogil:
    """Extends the lease of a probe that has not reported until a time; never shortens it."""
    cdef uint64_t word = fr_load(control)
    cdef uint64_t ms = ms_of(until)
    while (
        ticket & 1 and control_state(word) == STATE_HALF_OPEN and <int64_t>control_epoch(word) == ticket >> 1
        and 0 < word >> 26 < ms
    ):
        if fr_cas(control, &word, (word & ((<uint64_t>1 << 26) - 1)) | ms << 26):
            return


cdef inline int breaker_state(const BreakerRules *rules, uint64_t word, int64_t now) noexcept nogil:
    if control_state(word) == STATE_OPEN and control_left(rules, word, now) <= 0:
        return STATE_HALF_OPEN
    return <int>min(control_state(word), <uint64_t>STATE_HALF_OPEN)


cdef inline int64_t breaker_reopens(const BreakerRules *rules, uint64_t word, int64_t now) noexcept nogil:
    """ns until an open breaker lets a probe through; 0 in every other state."""
    return max(0, control_left(rules, word, now)) if control_state(word) == STATE_OPEN else 0


cdef inline double breaker_ramp(const BreakerRules *rules, uint64_t word, int64_t now) noexcept nogil:
    cdef int64_t since
    if control_state(word) != STATE_CLOSED or word >> 26 == 0:
        return 1.0
    since = now - control_time(word)
    if since >= rules.ramp or since < -SECOND_NS:
        return 1.0
    since = max(0, since)
    return 0.1 + 0.9 * (<double>since / <double>rules.ramp)


# The word `block`: bits 0-7 the reason, 8-55 until when in us, 56-63 a check byte. There is no bound on how long an
# endpoint may be excluded, so a changed byte must show in another way; an exclusion in which it does is none.


cdef inline int64_t block_left(uint64_t word, int64_t now) noexcept nogil:
    return max(0, <int64_t>(word >> 8 & MAX_BLOCK_US) * 1000 - now) if fr_fold(word) == 0 else 0


cdef int block_until(uint64_t *block, object until_ns, object reason) except -1:
    cdef uint64_t until = amount("until_ns", until_ns, 0)
    cdef uint64_t end = min((until + 999) // 1000, MAX_BLOCK_US)
    cdef uint64_t new = end << 8 | <uint64_t>whole("reason", integer(reason), 0, 255)
    cdef uint64_t word = fr_load(block)
    new |= fr_fold(new) << 56
    # Only ever later: of two exclusions the longer one holds, whichever is recorded first.
    while ((word >> 8 & MAX_BLOCK_US) < end or fr_fold(word) != 0) and not fr_cas(block, &word, new):
        pass
    return 0


cdef inline int checked_outcome(object outcome) except -1:
    cdef int64_t value = integer(outcome)
    if value < OUTCOME_OK or value > OUTCOME_USELESS:
        raise ValueError(
            f"outcome must be OK (0), FAILURE (1), IGNORED (2), THROTTLED (3) or USELESS (4), not {outcome}"
        )
    return <int>value


# Class ----------------------------------------------------------------------------------------------------------------


@cython.final
cdef class Breaker:
    """Decides whether to send to an endpoint, from how calls to it ended; shared by name.

    Closed, it lets every call through. It opens after ``failures`` FAILUREs in a row, or at a FAILURE when the last
    ``window_s`` holds at least ``min_calls`` results of which the share ``rate`` or more failed. Open, it refuses calls
    for a time between d/2 and d, where d = min(max_open_s, open_s * 2**k) and k is the number of openings in a row
    before this one; the point between is drawn from a mix of epoch, time and name. Then it lets through one probe at a
    time, from any process: ``probes_to_close`` good probes close it, a failed one opens it again, one without a result
    after ``probe_lease_s`` is given up. Times are kept in whole ms, rounded up.

    IGNORED, THROTTLED and USELESS results count neither way; a probe that ends so gives its place to the next caller.

    Args:
        segment: Where the state lives.
        name: Two breakers of one name in one segment are the same breaker.
        failures: In a row, 1 to 255.
        rate: Above 0, at most 1.
        min_calls: 1 to 1048575.
        window_s: Seconds, kept in ten buckets.
        open_s: Length of the first opening, at least 1 ms.
        max_open_s: Length of the longest.
        reset_s: After this long closed, the next opening counts as the first again.
        probe_lease_s: At least 1 ms.
        probes_to_close: 1 to 255.
        ramp_s: Seconds after closing in which ``ramp`` rises from 0.1 to 1.

    Thread safety: all methods are lock-free; exactly one thread of one process gets a probe.
    """

    cdef readonly Segment segment
    cdef readonly str name
    cdef BreakerCells cells
    cdef BreakerRules rules

    def __init__(
        self, Segment segment not None, str name not None, *, failures=5, double rate=0.5, min_calls=20,
        double window_s=30.0, double open_s=5.0, double max_open_s=300.0, double reset_s=60.0,
        double probe_lease_s=35.0, probes_to_close=2, double ramp_s=10.0,
    ) -> None:
        set_rules(
            &self.rules, integer(failures), rate, integer(min_calls), window_s, open_s, max_open_s, reset_s,
            probe_lease_s, integer(probes_to_close), ramp_s,
        )
        cdef uint64_t name_hash = segment.name_hash(name)
        cdef Hot *hot = <Hot *>segment.claim(name_hash, KIND_BREAKER)
        self.rules.salt = name_hash
        self.cells.control = &hot.breaker
        self.cells.block = &hot.block
        self.cells.window[0] = segment.claim(name_hash, KIND_WINDOW, 2) + 1
        self.cells.window[1] = segment.claim(name_hash, KIND_WINDOW, 3) + 1
        self.segment = segment
        self.name = name

    def allow(self, now=0) -> int:
        """Asks whether to send.

        Returns:
            0 or more: yes; a ticket, to be given to ``record`` once. Negative: no, and minus the ns after which it is
            worth asking again (the end of the opening, or of the lease of the probe under way).
        """
        return breaker_allow(&self.rules, self.cells.control, moment(now))

    def record(self, ticket, outcome, now=0) -> int:
        """Records how the call of a ticket ended: OK, FAILURE, IGNORED, THROTTLED or USELESS.

        Returns:
            The new state if this changed it, else -1. A ticket of an older epoch changes nothing. A probe's ticket
            counts once; a ticket of a closed breaker counts each time it is passed.
        """
        return breaker_record(
            &self.rules, &self.cells, ticket_of(ticket), checked_outcome(outcome), moment(now)
        )

    def cancel(self, ticket, now=0) -> None:
        """Records IGNORED: the call of a ticket was not made, or its result says nothing about the endpoint."""
        breaker_record(&self.rules, &self.cells, ticket_of(ticket), OUTCOME_IGNORED, moment(now))

    def state(self, now=0) -> int:
        """CLOSED, OPEN or HALF_OPEN; an opening whose time is up reads HALF_OPEN."""
        return breaker_state(&self.rules, fr_load(self.cells.control), moment(now) or fr_clock())

    def reopens_in(self, now=0) -> int:
        """ns until an open breaker lets a probe through; 0 in every other state."""
        return breaker_reopens(&self.rules, fr_load(self.cells.control), moment(now) or fr_clock())

    def ramp(self, now=0) -> float:
        """The share of its load that it should get: 0.1 rising to 1.0 in ``ramp_s`` after closing, else 1.0."""
        return breaker_ramp(&self.rules, fr_load(self.cells.control), moment(now) or fr_clock())

    def block(self, until_ns, reason) -> None:
        """Excludes the endpoint until a time, whatever the state. Never shortens an exclusion. ``allow`` ignores it.

        Args:
            until_ns: On the core's clock, kept in whole µs, rounded up.
            reason: 0 to 255, a code of the caller's.
        """
        block_until(self.cells.block, until_ns, reason)

    def blocked(self, now=0) -> tuple[int, int]:
        """(ns left, reason), or (0, 0) when it is not blocked."""
        cdef uint64_t word = fr_load(self.cells.block)
        cdef int64_t left = block_left(word, moment(now) or fr_clock())
        return (left, <int>(word & 0xFF) if left else 0)

    def unblock(self) -> None:
        """Ends the exclusion."""
        fr_store(self.cells.block, 0)
