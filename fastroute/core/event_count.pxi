# ======================================================================================================================
# Event count: how often something happened, lately and in all
# ======================================================================================================================
#
# A word counts all events, and a ring of words the events of the last periods. Each word of the ring has its period
# beside its count, so that the first event of a period replaces the count of an older one in the same compare-and-swap:
# no event is lost or counted twice, whoever is killed. Periods are counted in CLOCK_MONOTONIC from the machine's start.

# Constants ------------------------------------------------------------------------------------------------------------

cdef enum:
    KIND_EVENTS = 16
    CELL_WORDS = 7               # of a cell, after its key
    MOST_PERIODS = 168           # an hour each: a week
    EVENT_CELLS = 25             # for those, and for the sum of all

cdef uint32_t FULL_COUNT = 0xFFFFFFFF

# Functions ------------------------------------------------------------------------------------------------------------

cdef inline uint64_t *event_word(uint64_t **cells, uint64_t place) noexcept nogil:
    return cells[place // CELL_WORDS] + 1 + place % CELL_WORDS


cdef void count_event(uint64_t *word, uint64_t period, uint64_t periods) noexcept nogil:
    cdef uint64_t seen = fr_load(word)
    cdef uint64_t wanted
    while True:
        # A thread that was held up since it read the clock must not replace the count of a later period. A full count
        # must not carry into the period. A period further ahead than the ring is long is of no clock, and replaced.
        if (seen >> 32 > period and (seen >> 32) - period <= periods) or (seen >> 32 == period and <uint32_t>seen == FULL_COUNT):
            return
        wanted = seen + 1 if seen >> 32 == period else (period << 32) | 1
        if fr_cas(word, &seen, wanted):
            return


# Classes --------------------------------------------------------------------------------------------------------------


@cython.final
cdef class EventCount:
    """Counts events, in all and in each of the last periods; shared by name.

    Args:
        segment: Where the state lives.
        name: Two of one name in one segment are the same; they must have the same periods.
        periods: How many periods are remembered, the current one included.
        period_s: Their length in whole seconds.

    Thread safety: all methods are lock-free and may be called from any thread and forked process; counts are exact.
    """

    cdef readonly Segment segment
    cdef readonly str name
    cdef readonly int64_t periods
    cdef readonly int64_t period_s
    cdef uint64_t *cells[EVENT_CELLS]

    def __init__(self, Segment segment not None, str name not None, *, periods=60, period_s=60) -> None:
        cdef uint64_t name_hash = segment.name_hash(name)
        cdef int64_t number, count
        if self.segment is not None:
            raise RuntimeError("an EventCount cannot be initialised twice")
        self.periods = amount("periods", periods, 1)
        self.period_s = amount("period_s", period_s, 1)
        if self.periods > MOST_PERIODS or self.period_s > 1_000_000:
            raise ValueError("periods: at most 168, of at most 1000000 s each")
        count = (self.periods + CELL_WORDS) // CELL_WORDS       # one word more, for the sum of all
        for number in range(count):
            self.cells[number] = segment.claim(name_hash, KIND_EVENTS, number)
        self.segment = segment
        self.name = name

    def add(self, now=0) -> None:
        """Counts one event."""
        cdef uint64_t period = self.period_of(moment(now) or fr_clock_coarse())
        fr_add(event_word(self.cells, 0), 1)
        count_event(event_word(self.cells, 1 + period % <uint64_t>self.periods), period, <uint64_t>self.periods)

    def total(self) -> int:
        """Events since the segment was made."""
        return fr_load(event_word(self.cells, 0))

    def lately(self, periods, now=0) -> int:
        """Events of the last so many periods, the current one included."""
        cdef uint64_t period = self.period_of(moment(now) or fr_clock_coarse())
        cdef uint64_t wanted = min(amount("periods", periods, 1), self.periods)
        cdef uint64_t found = 0
        cdef uint64_t word, place
        for place in range(<uint64_t>self.periods):
            word = fr_load(event_word(self.cells, 1 + place))
            if word >> 32 <= period < (word >> 32) + wanted:
                found += <uint32_t>word
        return found

    cdef uint64_t period_of(self, int64_t time) noexcept:
        # From 1 on: 0 is a word that was never used.
        return <uint64_t>(time // (self.period_s * 1_000_000_000)) + 1
