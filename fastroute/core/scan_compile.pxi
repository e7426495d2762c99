# The scan's compiler: patterns become the automata and the filter that scan.h runs. Part of scan.pxi.
#
# A pattern is a sequence of byte sets, with a word boundary at both ends or at none. Together the patterns are a small
# NFA; the subset construction turns it into a DFA over classes of bytes. A DFA state remembers whether the last
# character was part of a word, so a boundary is decided when the next character is read. Regular patterns, whose
# matches may have any length, have automata of their own: scan_pattern.pxi.
#
# This runs once for a rule set, so it is Python with sets of states as bits of one integer, written for clarity. Only
# the number of rows has a limit (SCAN_MAX_CELLS): wildcards can make it grow exponentially.

def _scan_automaton(patterns, columns, words, bint fixed):
    """The rows of a DFA: one ``(matched bits, [next row of each class])`` a state, and its two start rows.

    ``patterns`` are ``(sets, is_word, number)``: a set of classes for each character. ``words[c]`` says whether class
    ``c`` is part of a word. With ``fixed``, matches begin at the first character only, and row 0 is the row
    from which nothing can match any more.
    """
    # Items are bits: item k of a pattern stands for "k of its characters read". Item 0 is not stored: it is in every
    # state (or, with `fixed`, in the start states only).
    cdef int classes = len(words)
    advance = [0] * classes
    begin = [[0] * classes, [0] * classes]     # by whether there is a word boundary before the class
    literal_ends, word_ends = {}, {}
    base = 0
    for sets, is_word, number in patterns:
        for place, members in enumerate(sets):
            for column in members:
                if place:
                    advance[column] |= 1 << (base + place - 1)
                else:
                    begin[1][column] |= 1 << base
                    if not is_word:
                        begin[0][column] |= 1 << base
        (word_ends if is_word else literal_ends)[1 << (base + len(sets) - 1)] = 1 << number
        base += len(sets)
    literal_mask, word_mask = sum(literal_ends), sum(word_ends)

    start = [(0, word, 0, True) for word in (0, 1)]
    states = {}
    rows = []
    # The row from which nothing can match leads to itself: scan_check in scan_avx2.h stops there.
    if fixed:
        states[(0, 0, 0, False)] = 0
        rows.append((0, [0] * classes))
    queue = []
    for state in start:
        states[state] = len(rows)
        rows.append((0, [0] * classes))
        queue.append(state)
    for state in queue:
        items, word, _, fresh = state
        targets = rows[states[state]][1]
        for column in range(classes):
            boundary = word != words[column]
            matched = 0
            # A pattern of mode "word" that was read to its end matches only now, if its last character is followed by a
            # boundary. A literal pattern matches on its last character, and need not be carried further.
            if boundary:
                ended = items & word_mask
                while ended:
                    last = ended & -ended
                    matched |= word_ends[last]
                    ended ^= last
            following = (items & advance[column]) << 1
            if fresh:
                following |= begin[boundary][column]
            ended = following & literal_mask
            following ^= ended
            while ended:
                last = ended & -ended
                matched |= literal_ends[last]
                ended ^= last
            if fixed and not following and not matched:
                target = (0, 0, 0, False)
            else:
                target = (following, words[column], matched, not fixed)
            row = states.get(target)
            if row is None:
                row = states[target] = len(rows)
                if row * classes >= SCAN_MAX_CELLS:
                    raise ValueError("the patterns are too many, too long or have too many wildcards for one rule set")
                rows.append((matched, [0] * classes))
                queue.append(target)
            targets[column] = row
    return rows, [states[state] for state in start]


def _scan_classes(patterns):
    """A column for each byte, and for each column whether it is part of words.

    Bytes that all patterns treat alike share a column: rows become short enough for the first-level cache.
    """
    members = {frozenset(characters) for sets, _, _ in patterns for characters in sets}
    columns, signatures = [], {}
    words = []
    for byte in range(256):
        is_word = chr(byte).isalnum() or byte == 0x5F
        signature = (is_word, *[byte in characters for characters in members])
        if signature not in signatures:
            signatures[signature] = len(words)
            words.append(is_word)
        columns.append(signatures[signature])
    return columns, words


cdef list _scan_store(scan_dfa *dfa, rows, start, int classes):
    """Lays the rows out as scan_tables.h describes; returns the cell at which each begins, counted from the first."""
    # A row begins at a multiple of 16 bytes, or 8 bytes further if its set is not empty: so bit 3 of its address says
    # whether anything matched, without a load. The stride leaves room for that.
    cdef int stride = (1 + 1 + classes + 1) // 2 * 2
    cdef int place, column
    cdef uint64_t *cells
    places = [index * stride + (bits != 0) for index, (bits, _) in enumerate(rows)]
    dfa.memory = <uint64_t *> calloc(len(rows) * stride + 2, sizeof(uint64_t))
    if dfa.memory == NULL:
        raise MemoryError()
    cells = dfa.memory + ((<uintptr_t> dfa.memory & 8) != 0)
    for place, (bits, targets) in zip(places, rows):
        cells[place] = bits
        for column in range(classes):
            cells[place + 1 + column] = <uintptr_t> &cells[<int> places[targets[column]]]
    dfa.first = <uintptr_t> cells
    dfa.start[0] = <uintptr_t> &cells[<int> places[start[0]]]
    dfa.start[1] = <uintptr_t> &cells[<int> places[start[1]]]
    return [place - places[0] for place in places]


def _scan_sets(str pattern, bint is_word):
    """The bytes that each character of a pattern matches."""
    wild = frozenset(range(256)) - {0x0A}
    return [
        wild if is_word and character == "." else frozenset((ord(character.lower()), ord(character.upper())))
        for character in pattern
    ]


cdef extern from *:
    """
    /* Characters of prose, the commonest first: rank r stands for a share of about 1 / (r + 4). */
    static const char scan_prose[] = " etaoinshrdlucmfwypvbgk.,-'jxqz0123456789";
    """
    const char *scan_prose


cdef double _scan_share(uint32_t low, uint32_t high) noexcept nogil:
    """The share of prose that has one of these nibbles below and one of those above (a bit for each)."""
    cdef double sum = 0.001
    cdef int rank = 0
    while scan_prose[rank]:
        if low >> (scan_prose[rank] & 15) & 1 and high >> (scan_prose[rank] >> 4) & 1:
            sum += 1.0 / (rank + 4)
        rank += 1
    return sum


def _scan_passing(windows):
    """How much of prose a bucket lets pass, in no unit: for comparison only."""
    passing = 1.0
    for low, high in windows:
        passing *= _scan_share(low, high)
    return passing


def _scan_joined(one, other):
    """How much more passes when two buckets are joined, and the joined bucket."""
    windows = [(a | c, b | d) for (a, b), (c, d) in zip(one[2], other[2])]
    passing = _scan_passing(windows)
    return passing - one[3] - other[3], (one[0], one[1] | other[1], windows, passing)


cdef int _scan_buckets(scan_table *table, list patterns) except -1:
    """Spreads the patterns over the filter's eight buckets so that few bytes pass which are no match.

    Greedy: begins with a bucket for each pattern, then joins the two whose join lets least more pass, until there are
    eight. Patterns that can begin within a word are kept apart from those that cannot, because for the latter the
    filter also looks at the byte before. A poor choice costs time, never a match.
    """
    cdef int number, place, byte
    buckets = {}
    for sets, is_word, number in patterns:
        # A pattern of mode "word" whose first character is always part of a word needs a byte outside words before it.
        inner = not is_word or not all(chr(byte).isalnum() for byte in sets[0])
        windows = []
        for place in range(4):
            low = high = 0
            for byte in sets[place] if place < len(sets) else range(256):
                low |= 1 << (byte & 15)
                high |= 1 << (byte >> 4)
            windows.append((low, high))
        buckets[number] = inner, 1 << <object> number, windows, _scan_passing(windows)
    joined = {}
    fresh = len(buckets)
    recent = list(buckets)
    while len(buckets) > 8:
        for new in recent:
            for old in buckets:
                if old != new and buckets[old][0] == buckets[new][0] and (old, new) not in joined:
                    joined[new, old] = _scan_joined(buckets[new], buckets[old])
        pair = min(joined, key=lambda pair: joined[pair][0])
        buckets[fresh] = joined[pair][1]
        del buckets[pair[0]], buckets[pair[1]]
        joined = {key: value for key, value in joined.items() if not set(key) & set(pair)}
        recent = [fresh]
        fresh += 1
    for number, (inner, bits, windows, _) in enumerate(buckets.values()):
        table.bucket[number] = bits
        table.used |= <uint8_t> (1 << number)
        if inner:
            table.inner |= <uint8_t> (1 << number)
        for place in range(4):
            low, high = windows[place]
            for byte in range(16):
                if low >> <object> byte & 1:
                    table.low[place][byte] |= <uint8_t> (1 << number)
                if high >> <object> byte & 1:
                    table.high[place][byte] |= <uint8_t> (1 << number)
    return 0
