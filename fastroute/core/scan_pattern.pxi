# The scan's regular patterns: parsing the subset of `re` that can be matched in linear time, and its automata.
# Part of scan.pxi.
#
# A pattern becomes a program of five instructions (a set of characters, a fork, a jump, an assertion, the end),
# and programs become one DFA by the subset construction: it has a row for each set of places where a match may
# stand, so reading a character is one step however many places there are. The alphabet is what scan.h tells apart:
# a byte each for Latin-1, for what lies above the byte that behaves the same, and one symbol more for decimal
# digits of other scripts. Assertions look at the character before, which a row remembers, and at the one being
# read; at the end of a text one last symbol is read that is no character.
#
# Nobody asks where a match is or how long, only whether there is one. So lazy repeats are the same as others,
# groups capture nothing, and what is left of a pattern that has been found is dropped.

cdef enum:
    SCAN_SYMBOLS = 257              # bytes, and SCAN_DECIMAL_SYMBOL
    SCAN_DECIMAL_SYMBOL = 256       # decimal digits of other scripts
    SCAN_MAX_PATTERN = 1000         # characters of a pattern
    SCAN_MAX_REPEAT = 1000
    SCAN_MAX_DEPTH = 50             # groups within groups
    SCAN_MAX_PROGRAM = 2000         # instructions of a pattern
    SCAN_MAX_STATES = 4096          # of a pattern's own automaton ...
    SCAN_MAX_SHARED = 1024          # ... and of one that several share
    SCAN_MAX_SEARCHES = 8           # automata
    SCAN_MAX_STEPS = 1_500_000      # of making one: about a second

# What a character may be to an assertion.
cdef enum:
    SCAN_NEXT_OTHER
    SCAN_NEXT_WORD
    SCAN_NEXT_NEWLINE
    SCAN_NEXT_END


# A Python integer, so that sets of any size are shifted as such.
cdef object _SCAN_ONE = 1


def _scan_symbols(accepts):
    """The set, as bits, of the symbols whose Latin-1 character is accepted."""
    return sum([_SCAN_ONE << byte for byte in range(256) if accepts(chr(byte))])


cdef object _SCAN_EVERY = (_SCAN_ONE << SCAN_SYMBOLS) - 1
cdef object _SCAN_KINDS = {
    "d": _scan_symbols(lambda c: "0" <= c <= "9") | _SCAN_ONE << SCAN_DECIMAL_SYMBOL,
    "w": _scan_symbols(lambda c: c.isalnum() or c == "_") | _SCAN_ONE << SCAN_DECIMAL_SYMBOL,
    "s": _scan_symbols(lambda c: c.isspace()),
}
_SCAN_KINDS.update([(kind.upper(), _SCAN_EVERY ^ symbols) for kind, symbols in list(_SCAN_KINDS.items())])
cdef object _SCAN_WILD = _SCAN_EVERY ^ _SCAN_ONE << 0x0A
cdef object _SCAN_CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "f": "\f", "v": "\v"}


# Parsing .................................................................................................


class _PatternParser:
    """Reads one pattern into a tree of tuples; what is outside the subset is refused with its place.

    Nodes: ``("set", symbols)``, ``("all", nodes)``, ``("any", nodes)``, ``("repeat", node, least, most or None)``
    and ``("assert", one of ^ $ b B)``.
    """

    def __init__(self, text):
        self.text = text
        self.at = 0
        self.depth = 0

    def tree(self):
        text = self.text
        if not text or len(text) > SCAN_MAX_PATTERN:
            raise ValueError(f"a pattern must have 1 to {SCAN_MAX_PATTERN} characters")
        for place, char in enumerate(text):
            if not char.isascii():
                raise self.wrong(place, "it is outside ASCII; \\w or . match such characters")
            if char == "\n":
                raise self.wrong(place, "a line feed is written \\n")
        node = self.alternatives()
        if self.at < len(text):
            raise self.wrong(self.at, "this ) closes nothing; the character itself is \\)")
        if _scan_empty(node):
            raise ValueError("it matches without reading a character, so it would be found in every text")
        return node

    def wrong(self, place, reason):
        return ValueError(f"at character {place}: {reason}")

    def peek(self):
        return self.text[self.at:self.at + 1]

    def alternatives(self):
        nodes = [self.sequence()]
        while self.peek() == "|":
            self.at += 1
            nodes.append(self.sequence())
        return nodes[0] if len(nodes) == 1 else ("any", nodes)

    def sequence(self):
        nodes = []
        while self.at < len(self.text) and self.peek() not in "|)":
            node = self.item()
            nodes.append(self.repeated(node) if self.peek() and self.peek() in "*+?{" else node)
        return nodes[0] if len(nodes) == 1 else ("all", nodes)

    def item(self):
        start = self.at
        char = self.peek()
        self.at += 1
        if char == "(":
            return self.group(start)
        if char == "[":
            return ("set", self.members(start))
        if char == "\\":
            return self.escape(start)
        if char == ".":
            return ("set", _SCAN_WILD)
        if char in "^$":
            return ("assert", char)
        if char in "*+?":
            raise self.wrong(start, f"there is nothing before it to repeat; the character itself is \\{char}")
        if char in "{}":
            raise self.wrong(start, f"the character itself is \\{char}")
        return ("set", _scan_either_case(char))

    def group(self, start):
        if self.peek() == "?":
            rest = self.text[self.at + 1:self.at + 3]
            if rest[:1] in ("=", "!") or rest in ("<=", "<!"):
                raise self.wrong(start, "looking around cannot be done in linear time, must be left out")
            if rest[:1] != ":":
                raise self.wrong(start, "only (?:...) and (...) are known; case is ignored without a flag")
            self.at += 2
        self.depth += 1
        if self.depth > SCAN_MAX_DEPTH:
            raise self.wrong(start, f"groups go more than {SCAN_MAX_DEPTH} deep")
        node = self.alternatives()
        self.depth -= 1
        if self.peek() != ")":
            raise self.wrong(start, "this group is not closed; the character itself is \\(")
        self.at += 1
        return node

    def escape(self, start):
        char = self.peek()
        if char and char in "bB":
            self.at += 1
            return ("assert", char)
        return ("set", self.escaped(start)[0])

    def escaped(self, start):
        """The symbols that an escape stands for, and the character if it is one."""
        char = self.peek()
        self.at += 1
        if not char:
            raise self.wrong(start, "nothing follows the backslash; the character itself is \\\\")
        if char in _SCAN_KINDS:
            return _SCAN_KINDS[char], None
        if char.isdigit():
            raise self.wrong(start, "a back-reference cannot be matched in linear time, must be left out")
        if char.isalpha():
            char = _SCAN_CONTROLS.get(char)
            if char is None:
                raise self.wrong(start, "unknown escape, must be one of \\d \\w \\s \\b \\D \\W \\S \\B \\n \\r \\t \\f \\v")
        return _scan_either_case(char), char

    def members(self, start):
        """The symbols of a class, of which the opening bracket has been read."""
        negated = self.peek() == "^"
        self.at += negated
        symbols, first = 0, self.at      # a bracket that comes first is one of the members
        while self.at == first or self.peek() != "]":
            place = self.at
            found, low = self.member(start)
            if self.peek() == "-" and self.text[self.at + 1:self.at + 2] not in ("]", ""):
                self.at += 1
                _, high = self.member(start)
                if low is None or high is None or low > high:
                    raise self.wrong(place, "this is no range, must go from a character to a later one")
                for code in range(ord(low), ord(high) + 1):
                    found |= _scan_either_case(chr(code))
            symbols |= found
        self.at += 1
        return _SCAN_EVERY ^ symbols if negated else symbols

    def member(self, start):
        place = self.at
        char = self.peek()
        self.at += 1
        if not char:
            raise self.wrong(start, "this class is not closed; the character itself is \\[")
        if char == "[":
            raise self.wrong(place, "a class within a class is not known; the character itself is \\[")
        if char == "\\":
            if self.peek() and self.peek() in "bB":
                raise self.wrong(place, "a word boundary is no character, must stand outside the class")
            return self.escaped(place)
        return _scan_either_case(char), char

    def repeated(self, node):
        start = self.at
        char = self.peek()
        if node[0] == "assert" and self.text[start - 1] != ")":
            raise self.wrong(start, "an assertion cannot be repeated")
        self.at += 1
        if char == "{":
            least, most = self.bounds(start)
        else:
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
        if self.peek() == "?":
            self.at += 1
        if self.peek() == "+":
            raise self.wrong(self.at, "possessive repeats are not known; the character itself is \\+")
        if self.peek() and self.peek() in "*?{":
            raise self.wrong(self.at, "a repeat of a repeat needs a group around the inner one")
        return ("repeat", node, least, most)

    def bounds(self, start):
        end = self.text.find("}", start)
        low, comma, high = self.text[self.at:max(end, self.at)].partition(",")
        if end < 0 or not (low or high) or not all(part.isdigit() or not part for part in (low, high)):
            raise self.wrong(start, "this is no repeat, must be like {3}, {2,}, {,5} or {2,5}; "
                                    "the character itself is \\{")
        self.at = end + 1
        if len(low) > 4 or len(high) > 4 or int(low or 0) > SCAN_MAX_REPEAT or int(high or 0) > SCAN_MAX_REPEAT:
            raise self.wrong(start, f"it repeats more than {SCAN_MAX_REPEAT} times")
        least = int(low or 0)
        most = least if not comma else int(high) if high else None
        if most is not None and most < least:
            raise self.wrong(start, "the upper bound is below the lower one")
        return least, most


def _scan_either_case(str letter):
    return _SCAN_ONE << ord(letter.lower()) | _SCAN_ONE << ord(letter.upper())


def _scan_empty(node):
    """Whether a tree can match without reading a character, if its assertions hold."""
    kind = node[0]
    if kind == "all":
        return all([_scan_empty(inner) for inner in node[1]])
    if kind == "any":
        return any([_scan_empty(inner) for inner in node[1]])
    if kind == "repeat":
        return node[2] == 0 or _scan_empty(node[1])
    return kind == "assert"


def _scan_program(text):
    """A pattern as instructions: ``("set", symbols)``, ``("fork", two)``, ``("jump", one)``, ``("assert", which)``
    and ``("match",)`` at the end; places are relative to the program's own start. After it stand notes:
    ``("chain", start, length, count)`` for as many copies of something, each of which may be the last.

    Raises:
        ValueError: what is wrong, and at which character.
    """
    program, chains = [], []
    _scan_emit(_PatternParser(text).tree(), program, chains)
    return [*program, ("match",), *chains]


def _scan_emit(node, program, chains):
    if len(program) > SCAN_MAX_PROGRAM:
        raise ValueError(f"it is too large: more than {SCAN_MAX_PROGRAM} steps when its repeats are written out")
    kind = node[0]
    if kind == "set" or kind == "assert":
        program.append(node)
    elif kind == "all":
        for inner in node[1]:
            _scan_emit(inner, program, chains)
    elif kind == "any":
        jumps = []
        for inner in node[1][:-1]:
            fork = len(program)
            program.append(None)
            _scan_emit(inner, program, chains)
            jumps.append(len(program))
            program.append(None)
            program[fork] = ("fork", fork + 1, len(program))
        _scan_emit(node[1][-1], program, chains)
        for place in jumps:
            program[place] = ("jump", len(program))
    else:
        _scan_emit_repeat(node[1], node[2], node[3], program, chains)


def _scan_emit_repeat(node, least, most, program, chains):
    start = len(program)
    for _ in range(least):
        start = len(program)
        _scan_emit(node, program, chains)
        if len(program) == start:      # an empty group, as often as you like
            return
    if most is None and least:
        program.append(("fork", start, len(program) + 1))
    elif most is None:
        program.append(None)
        _scan_emit(node, program, chains)
        program.append(("jump", start))
        program[start] = ("fork", start + 1, len(program))
    else:
        forks = []
        for _ in range(most - least):
            forks.append(len(program))
            program.append(None)
            _scan_emit(node, program, chains)
        for place in forks:
            program[place] = ("fork", place + 1, len(program))
        if len(forks) > 1:
            chains.append(("chain", forks[0], forks[1] - forks[0], len(forks)))


# The automaton ...........................................................................................


def _scan_alphabet(programs):
    """Symbols that all programs treat alike make one column.

    Returns:
        The column of each symbol, and for each column what it is to an assertion; the last is a text's end.
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

    A state is ``(items, word, begun, pending, ending, found)``: the instructions where a match may stand, as bits;
    whether the character before was part of a word, if an assertion wants to know; whether the text has begun;
    then what holds only if the line feed just read was the text's last character, as ``$`` may stand before that:
    items and patterns found; and the patterns found on arrival.

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
        self._asserting = sum([_SCAN_ONE << at for at, item in enumerate(self._code) if item[0] == "assert"])
        self._reading = [0] * len(kinds)
        # Where only one instruction can follow, all of those are moved on at once.
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
        """The sets and open assertions that can be come to without reading, as bits, and the patterns ended."""
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
        """What an open assertion lets through, given what stands before and after it.

        Returns:
            Sets, patterns ended; then those of both that hold only if a line feed to be read is the last.
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
        """`_beyond` for all of a state's items: its sets are through already."""
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
        """Without what stands at a place of a copy that a copy before it has too.

        Whatever can follow there can follow the earlier one, which has more copies to go. So a.{0,60}b needs a
        state for each distance from the last a, not for every set of distances from all of them.
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
        leaves = {}
        for row, found in ends.items():
            if found not in leaves:
                leaves[found] = len(self.rows)
                self.rows.append((found, [len(self.rows)] * classes))
            self.rows[row][1][classes - 1] = leaves[found]


def _scan_searches(programs, columns, kinds, found):
    """As few automata as the programs fit in by halving, added to ``found``: ``(mask of patterns, automaton)``."""
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
    """The program of a regular pattern, None for a pattern of any other mode; both if they can be used.

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
    """Checks one pattern as far as that can be done without the others of its rule set.

    Args:
        text: the pattern.
        mode: ``"substring"``, ``"word"`` or ``"pattern"``.

    Raises:
        ValueError: what is wrong, in mode ``"pattern"`` with the character it is at (counted from 0).
    """
    program = _scan_checked(text, mode)
    if program is not None:
        columns, kinds = _scan_alphabet([program])
        _SearchAutomaton([(0, program)], columns, kinds, SCAN_MAX_STATES)
