# ======================================================================================================================
# Tail: how slow the slowest calls of the last minutes were, and how many hedges they allow
# ======================================================================================================================
#
# A histogram of five slices of a minute each, with buckets a quarter of a power of two wide: from 1 ms to 2097 s in 84
# counters of 16 bits, 28 to a cell. The current minute reuses the slice of the minute five before it: the first caller
# in it stamps the slice by one compare-and-swap and then empties it. Calls counted between the two steps are lost, and
# if that caller is killed between them the old counts stay, for five minutes. Both shift an estimate a little, and the
# number of hedges with it; nothing else depends on these counts.

# Constants ------------------------------------------------------------------------------------------------------------

cdef enum:
    KIND_TAIL = 15
    SLICES = 5
    SLICE_CELLS = 3
    CELL_COUNTS = 28             # 16-bit counters in one cell
    TAIL_BUCKETS = 84

cdef int64_t SLICE_NS = 60_000_000_000

# Structs --------------------------------------------------------------------------------------------------------------

cdef struct TailCells:
    uint64_t *slices             # a word each: the minute it counts, plus 1 | hedges begun in it (32 bits)
    uint64_t *counts[15]         # whole cells, the key first

# Functions ------------------------------------------------------------------------------------------------------------

cdef inline uint64_t minute_of(int64_t now) noexcept nogil:
    """The number of a minute, from 1 on: 0 stands for a slice that was never used."""
    return <uint64_t>(now // SLICE_NS) + 1


cdef inline uint16_t *counter_of(const TailCells *cells, int slice, int bucket) noexcept nogil:
    return <uint16_t *>(cells.counts[SLICE_CELLS * slice + bucket // CELL_COUNTS] + 1) + bucket % CELL_COUNTS


cdef inline int bucket_of(double x) noexcept nogil:
    cdef double octaves = 4.0 * log2(max(x, 0.001) * 1000.0)
    return min(<int>octaves, TAIL_BUCKETS - 1)


cdef int slice_at(const TailCells *cells, uint64_t minute) noexcept nogil:
    """The slice of a minute, emptied of an earlier one; -1 if a later minute has it already."""
    cdef int slice = <int>(minute % SLICES)
    cdef uint64_t word = fr_load(cells.slices + slice)
    cdef int cell, lane
    while word >> 32 != minute:
        # A thread that was held up between reading the clock and this must not empty the slice of a later minute.
        # One more than five minutes ahead is of no clock: the slice is taken over.
        if word >> 32 > minute and (word >> 32) - minute <= SLICES:
            return -1
        # The swap sets the hedges of the new minute to 0 with its stamp, so their count is exact from the first on.
        if fr_cas(cells.slices + slice, &word, minute << 32):
            for cell in range(SLICE_CELLS):
                for lane in range(7):
                    fr_store(cells.counts[SLICE_CELLS * slice + cell] + 1 + lane, 0)
            break
    return slice


cdef inline bint counts_now(uint64_t word, uint64_t minute) noexcept nogil:
    """Whether a slice belongs to the five minutes that end with this one."""
    return word != 0 and word >> 32 <= minute and minute - (word >> 32) < SLICES


cdef void tail_record(const TailCells *cells, double x, int64_t now) noexcept nogil:
    cdef int slice = slice_at(cells, minute_of(now))
    cdef uint16_t *place
    cdef uint16_t seen
    if slice < 0:
        return
    place = counter_of(cells, slice, bucket_of(x))
    seen = fr_load_u16(place)
    # A full counter stays full and must not carry into its neighbour. Quantiles then come out too high, which sends
    # fewer hedges.
    while seen != 0xFFFF and not fr_cas_u16(place, seen, seen + 1):
        seen = fr_load_u16(place)


cdef uint64_t tail_counts(const TailCells *cells, uint64_t *counts, int64_t now) noexcept nogil:
    """Sums the five minutes into ``counts``; returns how many calls that are."""
    cdef uint64_t minute = minute_of(now)
    cdef uint64_t total = 0
    cdef uint64_t found
    cdef int slice, bucket
    memset(counts, 0, TAIL_BUCKETS * sizeof(uint64_t))
    for slice in range(SLICES):
        if counts_now(fr_load(cells.slices + slice), minute):
            for bucket in range(TAIL_BUCKETS):
                found = fr_load_u16(counter_of(cells, slice, bucket))
                counts[bucket] += found
                total += found
    return total


cdef double tail_quantile(const TailCells *cells, double share, uint64_t least, int64_t now) noexcept nogil:
    """Interpolates within the bucket, on a logarithmic scale, by how much of the bucket is below the quantile."""
    cdef uint64_t counts[TAIL_BUCKETS]
    cdef uint64_t total = tail_counts(cells, counts, now)
    cdef double wanted = share * <double>total
    cdef double below = 0.0
    cdef int bucket
    if total == 0 or total < least:
        return 0.0
    for bucket in range(TAIL_BUCKETS):
        if counts[bucket] and below + <double>counts[bucket] >= wanted:
            return 0.001 * exp2((bucket + (wanted - below) / <double>counts[bucket]) / 4.0)
        below += <double>counts[bucket]
    return 0.0


cdef uint64_t tail_hedges(const TailCells *cells, int64_t now) noexcept nogil:
    cdef uint64_t minute = minute_of(now)
    cdef uint64_t total = 0
    cdef uint64_t word
    cdef int slice
    for slice in range(SLICES):
        word = fr_load(cells.slices + slice)
        if counts_now(word, minute):
            total += <uint32_t>word
    return total


cdef bint tail_hedge(const TailCells *cells, double share, int64_t now) noexcept nogil:
    cdef uint64_t counts[TAIL_BUCKETS]
    cdef double most = share * <double>tail_counts(cells, counts, now)
    cdef uint64_t minute = minute_of(now)
    cdef int slice = slice_at(cells, minute)
    cdef uint64_t word
    if slice < 0:
        return False
    # The slice's word is read before the sum over all slices and swapped after it: if another process takes a hedge in
    # between, the swap fails and the sum is made again. So hedges within one minute are granted exactly.
    while True:
        word = fr_load(cells.slices + slice)
        if word >> 32 != minute or <double>tail_hedges(cells, now) + 1.0 > most:
            return False
        if fr_cas(cells.slices + slice, &word, word + 1):
            break
    if fr_load(cells.slices + <int>((minute + 1) % SLICES)) >> 32 != minute + 1:
        return True
    # The next minute has begun since, in another thread or process, which may have summed up this minute's hedges
    # before the swap above. So the hedge is given back: with it there could be one more than the share allows.
    word = fr_load(cells.slices + slice)
    while word >> 32 == minute and not fr_cas(cells.slices + slice, &word, word - 1):
        pass
    return False


# Classes --------------------------------------------------------------------------------------------------------------


@cython.final
cdef class Tail:
    """The latencies of the last five minutes, from which the delay of a hedge is computed; shared by name.

    Buckets are a fifth of their value wide, so a quantile is exact to that.

    Args:
        segment: Where the state lives.
        name: Two of one name in one segment are the same.

    Thread safety: all methods are lock-free; no more hedges are granted than their share.
    """

    cdef readonly Segment segment
    cdef readonly str name
    cdef TailCells cells

    def __init__(self, Segment segment not None, str name not None) -> None:
        cdef uint64_t name_hash = segment.name_hash(name)
        cdef int number
        self.cells.slices = segment.claim(name_hash, KIND_TAIL) + 1
        for number in range(SLICES * SLICE_CELLS):
            self.cells.counts[number] = segment.claim(name_hash, KIND_TAIL, number + 1)
        self.segment = segment
        self.name = name

    def record(self, double latency_s, now=0) -> None:
        """Counts one call that took so long, or was given up after that, seconds."""
        tail_record(&self.cells, checked_latency(latency_s), moment(now) or fr_clock_coarse())

    def quantile(self, double share, least=1, now=0) -> float:
        """Seconds within which that share (0..1) of the calls ended; 0.0 if there were fewer than ``least``."""
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"share must be 0 to 1, not {share!r}")
        return tail_quantile(&self.cells, share, <uint64_t>amount("least", least, 0), moment(now) or fr_clock_coarse())

    def hedge(self, double share, now=0) -> bool:
        """Takes one hedge; False, and nothing taken, if hedges would be more than that share of the calls."""
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"share must be 0 to 1, not {share!r}")
        return tail_hedge(&self.cells, share, moment(now) or fr_clock_coarse())

    def count(self, now=0) -> int:
        """Calls in the last five minutes."""
        cdef uint64_t counts[TAIL_BUCKETS]
        return tail_counts(&self.cells, counts, moment(now) or fr_clock_coarse())

    def hedges(self, now=0) -> int:
        """Hedges taken in the last five minutes."""
        return tail_hedges(&self.cells, moment(now) or fr_clock_coarse())
