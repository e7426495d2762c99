"""The learned router's features and score in plain Python, written from their description."""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Sequence

HEAD, TAIL = 1024, 512
WORD = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") | frozenset(range(0x80, 0x100))
DIGITS = frozenset(b"0123456789")
SPACE = frozenset(range(0x21)) - {0x0A} | {0x7F}
OPERATORS = b"=+*/<>^-"


def scored(parts: Sequence[str]) -> bytes:
    """The bytes of a message's text parts that are scored."""
    whole = "\n".join(re.sub("[\ud800-\udfff]", "?", part) for part in parts).encode()
    return whole if len(whole) <= HEAD + TAIL else whole[:HEAD] + b"\n" + whole[-TAIL:]


def mixed(h: int) -> int:
    h ^= h >> 16
    h = h * 0x85EBCA6B & 0xFFFFFFFF
    h ^= h >> 13
    h = h * 0xC2B2AE35 & 0xFFFFFFFF
    return h ^ h >> 16


def class_of(byte: int) -> str:
    if byte in WORD:
        return "word"
    if byte in DIGITS:
        return "number"
    if byte == 0x0A:
        return "break"
    return "space" if byte in SPACE else "mark"


def tokens(text: bytes) -> list[tuple[str, int, int, int]]:
    """Class, begin, end and hash of each token."""
    found, i = [], 0
    while i < len(text):
        kind, begin = class_of(text[i]), i
        i += 1
        if kind == "space":
            continue
        if kind == "break":
            while i < len(text) and class_of(text[i]) in ("break", "space"):
                i += 1
        elif kind == "mark":
            while i < len(text) and text[i] == text[begin]:
                i += 1
        else:
            while i < len(text) and class_of(text[i]) == kind:
                i += 1
        run = text[begin:i]
        if kind == "word":
            h = 2166136261
            for byte in run:
                h = (h ^ (byte | 32 if 0x41 <= byte <= 0x5A else byte)) * 16777619 & 0xFFFFFFFF
        elif kind == "number":
            h = 0x01000193 * min(len(run), 5) + 7
        elif kind == "break":
            h = 0x51ED270B if run.count(b"\n") > 1 else 0x27D4EB2F
        else:
            h = text[begin] * 0x9E3779B1 + (0x7F4A7C15 if len(run) > 1 else 0)
        found.append((kind, begin, i, h & 0xFFFFFFFF))
    return found


def hashes(text: bytes) -> list[int]:
    """Of each token and of each pair, the first of each bucket."""
    found: dict[int, int] = {}
    previous = 0x9E3779B9
    for *_, h in tokens(text):
        u = mixed(h)
        for each in (u, mixed(31 * u + previous & 0xFFFFFFFF)):
            found.setdefault(each >> 17, each)
        previous = u
    return list(found.values())


def counts(text: bytes) -> list[float]:
    """The 32 counts."""
    n = len(text)
    found = tokens(text)
    words = [(text[b:e], b, e) for kind, b, e, _ in found if kind == "word"]
    numbers = [(text[b:e], b) for kind, b, e, _ in found if kind == "number"]
    breaks = [text[b:e].count(b"\n") for kind, b, e, _ in found if kind == "break"]
    runs = [text[b:e] for kind, b, e, _ in found if kind == "mark"]
    options = [
        b
        for word, b, e in words
        if len(word) == 1
        and word.lower() in b"abcdefghij"
        and text[e : e + 1] in (b".", b")")
        and (b == 0 or text[b - 1 : b] == b"\n" or (b > 1 and text[b - 1 : b] == b"("))
    ]
    count = len(words)
    per_word, per_byte = count + 1, n + 1
    operators = sum(run[0] in OPERATORS for run in runs)

    def marks(which: bytes) -> int:
        return sum(run[0] in which for run in runs)

    distance = (options[-1] - options[0]) / (len(options) - 1) if len(options) > 1 else 0
    log = math.log1p
    return [
        log(n),
        log(count),
        sum(len(word) for word, *_ in words) / per_word,
        sum(len(word) >= 9 for word, *_ in words) / per_word,
        sum(len(word) <= 3 for word, *_ in words) / per_word,
        sum(0x41 <= byte <= 0x5A for byte in text) / per_byte,
        sum(byte >= 0x80 for byte in text) / per_byte,
        sum(byte in DIGITS for byte in text) / per_byte,
        log(len(numbers)),
        log(max((len(number) for number, _ in numbers), default=0)),
        log(sum(b > 0 and text[b - 1 : b] == b"." for _, b in numbers)),
        log(sum(breaks)),
        log(sum(lines > 1 for lines in breaks)),
        log(len(options)),
        log(options[0] if options else n),
        log(distance),
        log(marks(b"?")),
        log(marks(b",")),
        marks(b",") / per_word,
        log(marks(b".")),
        log(marks(b"(")),
        log(marks(b"\"'")),
        log(marks(b"\\")),
        log(marks(b"$")),
        log(operators),
        operators / per_word,
        log(marks(b"{[")),
        log(marks(b";")),
        log(marks(b"_")),
        log(marks(b":")),
        sum(0x41 <= word[0] <= 0x5A for word, *_ in words) / per_word,
        log(sum(run[:1] == b"`" and len(run) >= 3 for run in runs)),
    ]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


class Model:
    """A prior, and own weights if there are any, in float64."""

    def __init__(self, prior: bytes, own: bytes | None = None) -> None:
        floats = struct.unpack_from("<104f", prior)
        self.head, self.weight, self.mean, self.sd = floats[:8], floats[8:40], floats[40:72], floats[72:104]
        self.table = struct.unpack_from("<65536b", prior, 416)
        self.own = self.own_head = None
        if own is not None:
            self.own_head = struct.unpack_from("<33f", own)
            self.own = struct.unpack_from("<32768h", own, 132)

    def score(self, text: bytes) -> float:
        k1, k2, c1, c2, hump_mean, hump_sd, score_mean, score_sd = self.head
        buckets = [h >> 17 for h in hashes(text)]
        root = 1 / math.sqrt(len(buckets)) if buckets else 0
        standard = [
            max(-3, min(3, (value - mean) / sd)) / math.sqrt(32)
            for value, mean, sd in zip(counts(text), self.mean, self.sd)
        ]
        linear = sum(self.table[2 * b] for b in buckets) * k1 * root + c1
        linear += sum(w * value for w, value in zip(self.weight, standard))
        b = sum(self.table[2 * b + 1] for b in buckets) * k2 * root + c2
        q = 1 / math.sqrt(1 + math.pi * 1.3 / 8)
        hump = sigmoid((1.8 - b) * q) - sigmoid((0.3 - b) * q)
        score = linear + (hump - hump_mean) / hump_sd
        if self.own is None or self.own_head is None:
            return score
        gain = (
            0.06 * (score - score_mean) / score_sd
            + sum(self.own[b] for b in buckets) * self.own_head[0] * root
        )
        return gain + sum(w * value for w, value in zip(self.own_head[1:], standard))
