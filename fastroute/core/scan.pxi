# ======================================================================================================================
# Scan: what a request's text contains, and the level that follows from it
# ======================================================================================================================
#
# The patterns of all groups, words, characters and structure are counted in one linear pass (scan.h); then the rule
# set's conditions over the counts decide the level; all in one native call.
#
# The semantics are those of `re` with IGNORECASE, on ASCII patterns: mode "substring" is the literal text, mode "word"
# is \b(?:pattern)\b in which a dot is any character but a line feed, mode "pattern" a regular expression of the subset
# in scan_pattern.pxi. U+0130 and U+0131 match i, U+017F matches s, U+212A matches k; every other character outside
# ASCII matches only a dot. A word consists of what str.isalnum accepts, and the underscore; a combining mark is not
# part of a word.
#
# The scan keeps the GIL: 50 KB take some 30 µs, and getting the GIL back from other threads would take milliseconds.
#
# Thread safety: Rules and Scan never change once made.

from collections.abc import Mapping as _ScanMapping, Sized as _ScanSized

cimport cython
from libc.math cimport isfinite
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

cdef extern from "scan.h":
    enum:
        SCAN_LONGEST
        SCAN_HAS_AVX2
        SCAN_DECIMAL
    ctypedef struct scan_dfa:
        uint64_t *memory
        uintptr_t first
        uintptr_t start[2]
    ctypedef struct scan_search:
        scan_dfa dfa
        uintptr_t begin
        uintptr_t sink
        uint64_t all
    ctypedef struct scan_alphabet:
        uint8_t column[256]
        uint8_t word[256]
    ctypedef struct scan_table:
        scan_dfa free
        scan_dfa fixed
        scan_search *searches
        int search_count
        uint8_t end
        uint8_t above[256]
        scan_alphabet bytes
        scan_alphabet columns
        uint8_t column[256]
        uint8_t word[256]
        uint32_t reach
        uint64_t all
        int vectors
        uint64_t bucket[8]
        uint8_t used
        uint8_t inner
        uint8_t low[4][16]
        uint8_t high[4][16]
    ctypedef struct scan_counts:
        int64_t chars
        int64_t utf8
        int64_t scope_chars
        int64_t words
        int64_t digits
        int64_t question_marks
        int64_t newlines
        int64_t code_fences
        uint64_t found
        int truncated
    ctypedef struct scan_pass:
        pass
    void scan_begin(scan_pass *task, const scan_table *table, scan_counts *counts) noexcept nogil
    int scan_text(scan_pass *task, object text, int in_scope) except -1
    void scan_finish(scan_pass *task) noexcept nogil
    uint32_t scan_popcount(uint64_t bits) noexcept nogil

# Features that a condition may name; a group's number of distinct patterns found follows them.
cdef enum:
    SCAN_AVERAGE
    SCAN_CHARS
    SCAN_UTF8
    SCAN_SCOPE_CHARS
    SCAN_WORDS
    SCAN_SCORE
    SCAN_MAX_TOKENS
    SCAN_TOOLS
    SCAN_TURNS
    SCAN_MESSAGES
    SCAN_IMAGES
    SCAN_TOTAL
    SCAN_CODE_FENCES
    SCAN_DIGITS
    SCAN_QUESTION_MARKS
    SCAN_NEWLINES
    SCAN_GROUPS
    SCAN_MAX_GROUPS = 16
    SCAN_MAX_PATTERNS = 64
    SCAN_MAX_CELLS = 65536

SCAN_FEATURES = (
    "average", "chars", "utf8", "scope_chars", "words", "score", "max_tokens", "tools", "turns", "messages",
    "images", "total", "code_fences", "digits", "question_marks", "newlines",
)
SCAN_OPERATORS = ("<", "<=", ">", ">=", "==")
SCAN_MODES = ("substring", "word", "pattern")

ctypedef struct scan_condition:
    int feature      # index into the features
    int relation     # index into SCAN_OPERATORS
    double value

ctypedef struct scan_rule:
    int level        # index into the levels
    int first        # its conditions: from this index
    int end          # up to, but not including, this one
    double confidence


include "scan_compile.pxi"
include "scan_pattern.pxi"
include "scan_search.pxi"


# Rules --------------------------------------------------------------------------------------------------------------


@cython.final
cdef class Rules:
    """A compiled rule set: groups of patterns, a score and ordered conditions.

    Args:
        groups: ``(name, patterns, mode, weight)`` each; mode is ``"substring"``, ``"word"`` or ``"pattern"``. Case
            is ignored. At most 16 groups and 64 different patterns in all, ASCII, of 1 to 256 characters, or 1000
            of mode ``"pattern"``.
        scope: ``"user"`` counts patterns, words and structure in messages of role ``user`` only; ``"all"`` in all.
        base, low, high: the score is ``base`` plus each group's weight times the number of its patterns that
            occur, limited to ``low`` .. ``high``.
        levels: names of the levels.
        rules: ``(level, confidence, conditions)`` each; a condition is ``(feature, operator, value)``. The first
            rule of which all conditions hold decides.
        default: ``(level, confidence)`` if no rule holds.
        portable: use the plain C kernel even where the processor has AVX2 (for tests and comparison).

    Raises:
        ValueError: if an argument is invalid; the message says which one and why.

    Thread safety: immutable; any number of threads may scan with one object.
    """

    cdef scan_table table
    cdef int scope_user
    cdef int group_count
    cdef uint64_t masks[SCAN_MAX_GROUPS]
    cdef double weights[SCAN_MAX_GROUPS]
    cdef bint weighs                    # whether any group counts for the score
    cdef double base, low, high
    cdef scan_rule *rules
    cdef scan_condition *conditions
    cdef int rule_count
    cdef scan_rule otherwise
    cdef readonly tuple levels
    cdef readonly tuple groups          # names
    cdef tuple spellings                # of each group: (pattern, bit) pairs

    # In __cinit__, which runs once for each object: a second __init__ would replace the tables under a running scan.
    def __cinit__(
        self, *, groups, str scope, levels, rules, default, double base=0.0, double low=-1e300,
        double high=1e300, bint portable=False,
    ):
        if scope not in ("user", "all"):
            raise ValueError(f"scope: {scope!r} is unknown; 'user' or 'all'")
        if not (isfinite(base) and isfinite(low) and isfinite(high) and low <= high):
            raise ValueError("score: base, low and high must be finite, and low not above high")
        self.scope_user = scope == "user"
        self.base, self.low, self.high = base, low, high
        self._compile_groups(groups)
        self._compile_rules(tuple(levels), rules, default)
        self.table.vectors = SCAN_HAS_AVX2 and not portable

    def __dealloc__(self):
        cdef int index
        free(self.table.free.memory)
        free(self.table.fixed.memory)
        if self.table.searches != NULL:
            for index in range(self.table.search_count):
                free(self.table.searches[index].dfa.memory)
            free(self.table.searches)
        free(self.rules)
        free(self.conditions)

    cdef int _compile_groups(self, groups) except -1:
        cdef dict bits = {}
        cdef list names = [], spellings = [], patterns = [], programs = []
        cdef uint64_t mask, bit
        for name, texts, mode, weight in groups:
            where = f"group {name!r}"
            if len(names) == SCAN_MAX_GROUPS:
                raise ValueError(f"{where}: more than {SCAN_MAX_GROUPS} groups")
            if name in names:
                raise ValueError(f"{where}: there are two groups of this name")
            if mode not in SCAN_MODES:
                raise ValueError(f"{where}: mode {mode!r} is unknown; 'substring', 'word' or 'pattern'")
            if isinstance(texts, str) or not texts:
                raise ValueError(f"{where}: patterns must be a list of at least one")
            if not isfinite(weight):
                raise ValueError(f"{where}: weight must be finite")
            mask = 0
            pairs = []
            for text in texts:
                if not isinstance(text, str):
                    raise ValueError(f"{where}: a pattern must be a string of 1 to {SCAN_LONGEST} characters")
                try:
                    program = _scan_checked(text, mode)
                except ValueError as error:
                    raise ValueError(f"{where}: pattern {text!r}: {error}") from None
                # One bit for patterns that match the same, so that `total` counts them once. In a regular pattern the
                # case of a letter after a backslash matters, so its text is not lowered.
                key = (mode, text if mode == "pattern" else text.lower())
                if key not in bits:
                    if len(bits) == SCAN_MAX_PATTERNS:
                        raise ValueError(f"{where}: more than {SCAN_MAX_PATTERNS} different patterns")
                    bits[key] = len(bits)
                    if program is None:
                        patterns.append((_scan_sets(text, mode == "word"), mode == "word", bits[key]))
                    else:
                        programs.append((bits[key], program))
                bit = <uint64_t> 1 << <int> bits[key]
                if mask & bit:
                    raise ValueError(f"{where}: pattern {text!r} stands there twice")
                mask |= bit
                pairs.append((text, bit))
            self.masks[len(names)] = mask
            self.weights[len(names)] = weight
            self.weighs = self.weighs or weight != 0
            names.append(name)
            spellings.append(tuple(pairs))
        self.groups = tuple(names)
        self.group_count = len(names)
        self.spellings = tuple(spellings)
        if patterns:
            self._compile_table(patterns)
        if programs:
            self._compile_searches(programs)
        return 0

    cdef int _compile_table(self, list patterns) except -1:
        columns, words = _scan_classes(patterns)
        classed = [
            ([{columns[byte] for byte in characters} for characters in sets], is_word, number)
            for sets, is_word, number in patterns
        ]
        # `free` is walked over the whole text by the portable kernel; `fixed` from single places by the AVX2 kernel.
        for fixed in (False, True):
            rows, start = _scan_automaton(classed, columns, words, fixed)
            _scan_store(&self.table.fixed if fixed else &self.table.free, rows, start, len(words))
        # Plus 1: the first cell of a row is the set of patterns that matched.
        for byte in range(256):
            self.table.column[<int> byte] = <int> columns[byte] + 1
            self.table.word[<int> byte] = words[columns[byte]]
        _scan_buckets(&self.table, patterns)
        # Rounded up to what the portable kernel takes at a time.
        self.table.reach = (max(len(sets) for sets, _, _ in patterns) + 3) // 4 * 4
        for _, _, number in patterns:
            self.table.all |= <uint64_t> 1 << <int> number
        return 0

    cdef int _compile_searches(self, list programs) except -1:
        cdef scan_search *search
        cdef int symbol, column
        columns, kinds = _scan_alphabet([program for _, program in programs])
        searches = _scan_searches(programs, columns, kinds, [])
        self.table.searches = <scan_search *> calloc(len(searches), sizeof(scan_search))
        if self.table.searches == NULL:
            raise MemoryError()
        for mask, automaton in searches:
            search = &self.table.searches[self.table.search_count]
            self.table.search_count += 1
            search.all = mask
            places = _scan_store(&search.dfa, automaton.rows, automaton.start, len(kinds))
            search.begin = search.dfa.first + <uintptr_t> (sizeof(uint64_t) * places[automaton.begin])
            if automaton.sink is not None:
                search.sink = search.dfa.first + <uintptr_t> (sizeof(uint64_t) * places[automaton.sink])
        # Texts with wider characters are turned into columns before they are walked: in their alphabet, `columns`, a
        # column stands for itself.
        self.table.end = len(kinds)
        for symbol in range(256):
            column = columns[symbol]
            self.table.bytes.column[symbol] = self.table.above[symbol] = <uint8_t> (column + 1)
            self.table.bytes.word[symbol] = kinds[column] == SCAN_NEXT_WORD
            self.table.columns.column[symbol] = symbol
        self.table.above[<int> SCAN_DECIMAL] = <uint8_t> (<int> columns[SCAN_DECIMAL_SYMBOL] + 1)
        for column in range(len(kinds)):
            self.table.columns.word[column + 1] = kinds[column] == SCAN_NEXT_WORD
        return 0

    cdef int _compile_rules(self, tuple levels, rules, default) except -1:
        cdef int number = 0, place = 0
        rules = [(level, confidence, tuple(conditions)) for level, confidence, conditions in rules]
        if not levels or len(set(levels)) != len(levels):
            raise ValueError("levels: there must be at least one, and none twice")
        self.levels = levels
        self.rules = <scan_rule *> calloc(len(rules) + 1, sizeof(scan_rule))
        self.conditions = <scan_condition *> calloc(sum([len(rule[2]) for rule in rules]) + 1, sizeof(scan_condition))
        if self.rules == NULL or self.conditions == NULL:
            raise MemoryError()
        features = {name: index for index, name in enumerate(SCAN_FEATURES)}
        features.update((f"group.{name}", SCAN_GROUPS + index) for index, name in enumerate(self.groups))
        for level, confidence, conditions in rules:
            where = f"rule {number}"
            self.rules[number].level = self._level(where, level, confidence)
            self.rules[number].confidence = confidence
            self.rules[number].first = place
            for feature, operator, value in conditions:
                if feature not in features:
                    raise ValueError(f"{where}: unknown feature {feature!r}; known: {', '.join(features)}")
                if operator not in SCAN_OPERATORS:
                    raise ValueError(f"{where}: unknown operator {operator!r}; known: {' '.join(SCAN_OPERATORS)}")
                if not isfinite(value):
                    raise ValueError(f"{where}: the value compared with must be finite")
                self.conditions[place].feature = features[feature]
                self.conditions[place].relation = SCAN_OPERATORS.index(operator)
                self.conditions[place].value = value
                place += 1
            self.rules[number].end = place
            number += 1
        self.rule_count = number
        self.otherwise.level = self._level("default", default[0], default[1])
        self.otherwise.confidence = default[1]
        return 0

    cdef int _level(self, where, level, confidence) except -1:
        if level not in self.levels:
            raise ValueError(f"{where}: unknown level {level!r}; known: {', '.join(self.levels)}")
        if not 0 <= confidence <= 1:
            raise ValueError(f"{where}: confidence must be from 0 to 1")
        return self.levels.index(level)

    @property
    def kernel(self):
        """The kernel in use: ``"avx2"`` or ``"portable"``."""
        return "avx2" if self.table.vectors else "portable"

    def scan(self, messages, int64_t max_tokens=0, int64_t tools=0):
        """Scans a request's messages and decides its level.

        Args:
            messages: OpenAI's message mappings. Content may be a string, a list of parts (text is read, images
                are counted) or missing; content of any other kind is ignored.
            max_tokens: output tokens asked for, 0 if unknown.
            tools: how many tools or functions the request offers.

        Returns:
            The counts and the level. The time is linear in the text. Of a text that is longer than 16 KiB and would
            make the request longer than 1 MiB of characters, only the first and last 8 KiB are examined.

        Raises:
            TypeError: if ``messages`` is not a sequence of mappings; it says which one is not.
        """
        cdef Scan result = self._read(messages)
        self._judge(result, max_tokens, tools)
        return result

    def read(self, messages, params):
        """`scan` for a request as the caller passed it.

        Args:
            messages: as for `scan`.
            params: the request's other parameters, a mapping. Used are ``max_tokens`` or else
                ``max_completion_tokens`` (ignored unless a finite number), and the number of ``tools`` and
                ``functions``.
        """
        cdef Scan result = self._read(messages)
        cdef int64_t max_tokens = 0, tools = 0
        if params:
            limit = params.get("max_tokens")
            if limit is None:
                limit = params.get("max_completion_tokens")
            max_tokens = _scan_limit(limit)
            tools = _scan_number(params.get("tools")) + _scan_number(params.get("functions"))
        self._judge(result, max_tokens, tools)
        return result

    cdef Scan _read(self, messages):
        # Nothing here validates a request: what is not text is ignored, so that classifying cannot fail where the
        # provider would have answered.
        cdef scan_pass task
        cdef Scan result = Scan.__new__(Scan)
        cdef Py_ssize_t index = 0
        cdef bint is_user, in_scope
        cdef int kind
        if isinstance(messages, (str, bytes, dict)):
            raise TypeError(f"messages must be a list of mappings, not {type(messages).__name__}")
        result.rules = self
        scan_begin(&task, &self.table, &result.tally)
        for message in messages:
            if isinstance(message, dict):
                role = (<dict> message).get("role")
                content = (<dict> message).get("content")
            elif isinstance(message, _ScanMapping):
                role = message.get("role")
                content = message.get("content")
            else:
                raise TypeError(f"messages[{index}] must be a mapping, not {type(message).__name__}")
            index += 1
            is_user = isinstance(role, str) and <str> role == "user"
            in_scope = is_user or not self.scope_user
            result.turns += is_user
            if isinstance(content, str):
                scan_text(&task, content, in_scope)
            elif isinstance(content, (list, tuple)):
                for part in content:
                    kind = _scan_part(&task, part, in_scope)
                    result.images += kind == SCAN_IMAGE
                    result.media += kind != SCAN_TEXT
        scan_finish(&task)
        result.messages = index
        return result

    cdef void _judge(self, Scan scan, int64_t max_tokens, int64_t tools) noexcept:
        """The score, and the level of the first rule that holds."""
        cdef scan_condition *condition
        cdef int i, k
        scan.max_tokens = max_tokens
        scan.tools = tools
        scan.score = self._score(scan)
        for i in range(self.rule_count):
            for k in range(self.rules[i].first, self.rules[i].end):
                condition = &self.conditions[k]
                if not _scan_holds(condition.relation, self._value(scan, condition.feature), condition.value):
                    break
            else:
                scan.rule = i
                scan.level_index = self.rules[i].level
                scan.confidence = self.rules[i].confidence
                return
        scan.rule = -1
        scan.level_index = self.otherwise.level
        scan.confidence = self.otherwise.confidence

    cdef double _score(self, Scan scan) noexcept:
        cdef double score = self.base
        cdef int i
        if self.weighs:
            for i in range(self.group_count):
                score += self.weights[i] * scan_popcount(scan.tally.found & self.masks[i])
        return self.low if score < self.low else self.high if score > self.high else score

    cdef double _value(self, Scan scan, int feature) noexcept:
        """The value of a feature, by its place in SCAN_FEATURES; the groups follow them."""
        cdef const scan_counts *tally = &scan.tally
        if feature >= SCAN_GROUPS:
            return scan_popcount(tally.found & self.masks[feature - SCAN_GROUPS])
        if feature == SCAN_AVERAGE:
            return <double> tally.chars / <double> scan.messages if scan.messages else 0.0
        if feature == SCAN_SCORE:
            return scan.score
        if feature == SCAN_TOTAL:
            return scan_popcount(tally.found)
        # Compared one after the other: the features used most come first.
        return <double> (
            tally.chars if feature == SCAN_CHARS else
            tally.words if feature == SCAN_WORDS else
            scan.max_tokens if feature == SCAN_MAX_TOKENS else
            scan.tools if feature == SCAN_TOOLS else
            scan.turns if feature == SCAN_TURNS else
            scan.messages if feature == SCAN_MESSAGES else
            scan.images if feature == SCAN_IMAGES else
            tally.scope_chars if feature == SCAN_SCOPE_CHARS else
            tally.utf8 if feature == SCAN_UTF8 else
            tally.code_fences if feature == SCAN_CODE_FENCES else
            tally.digits if feature == SCAN_DIGITS else
            tally.question_marks if feature == SCAN_QUESTION_MARKS else
            tally.newlines
        )


cdef inline bint _scan_holds(int relation, double value, double bound) noexcept nogil:
    if relation == 0:
        return value < bound
    if relation == 1:
        return value <= bound
    if relation == 2:
        return value > bound
    if relation == 3:
        return value >= bound
    return value == bound


cdef int64_t _scan_limit(value) except -1:
    """Output tokens asked for, at most 2**53, from where on a double is no longer exact; 0 unless a finite number."""
    cdef double number
    if isinstance(value, int):
        return min(max(value, 0), 9007199254740992)
    if not isinstance(value, float):
        return 0
    number = value
    return <int64_t> min(max(number, 0.0), 9007199254740992.0) if isfinite(number) else 0


cdef int64_t _scan_number(offered) except -1:
    """The number of tools in a list of them."""
    if offered is None:
        return 0
    if isinstance(offered, list):
        return len(<list> offered)
    return len(offered) if isinstance(offered, _ScanSized) else 0


cdef enum:
    SCAN_TEXT
    SCAN_IMAGE
    SCAN_OTHER


cdef int _scan_part(scan_pass *task, part, bint in_scope) except -1:
    """Reads one part of a content list and returns what it is: text, an image or something else."""
    if isinstance(part, str):
        scan_text(task, part, in_scope)
        return SCAN_TEXT
    if not isinstance(part, (dict, _ScanMapping)):
        return SCAN_TEXT
    kind = part.get("type")
    if kind is None or (isinstance(kind, str) and (kind == "text" or kind == "input_text")):
        # Without a type it is a part of Gemini's, which may be text as well.
        text = part.get("text")
        if isinstance(text, str):
            scan_text(task, text, in_scope)
        return SCAN_TEXT if kind is not None or (isinstance(text, str) and len(part) == 1) else SCAN_OTHER
    return SCAN_IMAGE if kind == "image_url" or kind == "input_image" else SCAN_OTHER


# Scan ---------------------------------------------------------------------------------------------------------------


@cython.final
@cython.no_gc
@cython.freelist(16)
cdef class Scan:
    """The result of `Rules.scan`, made only there.

    ``chars``, ``utf8``, ``messages``, ``turns``, ``images``, ``media`` and ``average`` cover all messages and are exact. The
    other counts cover the texts in scope, as far as they were examined (see ``truncated``).

    Thread safety: immutable.
    """

    cdef Rules rules
    cdef scan_counts tally
    cdef int64_t max_tokens
    cdef int64_t tools
    cdef readonly double score          # limited to its bounds
    cdef readonly double confidence     # of the rule that decided
    cdef readonly int level_index       # index into the rule set's levels
    cdef readonly int rule              # index of the rule that decided, -1: the default
    cdef readonly int ground            # of a learned score: index into LEARNED_GROUNDS
    cdef readonly Py_ssize_t messages   # how many
    cdef readonly Py_ssize_t turns      # how many of role user
    cdef readonly Py_ssize_t images     # image parts
    cdef readonly Py_ssize_t media      # parts that are not text, images among them

    def __init__(self, *args, **kwargs):
        raise TypeError("a Scan comes from Rules.scan")

    @property
    @cython.nonecheck(True)
    def level(self):
        """The level's name."""
        return self.rules.levels[self.level_index]

    @property
    def average(self):
        """Code points per message; 0.0 if there is none."""
        return self.feature("average")

    @property
    def chars(self):
        """Code points."""
        return self.tally.chars

    @property
    def utf8(self):
        """Bytes as UTF-8; a lone surrogate counts three."""
        return self.tally.utf8

    @property
    def scope_chars(self):
        """Code points of the texts in scope."""
        return self.tally.scope_chars

    @property
    def words(self):
        """``len(text.split())``, summed over the texts."""
        return self.tally.words

    @property
    def truncated(self):
        """Whether a text was so long that only its ends were examined."""
        return self.tally.truncated != 0

    @property
    @cython.nonecheck(True)
    def counts(self):
        """The number of different patterns of each group that occur."""
        cdef int i
        return tuple([scan_popcount(self.tally.found & self.rules.masks[i]) for i in range(self.rules.group_count)])

    @property
    def total(self):
        """The number of different patterns that occur; one that is in two groups of the same mode counts once."""
        return scan_popcount(self.tally.found)

    @property
    @cython.nonecheck(True)
    def matches(self):
        """The patterns that occur, as the rule set spells them, by group; groups without a match are left out."""
        cdef uint64_t found = self.tally.found
        result = {}
        for name, pairs in zip(self.rules.groups, self.rules.spellings):
            present = tuple([text for text, bit in pairs if found & <uint64_t> bit])
            if present:
                result[name] = present
        return result

    @property
    def structure(self):
        """Counts of ``code_fences`` (three back-ticks), ``digits`` (0-9), ``question_marks`` and ``newlines``."""
        return {
            "code_fences": self.tally.code_fences,
            "digits": self.tally.digits,
            "question_marks": self.tally.question_marks,
            "newlines": self.tally.newlines,
        }

    @cython.nonecheck(True)
    def feature(self, str name):
        """The value of a feature, by the name that conditions use.

        Raises:
            KeyError: if there is none of that name.
        """
        cdef int place
        if name in SCAN_FEATURES:
            place = SCAN_FEATURES.index(name)
        elif name.startswith("group.") and name[6:] in self.rules.groups:
            place = SCAN_GROUPS + <int> self.rules.groups.index(name[6:])
        else:
            raise KeyError(name)
        return self.rules._value(self, place)

    def __repr__(self):
        return f"<Scan {self.level} of {self.messages} messages, {self.chars} characters>"
