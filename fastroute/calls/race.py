"""Two attempts of one call under way at once, of which the first to have an answer wins.

Owns who wins: one decision under one lock. When a second attempt is made is `hedging.py`'s; how one that lost
is cut and charged is `settlement.py`'s.
"""

from __future__ import annotations

import threading
from typing import Protocol

from fastroute.errors import APIError


class Superseded(APIError):
    """Another attempt of the call has its answer, or nobody waits for one any more. No caller sees it."""


class Contestant(Protocol):
    """An attempt that takes part."""

    def lose(self, output_tokens: int | None) -> None:
        """Ends it at once, whatever it is doing, and charges what it may have cost.

        Args:
            output_tokens: how long the winner's answer is; None if that is not known, or nobody has won.
        """


class Race:
    """Decides between the attempts of one call.

    Thread safety: all methods.
    """

    __slots__ = ("_contestants", "_decided", "_lock", "_winner")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._contestants: list[Contestant] = []
        self._winner: Contestant | None = None
        self._decided = False

    def enter(self, contestant: Contestant) -> None:
        """Takes part from now on, so before anything is sent.

        Raises:
            Superseded: it is over.
        """
        with self._lock:
            if self._decided:
                raise Superseded("another attempt was quicker")
            self._contestants.append(contestant)

    def win(self, contestant: Contestant) -> bool:
        """Whether this one is the winner: the first to ask, and only that one."""
        with self._lock:
            if not self._decided:
                self._decided = True
                self._winner = contestant
            return self._winner is contestant

    def end(self, output_tokens: int | None = None) -> None:
        """Ends all that have not won; without a winner there will be none. Twice is as good as once."""
        with self._lock:
            self._decided = True
            losers = [each for each in self._contestants if each is not self._winner]
        for each in losers:
            each.lose(output_tokens)
