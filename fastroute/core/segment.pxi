# ======================================================================================================================
# Segment: the shared mapping, its cells, and who works in it
# ======================================================================================================================
#
# Layout: header (two cells), worker table (64 cells), then 2**k cells of 64 bytes. A cell is a 64-bit key and 56 bytes
# of state. The key is 60 bits of a hash of the name and 4 bits of kind, so it is never 0 and tells a stranger what
# the state is. A cell is found by open addressing and claimed by one compare-and-swap of its key; all-zero state is
# the valid beginning of every kind, so there is no second step that a killed process could leave undone. Cells are
# never given back.

from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "atomics.h" nogil:
    const int64_t FR_TIME_MAX
    uint64_t fr_load(const uint64_t *word) noexcept
    void fr_store(uint64_t *word, uint64_t value) noexcept
    bint fr_cas(uint64_t *word, uint64_t *expected, uint64_t desired) noexcept
    uint64_t fr_add(uint64_t *word, uint64_t delta) noexcept
    int64_t fr_load_i64(const int64_t *word) noexcept
    bint fr_cas_i64(int64_t *word, int64_t *expected, int64_t desired) noexcept
    int32_t fr_load_i32(const int32_t *word) noexcept
    int32_t fr_add_i32(int32_t *word, int32_t delta) noexcept
    bint fr_cas_i32(int32_t *word, int32_t *expected, int32_t desired) noexcept
    uint16_t fr_load_u16(const uint16_t *word) noexcept
    bint fr_cas_u16(uint16_t *word, uint16_t expected, uint16_t desired) noexcept
    uint64_t fr_pack(float value, uint32_t stamp) noexcept
    float fr_value(uint64_t word) noexcept
    uint32_t fr_stamp(uint64_t word) noexcept
    float fr_float_of_bits(uint32_t bits) noexcept
    uint32_t fr_bits_of_float(float value) noexcept
    double fr_double(uint64_t bits) noexcept
    uint64_t fr_bits_of_double(double value) noexcept
    float fr_load_float(const float *place) noexcept
    void fr_store_float(float *place, float value) noexcept
    int64_t fr_clock() noexcept
    int64_t fr_clock_coarse() noexcept
    uint32_t fr_millis(int64_t now) noexcept
    double fr_elapsed(uint32_t later, uint32_t earlier) noexcept
    int64_t fr_sum(int64_t a, int64_t b) noexcept
    int64_t fr_product(int64_t a, int64_t b) noexcept
    uint64_t fr_reciprocal(uint64_t d) noexcept
    uint64_t fr_divide(uint64_t a, uint64_t d, uint64_t reciprocal) noexcept
    double fr_decay(double x) noexcept
    uint64_t fr_mix(uint64_t x) noexcept
    double fr_fraction(uint64_t mixed) noexcept
    uint32_t fr_choice(uint64_t mixed, uint32_t n) noexcept
    int64_t fr_price(int64_t a, int64_t p, int64_t b, int64_t q) noexcept

cdef extern from "process.h" nogil:
    uint32_t fr_fork_count() noexcept
    int fr_watch_forks() noexcept
    ctypedef struct fr_file:
        int fd
    void *fr_map_shared(size_t size, int fd) noexcept
    int64_t fr_file_size(int fd) noexcept
    bint fr_keep_file(fr_file *file, int fd) noexcept
    void fr_drop_file(const fr_file *file) noexcept
    bint fr_process_exists(int pid) noexcept
    int64_t fr_process_start(int pid) noexcept
    int getpid() noexcept
    int munmap(void *place, size_t size) noexcept

# Constants ------------------------------------------------------------------------------------------------------------

cdef enum:
    CELL_BYTES = 64
    MIN_CELLS = 64
    MAX_CELLS = 16777216         # 2**24 cells, 1 GiB
    HEADER_CELLS = 2
    WORKER_CELLS = 64            # 256 workers of 16 bytes; number 0 is nobody
    WORKERS = 256
    LOOKS = 4                    # workers whose pids one `reap` asks about beyond whether they are there
    BURIALS = 16                 # dead workers after which one `reap` lets the next one go on
    LISTED = 14                  # endpoints in one cell of their list
    LAYOUT_VERSION = 3

LAYOUT = LAYOUT_VERSION

cdef enum:                       # the low four bits of a key
    KIND_BUCKET = 1
    KIND_BREAKER = 2
    KIND_WINDOW = 3
    KIND_LATENCY = 4
    KIND_LEDGER = 5
    KIND_SAMPLES = 6
    KIND_RETRY = 7
    KIND_ENDPOINT = 8
    KIND_PERMITS = 9
    KIND_WAITING = 12            # 10 and 11 are money's, 14 is pool's, 15 tail's
    KIND_LIST = 13

cdef uint64_t SEGMENT_MAGIC = 0x31657475_6f727466     # "frtroute1", read as little-endian bytes
cdef int64_t TEND_NS = 500_000_000                    # how often somebody looks for dead workers
cdef uint64_t ENDPOINTS = 0x656e6470_6f696e74         # the name of the list of endpoints
cdef uint64_t REAPING = 1 << 31                       # in a worker's word: being reaped by the process named there

# Structs --------------------------------------------------------------------------------------------------------------

cdef struct Header:              # 128 bytes
    uint64_t magic               # written last: a mapping without it is not ready
    uint64_t version             # LAYOUT_VERSION; another one means another layout, never a conversion
    uint64_t cells               # number of cells after the worker table, a power of two
    uint64_t bytes               # size of the whole mapping
    uint64_t boot                # hash of the machine's boot id: state of an earlier boot is worthless
    uint64_t namespace           # pid namespace in which the workers' pids mean something; 0: not known
    uint64_t checksum            # CRC-32 of all fields above
    int64_t tended               # when somebody last looked for dead workers, ns
    uint64_t looked              # up to which worker somebody has asked what its pid is by now
    uint64_t spare[7]

cdef struct Worker:              # 16 bytes
    uint64_t owner               # epoch << 32 | REAPING | pid; pid 0: free. The epoch grows with every owner
    uint64_t started             # when that pid started (field 22 of /proc/PID/stat), 0: not known

cdef struct Hot:                 # one cell: all that ranking reads of an endpoint
    uint64_t key
    int32_t in_flight            # calls now under way, approximate (the permits are exact)
    float load                   # score * (in_flight + 1), kept ready for the quickest choice; see refresh_load
    uint64_t breaker             # control word, see breaker.pxi
    uint64_t block               # excluded until (us) << 8 | reason
    uint64_t ewma                # float seconds | stamp
    uint64_t failure             # float failure rate 0..1 | stamp
    float spread                 # float seconds
    float score                  # load of one call here without decay; 0: never measured
    int64_t tat                  # token bucket's theoretical arrival time, ns

cdef struct Cold:                # one cell: what only admit and finish touch
    uint64_t key
    int64_t tat                  # request bucket's theoretical arrival time, ns
    uint64_t retry               # float balance | stamp
    uint64_t usage               # float tokens of the last minute | stamp
    uint64_t succeeded           # calls that ended OK, ever
    uint64_t failed              # calls that ended in FAILURE, ever
    uint64_t health              # outcomes of the last 50 results and the score, see latency.pxi
    uint64_t samples             # latencies ever recorded; the newest is at (samples - 1) % 50

# Functions ------------------------------------------------------------------------------------------------------------

cdef uint64_t *find_cell(uint64_t *cells, uint64_t mask, uint64_t key, bint claim) noexcept nogil:
    """The cell of a key: claimed if it was not there and ``claim`` is set. NULL: not there, or the table is full."""
    cdef uint64_t index = (key >> 4) & mask
    cdef uint64_t step
    cdef uint64_t *cell
    cdef uint64_t found
    for step in range(mask + 1):
        cell = cells + 8 * ((index + step) & mask)
        found = fr_load(cell)
        if found == 0:
            if not claim:
                return NULL
            if fr_cas(cell, &found, key):
                return cell
        if found == key:
            return cell
    return NULL


cdef uint64_t sub_key(uint64_t name, uint64_t kind, uint64_t number) noexcept nogil:
    """The key of a name's ``number``-th cell of a kind; the name's hash may itself be a key."""
    name &= ~<uint64_t>15
    if number:
        name = fr_mix(name ^ fr_mix(number))
    return (name & ~<uint64_t>15) | kind


cdef uint64_t *listed(uint64_t *table, uint64_t mask, uint64_t number) noexcept nogil:
    """The hot cell of the ``number``-th endpoint of the segment; NULL after the last."""
    cdef uint64_t *cell = find_cell(table, mask, sub_key(ENDPOINTS, KIND_LIST, number // LISTED), False)
    cdef uint32_t index
    if cell is NULL:
        return NULL
    index = <uint32_t>fr_load_i32(<int32_t *>(cell + 1) + number % LISTED)
    return NULL if index == 0 or index > mask + 1 else table + 8 * <uint64_t>(index - 1)


cdef bint enlist(uint64_t *table, uint64_t mask, uint64_t *endpoint) noexcept nogil:
    """Puts an endpoint's hot cell on the list, once; False if the table is full.

    The list spares `Segment.reap` a walk through all cells. Whoever makes an endpoint does this before using it, so one
    that was killed between claiming the cell and listing it has left nothing there to take back.
    """
    cdef uint64_t number
    cdef uint64_t *cell
    cdef int lane
    cdef int32_t seen
    cdef int32_t index = <int32_t>((endpoint - table) // 8 + 1)
    for number in range(mask + 1):
        cell = find_cell(table, mask, sub_key(ENDPOINTS, KIND_LIST, number), True)
        if cell is NULL:
            return False
        for lane in range(LISTED):
            seen = fr_load_i32(<int32_t *>(cell + 1) + lane)
            if seen == index or (seen == 0 and fr_cas_i32(<int32_t *>(cell + 1) + lane, &seen, index)) or seen == index:
                return True
    return False


cdef uint64_t boot_hash():
    from hashlib import blake2b

    try:
        with open("/proc/sys/kernel/random/boot_id", "rb") as file:
            text = file.read().strip()
    except OSError:
        text = b""
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")


cdef uint64_t pid_namespace():
    import os

    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


cdef uint64_t header_checksum(const Header *header):
    from zlib import crc32

    return crc32((<const char *>header)[:6 * sizeof(uint64_t)])


# Cython's own conversion would cut 1.5 down to 1; these take nothing but integers, so that seconds given for ns fail.

cdef inline int64_t integer(object value) except? -1:
    # Of an int Cython's own conversion is inlined; for the rest only what has an __index__ passes here.
    if PyLong_Check(value):
        return value
    return PyLong_AsLongLong(value)


cdef inline uint64_t unsigned(object value) except? <uint64_t>-1:
    # Most are small, and then there is no call.
    if PyLong_Check(value):
        return value
    return PyLong_AsUnsignedLongLong(value)


cdef inline int64_t moment(object now) except -1:
    """A caller's time. 0 means: read the clock."""
    cdef int64_t value = integer(now)
    if value < 0 or value > FR_TIME_MAX:
        if value == -1 and PyErr_Occurred():
            return -1
        raise ValueError(f"now must be 0 (read the clock) or nanoseconds up to 2**61, not {now}")
    return value


cdef inline int64_t amount(str what, object value, int64_t low) except? -1:
    """A number of permits or tokens: large enough for any use, small enough to be added and negated."""
    cdef int64_t number = integer(value)
    if number < low or number > FR_TIME_MAX:
        if number == -1 and PyErr_Occurred():
            return -1
        raise ValueError(f"{what} must be {low} to 2**61, not {value}")
    return number


cdef inline int64_t patience(object max_wait) except -1:
    """The longest wait, ns; anything above 73 years is as good as for ever."""
    cdef int64_t number = PyLong_AsLongLong(max_wait)
    if number < 0:
        if number == -1 and PyErr_Occurred():
            return -1
        raise ValueError(f"max_wait must be 0 ns or more, not {max_wait}")
    return min(number, FR_TIME_MAX)


cdef inline int64_t ticket_of(object ticket) except -1:
    cdef int64_t value = integer(ticket)
    if value < 0:
        if value == -1 and PyErr_Occurred():
            return -1
        raise ValueError("a refusal (a negative answer) is not a ticket")
    return value


# Classes --------------------------------------------------------------------------------------------------------------


class SegmentFullError(MemoryError):
    """The segment has no room for another name, or no slot for another worker process."""


class SegmentMisfitError(ValueError):
    """A file holds no segment that this process could work in.

    Attributes:
        reason: ``size``, ``magic``, ``version``, ``checksum``, ``boot`` (it is of an earlier one, or of another
            machine) or ``namespace`` (its pids are of another pid namespace, usually another container).
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


cdef int watching_error = fr_watch_forks()
if watching_error:
    raise OSError(watching_error, "cannot watch for forks")


def clock() -> int:
    """Nanoseconds on the core's clock, CLOCK_MONOTONIC: what ``now`` means everywhere here."""
    return fr_clock()


def fork_count() -> int:
    """A number that is another one in every child forked since this module was imported, whatever forked it."""
    return fr_fork_count()


@cython.final
cdef class Segment:
    """The shared memory in which all state lives.

    It is an anonymous shared mapping: processes forked after its making work on the same cells. ``in_file`` makes or
    joins one in a file, for processes that have no common parent. Whoever holds an object made on a segment keeps the
    mapping alive.

    Args:
        cells: How many 64-byte cells it has room for, 64 to 2**24, rounded up to a power of two. An endpoint takes 16
            of them with the usual limits.

    Thread safety: every method may be called from any thread and any forked process at any time.
    """

    cdef void *memory
    cdef size_t bytes
    cdef Header *header
    cdef Worker *workers
    cdef uint64_t *table
    cdef uint64_t mask
    cdef fr_file file              # the mapping's file, kept open for the lock that says it is in use; 0: none
    cdef uint64_t slot_word        # this process's slot, with the fork count at which it was claimed above it

    def __init__(self, cells=16384) -> None:
        if self.memory is not NULL:
            raise RuntimeError("a Segment cannot be initialised twice")
        if type(cells) is not int:
            raise TypeError(f"cells must be an int, not {type(cells).__name__}")
        if not MIN_CELLS <= cells <= MAX_CELLS:
            raise ValueError(f"cells must be {MIN_CELLS} to {MAX_CELLS}, not {cells}")
        cdef uint64_t count = 1 << (cells - 1).bit_length()
        self.map_memory((HEADER_CELLS + WORKER_CELLS + count) * CELL_BYTES, -1)
        self.write_header()

    def __dealloc__(self):
        if self.memory is not NULL:
            munmap(self.memory, self.bytes)
        if self.file.fd > 0:
            fr_drop_file(&self.file)

    @staticmethod
    def size(cells=16384) -> int:
        """How many bytes a segment of so many cells, a power of two, takes."""
        return (HEADER_CELLS + WORKER_CELLS + cells) * CELL_BYTES

    @staticmethod
    def in_file(int fd, bint fresh=False) -> Segment:
        """The segment in an open file; of an own descriptor, so that ``fd`` can be closed (its locks stay).

        Args:
            fd: Open for reading and writing. Nobody may ever make the file shorter: what is mapped and not there ends
                the process.
            fresh: Make an empty segment in it. The file must have its size (``size``) and its space already, hold
                nothing but zeros, and be unknown to all others until this has returned.

        Raises:
            SegmentMisfitError: It holds no segment, or none of this layout, boot and pid namespace.
            OSError: It cannot be mapped.
        """
        cdef int64_t bytes = fr_file_size(fd)
        cdef int64_t count = bytes // CELL_BYTES - HEADER_CELLS - WORKER_CELLS
        if count < MIN_CELLS or count > MAX_CELLS or count & (count - 1) or bytes % CELL_BYTES:
            raise SegmentMisfitError("size", f"is {max(bytes, 0)} bytes long, which no segment is")
        cdef Segment segment = Segment.__new__(Segment)
        segment.map_memory(bytes, fd)
        if fresh:
            segment.write_header()
        segment.check_header()
        if not fr_keep_file(&segment.file, fd):
            raise OSError(errno, "the state file's descriptor cannot be duplicated")
        return segment

    cdef int map_memory(self, size_t bytes, int fd) except -1:
        self.memory = fr_map_shared(bytes, fd)
        if self.memory is NULL:
            if fd < 0:
                raise MemoryError(f"cannot map {bytes} bytes of shared memory")
            raise OSError(errno, "the state file cannot be mapped")
        self.bytes = bytes
        self.header = <Header *>self.memory
        self.workers = <Worker *>(<char *>self.memory + HEADER_CELLS * CELL_BYTES)
        self.table = <uint64_t *>(<char *>self.memory + (HEADER_CELLS + WORKER_CELLS) * CELL_BYTES)
        self.mask = bytes // CELL_BYTES - HEADER_CELLS - WORKER_CELLS - 1
        return 0

    cdef int write_header(self) except -1:
        cdef Header *header = self.header
        header.version = LAYOUT_VERSION
        header.cells = self.mask + 1
        header.bytes = self.bytes
        header.boot = boot_hash()
        header.namespace = pid_namespace()
        fr_store(&header.magic, SEGMENT_MAGIC)
        header.checksum = header_checksum(header)
        return 0

    cdef int check_header(self) except -1:
        cdef const Header *header = self.header
        if fr_load(&header.magic) != SEGMENT_MAGIC:
            raise SegmentMisfitError("magic", "does not begin as a segment does")
        if header.version != LAYOUT_VERSION:
            raise SegmentMisfitError("version", f"has layout {header.version}, not {LAYOUT_VERSION}")
        if header.checksum != header_checksum(header):
            raise SegmentMisfitError("checksum", "has a damaged header")
        if header.cells != self.mask + 1 or header.bytes != self.bytes:
            raise SegmentMisfitError("size", f"is {self.bytes} bytes long, but was made with {header.bytes}")
        if header.boot != boot_hash():
            raise SegmentMisfitError("boot", "is of an earlier start of the machine, or of another machine")
        if header.namespace != pid_namespace():
            raise SegmentMisfitError("namespace", "is of another pid namespace (another container)")
        return 0

    def __repr__(self) -> str:
        return f"<Segment {self.used} of {self.cells} cells used>"

    @property
    def cells(self) -> int:
        """How many cells there are."""
        return self.mask + 1

    @property
    def used(self) -> int:
        """How many cells are claimed (counted now: it walks the table)."""
        cdef uint64_t index
        cdef uint64_t count = 0
        for index in range(self.mask + 1):
            count += fr_load(self.table + 8 * index) != 0
        return count

    @property
    def workers_known(self) -> int:
        """How many processes have a slot: those at work, and dead ones that nobody has reaped yet."""
        cdef int number
        cdef int count = 0
        for number in range(1, WORKERS):
            count += <uint32_t>fr_load(&self.workers[number].owner) != 0
        return count

    @property
    def tended(self) -> int:
        """When somebody last looked for dead workers (`tend`), ns on the core's clock; 0: never."""
        return fr_load_i64(&self.header.tended)

    def slot(self) -> int:
        """This process's number among the workers, 1 to 255; a new process (a forked one too) gets its own.

        Raises:
            SegmentFullError: 255 live processes work here already.
        """
        return self.worker()

    def tend(self, now=0) -> int:
        """`reap`, unless somebody has within the last half second: cheap enough for the entry of every call.

        It is kept in the segment when that was, so that of many workers one looks and not all. Should that one be
        killed while it does, the next looks half a second later: whatever dies is made good within five seconds, be it a
        zombie among 32 workers.

        Args:
            now: ns; 0 reads the clock.
        """
        cdef int64_t time = moment(now) or fr_clock_coarse()
        cdef int64_t seen = fr_load_i64(&self.header.tended)
        if 0 <= time - seen < TEND_NS or not fr_cas_i64(&self.header.tended, &seen, time):
            return 0
        return self.reap()

    def reap(self) -> int:
        """Gives back what dead workers held and frees their slots; mends the in-flight counts. Returns how many died.

        Money that a dead worker had reserved stays spent if its request was sent: see `Counter`.

        A worker is dead when its pid is gone, is a zombie, or belongs to a process that started at another time. It
        asks the system after every worker, so call it every few seconds, not for every call. A pid that is still there
        takes longer to ask about: of more than 4 such workers one call looks at 4, and the next one at the next. So it is with more than 16 dead.
        """
        cdef int number, step
        cdef int reaped = 0
        cdef int looks = LOOKS
        cdef int last = <int>(fr_load(&self.header.looked) % WORKERS)
        cdef uint64_t seen, mine, epoch
        cdef uint64_t self_pid = <uint64_t>getpid()
        for step in range(1, WORKERS):
            number = (last + step - 1) % (WORKERS - 1) + 1
            seen = fr_load(&self.workers[number].owner)
            if <uint32_t>seen == 0:
                continue
            if fr_process_exists(<int>(seen & 0x7FFFFFFF)):
                if looks == 0:
                    continue
                looks -= 1
                fr_store(&self.header.looked, number)
                if not self.is_dead(number, seen):
                    continue
            # Only who wins this swap cleans up. Should it be killed half-way, the next one finds it dead in turn; were
            # two to clean up, the slower one could free the permits of the slot's next owner.
            mine = (seen & ~<uint64_t>0xFFFFFFFF) | REAPING | self_pid
            if seen == mine or not fr_cas(&self.workers[number].owner, &seen, mine):
                continue
            reap_permits(self.table, self.mask, number)
            reap_reservations(self.table, self.mask, number)
            fr_store(&self.workers[number].started, 0)
            epoch = (mine >> 32) + 1
            fr_cas(&self.workers[number].owner, &mine, (epoch & 0xFFFFFFFF) << 32)
            reaped += 1
            if reaped == BURIALS:
                break
        mend_in_flight(self.table, self.mask)
        return reaped

    cdef bint is_dead(self, int number, uint64_t owner) noexcept:
        cdef uint64_t started = fr_load(&self.workers[number].started)
        cdef int64_t start = fr_process_start(<int>(owner & 0x7FFFFFFF))
        if start < 0:
            return True
        if owner & REAPING:
            return False         # the reaper lives and will finish
        return started != 0 and start != 0 and started != <uint64_t>start

    cdef inline int worker(self) except -1:
        """The slot of this process. Costs one comparison unless the process is new."""
        cdef uint64_t word = fr_load(&self.slot_word)
        if word >> 32 == fr_fork_count():
            return <int>(word & 0xFF)
        return self.claim_slot(word)

    cdef inline int worker_if_any(self) noexcept nogil:
        """The same, but 0 if this process has no slot yet."""
        cdef uint64_t word = fr_load(&self.slot_word)
        return <int>(word & 0xFF) if word >> 32 == fr_fork_count() else 0

    cdef int claim_slot(self, uint64_t word) except -1:
        cdef uint64_t number, attempt
        cdef uint64_t forks = fr_fork_count()
        cdef uint64_t pid = <uint64_t>getpid()
        cdef uint64_t seen
        cdef uint64_t start = <uint64_t>max(fr_process_start(<int>pid), <int64_t>0)
        if pid_namespace() != self.header.namespace:
            # To the others its pid would be another process's, or nobody's: they would take its permits away.
            raise RuntimeError("this process has left the pid namespace of the state that it inherited")
        for attempt in range(2):
            for number in range(1, <uint64_t>WORKERS):
                seen = fr_load(&self.workers[number].owner)
                if <uint32_t>seen or not fr_cas(&self.workers[number].owner, &seen, seen | pid):
                    continue
                # Threads of a new process may come here together: the first sets the word, the others give back.
                if fr_cas(&self.slot_word, &word, forks << 32 | number):
                    fr_store(&self.workers[number].started, start)
                    return <int>number
                fr_store(&self.workers[number].owner, seen + (<uint64_t>1 << 32))
                return <int>(word & 0xFF)
            if attempt == 0 and self.reap() == 0:
                break
        raise SegmentFullError(f"all {WORKERS - 1} worker slots of the segment belong to live processes")

    cdef uint64_t name_hash(self, str name) except? 0:
        if self.memory is NULL:
            raise RuntimeError("this Segment was not initialised")
        if name is None or not name:
            raise ValueError("name must be a string that is not empty")
        from hashlib import blake2b

        return int.from_bytes(blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")

    cdef uint64_t *claim(self, uint64_t name, uint64_t kind, uint64_t number=0) except NULL:
        cdef uint64_t *cell = find_cell(self.table, self.mask, sub_key(name, kind, number), True)
        if cell is NULL:
            raise SegmentFullError(
                f"all {self.mask + 1} cells of the segment are taken; "
                f"make it with more, Segment(cells={2 * (self.mask + 1)})"
            )
        return cell
