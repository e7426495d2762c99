# ======================================================================================================================
# Ranking: which endpoint first
# ======================================================================================================================
#
# Filters, keys and comparisons are in judging.pxi; here they are applied to a row of endpoints. The criteria and the
# result of a choice are in choosing.pxi.

# Class ----------------------------------------------------------------------------------------------------------------


@cython.final
cdef class Ranking:
    """A fixed row of endpoints, to choose from in one native call.

    Args:
        endpoints: The row; all other arguments have one item for each endpoint.
        models: A number for the model of each; equal numbers are one model.
        windows: Context window, tokens; 0: not known, and never too small.
        max_outputs: Most tokens of an answer; 0: not known. Longer answers are counted as this long.
        capabilities: Bit masks, defined by the caller.
        input_prices: nano-USD per million tokens; -1: not known.
        output_prices: The same.
        qualities: 0 or more; 0: not known.
        latencies: Seconds to expect until some were measured; 0: not known.
        calibrations: A ``Calibration`` each, which corrects input tokens; None: they are taken as given.

    Thread safety: it does not change after it is made; any number of threads may rank with it.
    """

    cdef readonly tuple endpoints
    cdef tuple calibrations          # kept alive, because the offers point into them
    cdef Item *items
    cdef Offer *offers
    cdef uint32_t count
    cdef uint32_t offer_count
    cdef int32_t groups
    cdef uint64_t configurations_seen

    def __init__(
        self, endpoints: Sequence[Endpoint], *, models: Sequence[int], windows: Sequence[int],
        max_outputs: Sequence[int], capabilities: Sequence[int], input_prices: Sequence[int],
        output_prices: Sequence[int], qualities: Sequence[float], latencies: Sequence[float],
        calibrations: Sequence[Calibration] | None = None,
    ) -> None:
        if self.endpoints is not None:
            raise RuntimeError("a Ranking cannot be initialised twice")
        cdef tuple row = tuple(endpoints)
        cdef Py_ssize_t count = len(row)
        cdef Py_ssize_t i
        cdef Endpoint endpoint
        cdef Offer offer
        if count > 1 << 20:
            raise ValueError(f"endpoints must be at most {1 << 20}, not {count}")
        for name, column in (
            ("models", models), ("windows", windows), ("max_outputs", max_outputs), ("capabilities", capabilities),
            ("input_prices", input_prices), ("output_prices", output_prices), ("qualities", qualities),
            ("latencies", latencies),
        ):
            if len(column) != count:
                raise ValueError(f"{name} must have one item for each of the {count} endpoints, not {len(column)}")
        if calibrations is not None:
            self.calibrations = tuple(calibrations)
            if len(self.calibrations) != count:
                raise ValueError(f"calibrations must have one item for each of the {count} endpoints")
            for calibration in self.calibrations:
                if not isinstance(calibration, Calibration):
                    raise TypeError(f"calibrations must be of Calibration, not {type(calibration).__name__}")
        places: dict[bytes, int] = {}
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
            # Pointers into the endpoint, which `endpoints` keeps alive.
            self.items[i].parts = &endpoint.parts
            self.items[i].hot = endpoint.parts.hot
            memset(&offer, 0, sizeof(Offer))     # also the padding, because offers are compared as bytes
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
            if self.calibrations is not None:
                offer.ratio = &(<Calibration>self.calibrations[i]).word
            place = places.setdefault((<const char *>&offer)[:sizeof(Offer)], self.offer_count)
            if place == self.offer_count:
                self.offers[self.offer_count] = offer
                self.offer_count += 1
            self.items[i].offer = place
        # Last: the destructor frees in any case, and all methods take a Ranking with endpoints for complete.
        self.groups = <int32_t>len(numbers)
        self.count = <uint32_t>count
        self.endpoints = row
        self.copy_settings()

    def __dealloc__(self):
        PyMem_Free(self.items)
        PyMem_Free(self.offers)

    def __len__(self) -> int:
        return self.count

    cdef inline const Offer *offer_of(self, uint32_t i) noexcept nogil:
        return &self.offers[self.items[i].offer]

    cdef void copy_settings(self) noexcept nogil:
        # The number first: if an endpoint is configured while this runs, the next ranking finds another number and
        # copies again.
        cdef uint32_t i
        cdef Item *item
        self.configurations_seen = configurations
        for i in range(self.count):
            item = &self.items[i]
            item.inverse_tau = item.parts.latency.inverse_tau
            item.inverse_weight = <float>item.parts.inverse_weight
            item.penalty = <float>FR_INFINITY if never_fits(item.parts, 0) else <float>item.parts.inverse_weight
            item.most = most_that_fits(item.parts)

    def choice(
        self, strategy, max_price=-1, price_ceiling=-1, double quality_floor=0.0, double max_latency=0.0,
        among_models=ORDERED, limit=0, bint decay=True,
    ) -> RankingChoice:
        """Criteria for choosing from this row, checked once and kept.

        Args:
            strategy: LATENCY, WEIGHTED, LEAST_BUSY, LOWEST_COST, LOWEST_USAGE, TWO_CHOICES or ORDERED.
            max_price: Highest price of the request, nano-USD: a hard filter. -1: no limit.
            price_ceiling: The same as a soft filter, which is ignored if no endpoint passes all soft filters.
            quality_floor: Lowest quality, a soft filter.
            max_latency: Highest expected latency, seconds, a soft filter; 0: no limit.
            among_models: The order of models: VALUE, which is price / (quality * speed), or a strategy. A model counts as
                the best of its endpoints; with WEIGHTED, as the sum of their weights; with ORDERED, by its number.
            limit: Most endpoints in the order; 0: all.
            decay: Let old latencies and failures fade.
        """
        cdef RankingChoice choice = RankingChoice.__new__(RankingChoice)
        cdef Wish *wish = &choice.wish
        wish.strategy = self.checked_strategy(strategy)
        wish.max_price = whole("max_price", integer(max_price), -1, INT64_MAX)
        wish.price_ceiling = whole("price_ceiling", integer(price_ceiling), -1, INT64_MAX)
        if quality_floor != quality_floor or max_latency != max_latency:
            raise ValueError("quality_floor and max_latency must be numbers, not NaN")
        wish.quality_floor = quality_floor
        wish.max_latency = max_latency
        wish.among_models = <int>whole("among_models", integer(among_models), BY_LATENCY, BY_VALUE)
        wish.limit = amount("limit", limit, 0)
        wish.decay = decay
        wish.priced = (
            wish.max_price >= 0 or wish.price_ceiling >= 0 or wish.strategy == BY_COST
            or wish.among_models == BY_VALUE or wish.among_models == BY_COST
        )
        choice.ranking = self
        return choice

    def rank(
        self, strategy, tokens_in=0, tokens_out=0, capabilities=0, max_price=-1,
        price_ceiling=-1, double quality_floor=0.0, double max_latency=0.0, among_models=ORDERED,
        limit=0, seed=0, bint decay=True, now=0,
    ) -> Ranked:
        """``choice`` and its ``rank`` in one call, for criteria that are used once."""
        cdef RankingChoice choice = self.choice(
            strategy, max_price, price_ceiling, quality_floor, max_latency, among_models, limit, decay
        )
        return choice.ranked(tokens_in, tokens_out, capabilities, seed, moment(now) or fr_clock_coarse())

    cdef int checked_strategy(self, object strategy) except -1:
        cdef int64_t value = integer(strategy)
        if self.endpoints is None:
            raise RuntimeError("this Ranking was not initialised")
        if value < BY_LATENCY or value > BY_ORDER:
            raise ValueError(f"strategy must be LATENCY (0) to ORDERED (6), not {strategy}")
        return <int>value

    cdef int judge(self, Ranked result) except -1:
        """Fills in a result that has only its criteria."""
        # For up to FEW offers everything but the candidates is on the stack. Candidates and verdicts share one block,
        # which the result owns, so a small ranking needs one allocation.
        cdef Wish *wish = &result.wish
        cdef size_t n = self.count
        cdef uint32_t i
        cdef Terms few_terms[FEW]
        cdef Standing few_standings[FEW]
        cdef Terms *terms = few_terms
        cdef Standing *standings = few_standings
        cdef void *scratch = NULL
        result.ranking = self
        result.chosen = -1
        result.candidates = <Candidate *>PyMem_Malloc(n * (sizeof(Candidate) + 1) + 1)
        if result.candidates is NULL:
            raise MemoryError("no memory for the ranking")
        result.verdicts_ = <uint8_t *>(result.candidates + n)
        if self.offer_count > FEW:   # there are never more models than offers
            scratch = PyMem_Malloc(self.offer_count * (sizeof(Terms) + sizeof(Standing)))
            if scratch is NULL:
                raise MemoryError("no memory for the ranking")
            terms = <Terms *>scratch
            standings = <Standing *>(terms + self.offer_count)
        if self.configurations_seen != configurations:
            self.copy_settings()
        wish.stamp = fr_millis(wish.now)
        wish.start = remainder(wish.seed, self.count) if n else 0
        for i in range(self.offer_count):
            set_terms(&terms[i], &self.offers[i], wish)
        cdef bint soft = self.collect(result, terms)
        if result.count == 0 and soft:
            result.soft_relaxed = True
            self.collect_relaxed(result, terms)
        elif wish.among_models != BY_ORDER and self.groups > 1:
            if wish.among_models == BY_VALUE:
                self.place_by_value(result, terms, standings)
            else:
                self.place_by_strategy(result, terms, standings)
        PyMem_Free(scratch)
        # The OR is at least as large as each of its words, so it misses none; that it may be larger costs a little time.
        if fr_rarely(result.failing >> 54 >= FR_UNHEALTHY):
            self.put_unhealthy_last(result)
        if wish.strategy == BY_TWO_CHOICES:
            self.favour_two(wish, result.candidates, result.count)
        result.first = first_of(result.candidates, result.count)
        return 0

    cdef bint collect(self, Ranked result, const Terms *terms) noexcept:
        """Writes all verdicts, and a candidate for each that passed; returns whether any failed only soft filters."""
        cdef const Wish *wish = &result.wish
        cdef const Item *item = self.items
        cdef const Terms *at
        cdef Candidate *candidate = result.candidates
        cdef uint32_t i
        cdef int verdict
        cdef bint soft = False
        cdef bint probe
        for i in range(self.count):
            at = &terms[item.offer]
            probe = False
            verdict = verdict_on(item, &self.offers[item.offer], at, wish, &probe)
            result.verdicts_[i] = <uint8_t>verdict
            if verdict:
                soft = soft or verdict >= VERDICT_QUALITY
            else:
                candidate.place = self.offers[item.offer].group
                candidate.queue = 2 * <int64_t>self.offers[item.offer].group + (not probe)
                self.describe(candidate, i, at.price, wish)
                result.failing |= fr_load(&item.hot.failure)
                candidate += 1
            item += 1
        result.count = <uint32_t>(candidate - result.candidates)
        return soft

    cdef void collect_relaxed(self, Ranked result, const Terms *terms) noexcept:
        """Writes a candidate for each endpoint that failed only soft filters, placed by quality, not by model."""
        cdef const Wish *wish = &result.wish
        cdef Candidate *candidate = result.candidates
        cdef uint32_t i
        cdef bint probe
        for i in range(self.count):
            if result.verdicts_[i] >= VERDICT_QUALITY:
                probe = breaker_peek(
                    &self.items[i].parts.rules, fr_load(&self.items[i].hot.breaker), wish.now
                ) == 1
                candidate.place = -self.offer_of(i).quality
                self.describe(candidate, i, terms[self.items[i].offer].price, wish)
                result.failing |= fr_load(&self.items[i].hot.failure)
                candidate.queue = not probe
                candidate += 1
        result.count = <uint32_t>(candidate - result.candidates)

    cdef void put_unhealthy_last(self, Ranked result) noexcept:
        """Gives unhealthy endpoints, whatever their model, higher places than all healthy ones.

        Except those whose breaker waits for a probe, which goes first and shows whether they have recovered.
        """
        cdef Candidate *candidate
        cdef uint32_t i
        cdef double top = 0.0
        for i in range(result.count):
            candidate = &result.candidates[i]
            if candidate.place < FR_INFINITY:
                top = max(top, abs(candidate.place))
        top = 2.0 * top + 1.0
        for i in range(result.count):
            candidate = &result.candidates[i]
            if candidate.queue & 1 and self.unwell(candidate.index, &result.wish):
                candidate.place += 2.0 * top     # an infinite place (unknown value) stays behind the others
            elif candidate.place == FR_INFINITY:
                candidate.place = top

    cdef inline bint unwell(self, uint32_t i, const Wish *wish) noexcept nogil:
        cdef uint64_t failing = fr_load(&self.items[i].hot.failure)
        return is_unhealthy(failing, wish.stamp if wish.decay else fr_stamp(failing))

    cdef inline void describe(self, Candidate *candidate, uint32_t i, int64_t price, const Wish *wish) noexcept nogil:
        candidate.index = <int32_t>i
        candidate.turn = <int32_t>(i - wish.start if i >= wish.start else i + self.count - wish.start)
        candidate.key = key_of(&self.items[i], wish, wish.strategy, i, price)

    cdef void place_by_value(self, Ranked result, const Terms *terms, Standing *standings) noexcept:
        """Places each model by the best value among its endpoints that passed."""
        cdef int64_t group
        cdef uint32_t i
        cdef Candidate *candidate
        cdef const Item *item
        cdef double latency
        for group in range(self.groups):
            standings[group].latency = standings[group].value = FR_INFINITY
        # A model is as quick as its quickest endpoint that passed and has a known latency. All its endpoints get the
        # same place, because the strategy orders them within the model.
        for i in range(result.count):
            candidate = &result.candidates[i]
            item = &self.items[candidate.index]
            group = candidate.queue >> 1
            latency = expected_latency(item, &self.offers[item.offer], &result.wish, False)
            if 0 < latency < standings[group].latency:
                standings[group].latency = latency
        for i in range(result.count):
            candidate = &result.candidates[i]
            item = &self.items[candidate.index]
            group = candidate.queue >> 1
            candidate.place = value_of(
                terms[item.offer].price, self.offers[item.offer].quality, standings[group].latency
            )
            standings[group].value = min(standings[group].value, candidate.place)
        for i in range(result.count):
            result.candidates[i].place = standings[result.candidates[i].queue >> 1].value

    cdef void place_by_strategy(self, Ranked result, const Terms *terms, Standing *standings) noexcept:
        """Places each model by the best key among its endpoints that are in, or by lot by the sum of their weights."""
        cdef const Wish *wish = &result.wish
        cdef uint64_t lot = fr_mix(wish.seed + 1)         # not the one by which endpoints are drawn
        cdef int64_t group
        cdef uint32_t i, first, second
        cdef uint32_t present = 0
        cdef Candidate *candidate
        cdef const Item *item
        cdef Standing *standing
        cdef Standing *a = NULL
        cdef Standing *b = NULL
        for group in range(self.groups):
            standings[group].latency = 0.0                 # here: the sum of the weights
            standings[group].value = FR_INFINITY
        for i in range(result.count):
            candidate = &result.candidates[i]
            item = &self.items[candidate.index]
            standing = &standings[candidate.queue >> 1]
            present += standing.latency == 0
            standing.latency += 1.0 / item.inverse_weight
            standing.value = min(
                standing.value, key_of(item, wish, wish.among_models, candidate.index, terms[item.offer].price)
            )
        if wish.among_models == BY_WEIGHT:
            for group in range(self.groups):
                if standings[group].latency > 0:
                    standings[group].value = weighted_key(lot, <uint32_t>group, 1.0 / standings[group].latency)
        elif wish.among_models == BY_TWO_CHOICES and present > 1:
            two_of(lot, present, &first, &second)
            present = 0
            for group in range(self.groups):
                if standings[group].latency > 0:
                    if present == first:
                        a = &standings[group]
                    elif present == second:
                        b = &standings[group]
                    present += 1
            if b.value < a.value:
                a = b
            a.value = -1.0
        for i in range(result.count):
            result.candidates[i].place = standings[result.candidates[i].queue >> 1].value

    cdef tuple values_of(self, const Wish *wish, const uint8_t *verdicts):
        """price / (quality * speed) of every endpoint, including those that were filtered out."""
        cdef list quickest = [FR_INFINITY] * self.groups
        cdef double latency
        cdef uint32_t i
        for i in range(self.count):
            latency = expected_latency(&self.items[i], self.offer_of(i), wish, False)
            if verdicts[i] == VERDICT_IN and 0 < latency < <double>quickest[self.offer_of(i).group]:
                quickest[self.offer_of(i).group] = latency
        return tuple([
            value_of(price_wished(self.offer_of(i), wish), self.offer_of(i).quality, quickest[self.offer_of(i).group])
            for i in range(self.count)
        ])

    cdef void favour_two(self, const Wish *wish, Candidate *candidates, uint32_t count) noexcept nogil:
        """Draws two endpoints of each model and puts the less loaded one first; the others follow by load.

        Two random choices instead of the least loaded (Mitzenmacher): many callers that see the same loads do not all
        choose the same endpoint. The candidates are in the order of the row, in which those of a model need not be
        neighbours.
        """
        cdef int32_t group
        cdef uint32_t i, members, first, second
        cdef Candidate *a
        cdef Candidate *b
        for group in range(self.groups):
            members = 0
            for i in range(count):
                members += self.offer_of(candidates[i].index).group == group
            if members < 2:
                continue
            two_of(wish.seed, members, &first, &second)
            a = NULL
            b = NULL
            members = 0
            for i in range(count):
                if self.offer_of(candidates[i].index).group == group:
                    if members == first:
                        a = &candidates[i]
                    elif members == second:
                        b = &candidates[i]
                    members += 1
            if b.key < a.key:
                a = b
            a.key = -1.0

    def pick(self, strategy, seed=0, bint decay=False, now=0) -> int:
        """The index of the endpoint that ``rank`` without filters would put first, or -1 if none is available now.

        For LATENCY and TWO_CHOICES with one model it is found without ranking the others.
        """
        cdef int64_t time = moment(now)
        cdef int kind = self.checked_strategy(strategy)
        cdef uint64_t lot = unsigned(seed)
        cdef int best
        if self.groups == 1 and self.configurations_seen == configurations:
            if kind == BY_LATENCY:
                # A load that is no number is not the least of any: then all are ranked.
                best = self.pick_least_loaded(lot, decay, time)
                if best >= 0:
                    return best
            elif kind == BY_TWO_CHOICES:
                best = self.pick_of_two(lot, decay, time)
                if best >= 0:
                    return best
        return self.pick_ranked(kind, lot, decay, time)

    cdef int pick_ranked(self, int strategy, uint64_t seed, bint decay, int64_t now) except -2:
        cdef RankingChoice choice = self.choice(strategy, limit=1, decay=decay)
        return choice.ranked(0, 0, 0, seed, now or fr_clock_coarse()).first

    cdef int pick_least_loaded(self, uint64_t seed, bint decay, int64_t now) noexcept nogil:
        cdef Least least
        cdef uint32_t n = self.count
        cdef uint32_t start = remainder(seed, n)
        least.now = fr_clock_coarse() if decay and now == 0 else now
        least.load = <float>FR_INFINITY
        least.index = -1
        # Begins at a place that depends on the seed, so that ties are broken differently each time.
        if decay:
            if self.least_loaded(start, n, True, &least) and start:
                self.least_loaded(0, start, True, &least)
        elif self.least_loaded(start, n, False, &least) and start:
            self.least_loaded(0, start, False, &least)
        return least.index

    cdef inline bint least_loaded(self, uint32_t first, uint32_t end, bint decay, Least *least) noexcept nogil:
        """Updates ``least`` with the least loaded endpoint of a range.

        Returns False at an endpoint that waits for a probe, which goes first. ``decay`` is a constant where this is
        called, so that the compiler makes a loop of its own for each case.
        """
        cdef const Item *item = &self.items[first]
        cdef const Item *last = &self.items[end]
        cdef float lowest = least.load
        cdef float load
        cdef uint32_t stamp = fr_millis(least.now) if decay else 0
        while item != last:
            if is_unsettled(item.hot):
                # Without decay the clock is needed only here, so it is read only for unsettled endpoints.
                if least.now == 0:
                    least.now = fr_clock_coarse()
                load = unsettled_load(item, decay, least.now)
                if load < 0:
                    least.index = <int>(item - self.items)
                    return False
            elif decay:
                load = decayed_load(item, stamp)
            else:
                load = load_without_decay(item.hot, item.penalty)
            if load < lowest:
                lowest = load
                least.index = <int>(item - self.items)
            item += 1
        least.load = lowest
        return True

    cdef int pick_of_two(self, uint64_t seed, bint decay, int64_t now) noexcept nogil:
        """The less loaded of two drawn at random; -1 if one of them is unsettled, or there are fewer than two."""
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
