# ======================================================================================================================
# Choosing: how to choose from a row of endpoints, the result, and admitting a request there
# ======================================================================================================================
#
# The criteria that do not change from request to request are checked once and kept as a RankingChoice. Its `rank`
# changes nothing; its `admit` also asks the endpoints in order until one admits the request.

# Classes --------------------------------------------------------------------------------------------------------------


@cython.final
cdef class Calibration:
    """The ratio of real to estimated input tokens of one model, learned from reported usage; of this process alone.

    Thread safety: the ratio is one word. When two threads learn at once, one of the two observations may be lost, which
    hardly changes a moving average.
    """

    cdef uint64_t word               # the ratio's bits

    def __cinit__(self):
        self.word = fr_bits_of_double(1.0)

    @property
    def ratio(self) -> float:
        """What an estimate is multiplied by."""
        return fr_double(fr_load(&self.word))

    def apply(self, estimate) -> int:
        """The estimate corrected by what was learned, rounded up."""
        return calibrated(amount("estimate", estimate, 0), fr_double(fr_load(&self.word)))

    def learn(self, double estimate, double real) -> None:
        """Records that a request estimated (uncorrected) at ``estimate`` tokens took ``real``.

        Figures of 0 or less are ignored, and the ratio stays within 0.3 to 3, so that a provider that reports nonsense
        can neither block a limit nor make it useless.
        """
        cdef double ratio = fr_double(fr_load(&self.word))
        if estimate > 0 and real > 0:
            ratio += FR_RATIO_WEIGHT * (min(max(real / estimate, FR_LOWEST_RATIO), FR_HIGHEST_RATIO) - ratio)
            fr_store(&self.word, fr_bits_of_double(ratio))


@cython.final
@cython.no_gc
@cython.freelist(8)
cdef class Ranked:
    """The result of a ranking. Made by ``RankingChoice.rank`` and ``RankingChoice.admit`` only.

    The verdicts and ``first`` are computed when it is made. The rest of the order is sorted when it is read. ``keys``,
    ``values`` and ``prices`` are computed when they are read: for the ranking's ``now``, but from the state that the
    endpoints are in by then.

    A result of ``admit`` holds the ticket of the endpoint that admitted the request until ``take`` is called. A ticket
    that was not taken is given back when the object is freed, as by ``Endpoint.undo``.

    Thread safety: immutable but for ``take``, which is for one thread.
    """

    cdef Ranking ranking
    cdef Wish wish
    cdef Candidate *candidates           # endpoints that passed the filters, in the order of the row
    cdef uint8_t *verdicts_
    cdef uint32_t count                  # of candidates
    cdef readonly int first              # index of the endpoint to try first, -1: none
    cdef readonly int chosen             # index of the endpoint that admitted the request; -1: none did, or not asked
    cdef readonly int64_t tokens         # paid there
    cdef int64_t ticket
    cdef bint holds                      # whether the ticket is still this object's to give back
    cdef bint soft_relaxed
    cdef uint64_t failing                # bitwise OR of the candidates' `failure` words

    def __init__(self) -> None:
        raise TypeError("a Ranked is made by RankingChoice.rank() and RankingChoice.admit()")

    def __dealloc__(self):
        # The call raised between admission and `take`. Without this the permit would be held until the process ends.
        if self.holds:
            (<Endpoint>self.ranking.endpoints[self.chosen]).take_back(self.ticket, self.tokens, fr_clock())
        PyMem_Free(self.candidates)

    def __repr__(self) -> str:
        return f"<Ranked {self.order}{' relaxed' if self.soft_relaxed else ''}>"

    def take(self) -> int:
        """The ticket of ``chosen``. From now on the caller must end it, with ``Endpoint.finish`` or ``undo``.

        Raises:
            ValueError: No endpoint admitted the request, or the ticket was taken before.
        """
        if not self.holds:
            raise ValueError("there is no ticket: no endpoint admitted the request, or it was taken before")
        cdef object ticket = self.ticket  # before it is given up: there may be no memory for the number
        self.holds = False
        return ticket

    cdef int64_t chosen_of(self) noexcept:
        """The number of endpoints in the order."""
        return min(self.wish.limit, <int64_t>self.count) if self.wish.limit else self.count

    cdef int32_t *sorted_places(self, int32_t *few) except NULL:
        """The candidates' places in order: in ``few`` if there is room, else in memory that the caller frees."""
        # The order is sorted anew for each reader and not kept, so that readers in several threads share nothing.
        cdef int32_t *places = few
        if self.count > FEW:
            places = <int32_t *>PyMem_Malloc(self.count * sizeof(int32_t))
            if places is NULL:
                raise MemoryError("no memory for the order")
        sort_places(self.candidates, <int32_t>self.count, <int32_t>self.chosen_of(), places)
        return places

    @property
    def order(self) -> tuple[int, ...]:
        """Indexes of the endpoints to try, the best first."""
        cdef int64_t length = self.chosen_of()
        cdef int32_t few[FEW]
        cdef int32_t *places
        cdef int64_t i
        if length < 2:
            return (self.first,) if length else ()
        places = self.sorted_places(few)
        try:
            return tuple([self.candidates[places[i]].index for i in range(length)])
        finally:
            if places is not few:
                PyMem_Free(places)

    cdef int let_in(self) except -1:
        """Asks the endpoints in order until one admits the request."""
        cdef int64_t length = self.chosen_of()
        cdef int32_t few[FEW]
        cdef int32_t *places
        cdef int64_t i
        # Nearly always the first one admits it, and then the others need not be sorted.
        if length == 0 or self.ask(self.first) or length == 1:
            return 0
        places = self.sorted_places(few)
        try:
            for i in range(1, length):
                if self.ask(self.candidates[places[i]].index):
                    break
        finally:
            if places is not few:
                PyMem_Free(places)
        return 0

    cdef bint ask(self, int index) except -1:
        cdef const Offer *offer = self.ranking.offer_of(index)
        cdef int64_t tokens = input_of(offer, self.wish.tokens_in) + output_of(offer, self.wish.tokens_out)
        cdef int64_t answer = (<Endpoint>self.ranking.endpoints[index]).let_in(tokens, False, self.wish.now)
        if answer < 0:
            return False
        self.ticket = answer
        self.tokens = tokens
        self.chosen = index
        self.holds = True
        return True

    @property
    def verdicts(self) -> bytes:
        """One code for each endpoint: 0 if it passed the filters, else OUT_… or SOFT_…."""
        return self.verdicts_[:self.ranking.count]

    def order_by(self, keys=None, places=None) -> None:
        """Orders by figures of the caller's own, less is better. Before the order is read or anybody is asked.

        Args:
            keys: One for each endpoint of the row, in place of the strategy's. None: these stay.
            places: One for each endpoint; the least among a model's endpoints is its model's. None: models stay as they
                are, as they do when soft filters gave way.

        Unhealthy endpoints stay behind the others.
        """
        cdef Ranking row = self.ranking
        cdef uint32_t i
        cdef Candidate *candidate
        cdef double figure
        cdef list best
        for figures in (keys, places):
            if figures is not None and len(figures) != row.count:
                raise ValueError(f"there must be one number for each of the {row.count} endpoints, not {len(figures)}")
            for figure in figures or ():
                if figure != figure:
                    raise ValueError("the numbers must not be NaN")
        if keys is not None:
            for i in range(self.count):
                self.candidates[i].key = keys[self.candidates[i].index]
        if places is not None and not self.soft_relaxed:
            best = [FR_INFINITY] * row.groups
            for i in range(self.count):
                candidate = &self.candidates[i]
                figure = places[candidate.index]
                best[candidate.queue >> 1] = min(best[candidate.queue >> 1], figure)
            for i in range(self.count):
                self.candidates[i].place = best[self.candidates[i].queue >> 1]
            if self.failing >> 54 >= FR_UNHEALTHY:
                row.put_unhealthy_last(self)
        self.first = first_of(self.candidates, self.count)

    def enter(self) -> int:
        """Asks one after the other until one lets the request in, as ``RankingChoice.admit`` does: ``chosen``."""
        if self.chosen < 0:
            self.wish.now = fr_clock()
            self.let_in()
        return self.chosen

    @property
    def unhealthy(self) -> bytes:
        """1 for each endpoint whose health score is under 70, 0 for the others."""
        cdef uint32_t i
        return bytes([self.ranking.unwell(i, &self.wish) for i in range(self.ranking.count)])

    @property
    def keys(self) -> tuple[float, ...]:
        """The figure that the strategy compares, for each endpoint; less is better (TWO_CHOICES: the load)."""
        cdef Ranking row = self.ranking
        cdef uint32_t i
        return tuple([
            key_of(&row.items[i], &self.wish, self.wish.strategy, i, price_wished(row.offer_of(i), &self.wish)) for i in range(row.count)
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
        return tuple([price_wished(row.offer_of(i), &self.wish) for i in range(row.count)])

    @property
    def relaxed(self) -> bool:
        """Whether no endpoint passed the soft filters; then those that failed only these are ordered, by quality."""
        return self.soft_relaxed


@cython.final
cdef class RankingChoice:
    """Criteria for choosing from a ``Ranking``; made by its ``choice``.

    Thread safety: it does not change; any number of threads may choose with it.
    """

    cdef readonly Ranking ranking
    cdef Wish wish

    def __init__(self) -> None:
        raise TypeError("a RankingChoice is made by Ranking.choice()")

    def rank(self, tokens_in=0, tokens_out=0, capabilities=0, seed=0, now=0) -> Ranked:
        """Judges and orders all endpoints, changing nothing.

        Args:
            tokens_in: Estimated tokens of the request, before the calibrations correct them.
            tokens_out: Most tokens of the answer.
            capabilities: Bits that an endpoint must all have.
            seed: Any number, for ties and random choices. Equal seeds give equal results.
            now: ns; 0 reads the clock.
        """
        return self.ranked(tokens_in, tokens_out, capabilities, seed, moment(now) or fr_clock_coarse())

    def admit(self, tokens_in=0, tokens_out=0, capabilities=0, seed=0, now=0) -> Ranked:
        """``rank``, then asks the endpoints in order until one admits the request: see ``Endpoint.admit``.

        It pays there the tokens as that model counts them. ``Ranked.chosen`` is the endpoint's index.
        """
        cdef Ranked result = self.ranked(tokens_in, tokens_out, capabilities, seed, moment(now) or fr_clock())
        result.let_in()
        return result

    cdef inline Ranked ranked(self, object tokens_in, object tokens_out, object capabilities, object seed, int64_t now):
        cdef Ranked result = Ranked.__new__(Ranked)
        # A copy, so that the choice stays as it is and any number of threads can rank with it.
        result.wish = self.wish
        result.wish.tokens_in = amount("tokens_in", tokens_in, 0)
        result.wish.tokens_out = amount("tokens_out", tokens_out, 0)
        result.wish.capabilities = unsigned(capabilities)
        result.wish.seed = unsigned(seed)
        result.wish.now = now
        self.ranking.judge(result)
        return result
