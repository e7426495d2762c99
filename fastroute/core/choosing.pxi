# ======================================================================================================================
# Choosing: what is wished of a row of endpoints, what came of it, and letting a request in there
# ======================================================================================================================
#
# What is wished of every choice from a row is checked once and kept as a RankingChoice. Its rank only looks; its
# admit also asks the endpoints in their order until one lets the request in.

# Classes --------------------------------------------------------------------------------------------------------------


@cython.final
cdef class Calibration:
    """The ratio of real to estimated input tokens of one model, learned from returned usage; of this process alone.

    Thread safety: the ratio is one word. Two threads that learn at once may lose one of the two observations, which a
    moving average does not mind.
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
        """Takes in that a request estimated (uncorrected) at ``estimate`` tokens took ``real``.

        Figures that cannot be right are ignored, and the ratio stays within 0.3 to 3, so that a provider which reports
        nonsense can neither starve nor flood a limit.
        """
        cdef double ratio = fr_double(fr_load(&self.word))
        if estimate > 0 and real > 0:
            ratio += FR_RATIO_WEIGHT * (min(max(real / estimate, FR_LOWEST_RATIO), FR_HIGHEST_RATIO) - ratio)
            fr_store(&self.word, fr_bits_of_double(ratio))


@cython.final
@cython.no_gc
@cython.freelist(8)
cdef class Ranked:
    """What a ranking came to. Made by ``RankingChoice.rank`` and ``RankingChoice.admit`` only.

    The verdicts and who comes ``first`` are settled when it is made. The rest of the order is sorted out when it is
    asked for, and so are the figures of endpoints that were not in: ``keys``, ``values`` and ``prices`` are those of
    the ranking's ``now``, but of the state that the endpoints are in when they are read.

    Made by ``admit``, it holds the ticket of the endpoint that let the request in until that is taken; one that is
    never taken is given back with it, as by ``Endpoint.undo``.

    Thread safety: immutable but for ``take``, which is for one thread.
    """

    cdef Ranking ranking
    cdef Wish wish
    cdef Candidate *candidates           # those that are in, in the order of the row
    cdef uint8_t *verdicts_
    cdef uint32_t count                  # of candidates
    cdef readonly int first              # index of the endpoint to try first, -1: none
    cdef readonly int chosen             # index of the endpoint that let the request in, -1: none did, or none was asked
    cdef readonly int64_t tokens         # paid there
    cdef int64_t ticket
    cdef bint holds                      # whether the ticket is still this object's to give back
    cdef bint soft_relaxed

    def __init__(self) -> None:
        raise TypeError("a Ranked is made by RankingChoice.rank() and RankingChoice.admit()")

    def __dealloc__(self):
        if self.holds:
            (<Endpoint>self.ranking.endpoints[self.chosen]).take_back(self.ticket, self.tokens, fr_clock())
        PyMem_Free(self.candidates)

    def __repr__(self) -> str:
        return f"<Ranked {self.order}{' relaxed' if self.soft_relaxed else ''}>"

    def take(self) -> int:
        """The ticket of ``chosen``, whose end is the caller's to see to from now on.

        Raises:
            ValueError: Nobody let the request in, or the ticket was taken before.
        """
        if not self.holds:
            raise ValueError("there is no ticket: nobody let the request in, or it was taken before")
        self.holds = False
        return self.ticket

    cdef int64_t chosen_of(self) noexcept:
        """How many there are in the order."""
        return min(self.wish.limit, <int64_t>self.count) if self.wish.limit else self.count

    cdef int32_t *sorted_places(self, int32_t *few) except NULL:
        """The candidates' places in order: in ``few`` if there is room, else in memory that the caller frees."""
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
        """Asks one after the other until one lets the request in."""
        cdef int64_t length = self.chosen_of()
        cdef int32_t few[FEW]
        cdef int32_t *places
        cdef int64_t i
        # Mostly the first does, and then nobody has to know in which order the others come.
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
        """One code for each endpoint: 0 it is in, or OUT_… or SOFT_…, why not."""
        return self.verdicts_[:self.ranking.count]

    @property
    def keys(self) -> tuple[float, ...]:
        """The strategy's figure for each endpoint, less is better (TWO_CHOICES: the load)."""
        cdef Ranking row = self.ranking
        cdef uint32_t i
        return tuple([
            key_of(&row.items[i], &self.wish, i, price_wished(row.offer_of(i), &self.wish)) for i in range(row.count)
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
        """Nothing met the soft filters, so the order is by quality among what failed only those."""
        return self.soft_relaxed


@cython.final
cdef class RankingChoice:
    """What is wished of choosing from a ``Ranking``, made by its ``choice``.

    Thread safety: it does not change; any number of threads may choose with it.
    """

    cdef readonly Ranking ranking
    cdef Wish wish

    def __init__(self) -> None:
        raise TypeError("a RankingChoice is made by Ranking.choice()")

    def rank(self, tokens_in=0, tokens_out=0, capabilities=0, seed=0, now=0) -> Ranked:
        """Judges and orders all endpoints, changing nothing.

        Args:
            tokens_in: Of the request, by estimate; corrected by the calibrations.
            tokens_out: Most the answer may have.
            capabilities: Bits that must all be there.
            seed: Any number; breaks ties and draws lots. Equal seeds give equal answers.
            now: ns; 0 reads the clock.
        """
        return self.ranked(tokens_in, tokens_out, capabilities, seed, moment(now) or fr_clock_coarse())

    def admit(self, tokens_in=0, tokens_out=0, capabilities=0, seed=0, now=0) -> Ranked:
        """``rank``, and the first in its order that lets the request in does so: see ``Endpoint.admit``.

        What is paid there are the tokens as its model counts them. ``Ranked.chosen`` says who it was.
        """
        cdef Ranked result = self.ranked(tokens_in, tokens_out, capabilities, seed, moment(now) or fr_clock())
        result.let_in()
        return result

    cdef inline Ranked ranked(self, object tokens_in, object tokens_out, object capabilities, object seed, int64_t now):
        cdef Ranked result = Ranked.__new__(Ranked)
        result.wish = self.wish
        result.wish.tokens_in = amount("tokens_in", tokens_in, 0)
        result.wish.tokens_out = amount("tokens_out", tokens_out, 0)
        result.wish.capabilities = unsigned(capabilities)
        result.wish.seed = unsigned(seed)
        result.wish.now = now
        self.ranking.judge(result)
        return result
