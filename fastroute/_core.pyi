from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, final

# --- 6. Scan ---------------------------------------------------------------------------------------------

SCAN_FEATURES: tuple[str, ...]
SCAN_OPERATORS: tuple[str, ...]

@final
class Rules:
    levels: tuple[str, ...]
    groups: tuple[str, ...]
    def __init__(
        self,
        *,
        groups: Iterable[tuple[str, Sequence[str], str, float]],
        scope: str,
        levels: Iterable[str],
        rules: Iterable[tuple[str, float, Iterable[tuple[str, str, float]]]],
        default: tuple[str, float],
        base: float = 0.0,
        low: float = -1e300,
        high: float = 1e300,
        portable: bool = False,
    ) -> None: ...
    @property
    def kernel(self) -> Literal["avx2", "portable"]: ...
    def scan(self, messages: Iterable[Mapping[str, Any]], max_tokens: int = 0, tools: int = 0) -> Scan: ...

@final
class Scan:
    confidence: float
    level_index: int
    rule: int
    messages: int
    turns: int
    images: int
    @property
    def level(self) -> str: ...
    @property
    def score(self) -> float: ...
    @property
    def average(self) -> float: ...
    @property
    def chars(self) -> int: ...
    @property
    def utf8(self) -> int: ...
    @property
    def scope_chars(self) -> int: ...
    @property
    def words(self) -> int: ...
    @property
    def truncated(self) -> bool: ...
    @property
    def counts(self) -> tuple[int, ...]: ...
    @property
    def total(self) -> int: ...
    @property
    def matches(self) -> dict[str, tuple[str, ...]]: ...
    @property
    def structure(self) -> dict[str, int]: ...
    def feature(self, name: str) -> float: ...
