# ======================================================================================================================
# JSON bounds: how much is in a document, before it is parsed
# ======================================================================================================================
#
# A parser makes 80 bytes of objects of the three bytes ``[],``. So the values, the keys and the nesting of a document
# from outside are counted first, in one linear pass that makes no object and stops at the first bound that is exceeded.
#
# This is not a parser. Of a valid document the counts are exact. Of any other one they are at least those of the part
# that a parser reads until it finds the mistake, so nothing is made that was not counted.
#
# The text of strings is skipped by `memchr`, so a picture in base64 costs next to nothing. What is left are a few bytes
# for each value.

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_Next, PyDict_Size
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE
from cpython.ref cimport PyObject
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memchr

# Constants ------------------------------------------------------------------------------------------------------------

cdef extern from *:
    """
    enum { FR_JSON_COMMA = 1, FR_JSON_OPENS, FR_JSON_CLOSES, FR_JSON_QUOTE, FR_JSON_COLON, FR_JSON_NUL };
    static const unsigned char fr_json_signs[256] = {
        [','] = FR_JSON_COMMA, ['['] = FR_JSON_OPENS, ['{'] = FR_JSON_OPENS, [']'] = FR_JSON_CLOSES,
        ['}'] = FR_JSON_CLOSES, ['"'] = FR_JSON_QUOTE, [':'] = FR_JSON_COLON, [0] = FR_JSON_NUL,
    };
    """
    enum:
        FR_JSON_COMMA
        FR_JSON_OPENS
        FR_JSON_CLOSES
        FR_JSON_QUOTE
        FR_JSON_COLON
        FR_JSON_NUL
    const uint8_t *fr_json_signs

cdef enum:
    JSON_TOO_DEEP = -1
    JSON_VALUES = -2
    JSON_KEYS = -3
    JSON_LONG_KEY = -4
    JSON_RELEASING = 1 << 20     # bytes from which the GIL is released; below, getting it back may take longer
    JSON_NESTED = 1000           # deeper values than any parser here makes

# Struct ---------------------------------------------------------------------------------------------------------------

cdef struct JSONBounds:          # the most of each, 0 or more
    int64_t depth                # lists and objects within each other, the outermost counts 1
    int64_t values               # of all kinds, lists and objects among them
    int64_t keys                 # in all objects together
    int64_t key_length           # bytes between the quotes of one key

# Functions ------------------------------------------------------------------------------------------------------------

cdef const uint8_t *json_string_end(const uint8_t *at, const uint8_t *end) noexcept nogil:
    """The quote that ends the string whose text begins at ``at``, or NULL."""
    cdef const uint8_t *quote = at
    cdef const uint8_t *back
    while True:
        quote = <const uint8_t *>memchr(quote, c'"', end - quote)
        if quote is NULL:
            return NULL
        # An odd number of backslashes escapes the quote. Each is looked at once: the next quote has others before it.
        back = quote
        while back > at and back[-1] == c'\\':
            back -= 1
        if (quote - back) & 1 == 0:
            return quote
        quote += 1


cdef inline bint json_is_empty(const uint8_t *start, const uint8_t *closing) noexcept nogil:
    """Whether only blanks stand between a closing bracket and the one that opens."""
    cdef const uint8_t *at = closing
    while at > start:
        at -= 1
        if at[0] != c' ' and at[0] != c'\n' and at[0] != c'\t' and at[0] != c'\r':
            return fr_json_signs[at[0]] == FR_JSON_OPENS
    return False


cdef int64_t json_count(const uint8_t *start, int64_t size, const JSONBounds *most, int64_t *counted) noexcept nogil:
    """The number of keys, or which bound is exceeded; ``counted`` is the number of values. A NUL follows the document."""
    cdef const uint8_t *at = start
    cdef const uint8_t *end = start + size
    cdef const uint8_t *quote
    cdef int64_t values = 1
    cdef int64_t keys = 0
    cdef int64_t depth = 0
    cdef int64_t length = 0      # of the last string
    cdef int sign
    while True:
        # Without a look at the end in each turn: bytes and texts of Python have a NUL after their last byte.
        while fr_json_signs[at[0]] == 0:
            at += 1
        sign = fr_json_signs[at[0]]
        if sign == FR_JSON_QUOTE:
            quote = json_string_end(at + 1, end)
            if quote is NULL:
                break
            length = quote - at - 1
            at = quote
        elif sign == FR_JSON_COMMA:
            values += 1
            if values > most.values:
                return JSON_VALUES
        elif sign == FR_JSON_COLON:
            keys += 1
            if keys > most.keys:
                return JSON_KEYS
            if length > most.key_length:
                return JSON_LONG_KEY
        elif sign == FR_JSON_OPENS:
            depth += 1
            if depth > most.depth:
                return JSON_TOO_DEEP
            # Its first value is counted here, and taken off again if there is none, so the bound is asked for before.
            if values > most.values:
                return JSON_VALUES
            values += 1
        elif sign == FR_JSON_CLOSES:
            depth -= 1
            values -= json_is_empty(start, at)
        elif at >= end:
            break
        at += 1
    counted[0] = values
    return JSON_VALUES if values > most.values else keys


def json_check(data, depth, values, keys, key_length, /) -> tuple[int, int]:
    """Checks how much is in a JSON document, without parsing it.

    Linear in its size; a document that is not JSON is not an error here. The GIL is released for large documents.

    Args:
        data: The document: bytes in UTF-8, or a str.
        depth: The most lists and objects within each other.
        values: The most values, of all kinds together.
        keys: The most keys in all objects together.
        key_length: The most bytes of one key, as it is written.

    Returns:
        The number of values and of keys.

    Raises:
        JSONBoundsError: A bound is exceeded. The message contains none of the data.
    """
    cdef JSONBounds most
    cdef const uint8_t *start = NULL
    cdef Py_ssize_t size = 0
    cdef int64_t found
    cdef int64_t counted = 0
    most.depth, most.values, most.keys, most.key_length = depth, values, keys, key_length
    if type(data) is str:
        try:
            start = <const uint8_t *>PyUnicode_AsUTF8AndSize(data, &size)
        except UnicodeEncodeError:
            data = (<str>data).encode("utf-8", "surrogatepass")
    if start is NULL:
        if type(data) is not bytes:
            raise TypeError(f"data must be bytes or str, not {type(data).__name__}")
        start, size = <const uint8_t *>PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data)
    if size < JSON_RELEASING:
        found = json_count(start, size, &most, &counted)
    else:
        with nogil:
            found = json_count(start, size, &most, &counted)
    if found >= 0:
        return counted, found
    if found == JSON_TOO_DEEP:
        raise JSONBoundsError(f"JSON nested more than {depth} deep")
    if found == JSON_VALUES:
        raise JSONBoundsError(f"JSON with more than {values} values")
    if found == JSON_KEYS:
        raise JSONBoundsError(f"JSON with more than {keys} keys")
    raise JSONBoundsError(f"JSON with a key of more than {key_length} bytes")


cdef int64_t json_keys_of(PyObject *value, int depth) except -1:
    cdef object holder = <object>value
    cdef PyObject *key
    cdef PyObject *item
    cdef Py_ssize_t place = 0
    cdef int64_t found = 0
    if depth > JSON_NESTED:
        raise ValueError(f"a value nested more than {JSON_NESTED} deep")
    if type(holder) is dict:
        found = PyDict_Size(holder)
        while PyDict_Next(holder, &place, &key, &item):
            if type(<object>item) is dict or type(<object>item) is list:
                found += json_keys_of(item, depth + 1)
    elif type(holder) is list:
        for place in range(PyList_GET_SIZE(holder)):
            item = PyList_GET_ITEM(holder, place)
            if type(<object>item) is dict or type(<object>item) is list:
                found += json_keys_of(item, depth + 1)
    return found


def json_keys(value, /) -> int:
    """The number of keys in a parsed document: fewer than ``json_check`` has counted if an object repeats a key.

    No other thread may change the value meanwhile.
    """
    return json_keys_of(<PyObject *>value, 1)


class JSONBoundsError(ValueError):
    """A JSON document has more in it than is allowed."""
