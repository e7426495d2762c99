# ======================================================================================================================
# Learned: a score from a text's words and structure, weak or strong, and the fit of a user's own weights
# ======================================================================================================================
#
# The text is the last message of role user: its text parts joined by a line feed, as UTF-8 with a question mark for each
# lone surrogate. Of more than 1,536 bytes the first 1,024, a line feed and the last 512 are scored, so the time does not
# depend on the length. Nothing is normalised but ASCII capitals.
#
# Features (version 1, learned.h): the hash of each token (word, number, line break, punctuation mark) and of each pair of
# neighbours, and 32 counts of the structure. A hash falls into one of 32,768 buckets; each bucket counts once, with the
# value 1 / sqrt(number of buckets), so that all texts have the same length.
#
#   linear = sum T1 / sqrt(m) k1 + sum weight count + c1        difficulty = sum T2 / sqrt(m) k2 + c2
#   score  = linear + (hump(difficulty) - mean) / sd            hump: what both models can do, or neither, needs no choice
#   gain   = 0.06 score' + sum own / sqrt(m) + sum own_weight count       calibrated; score' in units of its own sd
#
# The guard says how unlike the calibration's prompts a text is: the share of its buckets (of 131,072) that they lack, and
# the Mahalanobis distance of its counts.
#
# Thread safety: a LearnedModel never changes once made but for `threshold`, a double that is read once a call.
# LearnedRows may be used by one thread at a time.

from libc.stdint cimport int8_t, int16_t

cdef extern from "learned.h":
    enum:
        LEARNED_HEAD
        LEARNED_TAIL
        LEARNED_TEXT
        LEARNED_BUCKETS
        LEARNED_KNOWN
        LEARNED_COUNTS
        LEARNED_HASHES
    ctypedef struct learned_features:
        int n
        int hashes
        uint32_t *hash
        uint16_t *begin
        uint16_t *end
        float *count
    ctypedef struct learned_model:
        const int8_t *table
        float gain_scale, difficulty_scale, gain_base, difficulty_base
        float hump_mean, hump_sd, score_mean, score_sd
        float *weight
        float *mean
        float *sd
        const int16_t *own
        float own_scale
        float *own_weight
        const uint8_t *known
        float *known_mean
        float *known_inverse
    ctypedef struct learned_rows:
        int rows
        const int64_t *first
        const uint16_t *bucket
        const float *count
    void learned_prepare() nogil
    void learned_read(const uint8_t *p, int n, learned_features *to, int places) nogil
    int learned_distinct(learned_features *f) nogil
    float learned_clipped(const learned_model *model, const float *count, int j) nogil
    double learned_hump(double difficulty) nogil
    float learned_score(const learned_model *model, const learned_features *f, float *prior) nogil
    float learned_unknown(const learned_model *model, const learned_features *f, float *distance) nogil
    double learned_row(const learned_rows *x, int r, const double *weight) nogil
    int learned_fit(const learned_rows *x, const uint8_t *keep, const double *target, double words, double counts,
                    double noise, double *weight, double *scratch) nogil

cdef extern from "Python.h":
    Py_ssize_t PyUnicode_GET_LENGTH(object text)
    int PyUnicode_KIND(object text)
    bint PyUnicode_IS_ASCII(object text)
    void *PyUnicode_DATA(object text)
    uint32_t PyUnicode_READ(int kind, void *data, Py_ssize_t index)

cdef enum:
    LEARNED_PRIOR_BYTES = (8 + 3 * 32) * 4 + 2 * 32768
    LEARNED_OWN_BYTES = (1 + 32) * 4 + 2 * 32768
    LEARNED_GUARD_BYTES = (32 + 32 * 32) * 4 + 131072 // 8
    LEARNED_MOST_ROWS = 1 << 20

LEARNED_VERSION = 1
LEARNED_SIZES = (LEARNED_PRIOR_BYTES, LEARNED_OWN_BYTES, LEARNED_GUARD_BYTES)

learned_prepare()


# The text -----------------------------------------------------------------------------------------------------------


cdef struct learned_text:
    uint8_t bytes[1537]
    int n               # of them
    bint half           # whether less than half of the text was examined
    bint media          # whether the message has parts that are not text


cdef inline int _learned_utf8(uint32_t c, uint8_t *to) noexcept:
    """Writes a character and returns its length; a lone surrogate is written as a question mark."""
    if c < 0x80:
        to[0] = <uint8_t> c
        return 1
    if c < 0x800:
        to[0] = <uint8_t> (0xC0 | c >> 6)
        to[1] = <uint8_t> (0x80 | c & 0x3F)
        return 2
    if 0xD800 <= c < 0xE000:
        to[0] = c'?'
        return 1
    if c < 0x10000:
        to[0] = <uint8_t> (0xE0 | c >> 12)
        to[1] = <uint8_t> (0x80 | c >> 6 & 0x3F)
        to[2] = <uint8_t> (0x80 | c & 0x3F)
        return 3
    to[0] = <uint8_t> (0xF0 | c >> 18)
    to[1] = <uint8_t> (0x80 | c >> 12 & 0x3F)
    to[2] = <uint8_t> (0x80 | c >> 6 & 0x3F)
    to[3] = <uint8_t> (0x80 | c & 0x3F)
    return 4


cdef Py_ssize_t _learned_front(str text, uint8_t *to, Py_ssize_t room) except -1:
    """Writes the text from its beginning until it ends or the room is full; returns the bytes, of ``room`` at most."""
    cdef uint8_t one[4]
    cdef Py_ssize_t i, n = PyUnicode_GET_LENGTH(text), used = 0
    cdef int size, kind = PyUnicode_KIND(text)
    cdef void *data = PyUnicode_DATA(text)
    if PyUnicode_IS_ASCII(text):
        used = min(n, room)
        memcpy(to, data, used)
        return used
    for i in range(n):
        if used >= room:
            break
        size = _learned_utf8(PyUnicode_READ(kind, data, i), one)
        size = <int> min(size, room - used)
        memcpy(to + used, one, size)
        used += size
    return used


cdef int _learned_back(str text, uint8_t *to, int room) except -1:
    """Writes the end of the text to the end of a room of LEARNED_TAIL bytes at most; returns the bytes."""
    cdef uint8_t one[4]
    cdef Py_ssize_t i = PyUnicode_GET_LENGTH(text)
    cdef int size, kind = PyUnicode_KIND(text), left = min(room, LEARNED_TAIL)
    cdef void *data = PyUnicode_DATA(text)
    room = left
    if PyUnicode_IS_ASCII(text):
        size = <int> min(i, <Py_ssize_t> room)
        memcpy(to + room - size, <uint8_t *> data + i - size, size)
        return size
    while i > 0 and left > 0:
        i -= 1
        size = _learned_utf8(PyUnicode_READ(kind, data, i), one)
        while size > 0 and left > 0:
            left -= 1
            size -= 1
            to[left] = one[size]
    return room - left


cdef int _learned_join(list parts, learned_text *to) except -1:
    """The scored bytes of text parts."""
    cdef uint8_t buffer[1538]
    cdef Py_ssize_t n = 0, index, chars = 0
    cdef int left = LEARNED_TAIL
    cdef bint whole = True
    to.half = False
    for index in range(len(parts)):
        if index:
            buffer[n] = c'\n'
            n += 1
        if n > LEARNED_HEAD + LEARNED_TAIL:
            whole = False
            break
        n += _learned_front(<str> parts[index], buffer + n, LEARNED_TEXT - n)
        if n >= LEARNED_TEXT:
            whole = False
            break
    if whole and n <= LEARNED_HEAD + LEARNED_TAIL:
        memcpy(to.bytes, buffer, n)
        to.n = <int> n
        return 0
    memcpy(to.bytes, buffer, LEARNED_HEAD)
    to.bytes[LEARNED_HEAD] = c'\n'
    to.n = LEARNED_TEXT
    for text in reversed(parts):
        left -= _learned_back(<str> text, to.bytes + LEARNED_HEAD + 1, left)
        if left <= 0:
            break
        left -= 1
        to.bytes[LEARNED_HEAD + 1 + left] = c'\n'
    for text in parts:
        chars += PyUnicode_GET_LENGTH(text)
        if chars > 2 * LEARNED_TEXT:
            break
    to.half = chars > 2 * LEARNED_TEXT
    return 0


cdef int _learned_take(messages, learned_text *to) except -1:
    """The text of the last message of role user; ``n`` is 0 where there is none.

    Raises:
        TypeError: ``messages`` is not a sequence of mappings.
    """
    cdef list parts = []
    content = None
    if isinstance(messages, (str, bytes, dict)):
        raise TypeError(f"messages must be a list of mappings, not {type(messages).__name__}")
    for message in reversed(messages):
        if not isinstance(message, (dict, _ScanMapping)):
            raise TypeError(f"messages must contain mappings, not {type(message).__name__}")
        role = message.get("role")
        if isinstance(role, str) and <str> role == "user":
            content = message.get("content")
            break
    to.media = False
    if isinstance(content, str):
        parts.append(content)
    elif isinstance(content, (list, tuple)):
        for part in content:
            if isinstance(part, str):
                parts.append(part)
                continue
            text = part.get("text") if isinstance(part, (dict, _ScanMapping)) else None
            if isinstance(text, str):
                parts.append(text)
            else:
                to.media = True
    return _learned_join(parts, to)


cdef bint _learned_is_blank(const learned_text *text) noexcept:
    cdef int i
    for i in range(text.n):
        if text.bytes[i] > 0x20 and text.bytes[i] != 0x7F:
            return False
    return True


def learned_bytes(messages):
    """The bytes that are scored: of the last message of role user, cut to its two ends where it is long.

    Args:
        messages: OpenAI's message mappings.

    Raises:
        TypeError: if ``messages`` is not a sequence of mappings.
    """
    cdef learned_text text
    _learned_take(messages, &text)
    return PyBytes_FromStringAndSize(<char *> text.bytes, text.n)


def learned_parts(text):
    """The features of scored bytes.

    Args:
        text: at most 1,537 bytes, as from `learned_bytes`.

    Returns:
        ``(hashes, counts)``: as native uint32, the hash of each distinct bucket, in the text's order (shifted right by
        17 it is the bucket, by 15 the guard's bit); as native float32, the 32 counts.

    Raises:
        ValueError: the text is longer.
    """
    cdef learned_features found
    cdef const uint8_t[::1] data = memoryview(text)
    if data.shape[0] > LEARNED_TEXT:
        raise ValueError(f"the text must have at most {LEARNED_TEXT} bytes")
    learned_read(&data[0] if data.shape[0] else NULL, <int> data.shape[0], &found, 0)
    learned_distinct(&found)
    return (
        PyBytes_FromStringAndSize(<char *> found.hash, found.hashes * sizeof(uint32_t)),
        PyBytes_FromStringAndSize(<char *> found.count, LEARNED_COUNTS * sizeof(float)),
    )


# The model ----------------------------------------------------------------------------------------------------------


cdef const uint8_t *_learned_floats(const uint8_t *source, float *to, int count, what) except NULL:
    """Copies little-endian float32 and returns the place behind them."""
    cdef uint32_t bits
    cdef int i
    for i in range(count):
        bits = source[0] | <uint32_t> source[1] << 8 | <uint32_t> source[2] << 16 | <uint32_t> source[3] << 24
        memcpy(to + i, &bits, 4)
        if not isfinite(to[i]):
            raise ValueError(f"{what}: not all numbers are finite")
        source += 4
    return source


@cython.final
cdef class LearnedModel:
    """A prior, and with it the user's own weights and guard where there are any.

    Args:
        prior: little-endian: 8 float32 (scales and bases of gain and difficulty, mean and sd of the hump and of the
            score), 32 weights, 32 means and 32 standard deviations of the counts; then 65,536 int8, for each
            bucket gain and difficulty.
        own: little-endian: a float32 scale and 32 weights of the counts; then 32,768 int16.
        guard: little-endian: 32 float32 means of the counts, their 32 × 32 inverse covariance; then 16 KiB of bits.

    Raises:
        ValueError: a length is wrong, a number is not finite, or a standard deviation is not positive.
    """

    cdef learned_model model
    cdef bytes table, known     # keep alive what the model points into
    cdef int16_t *weights

    def __cinit__(self, bytes prior not None, bytes own=None, bytes guard=None):
        cdef const uint8_t *at
        cdef float head[8]
        cdef float positive
        cdef int i
        for what, data, size in (("prior", prior, LEARNED_PRIOR_BYTES), ("own weights", own, LEARNED_OWN_BYTES),
                                 ("guard", guard, LEARNED_GUARD_BYTES)):
            if data is not None and len(data) != size:
                raise ValueError(f"{what}: must have {size} bytes, not {len(data)}")
        at = _learned_floats(prior, head, 8, "prior")
        at = _learned_floats(at, self.model.weight, LEARNED_COUNTS, "prior")
        at = _learned_floats(at, self.model.mean, LEARNED_COUNTS, "prior")
        at = _learned_floats(at, self.model.sd, LEARNED_COUNTS, "prior")
        self.table = prior[LEARNED_PRIOR_BYTES - 2 * LEARNED_BUCKETS :]
        self.model.table = <const int8_t *> <const uint8_t *> self.table
        self.model.gain_scale, self.model.difficulty_scale = head[0], head[1]
        self.model.gain_base, self.model.difficulty_base = head[2], head[3]
        self.model.hump_mean, self.model.hump_sd = head[4], head[5]
        self.model.score_mean, self.model.score_sd = head[6], head[7]
        for positive in [head[5], head[7]] + [self.model.sd[i] for i in range(LEARNED_COUNTS)]:
            if not positive > 0:
                raise ValueError("prior: a standard deviation is not positive")
        if own is not None:
            at = _learned_floats(own, &self.model.own_scale, 1, "own weights")
            at = _learned_floats(at, self.model.own_weight, LEARNED_COUNTS, "own weights")
            self.weights = <int16_t *> PyMem_Malloc(LEARNED_BUCKETS * sizeof(int16_t))
            if self.weights == NULL:
                raise MemoryError()
            for i in range(LEARNED_BUCKETS):
                self.weights[i] = <int16_t> (<uint16_t> at[2 * i] | <uint16_t> at[2 * i + 1] << 8)
            self.model.own = self.weights
        if guard is not None:
            at = _learned_floats(guard, self.model.known_mean, LEARNED_COUNTS, "guard")
            at = _learned_floats(at, self.model.known_inverse, LEARNED_COUNTS * LEARNED_COUNTS, "guard")
            self.known = guard[LEARNED_GUARD_BYTES - LEARNED_KNOWN // 8 :]
            self.model.known = <const uint8_t *> self.known

    def __dealloc__(self):
        PyMem_Free(self.weights)

    @property
    def calibrated(self):
        """Whether it has weights of the user's own."""
        return self.model.own != NULL

    @property
    def guarded(self):
        """Whether it has a guard."""
        return self.model.known != NULL

    cdef int _features(self, text, learned_features *to, int places) except -1:
        cdef const uint8_t[::1] data = memoryview(text)
        if data.shape[0] > LEARNED_TEXT:
            raise ValueError(f"the text must have at most {LEARNED_TEXT} bytes")
        learned_read(&data[0] if data.shape[0] else NULL, <int> data.shape[0], to, places)
        return 0

    def score(self, text):
        """The score of scored bytes (see `learned_bytes`), calibrated if the model is; higher needs the strong model more.

        Raises:
            ValueError: the text is longer than 1,537 bytes.
        """
        cdef learned_features found
        cdef float prior
        self._features(text, &found, 0)
        learned_distinct(&found)
        return learned_score(&self.model, &found, &prior)

    def unknown(self, text):
        """How unlike the calibration's prompts scored bytes are.

        Returns:
            The share of its hashes that those prompts lack, 0..1, and the Mahalanobis distance of its counts.

        Raises:
            ValueError: the text is longer than 1,537 bytes, or the model has no guard.
        """
        cdef learned_features found
        cdef float share, distance
        if self.model.known == NULL:
            raise ValueError("the model has no guard")
        self._features(text, &found, 0)
        learned_distinct(&found)
        share = learned_unknown(&self.model, &found, &distance)
        return share, distance

    def moved(self, text, int most=8):
        """The tokens and pairs of tokens that moved the score of scored bytes most.

        Returns:
            ``(text, by)`` each, the strongest first, at most ``most``; ``by`` is what the score gained from it, to
            first order.

        Raises:
            ValueError: the text is longer than 1,537 bytes.
        """
        cdef learned_features found
        cdef float root, slope, by, prior
        cdef int64_t difficulty = 0
        cdef int i, first
        cdef uint32_t bucket
        cdef double b
        cdef dict begun = {}
        data = bytes(text)
        self._features(data, &found, 1)
        for i in range(found.hashes):
            bucket = found.hash[i] >> 17
            if bucket not in begun:
                begun[bucket] = i
                difficulty += self.model.table[2 * bucket + 1]
        if not begun:
            return []
        root = <float> (1.0 / sqrt(<double> len(begun)))
        b = difficulty * self.model.difficulty_scale * root + self.model.difficulty_base
        slope = <float> ((learned_hump(b + 0.01) - learned_hump(b - 0.01)) / 0.02 / self.model.hump_sd)
        moves = []
        for bucket, i in begun.items():
            by = self.model.table[2 * bucket] * self.model.gain_scale
            by += self.model.table[2 * bucket + 1] * self.model.difficulty_scale * slope
            if self.model.own != NULL:
                by = <float> 0.06 * by / self.model.score_sd + self.model.own[bucket] * self.model.own_scale
            first = i // 2 - (i & 1 and i > 1)  # a pair begins with the token before
            words = data[found.begin[first] : found.end[i // 2]].decode("utf-8", "replace")
            moves.append((words, by * root))
        moves.sort(key=_learned_strength)
        return moves[:most]


def _learned_strength(move):
    return -abs(move[1])


# The fit ------------------------------------------------------------------------------------------------------------


@cython.final
cdef class LearnedRows:
    """The prompts of a calibration, and the fit of weights to what was gained on them.

    Args:
        model: of the prior, whose own weights, if any, play no part.

    Thread safety: none; use it from one thread.
    """

    cdef LearnedModel model
    cdef int64_t *first
    cdef uint16_t *bucket
    cdef float *count
    cdef double *score
    cdef int rows
    cdef int64_t room_rows, room_buckets

    def __cinit__(self, LearnedModel model not None):
        self.model = model
        self._grow(&self.first, sizeof(int64_t), 1)
        self.first[0] = 0

    def __dealloc__(self):
        PyMem_Free(self.first)
        PyMem_Free(self.bucket)
        PyMem_Free(self.count)
        PyMem_Free(self.score)

    def __len__(self):
        return self.rows

    cdef int _grow(self, void *place, size_t size, int64_t count) except -1:
        cdef void **array = <void **> place
        cdef void *larger = PyMem_Realloc(array[0], size * count)
        if larger == NULL:
            raise MemoryError()
        array[0] = larger
        return 0

    def add(self, text):
        """Adds a prompt's scored bytes (see `learned_bytes`) as the next row.

        Raises:
            ValueError: the text is longer than 1,537 bytes, or there are 1,048,576 rows already.
        """
        cdef learned_features found
        cdef learned_model *model = &self.model.model
        cdef const int16_t *own = model.own
        cdef float prior
        cdef int i
        cdef int64_t used = self.first[self.rows]
        if self.rows >= LEARNED_MOST_ROWS:
            raise ValueError(f"at most {LEARNED_MOST_ROWS} prompts can be fitted")
        self.model._features(text, &found, 0)
        learned_distinct(&found)
        if self.rows >= self.room_rows:
            self.room_rows = 2 * self.room_rows + 64
            self._grow(&self.first, sizeof(int64_t), self.room_rows + 1)
            self._grow(&self.count, sizeof(float), self.room_rows * LEARNED_COUNTS)
            self._grow(&self.score, sizeof(double), self.room_rows)
        if used + found.hashes > self.room_buckets:
            self.room_buckets = 2 * self.room_buckets + LEARNED_HASHES
            self._grow(&self.bucket, sizeof(uint16_t), self.room_buckets)
        for i in range(found.hashes):
            self.bucket[used + i] = <uint16_t> (found.hash[i] >> 17)
        for i in range(LEARNED_COUNTS):
            self.count[self.rows * LEARNED_COUNTS + i] = learned_clipped(model, found.count, i)
        learned_score(model, &found, &prior)
        self.score[self.rows] = (prior - model.score_mean) / model.score_sd
        self.rows += 1
        self.first[self.rows] = used + found.hashes

    @property
    def scores(self):
        """The prior's score of each row, in units of its standard deviation over the training prompts, a list."""
        return [self.score[i] for i in range(self.rows)]

    def fit(self, target, keep, double words=0.009, double counts=0.003, double noise=0.2):
        """The posterior mean of the weights for ``gain = 0.06 score + own · features``.

        A Gaussian prior of variance ``words`` on each bucket's weight and ``counts`` on each count's; the target is
        observed with variance ``noise``. What ``0.06 score`` leaves of the target, its mean removed, is fitted by
        conjugate gradients on the rows, to 1e-8.

        Args:
            target: float64 buffer, what the strong model gained over the weak one on each row.
            keep: byte buffer, 1 for each row to fit to, 0 for the others.

        Returns:
            ``(own, gains)``: the weights in the form that `LearnedModel` takes, and as native float64 the fitted
            gain of every row, kept or not.

        Raises:
            ValueError: the lengths differ from the number of rows, or a target is not finite.
        """
        cdef const double[::1] wanted = memoryview(target)
        cdef const uint8_t[::1] kept = memoryview(keep)
        cdef learned_rows x
        cdef double mean = 0.0, most = 0.0, scale
        cdef double *scratch
        cdef int64_t number = 0
        cdef int r, j, value
        cdef int16_t rounded
        if wanted.shape[0] != self.rows or kept.shape[0] != self.rows:
            raise ValueError("target and keep must have one value for each row")
        gains = bytearray(self.rows * sizeof(double))
        own = bytearray(LEARNED_OWN_BYTES)
        cdef double *gain = <double *> <char *> gains
        cdef uint8_t *to = <uint8_t *> <char *> own
        scratch = <double *> PyMem_Malloc((5 * self.rows + LEARNED_BUCKETS + LEARNED_COUNTS) * sizeof(double))
        if scratch == NULL:
            raise MemoryError()
        cdef double *rest = scratch + 4 * self.rows
        cdef double *weight = rest + self.rows
        try:
            for r in range(self.rows):
                if not isfinite(wanted[r]):
                    raise ValueError("every target must be a finite number")
                rest[r] = wanted[r] - 0.06 * self.score[r]
                if kept[r]:
                    mean += rest[r]
                    number += 1
            for r in range(self.rows):
                rest[r] -= mean / number if number else 0.0
            x.rows, x.first, x.bucket, x.count = self.rows, self.first, self.bucket, self.count
            if self.rows:
                with nogil:
                    learned_fit(&x, &kept[0], rest, words, counts, noise, weight, scratch)
            else:
                memset(weight, 0, (LEARNED_BUCKETS + LEARNED_COUNTS) * sizeof(double))
            for j in range(LEARNED_BUCKETS):
                most = max(most, weight[j], -weight[j])
            scale = most / 32767.0 if most > 0 else 1.0
            _learned_store(to, <float> scale)
            for j in range(LEARNED_COUNTS):
                _learned_store(to + 4 + 4 * j, <float> weight[LEARNED_BUCKETS + j])
            for j in range(LEARNED_BUCKETS):
                value = <int> (weight[j] / scale + (0.5 if weight[j] >= 0 else -0.5))
                rounded = <int16_t> value
                to[4 + 4 * LEARNED_COUNTS + 2 * j] = <uint8_t> (<uint16_t> rounded & 255)
                to[4 + 4 * LEARNED_COUNTS + 2 * j + 1] = <uint8_t> (<uint16_t> rounded >> 8)
            for r in range(self.rows):
                gain[r] = 0.06 * self.score[r] + learned_row(&x, r, weight)
        finally:
            PyMem_Free(scratch)
        return bytes(own), bytes(gains)


cdef void _learned_store(uint8_t *to, float value) noexcept:
    """Writes a little-endian float32."""
    cdef uint32_t bits
    memcpy(&bits, &value, 4)
    to[0], to[1], to[2], to[3] = bits & 255, bits >> 8 & 255, bits >> 16 & 255, bits >> 24


# Traffic ------------------------------------------------------------------------------------------------------------

cdef enum:
    KIND_TRAFFIC = 32            # the low four bits are no other kind's: with 8, `reap` would take the cells for endpoints
    TRAFFIC_BINS = 64
    TRAFFIC_SUMS = 3             # calls, of them to strong, of them unfamiliar
    TRAFFIC_WORDS = 67
    TRAFFIC_CELLS = 10
    TRAFFIC_MOST = 2048          # calls, at which all counts are halved


@cython.final
cdef class LearnedTraffic:
    """The scores of the last one to two thousand calls, in 64 bins, and how many went to strong; shared by name.

    At 2,048 calls every count is halved. Callers that count meanwhile, or the death of the one that halves, shift the
    counts a little; nothing else depends on them.

    Args:
        segment: Where the state lives.
        name: Two of one name in one segment are the same.

    Thread safety: all methods are lock-free and may be called from any thread and forked process.
    """

    cdef readonly Segment segment
    cdef readonly str name
    cdef uint64_t *cells[TRAFFIC_CELLS]

    def __init__(self, Segment segment not None, str name not None) -> None:
        cdef uint64_t name_hash = segment.name_hash(name)
        cdef int number
        if self.segment is not None:
            raise RuntimeError("a LearnedTraffic cannot be initialised twice")
        for number in range(TRAFFIC_CELLS):
            self.cells[number] = segment.claim(name_hash, KIND_TRAFFIC, number)
        self.segment = segment
        self.name = name

    cdef inline uint64_t *word(self, int place) noexcept nogil:
        return self.cells[place // 7] + 1 + place % 7

    cdef inline uint64_t count(self, int place) noexcept nogil:
        """A count; one that no traffic can have reached, as in a damaged file, is 0."""
        cdef uint64_t found = fr_load(self.word(place))
        return found if found < <uint64_t> 2 * TRAFFIC_MOST else 0

    cdef void add(self, int bin, bint strong, bint unfamiliar) noexcept nogil:
        cdef int place
        cdef uint64_t calls = fr_load(self.word(0))
        if calls >= TRAFFIC_MOST and fr_cas(self.word(0), &calls, TRAFFIC_MOST // 2):
            for place in range(1, TRAFFIC_WORDS):
                fr_store(self.word(place), self.count(place) // 2)
        fr_add(self.word(0), 1)
        if strong:
            fr_add(self.word(1), 1)
        if unfamiliar:
            fr_add(self.word(2), 1)
        if bin >= 0:
            fr_add(self.word(TRAFFIC_SUMS + bin), 1)

    def figures(self):
        """``(calls, strong, unfamiliar, bins)``: the counts, and those of the calls that were scored by score, a list."""
        cdef int place
        counts = [self.count(place) for place in range(TRAFFIC_WORDS)]
        return counts[0], counts[1], counts[2], counts[TRAFFIC_SUMS:]

    def place(self, double share):
        """Where the scores' upper ``share`` begins, 0..1 from the lowest bin's begin to the highest bin's end; None without
        scores.

        Raises:
            ValueError: ``share`` is not 0 to 1.
        """
        cdef int place
        cdef double total = 0.0, wanted, above = 0.0, here
        if not 0.0 <= share <= 1.0:
            raise ValueError(f"share must be 0 to 1, not {share!r}")
        for place in range(TRAFFIC_BINS):
            total += self.count(TRAFFIC_SUMS + place)
        if total == 0.0:
            return None
        wanted = share * total
        for place in range(TRAFFIC_BINS - 1, -1, -1):
            here = self.count(TRAFFIC_SUMS + place)
            if here > 0.0 and above + here >= wanted:
                return (place + 1 - (wanted - above) / here) / TRAFFIC_BINS
            above += here
        return 0.0


# Classification -----------------------------------------------------------------------------------------------------

LEARNED_GROUNDS = ("score", "no-text", "media", "tools", "turns", "long", "words", "structure", "warm-up")

cdef enum:
    GROUND_SCORE
    GROUND_NO_TEXT
    GROUND_MEDIA
    GROUND_TOOLS
    GROUND_TURNS
    GROUND_LONG
    GROUND_WORDS
    GROUND_STRUCTURE
    GROUND_WARM_UP


@cython.final
cdef class LearnedRules:
    """Decides weak or strong by a model's score; in place of `Rules` on the way of a call.

    Args:
        model: the model.
        traffic: counts the scores.
        low, high: the scores from which the first bin of ``traffic`` begins and at which its last one ends.
        threshold: the score from which on strong serves. NaN: every call goes to strong.
        most_words, most_structure: above these values of `LearnedModel.unknown` a text is unfamiliar; without effect if
            the model has no guard.
        most_turns: more messages of role user than these are unfamiliar; 0 for no limit.
        unfamiliar: the level of unfamiliar requests, ``"strong"`` or another one, for which the planner has no tier.

    Attributes:
        threshold: may be set at any time.

    Raises:
        ValueError: ``low`` is not below ``high``.

    Thread safety: all methods and attributes.
    """

    cdef readonly LearnedModel model
    cdef readonly LearnedTraffic traffic
    cdef Rules rules
    cdef readonly double low, high
    cdef public double threshold
    cdef readonly double most_words, most_structure
    cdef readonly Py_ssize_t most_turns
    cdef int level_unfamiliar

    def __init__(self, LearnedModel model not None, LearnedTraffic traffic not None, *, double low, double high,
                 double threshold, double most_words=1.0, double most_structure=1e30, Py_ssize_t most_turns=0,
                 str unfamiliar="strong"):
        if not (isfinite(low) and isfinite(high) and low < high):
            raise ValueError("low must be below high")
        self.model = model
        self.traffic = traffic
        self.low = low
        self.high = high
        self.threshold = threshold
        self.most_words = most_words
        self.most_structure = most_structure
        self.most_turns = most_turns
        levels = ("weak", "strong") if unfamiliar == "strong" else ("weak", "strong", unfamiliar)
        self.level_unfamiliar = len(levels) - 1
        self.rules = Rules(groups=(), levels=levels, rules=(), default=("strong", 1.0), scope="user")

    def read(self, messages, params):
        """As `Rules.read`: the counts, and by them and the score the level. ``score`` is the score, NaN where there is none;
        ``ground`` says why the level was chosen.

        Raises:
            TypeError: if ``messages`` is not a sequence of mappings; it says which one is not.
        """
        cdef Scan scan = self.rules.read(messages, params)
        cdef learned_text text
        cdef learned_features found
        cdef float prior, distance = 0, score = 0
        cdef int ground = GROUND_SCORE, bin = -1
        cdef double place
        _learned_take(messages, &text)
        if text.media or scan.images:
            ground = GROUND_MEDIA
        elif scan.tools:
            ground = GROUND_TOOLS
        elif text.n == 0:
            ground = GROUND_NO_TEXT
        elif self.most_turns and scan.turns > self.most_turns:
            ground = GROUND_TURNS
        elif text.half:
            ground = GROUND_LONG
        scan.score = float("nan")
        if text.n:
            learned_read(text.bytes, text.n, &found, 0)
            learned_distinct(&found)
            if ground == GROUND_SCORE and _learned_is_blank(&text):
                ground = GROUND_NO_TEXT
            score = learned_score(&self.model.model, &found, &prior)
            scan.score = score
            if ground == GROUND_SCORE and self.model.model.known != NULL:
                if learned_unknown(&self.model.model, &found, &distance) > self.most_words:
                    ground = GROUND_WORDS
                elif distance > self.most_structure:
                    ground = GROUND_STRUCTURE
        if ground != GROUND_SCORE:
            scan.level_index = self.level_unfamiliar
        elif self.threshold != self.threshold:
            ground = GROUND_WARM_UP
        else:
            scan.level_index = score >= self.threshold
        if ground == GROUND_SCORE or ground == GROUND_WARM_UP:
            place = (score - self.low) / (self.high - self.low) * TRAFFIC_BINS
            bin = 0 if place < 0.0 else TRAFFIC_BINS - 1 if place >= TRAFFIC_BINS else <int> place
        scan.ground = ground
        self.traffic.add(bin, scan.level_index == 1, bin < 0)
        return scan
