# ======================================================================================================================
# Segment: the shared mapping, its cells, and who works in it
# ======================================================================================================================
#
# Layout: header (two cells), worker table (64 cells), then 2**k cells of 64 bytes. A cell is a 64-bit key and 56 bytes
# of state. The key is 60 bits of a hash of the name and 4 bits of kind; no kind is 0, so no key is 0. A cell is found
# by open addressing and claimed by one compare-and-swap of its key. All-zero state is a valid beginning for every
# kind, so claiming has no second step that a killed process could leave undone. Cells are never given back: a search
# may therefore stop at the first empty cell, and a pointer to a cell stays valid as long as the mapping.
#
# A file can be written by whoever may open it, the machine's neighbour. So every index is masked, and every count, kind,
# time and number checked where it is read, once, in a local variable. What cannot be is unknown: it is mended by one
# swap, or the cell is set aside and begun anew. Damage to one cell costs what that cell said and nothing else.

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
    double fr_within(double value, double most) noexcept
    uint64_t fr_fold(uint64_t word) noexcept
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
    WORKER_CELLS = 64            # 256 workers of 16 bytes; number 0 is not used: it marks a permit as free
    WORKERS = 256
    SCRUB = 512                  # cells that one `reap` scrubs
    REACH = 64                   # a cell further from where its search begins is not looked for by way of damaged ones
    LOOKS = 4                    # living pids whose start time one `reap` compares: each costs a read of /proc
    BURIALS = 16                 # dead workers that one `reap` cleans up, so that one call is not held up for long
    CLAIM_LOOKS = 100            # at another worker's claim before it is left to it
    LISTED = 14                  # endpoints in one cell of their list
    LAYOUT_VERSION = 5

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
    KIND_WAITING = 12            # 10 and 11 are money's, 14 is pool's, 15 tail's, 16 event_count's, 32 learned's
    KIND_LIST = 13

cdef uint64_t SET_ASIDE = 1 << 4                      # the key of a damaged cell; no name has it, so nobody looks for it
cdef uint64_t SEGMENT_MAGIC = 0x31657475_6f727466     # "frtroute1", read as little-endian bytes
cdef int64_t TEND_NS = 500_000_000                    # how often one of the workers looks for dead ones
cdef int64_t CLAIM_LOST_NS = 5_000_000_000            # a claim takes microseconds
cdef uint64_t ENDPOINTS = 0x656e6470_6f696e74         # the name of the list of endpoints
cdef uint64_t REAPING = 1 << 31                       # in a worker's word: being reaped by the process named there

# Structs --------------------------------------------------------------------------------------------------------------

cdef struct Header:              # 128 bytes
    uint64_t magic               # SEGMENT_MAGIC; a file that begins otherwise is not a segment
    uint64_t version             # LAYOUT_VERSION; another one means another layout, never a conversion
    uint64_t cells               # number of cells after the worker table, a power of two
    uint64_t bytes               # size of the whole mapping
    uint64_t boot                # hash of the machine's boot id: state of an earlier boot is worthless
    uint64_t namespace           # pid namespace in which the workers' pids mean something; 0: not known
    uint64_t checksum            # CRC-32 of all fields above
    int64_t tended               # when a worker last looked for dead ones, ns
    uint64_t looked              # the worker whose start time was compared last; the next `reap` begins after it
    uint64_t claiming            # epoch << 32 | slot of the worker that claims a cell of values.pxi; 0: none does
    uint64_t spare[6]

cdef struct Worker:              # 16 bytes
    uint64_t owner               # epoch << 32 | REAPING | pid; pid 0: free. The epoch grows with every owner
    uint64_t started             # when that pid started (field 22 of /proc/PID/stat), 0: not known

cdef struct Hot:                 # one cell: all that ranking reads of an endpoint
    uint64_t key
    int32_t in_flight            # calls now under way, approximate (the permits are exact)
    float load                   # score * (in_flight + 1), kept ready for the quickest choice; see refresh_load
    uint64_t breaker             # control word, see breaker.pxi
    uint64_t block               # check byte << 56 | excluded until (us) << 8 | reason
    uint64_t ewma                # float seconds | stamp
    uint64_t failure             # points of health lost | failure rate | stamp, see latency.pxi
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
    uint64_t health              # outcomes of the last 50 results, see latency.pxi
    uint64_t samples             # latencies ever recorded; the newest is at (samples - 1) % 50

# Functions ------------------------------------------------------------------------------------------------------------

cdef inline bint is_blank(const uint64_t *cell) noexcept nogil:
    cdef int word
    cdef uint64_t any = 0
    for word in range(1, 8):
        any |= fr_load(cell + word)
    return any == 0


cdef uint64_t *find_cell(uint64_t *cells, uint64_t mask, uint64_t key, bint claim) noexcept nogil:
    """The cell of a key: claimed if it was not there and ``claim`` is set. NULL: not there, or the table is full."""
    cdef uint64_t index = (key >> 4) & mask
    cdef uint64_t step
    cdef uint64_t *cell
    cdef uint64_t found
    cdef bint blank
    for step in range(mask + 1):
        cell = cells + 8 * ((index + step) & mask)
        found = fr_load(cell)
        if found == 0:
            if not claim:
                return NULL
            # Without a key but not empty: its key was damaged, and its state is not this name's to begin with.
            blank = is_blank(cell)
            if fr_cas(cell, &found, key if blank else SET_ASIDE):
                if blank:
                    return cell
                continue
        # After a lost swap `found` is the winner's key, which may be the one wanted here: two processes that claim one
        # name at once meet in one cell.
        if found == key:
            return cell
    return NULL


cdef uint64_t sub_key(uint64_t name, uint64_t kind, uint64_t number) noexcept nogil:
    """The key of a name's ``number``-th cell of a kind; the name's hash may itself be a key."""
    name &= ~<uint64_t>15
    if number:
        name = fr_mix(name ^ fr_mix(number))
    return (name & ~<uint64_t>15) | kind


cdef uint64_t *next_listed(uint64_t *table, uint64_t mask, uint64_t *number) noexcept nogil:
    """The hot cell of the first endpoint on the list from a place on, which is set behind it; NULL after the last."""
    cdef uint64_t *cell
    cdef uint64_t *hot
    cdef uint32_t index
    while True:
        cell = find_cell(table, mask, sub_key(ENDPOINTS, KIND_LIST, number[0] // LISTED), False)
        if cell is NULL:
            return NULL
        index = <uint32_t>fr_load_i32(<int32_t *>(cell + 1) + number[0] % LISTED)
        number[0] += 1
        # The mapping may be a file that something else has written to: an index is checked before it becomes an
        # address, and what is there before it is taken for an endpoint. A place that names none hides no other.
        if 0 < index <= mask + 1:
            hot = table + 8 * <uint64_t>(index - 1)
            if (fr_load(hot) & 15) == KIND_ENDPOINT:
                return hot


cdef bint enlist(uint64_t *table, uint64_t mask, uint64_t *endpoint) noexcept nogil:
    """Puts an endpoint's hot cell on the list, once; False if the table is full.

    The list spares `Segment.reap` a walk through all cells. An endpoint is put on it before it is used, so a process
    killed between claiming the cell and listing it holds no permit there that a reaper would have to find.
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
            # The last comparison is of what a lost swap found: another process may have listed the same endpoint.
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


# Cython's own conversion would truncate 1.5 to 1. These accept integers only, so that seconds given for ns fail.

cdef inline int64_t integer(object value) except? -1:
    # For an int, Cython's conversion is inlined. Anything else goes to PyLong_AsLongLong, which accepts only what has
    # an __index__.
    if PyLong_Check(value):
        return value
    return PyLong_AsLongLong(value)


cdef inline uint64_t unsigned(object value) except? <uint64_t>-1:
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
    """The longest wait, ns; anything above 73 years is cut to that."""
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
    """The file holds no segment that this process can use.

    Attributes:
        reason: ``size``, ``magic``, ``version``, ``checksum``, ``boot`` (made before the machine's last start, or on
            another machine) or ``namespace`` (its pids belong to another pid namespace, usually another container).
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
    """The number of forks that led to this process since the module was imported, plus 1.

    It differs between a process and its children, however they were forked (`os.fork`, or fork() in C).
    """
    return fr_fork_count()


@cython.final
cdef class Segment:
    """The shared memory in which all state lives.

    It is an anonymous shared mapping: processes forked after it was made work on the same cells. ``in_file`` makes or
    joins one in a file, for processes that have no common parent. Every object made on a segment keeps the mapping
    alive.

    Args:
        cells: How many 64-byte cells it has room for, 64 to 2**24, rounded up to a power of two. An endpoint with the
            default limits takes 16.

    Thread safety: every method may be called from any thread and any forked process at any time.
    """

    cdef void *memory
    cdef size_t bytes
    cdef Header *header
    cdef Worker *workers
    cdef uint64_t *table
    cdef uint64_t mask
    cdef Header made               # the header as it was checked, and what `reap` makes of it again
    cdef uint64_t *keys            # the key of every cell that this process has claimed, by its index
    cdef uint64_t owner            # what is in this process's slot, as it was claimed
    cdef uint64_t started
    cdef uint64_t claim_seen       # the claim that the last `reap` saw, and since when
    cdef int64_t claim_since
    cdef uint64_t scrubbed         # where the next `reap` scrubs
    cdef fr_file file              # the mapping's file, kept open for the lock that says it is in use; 0: none
    # This process's slot in the low half, the fork count at which it was claimed in the high half. The object's memory
    # is private to a process: a forked child inherits the word, sees another fork count and claims its own slot.
    cdef uint64_t slot_word

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
        PyMem_Free(self.keys)
        if self.file.fd > 0:
            fr_drop_file(&self.file)

    @staticmethod
    def size(cells=16384) -> int:
        """Bytes that a segment with this many cells (a power of two) takes."""
        return (HEADER_CELLS + WORKER_CELLS + cells) * CELL_BYTES

    @staticmethod
    def in_file(int fd, bint fresh=False) -> Segment:
        """The segment in an open file.

        It keeps a duplicate of ``fd``, so ``fd`` may be closed; locks on the open file stay until the segment is gone.

        Args:
            fd: Open for reading and writing. The file must never be made shorter: access to a mapped page that has no
                file behind it kills the process (SIGBUS).
            fresh: Make an empty segment in it. The file must have its final size (``size``) and its blocks allocated,
                contain only zeros, and have no name that another process could open until this has returned.

        Raises:
            SegmentMisfitError: It holds no segment, or none of this layout, boot and pid namespace.
            OSError: It cannot be mapped.
        """
        cdef int64_t bytes = fr_file_size(fd)
        cdef int64_t count = bytes // CELL_BYTES - HEADER_CELLS - WORKER_CELLS
        if count < MIN_CELLS or count > MAX_CELLS or count & (count - 1) or bytes % CELL_BYTES:
            raise SegmentMisfitError("size", f"is {max(bytes, 0)} bytes long, which is not the size of a segment")
        cdef Segment segment = Segment.__new__(Segment)
        segment.map_memory(bytes, fd)
        if fresh:
            segment.write_header()
        segment.check_header()
        segment.scrub(0, segment.mask + 1)
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
        self.keys = <uint64_t *>PyMem_Calloc(self.mask + 1, sizeof(uint64_t))
        if self.keys is NULL:
            raise MemoryError(f"no memory for the keys of {self.mask + 1} cells")
        return 0

    cdef int write_header(self) except -1:
        cdef Header *header = self.header
        header.version = LAYOUT_VERSION
        header.cells = self.mask + 1
        header.bytes = self.bytes
        header.boot = boot_hash()
        header.namespace = pid_namespace()
        fr_store(&header.magic, SEGMENT_MAGIC)
        # Last, because it covers the fields above. No other process can see a half-written header: an anonymous mapping
        # is not shared yet, and a fresh file has no name yet.
        header.checksum = header_checksum(header)
        self.made = header[0]
        return 0

    cdef int check_header(self) except -1:
        cdef const Header *header = &self.made
        self.made = self.header[0]           # a copy, which cannot change between this check and its use
        # From the most general to the most specific, so that the reason given is the helpful one: a file of another
        # layout is not called damaged only because its checksum is computed otherwise.
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
        """How many cells are claimed. Reads the whole table."""
        cdef uint64_t index
        cdef uint64_t count = 0
        for index in range(self.mask + 1):
            count += fr_load(self.table + 8 * index) != 0
        return count

    @property
    def workers_known(self) -> int:
        """How many processes have a slot: living ones, and dead ones that were not reaped yet."""
        cdef int number
        cdef int count = 0
        for number in range(1, WORKERS):
            count += <uint32_t>fr_load(&self.workers[number].owner) != 0
        return count

    @property
    def tended(self) -> int:
        """When a worker last looked for dead ones (`tend`), ns on the core's clock; 0: never."""
        return fr_load_i64(&self.header.tended)

    def slot(self) -> int:
        """This process's number among the workers, 1 to 255; a new process (a forked one too) gets its own.

        Raises:
            SegmentFullError: 255 live processes work here already.
        """
        return self.worker()

    def tend(self, now=0) -> int:
        """Calls `reap` unless a worker has done so within the last half second. Cheap enough for every call.

        The time of the last look is kept in the segment, so only one of many workers looks. If that one is killed while
        it looks, another does half a second later. What a dead worker held is given back within five seconds, even if
        the worker is a zombie among 32 workers.

        Args:
            now: ns; 0 reads the clock.
        """
        cdef int64_t time = moment(now) or fr_clock_coarse()
        cdef int64_t seen = fr_load_i64(&self.header.tended)
        self.hold_slot()
        # Without signs: a time ahead of now, which nothing here has written, is far from it too.
        if <uint64_t>time - <uint64_t>seen < <uint64_t>TEND_NS or not fr_cas_i64(&self.header.tended, &seen, time):
            return 0
        return self.reap()

    def reap(self) -> int:
        """Gives back what dead workers held, frees their slots and corrects the in-flight counts.

        Money that a dead worker had reserved stays spent if its request was sent: see `Counter`.

        A worker is dead when its pid is gone, is a zombie, or belongs to a process that started at another time. This
        costs one system call a worker, so use it every few seconds, not for every call. For a pid that still exists
        the start time has to be read from /proc: one call does so for at most 4 workers, the next call for the next 4.
        One call cleans up at most 16 dead workers.

        Returns:
            How many dead workers were cleaned up.
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
            # This process lives, whatever its slot says.
            if <uint32_t>seen == 0 or number == self.worker_if_any():
                continue
            # Of a slot that is being reaped, this pid is the reaper's, which may have been killed in its turn.
            if fr_process_exists(<int>(seen & 0x7FFFFFFF)):
                if looks == 0:
                    continue
                looks -= 1
                fr_store(&self.header.looked, number)
                if not self.is_dead(number, seen):
                    continue
            # Only the winner of this swap cleans up: if two did, the slower one could free the permits of the slot's
            # next owner. If the winner is killed half-way, its pid in the word lets the next reaper take over. A word
            # equal to `mine` belongs to another thread of this process.
            mine = (seen & ~<uint64_t>0xFFFFFFFF) | REAPING | self_pid
            if seen == mine or not fr_cas(&self.workers[number].owner, &seen, mine):
                continue
            reap_permits(self.table, self.mask, number)
            reap_reservations(self.table, self.mask, number)
            # Before the slot is freed: with the old start time its next owner would look dead until it has set its own.
            fr_store(&self.workers[number].started, 0)
            epoch = (mine >> 32) + 1
            fr_cas(&self.workers[number].owner, &mine, (epoch & 0xFFFFFFFF) << 32)
            reaped += 1
            if reaped == BURIALS:
                break
        self.restore()
        self.end_lost_claim()
        self.scrub(self.scrubbed, SCRUB)
        self.scrubbed = (self.scrubbed + SCRUB) & self.mask
        mend_endpoints(self.table, self.mask, self.workers)
        return reaped

    cdef void restore(self) noexcept nogil:
        """Writes again what this process knows to have been in the header and in the keys of its cells."""
        cdef const uint64_t *fields = <const uint64_t *>&self.made
        cdef uint64_t *header = <uint64_t *>self.header
        cdef uint64_t index, seen
        for index in range(7):       # up to the checksum; a process that joins must find what this one found
            if fr_load(header + index) != fields[index]:
                fr_store(header + index, fields[index])
        for index in range(self.mask + 1):
            if self.keys[index]:
                seen = fr_load(self.table + 8 * index)
                if seen != self.keys[index]:
                    fr_cas(self.table + 8 * index, &seen, self.keys[index])

    cdef void scrub(self, uint64_t first, uint64_t count) noexcept nogil:
        """Mends the table where a damaged key would hide other cells, or be taken for a cell that nobody has used."""
        cdef uint64_t index, step, home, distance, key, seen
        cdef uint64_t *cell
        for index in range(first, min(first + count, self.mask + 1)):
            cell = self.table + 8 * index
            key = fr_load(cell)
            if key == 0:
                # State without a key. A cell that was claimed in between has a key by now, and the swap fails.
                if not is_blank(cell):
                    fr_cas(cell, &key, SET_ASIDE)
                continue
            # A cell is claimed behind cells that are taken, so an empty one before it has lost its key.
            home = (key >> 4) & self.mask
            distance = (index - home) & self.mask
            for step in range(distance if distance <= REACH else 0):
                seen = 0
                if fr_load(self.table + 8 * ((home + step) & self.mask)) == 0:
                    fr_cas(self.table + 8 * ((home + step) & self.mask), &seen, SET_ASIDE)
            if (key & 15) == KIND_ENDPOINT:
                enlist(self.table, self.mask, cell)

    cdef inline void hold_slot(self) noexcept:
        """Mends this process's slot, which others would reap, or a new process take, if its pid was damaged."""
        cdef int slot = self.worker_if_any()
        if slot and fr_rarely(
            fr_load(&self.workers[slot].owner) != self.owner or fr_load(&self.workers[slot].started) != self.started
        ):
            self.mend_slot(slot)

    cdef void mend_slot(self, int slot) noexcept:
        cdef uint64_t seen = fr_load(&self.workers[slot].owner)
        if <uint32_t>seen == <uint32_t>self.owner:
            self.owner = seen        # another epoch does no harm
        elif seen >> 32 != self.owner >> 32 or (seen & REAPING and fr_process_exists(<int>(seen & 0x7FFFFFFF))):
            # Reaped, or under a new owner: what this process held there has been given back. It claims another slot.
            fr_store(&self.slot_word, 0)
            return
        elif not fr_cas(&self.workers[slot].owner, &seen, self.owner):
            return
        fr_store(&self.workers[slot].started, self.started)

    cdef inline bint is_free(self, uint64_t slot) noexcept nogil:
        """Whether no process has this slot. Number 0 is nobody's."""
        return <uint32_t>fr_load(&self.workers[slot % WORKERS].owner) == 0

    cdef bint is_dead(self, int number, uint64_t owner) noexcept:
        # When in doubt, a worker lives: its permits are lost for a while, where the opposite mistake would let calls
        # through above the limit. So a start time of 0 (not known) never proves a death.
        cdef uint64_t started = fr_load(&self.workers[number].started)
        cdef int64_t start = fr_process_start(<int>(owner & 0x7FFFFFFF))
        if start < 0:
            return True
        if owner & REAPING:
            return False         # the reaper lives and will finish
        return started != 0 and start != 0 and started != <uint64_t>start

    cdef uint64_t begin_claim(self) except? 0:
        """Makes this worker the one that claims; 0 while another one does."""
        cdef uint64_t slot = <uint64_t>self.worker()
        cdef uint64_t mine = fr_load(&self.workers[slot].owner) & ~<uint64_t>0xFFFFFFFF | slot
        cdef uint64_t seen, owner
        cdef int look
        for look in range(CLAIM_LOOKS):
            seen = 0
            if fr_cas(&self.header.claiming, &seen, mine):
                return mine
        # A worker that was killed while it claimed is replaced. What it left is complete, or has no claim.
        owner = fr_load(&self.workers[seen % WORKERS].owner)
        if seen >> 32 == owner >> 32 and <uint32_t>owner and not owner & REAPING:
            if fr_process_exists(<int>(owner & 0x7FFFFFFF)) and not self.is_dead(<int>(seen % WORKERS), owner):
                return 0
        return mine if fr_cas(&self.header.claiming, &seen, mine) else 0

    cdef void end_lost_claim(self) noexcept nogil:
        """Ends a claim that lasts for seconds: nobody makes it, and it would keep everybody else from claiming."""
        cdef uint64_t seen = fr_load(&self.header.claiming)
        cdef int64_t now = fr_clock_coarse()
        cdef int look
        if seen == 0 or seen != self.claim_seen:
            self.claim_seen, self.claim_since = seen, now
        elif now - self.claim_since > CLAIM_LOST_NS:
            # The word is the same for all claims of a worker, so that this may be another one, which ends by itself.
            for look in range(10000):
                if fr_load(&self.header.claiming) != seen:
                    return
            fr_cas(&self.header.claiming, &seen, 0)

    cdef void end_claim(self, uint64_t mine) noexcept:
        fr_cas(&self.header.claiming, &mine, 0)

    cdef inline int worker(self) except -1:
        """The slot of this process, claimed if it has none yet."""
        cdef uint64_t word = fr_load(&self.slot_word)
        if word >> 32 == fr_fork_count():
            return <int>(word & 0xFF)
        return self.claim_slot(word)

    cdef inline int worker_if_any(self) noexcept nogil:
        """The slot of this process, 0 if it has none yet."""
        cdef uint64_t word = fr_load(&self.slot_word)
        return <int>(word & 0xFF) if word >> 32 == fr_fork_count() else 0

    cdef int claim_slot(self, uint64_t word) except -1:
        cdef uint64_t number, attempt
        cdef uint64_t forks = fr_fork_count()
        cdef uint64_t pid = <uint64_t>getpid()
        cdef uint64_t seen
        cdef uint64_t start = <uint64_t>max(fr_process_start(<int>pid), <int64_t>0)
        if pid_namespace() != self.made.namespace:
            # Other workers would look its pid up in their own namespace, find none or a stranger, take this worker for
            # dead and free its permits.
            raise RuntimeError("this process has left the pid namespace of the state that it inherited")
        for attempt in range(2):
            for number in range(1, <uint64_t>WORKERS):
                seen = fr_load(&self.workers[number].owner)
                if <uint32_t>seen or not fr_cas(&self.workers[number].owner, &seen, seen | pid):
                    continue
                # Several threads of a new process may be here at once, each with a slot. The first to set the word
                # decides; the others free theirs, under a new epoch as after every owner.
                if fr_cas(&self.slot_word, &word, forks << 32 | number):
                    fr_store(&self.workers[number].started, start)
                    self.owner, self.started = seen | pid, start
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
        self.keys[(cell - self.table) // 8] = sub_key(name, kind, number)
        return cell
