# ======================================================================================================================
# Latency: how quick and how well; and the retry budget
# ======================================================================================================================
#
# The estimate is a peak-sensitive moving average (Finagle's Peak EWMA): a slower call raises it to its own latency at
# once, a quicker one lowers it by a share that grows with the time since the last call, 1 - exp(-dt / tau). Read with
# decay, average and failure rate fade by exp(-dt / tau), so that an endpoint that gets no calls is tried again. An
# average and its time stamp share a word and change together. Spread, score and the counts beside them are written
# alone and may lag by one call when two end at once: they only order endpoints, and the next call writes them again.

# Constants ------------------------------------------------------------------------------------------------------------

cdef enum:
    SAMPLES = 50
    CELL_SAMPLES = 14            # floats in one cell; four cells hold 50 and three words of time to first token
    TTFT_MIN_SAMPLES = 20

cdef extern from *:
    """
    #define FR_FAILURE_ALPHA 0.1
    #define FR_UNMEASURED 1e6        /* load of an endpoint of unknown latency while it is being tried: a high one */
    #define FR_FORGIVEN 0.05         /* an unmeasured endpoint that failed is tried again below this failure rate */
    #define FR_MIN_SUCCESS 0.01
    #define FR_USAGE_TAU 60.0
    #define FR_LOST_UNITS 10.0       /* of a lost point of health */
    #define FR_RATE_UNITS 4194303.0  /* of a failure rate of 1 */
    #define FR_HEALTH_REST 5.0       /* seconds without a result after which lost points begin to fade, */
    #define FR_HEALTH_TAU 20.0       /* with this time constant: from a score of 0 it is above 70 after 29 s */
    #define FR_UNHEALTHY 301         /* so many units lost: the score is under 70, as after three failures in a row */
    #define fr_rarely(condition) __builtin_expect(!!(condition), 0)
    #define FR_LONGEST 1e6           /* seconds: a latency above it was written by something else, and is unknown */
    #define FR_MOST_TOKENS 1e18
    #define FR_HIGHEST_LOAD 1e30
    #define FR_LAST 1e6              /* the load of an unhealthy endpoint is so many times as high */
    """
    const double FR_FAILURE_ALPHA    # what one result moves the failure rate by, towards 0 or 1
    const double FR_UNMEASURED
    const double FR_FORGIVEN
    const double FR_MIN_SUCCESS      # bounds the division by success**2
    const double FR_USAGE_TAU        # seconds
    const double FR_LOST_UNITS
    const double FR_RATE_UNITS
    const double FR_HEALTH_REST
    const double FR_HEALTH_TAU
    const int FR_UNHEALTHY
    const double FR_LONGEST
    const double FR_MOST_TOKENS
    const double FR_HIGHEST_LOAD
    const double FR_LAST
    bint fr_rarely(bint condition) noexcept nogil

# Structs --------------------------------------------------------------------------------------------------------------

cdef struct LatencyCells:
    Hot *hot
    Cold *cold
    uint64_t *samples[4]         # whole cells, the key first; the last three words of the fourth are ttft's
    double inverse_tau           # 1 / tau_s

cdef struct RetryRules:
    double ratio                 # what a first attempt adds
    double rest                  # the balance drifts towards this: reserve_per_s * ttl_s
    double inverse_ttl           # 1 / ttl_s
    double most                  # the balance never rises above this

# Functions ------------------------------------------------------------------------------------------------------------

cdef int claim_latency(LatencyCells *cells, Segment segment, uint64_t name, Hot *hot, Cold *cold, double tau_s) except -1:
    cdef int number
    cells.inverse_tau = 1.0 / seconds("tau_s", tau_s, 0.001, 86400.0)
    cells.hot = hot
    cells.cold = cold
    for number in range(4):
        cells.samples[number] = segment.claim(name, KIND_SAMPLES, number + 2)
    return 0


cdef double checked_latency(double value) except? -1:
    if not 0.0 <= value <= 1e6:
        raise ValueError(f"a latency must be 0 to 1e6 seconds, not {value!r}")
    return value


# The word `failure`: bits 54-63 the points of health that were lost, in tenths; 32-53 the failure rate, in parts of
# FR_RATE_UNITS; 0-31 the stamp. Both are rounded down, so that the word becomes 0 again and good calls, which then need
# no exp() and no swap, do not fight for the cell.


cdef inline uint64_t failing_pack(double rate, double lost, uint32_t stamp) noexcept nogil:
    cdef uint64_t both = <uint64_t>(lost * FR_LOST_UNITS) << 22 | <uint64_t>(rate * FR_RATE_UNITS)
    return both << 32 | stamp if both else 0


cdef inline double failing_rate(uint64_t word) noexcept nogil:
    return <double>(word >> 32 & 0x3FFFFF) * (1.0 / FR_RATE_UNITS)


cdef inline double lost_at(uint64_t word, uint32_t stamp) noexcept nogil:
    """Points of health lost, 0 to 100, faded to a time stamp.

    They fade only while an endpoint has no results, so that it is tried again. How often it is looked at does not
    matter.
    """
    cdef double lost = min(<double>(word >> 54) / FR_LOST_UNITS, 100.0)
    cdef double idle = fr_elapsed(stamp, fr_stamp(word)) - FR_HEALTH_REST
    return lost * fr_decay(idle / FR_HEALTH_TAU) if idle > 0 and lost > 0 else lost


cdef inline bint is_unhealthy(uint64_t word, uint32_t stamp) noexcept nogil:
    return fr_rarely(word >> 54 >= FR_UNHEALTHY) and lost_at(word, stamp) * FR_LOST_UNITS >= FR_UNHEALTHY


cdef inline double success_of(double failure) noexcept nogil:
    return max(1.0 - failure, FR_MIN_SUCCESS)


# Ranking reads these floats as they are: whatever they are, they only order endpoints. What would stay wrong, because an
# infinite average never fades and NaN is neither before nor behind another, is mended by the next look for dead workers
# (`mend_endpoints`) or by the next call that ends.


cdef inline double latency_of(uint64_t word) noexcept nogil:
    return fr_within(fr_value(word), FR_LONGEST)


cdef inline double spread_of(const Hot *hot) noexcept nogil:
    return fr_within(fr_load_float(&hot.spread), FR_LONGEST)


cdef inline int32_t in_flight_of(const Hot *hot) noexcept nogil:
    return min(max(fr_load_i32(&hot.in_flight), 0), MAX_IN_FLIGHT)


cdef inline void refresh_load(Hot *hot) noexcept nogil:
    """Computes ``load`` from its parts. Of two threads at once the older value may stay, until the next call."""
    cdef int32_t in_flight = in_flight_of(hot)
    cdef float score = fr_load_float(&hot.score)
    if score == 0 and in_flight:
        score = <float>FR_UNMEASURED
    fr_store_float(&hot.load, score * <float>(in_flight + 1))


cdef inline void set_score(const LatencyCells *cells) noexcept nogil:
    """The load of one call without decay, kept ready for ranking. 0 only if never measured nor failed."""
    cdef uint64_t failing = fr_load(&cells.hot.failure)
    cdef double failure = failing_rate(failing)
    cdef double ewma = fr_value(fr_load(&cells.hot.ewma))
    cdef double score = 0.0
    # Without decay, as this is written only when a call ends. Readers that want decay compute it from the time stamp.
    if ewma > 0:
        score = ewma + fr_load_float(&cells.hot.spread)
    elif failure >= FR_FORGIVEN or failing >> 54 >= FR_UNHEALTHY:
        score = FR_UNMEASURED
    if failure > 0:
        score = score / (success_of(failure) * success_of(failure))
    if failing >> 54 >= FR_UNHEALTHY:
        score = score * FR_LAST
    fr_store_float(&cells.hot.score, <float>score)
    refresh_load(cells.hot)


cdef inline void latency_record(const LatencyCells *cells, int outcome, double x, int64_t now) noexcept nogil:
    cdef uint32_t stamp = fr_millis(now)
    cdef uint64_t word
    cdef double failure, lost, ewma, weight, deviation, spread, new
    if outcome == OUTCOME_IGNORED:
        return
    word = fr_load(&cells.hot.failure)
    # An endpoint without failures, the usual case, keeps a word of 0: no exp() and no swap for it.
    if outcome != OUTCOME_OK or word != 0:
        while True:
            failure = failing_rate(word)
            if failure > 0:
                failure *= fr_decay(fr_elapsed(stamp, fr_stamp(word)) * cells.inverse_tau)
            failure += FR_FAILURE_ALPHA * ((0.0 if outcome == OUTCOME_OK else 1.0) - failure)
            lost = lost_at(word, stamp)
            if outcome == OUTCOME_OK:
                lost = max(lost - 2.0, 0.0)
            elif outcome != OUTCOME_THROTTLED:
                lost = min(lost + 15.0, 100.0)
            if fr_cas(&cells.hot.failure, &word, failing_pack(failure, lost, stamp)):
                break
    if outcome == OUTCOME_OK and x > 0:
        word = fr_load(&cells.hot.ewma)
        while True:
            ewma = latency_of(word)
            new = x
            if x <= ewma:
                weight = fr_decay(fr_elapsed(stamp, fr_stamp(word)) * cells.inverse_tau)
                new = weight * ewma + (1.0 - weight) * x
            if fr_cas(&cells.hot.ewma, &word, fr_pack(<float>new, stamp)):
                break
        deviation = abs(x - ewma)
        # As in RFC 6298: half of the first value, then a quarter of each new distance.
        if ewma == 0:
            spread = x * 0.5
        else:
            spread = spread_of(cells.hot)
            spread += 0.25 * (deviation - spread)
        fr_store_float(&cells.hot.spread, <float>spread)
    set_score(cells)


cdef inline void samples_add(const LatencyCells *cells, double x) noexcept nogil:
    # The number is taken before the value is written. A reader in between sees the value of 50 calls ago, or 0 among
    # the first 50: one wrong item of 50 in a mean that is shown to people.
    cdef uint32_t index = fr_add(&cells.cold.samples, 1) % SAMPLES
    fr_store_float(<float *>(cells.samples[index // CELL_SAMPLES] + 1) + index % CELL_SAMPLES, <float>x)


cdef int samples_read(const LatencyCells *cells, double *out) noexcept nogil:
    """Copies the latest latencies, the newest first; returns how many."""
    cdef uint64_t total = fr_load(&cells.cold.samples)
    cdef int count = <int>min(total, <uint64_t>SAMPLES)
    cdef int i
    cdef uint32_t index
    for i in range(count):
        index = (total - 1 - i) % SAMPLES
        out[i] = fr_within(
            fr_load_float(<float *>(cells.samples[index // CELL_SAMPLES] + 1) + index % CELL_SAMPLES), FR_LONGEST
        )
    return count


cdef double window_mean(const LatencyCells *cells) noexcept nogil:
    """The mean of the last 50 latencies, the i-th newest weighing 1 / (1 + 0.1 i); 0 when there are none."""
    cdef double latencies[SAMPLES]
    cdef int count = samples_read(cells, latencies)
    cdef double total = 0.0
    cdef double weights = 0.0
    cdef int i
    for i in range(count):
        total += latencies[i] / (1.0 + 0.1 * i)
        weights += 1.0 / (1.0 + 0.1 * i)
    return total / weights if count else 0.0


cdef inline void health_record(const LatencyCells *cells, bint failure) noexcept nogil:
    """Bits 0-49: the last outcomes, the newest lowest, 1 a failure; 50-55: how many."""
    cdef uint64_t word = fr_load(&cells.cold.health)
    cdef uint64_t bits, count
    while True:
        bits = (word << 1 | failure) & ((<uint64_t>1 << SAMPLES) - 1)
        count = min((word >> 50 & 0x3F) + 1, <uint64_t>SAMPLES)
        if fr_cas(&cells.cold.health, &word, bits | count << 50):
            return


cdef int health_errors(uint64_t word) noexcept nogil:
    cdef uint64_t bits = word & ((<uint64_t>1 << SAMPLES) - 1)
    cdef int count = 0
    while bits:
        bits &= bits - 1
        count += 1
    return count


cdef tuple health_of(const LatencyCells *cells, int64_t now):
    cdef uint64_t word = fr_load(&cells.cold.health)
    cdef int count = <int>(word >> 50 & 0x3F)
    cdef double lost = lost_at(fr_load(&cells.hot.failure), fr_millis(now))
    return (100 - <int>(lost + 0.5), min(health_errors(word) / <double>count, 1.0) if count else 0.0)


cdef inline void health_mend(const LatencyCells *cells) noexcept nogil:
    """Restores full health after the breaker has closed: probes have shown that the endpoint works again."""
    cdef uint64_t word = fr_load(&cells.hot.failure)
    while word and not fr_cas(&cells.hot.failure, &word, failing_pack(failing_rate(word), 0.0, fr_stamp(word))):
        pass
    set_score(cells)


cdef inline void result_record(const LatencyCells *cells, int outcome, double x, int64_t now) noexcept nogil:
    """Records one result. A process killed half-way leaves the later figures one call behind the earlier ones."""
    latency_record(cells, outcome, x, now)
    if outcome == OUTCOME_OK:
        fr_add(&cells.cold.succeeded, 1)
        health_record(cells, False)
        if x > 0:
            samples_add(cells, x)
    elif outcome == OUTCOME_FAILURE or outcome == OUTCOME_USELESS:
        if outcome == OUTCOME_FAILURE:
            fr_add(&cells.cold.failed, 1)
        health_record(cells, True)


cdef inline double ewma_at(const LatencyCells *cells, int64_t now) noexcept nogil:
    cdef uint64_t word = fr_load(&cells.hot.ewma)
    return latency_of(word) * fr_decay(fr_elapsed(fr_millis(now), fr_stamp(word)) * cells.inverse_tau)


cdef inline double failure_at(const LatencyCells *cells, int64_t now) noexcept nogil:
    cdef uint64_t word = fr_load(&cells.hot.failure)
    if word == 0:
        return 0.0
    return failing_rate(word) * fr_decay(fr_elapsed(fr_millis(now), fr_stamp(word)) * cells.inverse_tau)


cdef inline uint64_t *ttft_pair(const LatencyCells *cells, bint reasoning) noexcept nogil:
    return cells.samples[3] + (7 if reasoning else 5)


cdef inline int ttft_shift(bint reasoning) noexcept nogil:
    """Of a kind's half of the counts: samples (24 bits) above time-outs in a row (8 bits)."""
    return 32 if reasoning else 0


cdef void ttft_record(const LatencyCells *cells, double x, bint reasoning) noexcept nogil:
    """Smoothed value and deviation as in RFC 6298, of one kind in one word; the counts of both kinds in another."""
    cdef uint64_t *pair = ttft_pair(cells, reasoning)
    cdef uint64_t *counts = cells.samples[3] + 6
    cdef int shift = ttft_shift(reasoning)
    cdef uint64_t word = fr_load(pair)
    cdef uint64_t seen, samples
    cdef double mean, deviation
    while True:
        mean = latency_of(word)
        deviation = fr_within(fr_float_of_bits(fr_stamp(word)), FR_LONGEST)
        if mean == 0:
            mean = x
            deviation = x * 0.5
        else:
            deviation += 0.25 * (abs(mean - x) - deviation)
            mean += 0.125 * (x - mean)
        if fr_cas(pair, &word, fr_pack(<float>mean, fr_bits_of_float(<float>deviation))):
            break
    # Sets the time-outs in a row to 0 along with counting the sample.
    seen = fr_load(counts)
    while True:
        samples = min((seen >> (shift + 8) & 0xFFFFFF) + 1, <uint64_t>0xFFFFFF)
        if fr_cas(counts, &seen, seen & ~(<uint64_t>0xFFFFFFFF << shift) | samples << (shift + 8)):
            break


cdef void ttft_late(const LatencyCells *cells, bint reasoning) noexcept nogil:
    cdef uint64_t *counts = cells.samples[3] + 6
    cdef int shift = ttft_shift(reasoning)
    cdef uint64_t seen = fr_load(counts)
    # Each doubles the limit, which ends at 600 s: more than 16 change nothing, and the byte must not carry.
    while (seen >> shift & 0xFF) < 16 and not fr_cas(counts, &seen, seen + (<uint64_t>1 << shift)):
        pass


cdef double ttft_limit(const LatencyCells *cells, bint reasoning) noexcept nogil:
    cdef uint64_t word = fr_load(ttft_pair(cells, reasoning))
    cdef uint64_t counts = fr_load(cells.samples[3] + 6) >> ttft_shift(reasoning)
    cdef double limit
    if (counts >> 8 & 0xFFFFFF) < TTFT_MIN_SAMPLES:
        return 0.0
    # RFC 6298 waits for mean + 4 deviations; half as much again, since a call that is moved too early pays twice.
    limit = 1.5 * (latency_of(word) + 4.0 * fr_within(fr_float_of_bits(fr_stamp(word)), FR_LONGEST))
    limit = max(limit, 5.0)
    return min(limit * <double>(1 << min(<int>(counts & 0xFF), 16)), 600.0)


cdef int set_retry_rules(RetryRules *rules, double ratio, double reserve_per_s, double ttl_s) except -1:
    if not 0.0 <= ratio <= 1000.0:
        raise ValueError(f"ratio must be 0 to 1000, not {ratio!r}")
    if not 0.0 <= reserve_per_s <= 1000.0:
        raise ValueError(f"reserve_per_s must be 0 to 1000, not {reserve_per_s!r}")
    rules.inverse_ttl = 1.0 / seconds("ttl_s", ttl_s, 0.001, 86400.0)
    rules.ratio = ratio
    rules.rest = reserve_per_s * ttl_s
    rules.most = 100.0 * max(1.0, rules.rest)
    return 0


cdef inline double retry_balance(const RetryRules *rules, uint64_t word, uint32_t stamp) noexcept nogil:
    # Any other number was not written here; a budget that could be read as NaN would allow every retry.
    if word == 0 or not 0.0 <= fr_value(word) <= <float>rules.most:
        return rules.rest
    return rules.rest + (fr_value(word) - rules.rest) * fr_decay(fr_elapsed(stamp, fr_stamp(word)) * rules.inverse_ttl)


cdef bint retry_change(
    const RetryRules *rules, uint64_t *place, double delta, double keep, int64_t now
) noexcept nogil:
    """Adds ``delta``, unless less than ``keep`` would be left."""
    cdef uint32_t stamp = fr_millis(now)
    cdef uint64_t word = fr_load(place)
    cdef uint64_t new
    cdef double balance
    while True:
        balance = min(retry_balance(rules, word, stamp) + delta, rules.most)
        if balance < keep:
            return False
        # A word of 0 means a budget never used, which is at rest. An empty budget at stamp 0 must not look like that.
        new = fr_pack(<float>balance, stamp) or 1
        if fr_cas(place, &word, new):
            return True


# Classes --------------------------------------------------------------------------------------------------------------


@cython.final
cdef class Latency:
    """How quick and how reliable an endpoint is, learned from its calls; shared by name.

    Averages are kept as 32-bit floats, their time stamps in whole ms, which wrap after 49 days.

    Args:
        segment: Where the state lives.
        name: Two of one name in one segment are the same.
        tau_s: Time constant of average and failure rate, seconds.

    Thread safety: all methods are lock-free.
    """

    cdef readonly Segment segment
    cdef readonly str name
    cdef LatencyCells cells

    def __init__(self, Segment segment not None, str name not None, *, double tau_s=10.0) -> None:
        cdef uint64_t name_hash = segment.name_hash(name)
        seconds("tau_s", tau_s, 0.001, 86400.0)
        claim_latency(
            &self.cells, segment, fr_mix(name_hash), <Hot *>segment.claim(name_hash, KIND_LATENCY),
            <Cold *>segment.claim(name_hash, KIND_LATENCY, 1), tau_s,
        )
        self.segment = segment
        self.name = name

    def record(self, outcome, double latency_s, now=0) -> None:
        """Counts one result.

        The failure rate fades, then moves by a tenth: towards 0 for OK, towards 1 for FAILURE, THROTTLED and USELESS.
        OK, FAILURE and USELESS change health. Only OK brings a latency; 0 means that none was measured. IGNORED changes
        nothing.
        """
        checked_outcome(outcome)
        checked_latency(latency_s)
        result_record(&self.cells, outcome, latency_s, moment(now) or fr_clock_coarse())

    def ewma(self, now=0) -> float:
        """The latency estimate faded to ``now``, seconds; 0.0 if never measured."""
        return ewma_at(&self.cells, moment(now) or fr_clock())

    @property
    def spread(self) -> float:
        """The average distance of a latency from the estimate before it, seconds."""
        return spread_of(self.cells.hot)

    def success_rate(self, now=0) -> float:
        """1 minus the failure rate faded to ``now``."""
        return 1.0 - failure_at(&self.cells, moment(now) or fr_clock())

    def window(self) -> float:
        """Mean of the last 50 latencies, the i-th newest weighing 1 / (1 + 0.1 i); 0.0 when there are none."""
        return window_mean(&self.cells)

    def samples(self) -> list[float]:
        """The last 50 latencies, seconds, newest first."""
        cdef double latencies[SAMPLES]
        cdef int count = samples_read(&self.cells, latencies)
        return [latencies[i] for i in range(count)]

    def health(self, now=0) -> tuple[int, float]:
        """(score 0 to 100, share of failures among the last 50 results). Healthy: above 70 with under 0.05."""
        return health_of(&self.cells, moment(now) or fr_clock())

    @property
    def count(self) -> int:
        """Results that were OK, ever."""
        return fr_load(&self.cells.cold.succeeded)

    @property
    def failures(self) -> int:
        """Results that were FAILURE, ever."""
        return fr_load(&self.cells.cold.failed)

    def record_ttft(self, double x_s, bint reasoning=False) -> None:
        """Counts one time to first token, seconds, of an answer with or without reasoning."""
        ttft_record(&self.cells, checked_latency(x_s), reasoning)

    def record_ttft_timeout(self, bint reasoning=False) -> None:
        """Records that the first token did not come in time, which doubles the next limit."""
        ttft_late(&self.cells, reasoning)

    def ttft_timeout(self, bint reasoning=False) -> float:
        """How long to wait for a first token, seconds: 0 (no limit) until 20 were seen, then 5 to 600."""
        return ttft_limit(&self.cells, reasoning)


@cython.final
cdef class RetryBudget:
    """Bounds retries to a share of first attempts, so that they cannot multiply an outage; shared by name.

    The balance drifts with the time constant ``ttl_s`` towards ``reserve_per_s * ttl_s``, where it begins; a first
    attempt adds ``ratio``, a retry takes 1. It never holds more than a hundred times its resting balance (at least
    100).

    Args:
        segment: Where the state lives.
        name: Two of one name in one segment are the same.
        ratio: Retries earned by one first attempt.
        reserve_per_s: Retries a second allowed without any first attempts.
        ttl_s: Time constant, seconds, with which earned and spent retries fade.

    Thread safety: all methods are lock-free; no more retries are granted than were earned.
    """

    cdef readonly Segment segment
    cdef readonly str name
    cdef uint64_t *place
    cdef RetryRules rules

    def __init__(
        self, Segment segment not None, str name not None, *, double ratio=0.2, double reserve_per_s=1.0,
        double ttl_s=10.0,
    ) -> None:
        set_retry_rules(&self.rules, ratio, reserve_per_s, ttl_s)
        self.place = &(<Cold *>segment.claim(segment.name_hash(name), KIND_RETRY)).retry
        self.segment = segment
        self.name = name

    def deposit(self, now=0) -> None:
        """Records a first attempt."""
        retry_change(&self.rules, self.place, self.rules.ratio, 0.0, moment(now) or fr_clock_coarse())

    def withdraw(self, now=0, bint half=False) -> bool:
        """Takes one retry; False, and nothing taken, when the balance is under 1.

        Args:
            now: ns; 0 reads the clock.
            half: Leave at least half of the resting balance, as hedges do: retries take precedence.
        """
        cdef double keep = 0.5 * self.rules.rest if half else 0.0
        return retry_change(&self.rules, self.place, -1.0, keep, moment(now) or fr_clock_coarse())

    def balance(self, now=0) -> float:
        """Retries that could be taken now."""
        return retry_balance(&self.rules, fr_load(self.place), fr_millis(moment(now) or fr_clock()))
