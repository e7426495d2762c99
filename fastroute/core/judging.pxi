# ======================================================================================================================
# Judging: whether an endpoint can serve, and what it counts for
# ======================================================================================================================
#
# A ranking knows a fixed row of endpoints and what of their models matters for choosing; everything that changes it
# reads from their hot cells. Each endpoint is judged once: hard filters, then whether it can be had now, then soft
# filters. Those that are in are ordered by model, then by strategy within the model; if the soft filters leave none,
# those that only they kept out are taken after all, the best quality first.

# Constants ------------------------------------------------------------------------------------------------------------

LATENCY = BY_LATENCY
WEIGHTED = BY_WEIGHT
LEAST_BUSY = BY_BUSY
LOWEST_COST = BY_COST
LOWEST_USAGE = BY_USAGE
TWO_CHOICES = BY_TWO_CHOICES
ORDERED = BY_ORDER

OUT_CAPABILITY = VERDICT_CAPABILITY
OUT_WINDOW = VERDICT_WINDOW
OUT_PRICE_CAP = VERDICT_PRICE_CAP
OUT_BLOCKED = VERDICT_BLOCKED
OUT_BREAKER = VERDICT_BREAKER
OUT_TOO_LARGE = VERDICT_TOO_LARGE
SOFT_QUALITY = VERDICT_QUALITY
SOFT_LATENCY = VERDICT_LATENCY
SOFT_PRICE = VERDICT_PRICE

cdef enum:
    BY_LATENCY = 0
    BY_WEIGHT = 1
    BY_BUSY = 2
    BY_COST = 3
    BY_USAGE = 4
    BY_TWO_CHOICES = 5
    BY_ORDER = 6

cdef enum:                       # judged in this order; the first that applies is the verdict
    VERDICT_IN = 0
    VERDICT_CAPABILITY = 1
    VERDICT_WINDOW = 2
    VERDICT_PRICE_CAP = 3
    VERDICT_BLOCKED = 4
    VERDICT_BREAKER = 5
    VERDICT_TOO_LARGE = 6
    VERDICT_QUALITY = 7
    VERDICT_LATENCY = 8
    VERDICT_PRICE = 9

cdef extern from *:
    """
    /* In a breaker's control word: state and time. While they are 0 it is closed and was not open lately. */
    #define FR_UNSETTLED (~(uint64_t)0x3fffffc)
    #define FR_INFINITY __builtin_inf()
    """
    const uint64_t FR_UNSETTLED
    const double FR_INFINITY

# Structs --------------------------------------------------------------------------------------------------------------

cdef struct Item:                # what the quickest choice reads, 32 bytes an endpoint
    const Hot *hot
    const EndpointParts *parts
    double inverse_tau           # this and the next are copies, renewed when any endpoint was configured
    float inverse_weight
    float penalty                # the same, or infinite when its limits let nothing through: then it is never picked

cdef struct Offer:               # what an endpoint's model is and costs
    int32_t group                # the model, numbered from 0 in the order of the caller's numbers
    uint64_t capabilities
    int64_t window               # tokens, 0: not known
    int64_t max_output           # tokens, 0: not known
    int64_t input_price          # nano-USD per million tokens, -1: not known
    int64_t output_price
    double quality
    double latency               # seconds to expect before any were measured, 0: not known

cdef struct Candidate:           # one endpoint while it is being ranked
    double place                 # of its model, or minus its quality when the soft filters are relaxed; less is better
    double key                   # by strategy
    int32_t turn                 # breaks ties: its distance from where the seed begins
    int32_t index
    int32_t group
    bint probe                   # its breaker waits for a probe: it goes first

cdef struct Wish:                # the arguments of rank
    int strategy
    int64_t tokens_in
    int64_t tokens_out
    uint64_t capabilities
    int64_t max_price
    int64_t price_ceiling
    double quality_floor
    double max_latency
    bint by_value
    int64_t limit
    uint64_t seed
    bint decay
    int64_t now

# Functions ------------------------------------------------------------------------------------------------------------


cdef inline bint comes_before(const Candidate *a, const Candidate *b) noexcept nogil:
    if a.place != b.place:
        return a.place < b.place
    if a.group != b.group:
        return a.group < b.group
    if a.probe != b.probe:
        return a.probe
    if a.key != b.key:
        return a.key < b.key
    return a.turn < b.turn


cdef void sift_down(Candidate *heap, int64_t root, int64_t count) noexcept nogil:
    """Restores the heap, the best at its root, after its root was replaced."""
    cdef int64_t child
    cdef Candidate moved = heap[root]
    while 2 * root + 1 < count:
        child = 2 * root + 1
        if child + 1 < count and comes_before(&heap[child + 1], &heap[child]):
            child += 1
        if not comes_before(&heap[child], &moved):
            break
        heap[root] = heap[child]
        root = child
    heap[root] = moved


cdef void select_best(Candidate *candidates, int64_t count, int64_t limit, int32_t *order) noexcept nogil:
    """Writes the indexes of the first ``limit`` in order. A heap: count + limit * log(count) comparisons."""
    cdef int64_t i
    for i in range(count // 2 - 1, -1, -1):
        sift_down(candidates, i, count)
    for i in range(limit):
        order[i] = candidates[0].index
        count -= 1
        candidates[0] = candidates[count]
        if count:
            sift_down(candidates, 0, count)


cdef inline double weighted_key(uint64_t seed, uint32_t index, double inverse_weight) noexcept nogil:
    """-ln(u) / weight: the smallest of such keys is at i with a chance in proportion to i's weight."""
    return -log(1.0 - fr_fraction(fr_mix(seed ^ fr_mix(index + 1)))) * inverse_weight


cdef inline void two_of(uint64_t seed, uint32_t count, uint32_t *first, uint32_t *second) noexcept nogil:
    """Two different numbers below ``count``, which is at least 2."""
    cdef uint64_t mixed = fr_mix(seed)
    first[0] = fr_choice(mixed, count)
    second[0] = fr_choice(mixed << 32, count - 1)
    if second[0] >= first[0]:
        second[0] += 1


cdef double expected_latency(const Item *item, const Offer *offer, const Wish *wish, bint forget) noexcept nogil:
    """Seconds a call is expected to take, 0 if nothing is known.

    With decay a measured latency fades into the prior, so that a model that was slow once gets another chance. Without
    a prior it fades to nothing only if ``forget`` is set: judged by value, what is not used must not come to look
    instant.
    """
    cdef uint64_t word = fr_load(&item.hot.ewma)
    cdef double measured = fr_value(word)
    cdef double weight
    if measured <= 0:
        return offer.latency
    measured += fr_load_float(&item.hot.spread)
    if wish.decay and (offer.latency > 0 or forget):
        weight = fr_decay(fr_elapsed(fr_millis(wish.now), fr_stamp(word)) * item.inverse_tau)
        measured = offer.latency + weight * (measured - offer.latency)
    return measured


cdef inline int64_t output_of(const Offer *offer, int64_t tokens_out) noexcept nogil:
    """The answer's tokens as they will be asked for: never above what the model gives."""
    return min(tokens_out, offer.max_output) if offer.max_output > 0 else tokens_out


cdef inline int64_t price_of(const Offer *offer, int64_t tokens_in, int64_t tokens_out) noexcept nogil:
    """nano-USD, rounded up; -1 if a price that matters is not known."""
    tokens_out = output_of(offer, tokens_out)
    if (offer.input_price < 0 and tokens_in) or (offer.output_price < 0 and tokens_out):
        return -1
    return fr_price(tokens_in, max(offer.input_price, 0), tokens_out, max(offer.output_price, 0))


cdef inline bint is_unsettled(const Hot *hot) noexcept nogil:
    """Whether more than its load must be looked at: blocked, or not closed, or closed only lately."""
    return ((fr_load(&hot.breaker) & FR_UNSETTLED) | fr_load(&hot.block)) != 0


cdef bint can_be_had(const Item *item, int64_t now) noexcept nogil:
    if never_fits(item.parts, 0) or block_left(fr_load(&item.hot.block), now):
        return False
    return breaker_peek(fr_load(&item.hot.breaker), now) >= 0


cdef inline float decayed_load(const Item *item, uint32_t stamp) noexcept nogil:
    """The load of a settled endpoint, faded to a time stamp: load_with_decay without its ramp."""
    return measured_load(item.hot, item.inverse_tau, stamp) * item.penalty


cdef float ramped_load(const Item *item, bint decay, int64_t now) noexcept nogil:
    cdef double ramp = breaker_ramp(&item.parts.rules, fr_load(&item.hot.breaker), now)
    if decay:
        return <float>(decayed_load(item, fr_millis(now)) / ramp)
    return <float>(load_without_decay(item.hot, item.penalty) / ramp)


cdef int verdict_on(
    const Item *item, const Offer *offer, const Wish *wish, int64_t price, bint *probe
) noexcept nogil:
    cdef int64_t output = output_of(offer, wish.tokens_out)
    cdef int64_t tokens = wish.tokens_in + output
    cdef int64_t gate
    if tokens == 0 and price > 0:
        price = 0                # it is what a million tokens cost; of none there is nothing to be capped
    if wish.capabilities & ~offer.capabilities:
        return VERDICT_CAPABILITY
    if offer.window > 0 and tokens > offer.window:
        return VERDICT_WINDOW
    if wish.max_price >= 0 and (price < 0 or price > wish.max_price):
        return VERDICT_PRICE_CAP
    if block_left(fr_load(&item.hot.block), wish.now):
        return VERDICT_BLOCKED
    gate = breaker_peek(fr_load(&item.hot.breaker), wish.now)
    if gate < 0:
        return VERDICT_BREAKER
    probe[0] = gate == 1
    if never_fits(item.parts, tokens):
        return VERDICT_TOO_LARGE
    if offer.quality < wish.quality_floor:
        return VERDICT_QUALITY
    if wish.max_latency > 0 and expected_latency(item, offer, wish, True) > wish.max_latency:
        return VERDICT_LATENCY
    if wish.price_ceiling >= 0 and (price < 0 or price > wish.price_ceiling):
        return VERDICT_PRICE
    return VERDICT_IN


cdef double key_of(const Item *item, const Offer *offer, const Wish *wish, uint32_t index, int64_t price) noexcept nogil:
    cdef float load
    if wish.strategy == BY_LATENCY or wish.strategy == BY_TWO_CHOICES:
        load = (
            measured_load(item.hot, item.inverse_tau, fr_millis(wish.now)) * item.inverse_weight if wish.decay
            else load_without_decay(item.hot, item.inverse_weight)
        )
        if fr_load(&item.hot.breaker) & FR_UNSETTLED:
            load = <float>(load / breaker_ramp(&item.parts.rules, fr_load(&item.hot.breaker), wish.now))
        return load
    if wish.strategy == BY_WEIGHT:
        return weighted_key(wish.seed, index, item.inverse_weight)
    if wish.strategy == BY_BUSY:
        return max(fr_load_i32(&item.hot.in_flight), 0) * item.inverse_weight
    if wish.strategy == BY_COST:
        return <double>price if price >= 0 else FR_INFINITY
    if wish.strategy == BY_USAGE:
        return usage_at(item.parts, wish.now)
    return <double>index
