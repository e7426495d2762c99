# The automata of the scan's regular patterns, which scan_search.h runs. Part of scan.pxi.
#
# Programs become a DFA by the subset construction: it has a row for each set of instructions that a match may have
# reached, so reading a character is one step however many there are. Assertions look at the character before, which a
# row remembers, and at the one being read; at the end of a text one last symbol is read that stands for no character.
# The instructions of a pattern that has been found are dropped, as one match is enough.
#
# A DFA can have exponentially many rows. All limits below are on making it, in states and in steps, so that a rule set
# from a configuration is either compiled in bounded time or refused; scanning with it is linear in any case.

cdef enum:
    SCAN_MAX_STATES = 4096          # of a pattern's own automaton ...
    SCAN_MAX_SHARED = 1024          # ... and of one that several share
    SCAN_MAX_SEARCHES = 8           # automata
    SCAN_MAX_STEPS = 1_500_000      # of making one: about a second

# The kinds of character that assertions tell apart.
cdef enum:
    SCAN_NEXT_OTHER
    SCAN_NEXT_WORD
    SCAN_NEXT_NEWLINE
    SCAN_NEXT_END


def _scan_alphabet(programs):
    """Gives symbols that all programs treat alike one column.

    Returns:
        The column of each symbol, and the kind (SCAN_NEXT_…) of each column; the last column is a text's end.
    """
    members = {item[1] for program in programs for item in program if item[0] == "set"}
    columns, kinds, signatures = [], [], {}
    for symbol in range(SCAN_SYMBOLS):
        kind = SCAN_NEXT_OTHER
        if _SCAN_KINDS["w"] >> symbol & 1:
            kind = SCAN_NEXT_WORD
        elif symbol == 0x0A:
            kind = SCAN_NEXT_NEWLINE
        signature = (kind, *[symbols >> symbol & 1 for symbols in members])
        if signature not in signatures:
            signatures[signature] = len(kinds)
            kinds.append(kind)
        columns.append(signatures[signature])
    return columns, [*kinds, SCAN_NEXT_END]


class _SearchAutomaton:
    """The DFA of some programs, in the form that `_scan_store` lays out.

    A state is ``(items, word, begun, pending, ending, found)``:

    * items: the instructions that a match may have reached, as bits;
    * word: whether the character before was part of a word; always False if no assertion in the state needs it;
    * begun: whether this is the beginning of a text;
    * pending, ending: items, and patterns found, that count only if the line feed just read was the text's last
      character, because ``$`` also matches before that;
    * found: the patterns found on arrival.

    Attributes:
        rows: ``(patterns found, [next row of each column])`` each.
        start: the rows to begin with in the middle of a text, after a character outside and inside a word.
        begin: the row to begin a text with.
        sink: the row from which nothing can be found any more, or None.

    Raises:
        ValueError: if it would have more than ``most`` states, or making it would take too long.
    """

    def __init__(self, programs, columns, kinds, most):
        """``programs`` are (number, instructions)."""
        self._kinds = kinds
        self._code, self._bit, self._owned, self._chains = [], [], {}, []
        self._steps = 0
        starts = []
        for number, program in programs:
            base = len(self._code)
            starts.append(base)
            for item in program:
                if item[0] == "chain":
                    self._chains.append((base + item[1], (_SCAN_ONE << item[2]) - 1, item[2], item[3]))
                elif item[0] in ("fork", "jump"):
                    item = (item[0], *[base + place for place in item[1:]])
                self._code.append(item)
                self._bit.append(_SCAN_ONE << number)
            self._owned[_SCAN_ONE << number] = (_SCAN_ONE << len(self._code)) - (_SCAN_ONE << base)
        # Sets of instructions are bits of one integer, so the frequent operations on a state are single operations.
        self._asserting = sum([_SCAN_ONE << at for at, item in enumerate(self._code) if item[0] == "assert"])
        self._reading = [0] * len(kinds)
        # A set followed by a set, as in plain text: all of these are moved on by one shift. For the others the
        # instructions that can follow are worked out once.
        self._plain = 0
        self._next = {}
        representative = {column: symbol for symbol, column in enumerate(columns)}
        for at, item in enumerate(self._code):
            if item[0] != "set":
                continue
            for column, symbol in representative.items():
                if item[1] >> symbol & 1:
                    self._reading[column] |= _SCAN_ONE << at
            if self._code[at + 1][0] == "set":
                self._plain |= _SCAN_ONE << at
            else:
                self._next[at] = self._reached([at + 1], False)
        self._passed = {}
        self._fresh = self._reached(starts, False)[0]
        self._build(self._reached(starts, True)[0], most)

    def _reached(self, places, begun):
        """The sets and assertions that can be reached without reading a character, as bits, and the patterns ended.

        ``^`` is decided here, as it depends on nothing that is read; the other assertions stay in the state.
        """
        stack, seen = list(places), set()
        items = found = 0
        while stack:
            at = stack.pop()
            if at in seen:
                continue
            seen.add(at)
            item = self._code[at]
            if item[0] == "fork" or item[0] == "jump":
                stack += item[1:]
            elif item[0] == "match":
                found |= self._bit[at]
            elif item == ("assert", "^"):
                if begun:
                    stack.append(at + 1)
            else:
                items |= _SCAN_ONE << at
        return items, found

    def _beyond(self, at, word, begun, kind):
        """What can be reached through an assertion, given the characters before and after it.

        Returns:
            Sets and patterns ended; then the same two that hold only if the line feed being read is the text's last
            character.
        """
        key = (at, word, begun, kind)
        if key in self._passed:
            return self._passed[key]
        result = [0, 0, 0, 0]
        stack, seen = [(at, 0)], set()
        while stack:
            at, late = stack.pop()
            if (at, late) in seen:
                continue
            seen.add((at, late))
            item = self._code[at]
            if item[0] == "fork" or item[0] == "jump":
                stack += [(place, late) for place in item[1:]]
            elif item[0] == "match":
                result[2 * late + 1] |= self._bit[at]
            elif item[0] == "set":
                result[2 * late] |= _SCAN_ONE << at
            elif item[1] == "$":
                if kind == SCAN_NEXT_END:
                    stack.append((at + 1, late))
                elif kind == SCAN_NEXT_NEWLINE:
                    stack.append((at + 1, 1))
            elif item[1] == "^":
                if begun:
                    stack.append((at + 1, late))
            elif (word != (kind == SCAN_NEXT_WORD)) == (item[1] == "b"):
                stack.append((at + 1, late))
        self._passed[key] = result
        return result

    def _open(self, items, word, begun, kind):
        """`_beyond` for all assertions of a state, together with its sets."""
        asserting = items & self._asserting
        sets, found, late_sets, late_found = items ^ asserting, 0, 0, 0
        while asserting:
            last = asserting & -asserting
            asserting ^= last
            self._steps += 1
            passed = self._beyond(last.bit_length() - 1, word, begun, kind)
            sets |= passed[0]
            found |= passed[1]
            late_sets |= passed[2]
            late_found |= passed[3]
        return sets, found, late_sets, late_found

    def _read(self, sets, column):
        """The items that follow when a character of this column is read, and the patterns ended by it."""
        hit = sets & self._reading[column]
        plain = hit & self._plain
        hit ^= plain
        items, found = plain << 1, 0
        while hit:
            last = hit & -hit
            hit ^= last
            self._steps += 1
            more, ended = self._next[last.bit_length() - 1]
            items |= more
            found |= ended
        return items, found

    def _pruned(self, items, start, mask, length, count):
        """The items without those in a copy of a repeated node that are in an earlier copy at the same place too.

        Whatever can follow the later one can follow the earlier one, which has more copies to go. So a.{0,60}b needs
        a state for each distance from the last a, not for every set of distances from all of them.
        """
        rest = items >> start & (_SCAN_ONE << length * count) - 1
        seen = 0
        while rest:
            self._steps += 1
            twice = rest & mask & seen
            items ^= twice << start
            seen |= rest & mask
            rest >>= length
            start += length
        return items

    def _state(self, items, word, begun, pending, ending, found):
        # Brings a state into one form, so that states which behave the same become one row. Without each of the three
        # steps the number of rows multiplies: with the patterns found, with distances, with the character before.
        rest = found
        while rest:
            last = rest & -rest
            rest ^= last
            items &= ~self._owned[last]
            pending &= ~self._owned[last]
            ending &= ~last
        for chain in self._chains:
            items = self._pruned(items, *chain)
        items |= self._fresh
        if not (items | pending) & self._asserting:
            word = False
        return items, word, begun, pending, ending, found

    def _build(self, first, most):
        classes = len(self._kinds)
        states, self.rows, queue = {}, [], []

        def row_of(state):
            row = states.get(state)
            if row is None:
                if len(self.rows) == most or self._steps > SCAN_MAX_STEPS:
                    raise ValueError(
                        f"it is too large: its automaton has more than {most} states; "
                        "repeats and wildcards that overlap what follows them make it grow"
                    )
                row = states[state] = len(self.rows)
                self.rows.append((state[5], [row] * classes))
                queue.append(state)
            return row

        self.start = [row_of(self._state(0, word, False, 0, 0, 0)) for word in (False, True)]
        self.begin = row_of((first | self._fresh, False, True, 0, 0, 0))
        ends = {}
        for state in queue:
            items, word, begun, pending, ending, _ = state
            row = states[state]
            targets = self.rows[row][1]
            opened = [self._open(items, word, begun, kind) for kind in range(4)]
            for column in range(classes):
                kind = self._kinds[column]
                sets, found, late_sets, late_found = opened[kind]
                self._steps += 1
                if kind == SCAN_NEXT_END:
                    found |= ending | self._open(pending, False, False, kind)[1]
                    ends[row] = found
                    continue
                items, ended = self._read(sets, column)
                late, late_ended = self._read(late_sets, column)
                targets[column] = row_of(
                    self._state(items, kind == SCAN_NEXT_WORD, False, late, late_found | late_ended, found | ended)
                )
        self.sink = None
        for row, found in ends.items():
            # After a text's end nothing is read, so these rows lead nowhere.
            if not found and self.rows[row] == (0, [row] * classes):
                self.sink = row
        # One row for each set of patterns that a text's end can complete. Added after the sink was looked for, which
        # compares a row with one whose cells all lead to itself.
        leaves = {}
        for row, found in ends.items():
            if found not in leaves:
                leaves[found] = len(self.rows)
                self.rows.append((found, [len(self.rows)] * classes))
            self.rows[row][1][classes - 1] = leaves[found]


def _scan_searches(programs, columns, kinds, found):
    """Adds to ``found`` the automata for the programs, ``(mask of patterns, automaton)`` each.

    One automaton for all is the quickest to run but may be too large; then each half of the programs gets its own, and
    so on. A program that is too large alone is refused.
    """
    if len(found) == SCAN_MAX_SEARCHES:
        raise ValueError("the patterns are too many and too open-ended for one rule set")
    most = SCAN_MAX_STATES if len(programs) == 1 else SCAN_MAX_SHARED
    try:
        automaton = _SearchAutomaton(programs, columns, kinds, most)
    except ValueError:
        if len(programs) == 1:
            raise
        half = len(programs) // 2
        _scan_searches(programs[:half], columns, kinds, found)
        _scan_searches(programs[half:], columns, kinds, found)
    else:
        found.append((sum([_SCAN_ONE << number for number, _ in programs]), automaton))
    return found


def _scan_checked(str text, mode):
    """Checks a pattern; returns the program of a regular one, None for the other modes.

    Raises:
        ValueError: what is wrong with the pattern.
    """
    if mode == "pattern":
        return _scan_program(text)
    if not text or len(text) > SCAN_LONGEST:
        raise ValueError(f"a pattern must have 1 to {SCAN_LONGEST} characters")
    if not text.isascii() or "\n" in text:
        raise ValueError("it has a line feed or a character outside ASCII")
    return None


def check_pattern(str text not None, str mode not None):
    """Checks one pattern by itself, without the others of its rule set.

    Args:
        text: the pattern.
        mode: ``"substring"``, ``"word"`` or ``"pattern"``.

    Raises:
        ValueError: what is wrong; in mode ``"pattern"`` with the index of the character (from 0).
    """
    program = _scan_checked(text, mode)
    if program is not None:
        columns, kinds = _scan_alphabet([program])
        _SearchAutomaton([(0, program)], columns, kinds, SCAN_MAX_STATES)
