# The parser of the scan's regular patterns: the subset of `re` that can be matched in linear time. Part of scan.pxi.
#
# A pattern becomes a program of five instructions: a set of characters, a fork, a jump, an assertion, the end. The
# alphabet is what scan.h tells apart: a symbol for each Latin-1 character, which also stands for the characters above
# U+00FF that behave the same, and one more symbol for decimal digits of other scripts. Making automata of programs is
# in scan_search.pxi.
#
# Only whether a pattern matches is of interest, not where or how long. So lazy repeats are the same as greedy ones, and
# groups capture nothing.

cdef enum:
    SCAN_SYMBOLS = 257              # bytes, and SCAN_DECIMAL_SYMBOL
    SCAN_DECIMAL_SYMBOL = 256       # decimal digits of other scripts
    SCAN_MAX_PATTERN = 1000         # characters of a pattern
    SCAN_MAX_REPEAT = 1000
    SCAN_MAX_DEPTH = 50             # groups within groups
    SCAN_MAX_PROGRAM = 2000         # instructions of a pattern


# A Python integer: shifting a literal 1, Cython might use a C int, which is too small for sets of symbols.
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


# Parsing ------------------------------------------------------------------------------------------------------------


class _PatternParser:
    """Parses one pattern into a tree of tuples. Refuses what is outside the subset, with its place.

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
        # Such a pattern would always count, which is never meant.
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
        # This parser is recursive, and so are the functions that walk its tree.
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
        # `re` refuses a repeated assertion too, but accepts one in a group.
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
    and ``("match",)`` at the end; places are relative to the program's own start. After it come notes for
    `_SearchAutomaton`: ``("chain", start, length, count)``, count copies of one node in a row, each of which may be the
    last.

    Raises:
        ValueError: what is wrong, and at which character.
    """
    program, chains = [], []
    _scan_emit(_PatternParser(text).tree(), program, chains)
    return [*program, ("match",), *chains]


def _scan_emit(node, program, chains):
    # Checked before each node and not at the end: nested repeats of 1000 would fill the memory first.
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
        if len(program) == start:      # an empty group: repeating it adds nothing
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
