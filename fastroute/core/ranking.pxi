# ======================================================================================================================
# Ranking: which endpoint first
# ======================================================================================================================
#
# Filters, keys and comparisons stand in judging.pxi; here they are applied to a row of endpoints.

# Classes --------------------------------------------------------------------------------------------------------------


@cython.final
@cython.no_gc
@cython.freelist(8)
cdef class Ranked:
    """What a ranking came to. Made by ``Ranking.rank`` only.

    The verdicts and who comes ``first`` are settled when it is made. The rest of the order is sorted out when it is
    asked for, and so are the figures of endpoints that were not in: ``keys``, ``values`` and ``prices`` are those of
    the ranking's ``now``, but of the state that the endpoints are in when they are read.

    Thread safety: immutable.
    """

    cdef Ranking ranking
    cdef Wish wish
    cdef Candidate *candidates           # those that are in, in the order of the row
    cdef uint8_t *verdicts_
    cdef uint32_t count                  # of candidates
    cdef readonly int first              # index of the endpoint to try first, -1: none
    cdef bint soft_relaxed

    def __init__(self) -> None:
        raise TypeError("a Ranked is made by Ranking.rank()")

    def __dealloc__(self):
        PyMem_Free(self.candidates)

    def __repr__(self) -> str:
        return f"<Ranked {self.order}{' relaxed' if self.soft_relaxed else ''}>"

    @property
    def order(self) -> tuple[int, ...]:
        """Indexes of the endpoints to try, the best first."""
        cdef int64_t chosen = min(self.wish.limit, <int64_t>self.count) if self.wish.limit else self.count
        cdef int32_t few[FEW]
        cdef int32_t *sorted_ = few
        cdef int64_t i
        if chosen < 2:
            return (self.first,) if chosen else ()
        if self.count > FEW:
            sorted_ = <int32_t *>PyMem_Malloc(self.count * sizeof(int32_t))
            if sorted_ is NULL:
                raise MemoryError("no memory for the order")
        sort_places(self.candidates, <int32_t>self.count, <int32_t>chosen, sorted_)
        try:
            return tuple([self.candidates[sorted_[i]].index for i in range(chosen)])
        finally:
            if sorted_ is not few:
                PyMem_Free(sorted_)

    @property
    def verdicts(self) -> bytes:
        """One code for each endpoint: 0 it is in, or OUT_… or SOFT_…, why not."""
        return self.verdicts_[:self.ranking.count]

    @property
    def keys(self) -> tuple[float, ...]:
        """The strategy's figure for each endpoint, less is better (TWO_CHOICES: the load)."""
        cdef Ranking row = self.ranking
        cdef uint32_t i
        return tuple([
            key_of(&row.items[i], &self.wish, i, price_wished(&row.offers[i], &self.wish)) for i in range(row.count)
        ])

    @property
    def values(self) -> tuple[float, ...]:
        """price / (quality * speed) for each endpoint, less is better; inf when price or quality is not known."""
        return self.ranking.values_of(&self.wish, self.verdicts_)

    @property
    def prices(self) -> tuple[int, ...]:
        """The estimate for each endpoint, nano-USD (without tokens: input plus output price); -1 when not known."""
        cdef Ranking row = self.ranking
        cdef uint32_t i
        return tuple([price_wished(&row.offers[i], &self.wish) for i in range(row.count)])

    @property
    def relaxed(self) -> bool:
        """Nothing met the soft filters, so the order is by quality among what failed only those."""
        return self.soft_relaxed


@cython.final
cdef class Ranking:
    """Orders a fixed row of endpoints, in one native call.

    Args:
        endpoints: The row; everything below has one item for each of them.
        models: A number for the model of each; equal numbers are one model.
        windows: Context window, tokens; 0: not known, and never too small.
        max_outputs: Most tokens of an answer; 0: not known. Longer answers are reckoned as this long.
        capabilities: Bit masks, the caller's own.
        input_prices: nano-USD per million tokens; -1: not known.
        output_prices: The same.
        qualities: 0 or more; 0: not known.
        latencies: Seconds to expect while none were measured; 0: not known.

    Thread safety: it does not change after it is made; any number of threads may rank with it.
    """

    cdef readonly tuple endpoints
    cdef Item *items
    cdef Offer *offers
    cdef uint32_t count
    cdef int32_t groups
    cdef uint64_t configurations_seen

    def __init__(
        self, endpoints: Sequence[Endpoint], *, models: Sequence[int], windows: Sequence[int],
        max_outputs: Sequence[int], capabilities: Sequence[int], input_prices: Sequence[int],
        output_prices: Sequence[int], qualities: Sequence[float], latencies: Sequence[float],
    ) -> None:
        if self.endpoints is not None:
            raise RuntimeError("a Ranking cannot be initialised twice")
        cdef tuple row = tuple(endpoints)
        cdef Py_ssize_t count = len(row)
        cdef Py_ssize_t i
        cdef Endpoint endpoint
        cdef Offer *offer
        if count > 1 << 20:
            raise ValueError(f"endpoints must be at most {1 << 20}, not {count}")
        for name, column in (
            ("models", models), ("windows", windows), ("max_outputs", max_outputs), ("capabilities", capabilities),
            ("input_prices", input_prices), ("output_prices", output_prices), ("qualities", qualities),
            ("latencies", latencies),
        ):
            if len(column) != count:
                raise ValueError(f"{name} must have one item for each of the {count} endpoints, not {len(column)}")
        numbers = {number: group for group, number in enumerate(sorted(set(models)))}
        self.items = <Item *>PyMem_Calloc(count + 1, sizeof(Item))
        self.offers = <Offer *>PyMem_Calloc(count + 1, sizeof(Offer))
        if self.items is NULL or self.offers is NULL:
            raise MemoryError("no memory for the ranking")
        for i in range(count):
            if not isinstance(row[i], Endpoint):
                raise TypeError(f"endpoints[{i}] must be an Endpoint, not {type(row[i]).__name__}")
            endpoint = row[i]
            if endpoint.segment is None:
                raise ValueError(f"endpoints[{i}] was not initialised")
            self.items[i].parts = &endpoint.parts
            self.items[i].hot = endpoint.parts.hot
            offer = &self.offers[i]
            offer.group = numbers[models[i]]
            offer.capabilities = PyLong_AsUnsignedLongLong(capabilities[i])
            offer.window = amount(f"windows[{i}]", windows[i], 0)
            offer.max_output = amount(f"max_outputs[{i}]", max_outputs[i], 0)
            offer.input_price = whole(f"input_prices[{i}]", integer(input_prices[i]), -1, INT64_MAX)
            offer.output_price = whole(f"output_prices[{i}]", integer(output_prices[i]), -1, INT64_MAX)
            offer.quality = qualities[i]
            if not 0.0 <= offer.quality <= 1e9:
                raise ValueError(f"qualities[{i}] must be 0 to 1e9, not {qualities[i]!r}")
            offer.latency = seconds(f"latencies[{i}]", latencies[i], 0.0, 1e6)
        self.groups = <int32_t>len(numbers)
        self.count = <uint32_t>count
        self.endpoints = row
        self.copy_settings()

    def __dealloc__(self):
        PyMem_Free(self.items)
        PyMem_Free(self.offers)

    def __len__(self) -> int:
        return self.count

    cdef void copy_settings(self) noexcept nogil:
        cdef uint32_t i
        cdef const EndpointParts *parts
        self.configurations_seen = configurations
        for i in range(self.count):
            parts = self.items[i].parts
            self.items[i].inverse_tau = parts.latency.inverse_tau
            self.items[i].inverse_weight = <float>parts.inverse_weight
            self.items[i].penalty = <float>FR_INFINITY if never_fits(parts, 0) else <float>parts.inverse_weight
            self.offers[i].most = most_that_fits(parts)

    def rank(
        self, strategy, tokens_in=0, tokens_out=0, capabilities=0, max_price=-1,
        price_ceiling=-1, double quality_floor=0.0, double max_latency=0.0, bint by_value=False,
        limit=0, seed=0, bint decay=True, now=0,
    ) -> Ranked:
        """Judges and orders all endpoints.

        Args:
            strategy: LATENCY, WEIGHTED, LEAST_BUSY, LOWEST_COST, LOWEST_USAGE, TWO_CHOICES or ORDERED.
            tokens_in: Of the request.
            tokens_out: Most the answer may have.
            capabilities: Bits that must all be there.
            max_price: Of this request, nano-USD; above it an endpoint is out. -1: no limit.
            price_ceiling: The same, but gives way if nothing else is left.
            quality_floor: Gives way likewise.
            max_latency: Expected latency, seconds, gives way likewise; 0: no limit.
            by_value: Models by price / (quality * speed), the best value first; else in the order of their numbers.
            limit: At most so many in the order; 0: all.
            seed: Any number; breaks ties and draws lots. Equal seeds give equal answers.
            decay: Let old latencies and failures fade.
            now: ns; 0 reads the clock.
        """
        cdef Ranked result = Ranked.__new__(Ranked)
        cdef Wish *wish = &result.wish
        wish.strategy = self.checked_strategy(strategy)
        wish.tokens_in = amount("tokens_in", tokens_in, 0)
        wish.tokens_out = amount("tokens_out", tokens_out, 0)
        wish.capabilities = unsigned(capabilities)
        wish.max_price = whole("max_price", integer(max_price), -1, INT64_MAX)
        wish.price_ceiling = whole("price_ceiling", integer(price_ceiling), -1, INT64_MAX)
        wish.quality_floor = quality_floor
        wish.max_latency = max_latency
        wish.by_value = by_value
        wish.limit = amount("limit", limit, 0)
        wish.seed = unsigned(seed)
        wish.decay = decay
        wish.now = moment(now) or fr_clock_coarse()
        if quality_floor != quality_floor or max_latency != max_latency:
            raise ValueError("quality_floor and max_latency must be numbers, not NaN")
        self.judge(result)
        return result

    cdef int checked_strategy(self, object strategy) except -1:
        cdef int64_t value = integer(strategy)
        if self.endpoints is None:
            raise RuntimeError("this Ranking was not initialised")
        if value < BY_LATENCY or value > BY_ORDER:
            raise ValueError(f"strategy must be LATENCY (0) to ORDERED (6), not {strategy}")
        return <int>value

    cdef int judge(self, Ranked result) except -1:
        """Fills in a result of which only the wish is there."""
        cdef size_t n = self.count
        cdef size_t groups = self.groups
        # One block: what the result keeps, then what only the ranking needs.
        cdef char *memory = <char *>PyMem_Malloc(n * sizeof(Candidate) + 2 * groups * sizeof(double) + n + 1)
        if memory is NULL:
            raise MemoryError("no memory for the ranking")
        cdef double *latencies = <double *>(memory + n * sizeof(Candidate))
        result.ranking = self
        result.candidates = <Candidate *>memory
        result.verdicts_ = <uint8_t *>(latencies + 2 * groups)
        if self.configurations_seen != configurations:
            self.copy_settings()
        result.wish.stamp = fr_millis(result.wish.now)
        result.wish.start = remainder(result.wish.seed, <uint32_t>n) if n else 0
        cdef bint soft = self.collect(&result.wish, result.verdicts_, result.candidates, &result.count)
        if result.count == 0 and soft:
            result.soft_relaxed = True
            result.count = self.collect_relaxed(&result.wish, result.verdicts_, result.candidates)
        elif result.wish.by_value and groups > 1:
            self.place_by_value(result.candidates, result.count, latencies, latencies + groups, &result.wish)
        if result.wish.strategy == BY_TWO_CHOICES:
            self.favour_two(&result.wish, result.candidates, result.count)
        result.first = first_of(result.candidates, result.count)
        return 0

    cdef bint collect(
        self, const Wish *wish, uint8_t *verdicts, Candidate *candidates, uint32_t *found
    ) noexcept nogil:
        """Writes all verdicts, and a candidate for each that is in; whether any failed only soft filters."""
        cdef uint32_t i
        cdef uint32_t count = 0
        cdef int verdict
        cdef bint soft = False
        cdef bint probe
        cdef int64_t price = -1
        cdef bint priced = (
            wish.max_price >= 0 or wish.price_ceiling >= 0 or wish.by_value or wish.strategy == BY_COST
        )
        cdef Candidate *candidate
        for i in range(self.count):
            if priced:
                price = price_wished(&self.offers[i], wish)
            probe = False
            verdict = verdict_on(&self.items[i], &self.offers[i], wish, price, &probe)
            verdicts[i] = <uint8_t>verdict
            if verdict:
                soft = soft or verdict >= VERDICT_QUALITY
                continue
            candidate = &candidates[count]
            count += 1
            candidate.place = self.offers[i].group
            candidate.price = price
            self.describe(candidate, i, probe, wish)
        found[0] = count
        return soft

    cdef uint32_t collect_relaxed(self, const Wish *wish, const uint8_t *verdicts, Candidate *candidates) noexcept nogil:
        """A candidate for each endpoint that failed only soft filters, the best quality first, whatever its model."""
        cdef uint32_t i
        cdef uint32_t count = 0
        cdef Candidate *candidate
        for i in range(self.count):
            if verdicts[i] >= VERDICT_QUALITY:
                candidate = &candidates[count]
                count += 1
                candidate.place = -self.offers[i].quality
                candidate.price = price_wished(&self.offers[i], wish)
                self.describe(candidate, i, breaker_peek(fr_load(&self.items[i].hot.breaker), wish.now) == 1, wish)
                candidate.group = 0
        return count

    cdef inline void describe(self, Candidate *candidate, uint32_t i, bint probe, const Wish *wish) noexcept nogil:
        candidate.probe = probe
        candidate.index = <int32_t>i
        candidate.group = self.offers[i].group
        candidate.turn = <int32_t>(i - wish.start if i >= wish.start else i + self.count - wish.start)
        candidate.key = key_of(&self.items[i], wish, i, candidate.price)

    cdef void place_by_value(
        self, Candidate *candidates, uint32_t count, double *latencies, double *best, const Wish *wish
    ) noexcept nogil:
        """Places each model by the best value among its endpoints that are in."""
        cdef int32_t group
        cdef uint32_t i
        cdef Candidate *candidate
        cdef const Offer *offer
        cdef double latency
        for group in range(self.groups):
            latencies[group] = best[group] = FR_INFINITY
        # A model is as quick as the quickest of its endpoints that is in and of which something is known.
        for i in range(count):
            candidate = &candidates[i]
            offer = &self.offers[candidate.index]
            latency = expected_latency(&self.items[candidate.index], offer, wish, False)
            if 0 < latency < latencies[candidate.group]:
                latencies[candidate.group] = latency
        for i in range(count):
            candidate = &candidates[i]
            candidate.place = value_of(
                candidate.price, self.offers[candidate.index].quality, latencies[candidate.group]
            )
            best[candidate.group] = min(best[candidate.group], candidate.place)
        for i in range(count):
            candidates[i].place = best[candidates[i].group]

    cdef tuple values_of(self, const Wish *wish, const uint8_t *verdicts):
        """price / (quality * speed) of every endpoint, also of those that are not in."""
        cdef list quickest = [FR_INFINITY] * self.groups
        cdef double latency
        cdef uint32_t i
        for i in range(self.count):
            latency = expected_latency(&self.items[i], &self.offers[i], wish, False)
            if verdicts[i] == VERDICT_IN and 0 < latency < <double>quickest[self.offers[i].group]:
                quickest[self.offers[i].group] = latency
        return tuple([
            value_of(price_wished(&self.offers[i], wish), self.offers[i].quality, quickest[self.offers[i].group])
            for i in range(self.count)
        ])

    cdef void favour_two(self, const Wish *wish, Candidate *candidates, uint32_t count) noexcept nogil:
        """In each model draws two and puts the less loaded of them first; the rest follows by load.

        The candidates stand in the order of the row, those of a model not always side by side.
        """
        cdef int32_t group
        cdef uint32_t i, members, first, second
        cdef Candidate *a
        cdef Candidate *b
        for group in range(self.groups):
            members = 0
            for i in range(count):
                members += self.offers[candidates[i].index].group == group
            if members < 2:
                continue
            two_of(wish.seed, members, &first, &second)
            a = NULL
            b = NULL
            members = 0
            for i in range(count):
                if self.offers[candidates[i].index].group == group:
                    if members == first:
                        a = &candidates[i]
                    elif members == second:
                        b = &candidates[i]
                    members += 1
            if b.key < a.key:
                a = b
            a.key = -1.0

    def pick(self, strategy, seed=0, bint decay=False, now=0) -> int:
        """The endpoint that ``rank`` without filters would put first: its index, or -1 if none can be had now.

        LATENCY and TWO_CHOICES among the endpoints of one model are answered without ranking the others.
        """
        cdef int64_t time = moment(now)
        cdef int kind = self.checked_strategy(strategy)
        cdef uint64_t lot = unsigned(seed)
        cdef int best
        if self.groups == 1 and self.configurations_seen == configurations:
            if kind == BY_LATENCY:
                return self.pick_least_loaded(lot, decay, time)
            if kind == BY_TWO_CHOICES:
                best = self.pick_of_two(lot, decay, time)
                if best >= 0:
                    return best
        return self.pick_ranked(kind, lot, decay, time)

    cdef int pick_ranked(self, int strategy, uint64_t seed, bint decay, int64_t now) except -2:
        cdef Ranked result = Ranked.__new__(Ranked)
        result.wish.strategy = strategy
        result.wish.max_price = -1
        result.wish.price_ceiling = -1
        result.wish.limit = 1
        result.wish.seed = seed
        result.wish.decay = decay
        result.wish.now = now or fr_clock_coarse()
        self.judge(result)
        return result.first

    cdef int pick_least_loaded(self, uint64_t seed, bint decay, int64_t now) noexcept nogil:
        cdef uint32_t n = self.count
        cdef uint32_t start = remainder(seed, n)
        cdef float best_load = <float>FR_INFINITY
        cdef int best = -1
        cdef int probe = -1
        if decay and now == 0:
            now = fr_clock_coarse()
        # From where the seed says to the end, then the rest, so that ties fall differently each time.
        self.least_loaded(start, n, decay, &now, &best, &best_load, &probe)
        if probe < 0 and start:
            self.least_loaded(0, start, decay, &now, &best, &best_load, &probe)
        return probe if probe >= 0 else best

    cdef inline void least_loaded(
        self, uint32_t first, uint32_t end, bint decay, int64_t *now, int *best, float *best_load, int *probe
    ) noexcept nogil:
        """The least loaded of a stretch, if it is less loaded than the best so far; stops at one that awaits a probe."""
        cdef uint32_t i
        cdef uint32_t stamp = fr_millis(now[0])
        cdef float load
        cdef float least = best_load[0]
        cdef int at = best[0]
        cdef const Item *item
        for i in range(first, end):
            item = &self.items[i]
            if is_unsettled(item.hot):
                if now[0] == 0:
                    now[0] = fr_clock_coarse()
                if not can_be_had(item, now[0]):
                    continue
                if control_state(fr_load(&item.hot.breaker)) != STATE_CLOSED:
                    probe[0] = <int>i
                    return
                load = ramped_load(item, decay, now[0])
            elif decay:
                load = decayed_load(item, stamp)
            else:
                load = load_without_decay(item.hot, item.penalty)
            if load < least:
                least = load
                at = <int>i
        best_load[0] = least
        best[0] = at

    cdef int pick_of_two(self, uint64_t seed, bint decay, int64_t now) noexcept nogil:
        """The better of two drawn at random; -1 if either is not plainly closed, or there are not two."""
        cdef uint32_t first, second
        cdef const Item *a
        cdef const Item *b
        cdef float load_a, load_b
        if self.count < 2:
            return -1
        two_of(seed, self.count, &first, &second)
        a = &self.items[first]
        b = &self.items[second]
        if is_unsettled(a.hot) or is_unsettled(b.hot):
            return -1
        if decay:
            if now == 0:
                now = fr_clock_coarse()
            load_a = decayed_load(a, fr_millis(now))
            load_b = decayed_load(b, fr_millis(now))
        else:
            load_a = load_without_decay(a.hot, a.penalty)
            load_b = load_without_decay(b.hot, b.penalty)
        if load_b < load_a:
            return <int>second
        return <int>first if load_a < FR_INFINITY else -1
