# ======================================================================================================================
# Judging: whether an endpoint can serve, and what it counts for
# ======================================================================================================================
#
# A ranking has a fixed row of endpoints, with the properties of their models that matter for choosing. Nearly
# everything that changes is read from their hot cells, one cache line each. What a request means to a model is computed
# once, with its tokens as that model counts them. Then each endpoint is judged once: hard filters, then whether it is
# available now, then soft filters. The endpoints that pass are ordered by model, then by strategy within the model. If
# none passes the soft filters, the endpoints that failed only these are taken, the best quality first.

# Constants ------------------------------------------------------------------------------------------------------------

LATENCY = BY_LATENCY
WEIGHTED = BY_WEIGHT
LEAST_BUSY = BY_BUSY
LOWEST_COST = BY_COST
LOWEST_USAGE = BY_USAGE
TWO_CHOICES = BY_TWO_CHOICES
ORDERED = BY_ORDER
VALUE = BY_VALUE

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
    BY_VALUE = 7                 # among models only

cdef enum:                       # checked in this order; the first that applies is the verdict. From QUALITY on: soft
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

cdef enum:
    FEW = 16                     # up to this many are sorted by insertion, without memory from the heap

cdef extern from *:
    """
    /* In a breaker's control word: state and time. While they are 0 it is closed and was not open lately. */
    #define FR_UNSETTLED (~(uint64_t)0x3fffffc)
    #define FR_INFINITY __builtin_inf()
    #define FR_RATIO_WEIGHT 0.1      /* of the newest usage in a calibration */
    #define FR_LOWEST_RATIO 0.3
    #define FR_HIGHEST_RATIO 3.0
    """
    const uint64_t FR_UNSETTLED
    const double FR_INFINITY
    const double FR_RATIO_WEIGHT
    const double FR_LOWEST_RATIO
    const double FR_HIGHEST_RATIO

# Structs --------------------------------------------------------------------------------------------------------------

cdef struct Item:                # an endpoint, 48 bytes; the fields of the quickest choice come first
    const Hot *hot
    const EndpointParts *parts
    double inverse_tau           # this and the next three are copies, renewed after any endpoint was configured
    float inverse_weight
    float penalty                # the same, or infinite if its limits admit nothing, so that it is never picked
    int64_t most                 # tokens of the largest request that its limits can ever admit; -1: none at all
    int32_t offer                # index of its model's offer

cdef struct Offer:               # what a model is and costs; endpoints for which all of this is equal share one
    int32_t group                # the model, numbered from 0 in the order of the caller's numbers
    uint64_t capabilities
    int64_t window               # tokens, 0: not known
    int64_t max_output           # tokens, 0: not known
    int64_t input_price          # nano-USD per million tokens, -1: not known
    int64_t output_price
    double quality
    double latency               # seconds to expect until some were measured, 0: not known
    const uint64_t *ratio        # of its calibration, NULL: none

cdef struct Terms:               # what one request means to one offer, independent of the endpoints' state
    int64_t tokens               # as the model counts them, including the answer's
    int64_t price                # nano-USD; -1: not known, or not needed
    int hard                     # VERDICT_CAPABILITY, VERDICT_WINDOW or VERDICT_PRICE_CAP, or VERDICT_IN
    int soft                     # VERDICT_QUALITY or VERDICT_PRICE, or VERDICT_IN

cdef struct Standing:            # of one model with endpoints that passed the filters
    double latency               # expected seconds of its quickest endpoint; infinite: not known
    double value                 # the best of its endpoints' values

cdef struct Least:               # state of the search for the least loaded endpoint
    int64_t now                  # 0: not read yet
    float load
    int index                    # -1: none yet

cdef struct Candidate:           # an endpoint that passed the filters, while they are being ordered
    double place                 # of its model, or minus its quality if the soft filters are relaxed; less is better;
                                 # of an unhealthy endpoint greater than of all that are healthy
    int64_t queue                # 2 * group, and 1 more unless its breaker waits for a probe, which goes first
    double key                   # by strategy
    int32_t turn                 # breaks ties: its distance from where the seed begins
    int32_t index

cdef struct Wish:                # the arguments of choice, then those of rank
    int strategy
    int among_models
    bint decay
    bint priced                  # whether any of it needs a price
    int64_t max_price
    int64_t price_ceiling
    double quality_floor
    double max_latency
    int64_t limit
    int64_t tokens_in            # estimated, before calibration
    int64_t tokens_out
    uint64_t capabilities
    uint64_t seed
    int64_t now
    uint32_t stamp               # the same as a time stamp
    uint32_t start               # index from which ties are broken

# Functions ------------------------------------------------------------------------------------------------------------


cdef inline bint comes_before(const Candidate *a, const Candidate *b) noexcept nogil:
    if a.place != b.place:
        return a.place < b.place
    if a.queue != b.queue:
        return a.queue < b.queue
    if a.key != b.key:
        return a.key < b.key
    return a.turn < b.turn


cdef void sift_down(const Candidate *candidates, int32_t *heap, int32_t root, int32_t count) noexcept nogil:
    """Restores the heap of places, the best at its root, after its root was replaced."""
    cdef int32_t child
    cdef int32_t moved = heap[root]
    while 2 * root + 1 < count:
        child = 2 * root + 1
        if child + 1 < count and comes_before(&candidates[heap[child + 1]], &candidates[heap[child]]):
            child += 1
        if not comes_before(&candidates[heap[child]], &candidates[moved]):
            break
        heap[root] = heap[child]
        root = child
    heap[root] = moved


cdef void sort_places(const Candidate *candidates, int32_t count, int32_t limit, int32_t *places) noexcept nogil:
    """Writes the places of the first ``limit`` candidates in order; ``places`` has room for all.

    Places are sorted and not the candidates, which are larger and may be read by other threads.
    """
    cdef int32_t i, at, taken
    if count <= FEW:
        for i in range(count):
            at = i
            while at > 0 and comes_before(&candidates[i], &candidates[places[at - 1]]):
                places[at] = places[at - 1]
                at -= 1
            places[at] = i
        return
    for i in range(count):
        places[i] = i
    for i in range(count // 2 - 1, -1, -1):
        sift_down(candidates, places, i, count)
    # A heap, because often only a few of many are wanted. Each one taken goes to the end of the array, in front of
    # those taken before, so the order has to be reversed at the end.
    for taken in range(1, limit + 1):
        places[0], places[count - taken] = places[count - taken], places[0]
        sift_down(candidates, places, 0, count - taken)
    for i in range(count // 2):
        places[i], places[count - 1 - i] = places[count - 1 - i], places[i]


cdef inline int first_of(const Candidate *candidates, uint32_t count) noexcept nogil:
    """The index of the best, -1 if there is none."""
    cdef const Candidate *best = candidates
    cdef uint32_t i
    for i in range(1, count):
        if comes_before(&candidates[i], best):
            best = &candidates[i]
    return best.index if count else -1


cdef inline uint32_t remainder(uint64_t seed, uint32_t n) noexcept nogil:
    """seed % n; a division of 32 bits takes a third of the time of one of 64."""
    return <uint32_t>seed % n if seed <= UINT32_MAX else <uint32_t>(seed % n)


cdef inline double weighted_key(uint64_t seed, uint32_t index, double inverse_weight) noexcept nogil:
    """-ln(u) / weight: i has the smallest key with a chance in proportion to its weight (Efraimidis and Spirakis)."""
    return -log(1.0 - fr_fraction(fr_mix(seed ^ fr_mix(index + 1)))) * inverse_weight


cdef inline void two_of(uint64_t seed, uint32_t count, uint32_t *first, uint32_t *second) noexcept nogil:
    """Two different numbers below ``count``, which is at least 2."""
    cdef uint64_t mixed = fr_mix(seed)
    first[0] = fr_choice(mixed, count)
    second[0] = fr_choice(mixed << 32, count - 1)
    if second[0] >= first[0]:
        second[0] += 1


cdef double expected_latency(const Item *item, const Offer *offer, const Wish *wish, bint forget) noexcept nogil:
    """Seconds that a call is expected to take, 0 if unknown.

    With decay, a measured latency fades into the prior, so that a model that was slow once gets another chance. Without
    a prior it fades to 0 only if ``forget`` is set: an order by value must not take a model for instant because it is
    not used.
    """
    cdef uint64_t word = fr_load(&item.hot.ewma)
    cdef double measured = fr_value(word)
    cdef double weight
    if measured <= 0:
        return offer.latency
    measured += fr_load_float(&item.hot.spread)
    if wish.decay and (offer.latency > 0 or forget):
        weight = fr_decay(fr_elapsed(wish.stamp, fr_stamp(word)) * item.inverse_tau)
        measured = offer.latency + weight * (measured - offer.latency)
    return measured


cdef inline bint is_slower(const Item *item, const Offer *offer, const Wish *wish) noexcept nogil:
    """Whether a call is expected to take longer than ``max_latency``; a measured latency is forgotten in time."""
    cdef double prior = offer.latency
    cdef double measured = fr_value(fr_load(&item.hot.ewma))
    if measured <= 0:
        return prior > wish.max_latency
    measured += fr_load_float(&item.hot.spread)
    # The expected latency lies between the two. If both are on one side of the limit, exp() need not be computed.
    if measured <= wish.max_latency and (prior <= wish.max_latency or not wish.decay):
        return False
    if measured > wish.max_latency and (prior > wish.max_latency or not wish.decay):
        return True
    return expected_latency(item, offer, wish, True) > wish.max_latency


cdef inline int64_t output_of(const Offer *offer, int64_t tokens_out) noexcept nogil:
    """The answer's tokens that will be requested: never above the model's limit."""
    return min(tokens_out, offer.max_output) if offer.max_output > 0 else tokens_out


cdef inline int64_t calibrated(int64_t estimate, double ratio) noexcept nogil:
    """The estimate times the ratio, rounded up; at most FR_TIME_MAX, which is the most that a limit accepts."""
    return estimate if ratio == 1.0 else <int64_t>min(ceil(<double>estimate * ratio), <double>FR_TIME_MAX)


cdef inline int64_t input_of(const Offer *offer, int64_t tokens_in) noexcept nogil:
    """The prompt's tokens as the model will count them."""
    return tokens_in if offer.ratio is NULL else calibrated(tokens_in, fr_double(fr_load(offer.ratio)))


cdef inline int64_t price_wished(const Offer *offer, const Wish *wish) noexcept nogil:
    """nano-USD, rounded up; -1 if a price that matters is not known. Without tokens, that of a million of each."""
    cdef int64_t tokens_in = input_of(offer, wish.tokens_in)
    cdef int64_t tokens_out
    if tokens_in | wish.tokens_out:
        tokens_out = output_of(offer, wish.tokens_out)
    else:
        tokens_in = tokens_out = 1000000
    if (offer.input_price < 0 and tokens_in) or (offer.output_price < 0 and tokens_out):
        return -1
    return fr_price(tokens_in, max(offer.input_price, 0), tokens_out, max(offer.output_price, 0))


cdef inline double value_of(int64_t price, double quality, double latency) noexcept nogil:
    """price / (quality * speed), less is better; an infinite latency is unknown and left out."""
    if price < 0 or quality <= 0:
        return FR_INFINITY
    return <double>price / quality * (1.0 if latency == FR_INFINITY else latency)


cdef inline bint is_unsettled(const Hot *hot) noexcept nogil:
    """Whether more than its load must be looked at: blocked, not closed, or closed only lately."""
    return fr_rarely(((fr_load(&hot.breaker) & FR_UNSETTLED) | fr_load(&hot.block)) != 0)


cdef inline int64_t most_that_fits(const EndpointParts *e) noexcept nogil:
    """The most tokens for which never_fits is false; -1 when it is true whatever the tokens."""
    if never_fits(e, 0):
        return -1
    if e.tokens.per_minute < 0 or e.follows[1]:
        return INT64_MAX
    return e.tokens.burst if e.tokens.per_minute > 0 else 0



cdef inline float decayed_load(const Item *item, uint32_t stamp) noexcept nogil:
    """The load of a settled endpoint, faded to a time stamp: load_with_decay without its ramp."""
    return measured_load(item.hot, item.inverse_tau, stamp) * item.penalty


cdef float unsettled_load(const Item *item, bint decay, int64_t now) noexcept nogil:
    """The load of an unsettled endpoint: infinite if it is not available now, -1 if it waits for a probe."""
    cdef uint64_t word = fr_load(&item.hot.breaker)
    cdef double load
    if item.most < 0 or block_left(fr_load(&item.hot.block), now) or breaker_peek(&item.parts.rules, word, now) < 0:
        return <float>FR_INFINITY
    if control_state(word) != STATE_CLOSED:
        return -1.0
    load = decayed_load(item, fr_millis(now)) if decay else load_without_decay(item.hot, item.penalty)
    return <float>(load / breaker_ramp(&item.parts.rules, word, now))


cdef inline void set_terms(Terms *terms, const Offer *offer, const Wish *wish) noexcept nogil:
    cdef int64_t price = price_wished(offer, wish) if wish.priced else -1
    terms.tokens = input_of(offer, wish.tokens_in) + output_of(offer, wish.tokens_out)
    terms.price = price
    if terms.tokens == 0 and price > 0:
        price = 0                # it is the price of a million tokens, which no limit is about
    terms.hard = VERDICT_IN
    terms.soft = VERDICT_IN
    if wish.capabilities & ~offer.capabilities:
        terms.hard = VERDICT_CAPABILITY
    elif offer.window > 0 and terms.tokens > offer.window:
        terms.hard = VERDICT_WINDOW
    elif wish.max_price >= 0 and (price < 0 or price > wish.max_price):
        terms.hard = VERDICT_PRICE_CAP
    if offer.quality < wish.quality_floor:
        terms.soft = VERDICT_QUALITY
    elif wish.price_ceiling >= 0 and (price < 0 or price > wish.price_ceiling):
        terms.soft = VERDICT_PRICE


cdef inline int verdict_on(
    const Item *item, const Offer *offer, const Terms *terms, const Wish *wish, bint *probe
) noexcept nogil:
    cdef int64_t gate
    if terms.hard:
        return terms.hard
    # Nearly all endpoints are settled, and then neither blocks nor the breaker's time are computed.
    if is_unsettled(item.hot):
        if block_left(fr_load(&item.hot.block), wish.now):
            return VERDICT_BLOCKED
        gate = breaker_peek(&item.parts.rules, fr_load(&item.hot.breaker), wish.now)
        if gate < 0:
            return VERDICT_BREAKER
        probe[0] = gate == 1
    if terms.tokens > item.most:
        return VERDICT_TOO_LARGE
    if terms.soft == VERDICT_QUALITY:
        return VERDICT_QUALITY
    if wish.max_latency > 0 and is_slower(item, offer, wish):
        return VERDICT_LATENCY
    return terms.soft


cdef inline double key_of(
    const Item *item, const Wish *wish, int strategy, uint32_t index, int64_t price
) noexcept nogil:
    cdef float load
    if strategy == BY_LATENCY or strategy == BY_TWO_CHOICES:
        load = (
            measured_load(item.hot, item.inverse_tau, wish.stamp) * item.inverse_weight if wish.decay
            else load_without_decay(item.hot, item.inverse_weight)
        )
        if fr_load(&item.hot.breaker) & FR_UNSETTLED:
            load = <float>(load / breaker_ramp(&item.parts.rules, fr_load(&item.hot.breaker), wish.now))
        return load
    if strategy == BY_WEIGHT:
        return weighted_key(wish.seed, index, item.inverse_weight)
    if strategy == BY_BUSY:
        return in_flight_of(item.hot) * item.inverse_weight
    if strategy == BY_COST:
        return <double>price if price >= 0 else FR_INFINITY
    if strategy == BY_USAGE:
        return usage_at(item.parts, wish.now)
    return <double>index
