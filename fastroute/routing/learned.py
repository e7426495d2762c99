"""Classifies requests as ``weak`` or ``strong`` by a learned score.

The core reads the text and scores it (`fastroute._core.LearnedRules`); the files of weights are in
`router_file.py`. Which tier serves a level is decided in `planner.py`, as for a rule set.

The threshold is the file's, or the one that its quantiles give for the configured share. The shipped prior
has no threshold, because the scores of different traffic differ: the first `WARM_UP` calls are strong, and
then the threshold follows the scores of the calls. The counts of scores are in the segment, so the processes
that share it share the warm-up too. They are compared with what was expected every `LOOK_EVERY` calls.
"""

from __future__ import annotations

import hashlib
import logging
import math
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attrs import frozen

from fastroute import _core
from fastroute.config.rules import LEARNED, LEARNED_LEVELS, UNFAMILIAR
from fastroute.errors import ConfigError
from fastroute.events import Hooks, TrafficChanged
from fastroute.types import Classification

from .classifier import Classifier
from .router_file import ForecastRow, RouterFile, RouterHeader, prior, prior_digest, read_router

if TYPE_CHECKING:
    from fastroute.config import Config, LearnedConfig

log = logging.getLogger("fastroute")

WARM_UP = 300  # calls that are strong before the prior has a threshold
LOOK_EVERY = 100  # calls of a process between two looks at the counts
ENOUGH = 1000  # calls, before they are compared with what was expected
MOST_DRIFT = 0.10  # of the share of calls above the threshold
MOST_UNFAMILIAR = 0.20  # of the calls

_MOST_MATCHES = 8
_PERCENTS = 101
_SCORE_MEAN = 6  # of the prior's leading float32: mean and standard deviation of its training prompts' scores
_SCORE_SD = 7

# What `_core.LEARNED_GROUNDS` say in words; `score` and `warm-up` have figures beside them.
_WORDS: Mapping[str, str] = {
    "no-text": "the last message of the user has no text to score",
    "media": "images or other parts that are not text cannot be scored",
    "tools": "requests with tools cannot be scored",
    "turns": "there are more turns than in the calibration's requests",
    "long": "less than half of the long text was examined",
    "words": "unfamiliar words: the calibration's prompts lack too many of them",
    "structure": "an unfamiliar structure: the calibration's prompts are unlike it",
}


@frozen(kw_only=True)
class ScoreScale:
    """Where the bins of scores and the threshold are.

    Attributes:
        low, high: the scores where the first bin begins and the last one ends.
        threshold: the score from which on a request is strong; NaN: not known yet.
        share: of the calls that are to be strong.
    """

    low: float
    high: float
    threshold: float
    share: float


class LearnedClassifier:
    """A learned score, used as a rule set is.

    Args:
        config: ``[learned]``.
        segment: has the counts of scores, which all processes of the segment share.
        hooks: `TrafficChanged` is emitted to them.

    Attributes:
        scan: a request's messages and other parameters → counts, score and level. A method of the core,
            without a Python function around it. It also counts the score. Raises TypeError if the messages
            are not a sequence of mappings.
        header: of the router file; None for the shipped prior.
        digest: a hash of the weights and of the scale of the counts.

    Raises:
        ConfigError: the file cannot be used, or its calibration was refused.

    Thread safety: all methods. In a forked child `after_fork` must run first.
    """

    name = LEARNED
    levels = LEARNED_LEVELS

    def __init__(self, config: LearnedConfig, segment: _core.Segment, hooks: Hooks) -> None:
        file = usable_file(config)
        self.header: RouterHeader | None = None if file is None else file.header
        self.config = config
        self._hooks = hooks
        self._model = _core.LearnedModel(prior()) if file is None else file.model()
        scale = scale_of(config, self.header)
        self.share = scale.share
        self._follows = file is None or config.hold
        header = self.header or RouterHeader(
            kind="prior", features=_core.LEARNED_VERSION, prior=prior_digest()
        )
        weights = [prior()] if file is None else [prior(), file.own or b"", file.guard or b""]
        self.digest = hashlib.sha256(
            b"".join([*weights, struct.pack("<2d", scale.low, scale.high)])
        ).hexdigest()
        try:
            # Named by its weights and scale: another file's scores do not belong into the same bins.
            traffic = _core.LearnedTraffic(segment, f"learned\0{self.digest}")
        except _core.SegmentFullError:
            raise ConfigError(
                f"learned: the state of {segment.cells} cells has no room for the counts of scores; "
                "restart the program, or configure fewer endpoints"
            ) from None
        self.rules = _core.LearnedRules(
            self._model,
            traffic,
            low=scale.low,
            high=scale.high,
            threshold=scale.threshold,
            most_words=header.most_words,
            most_structure=header.most_structure,
            most_turns=header.most_turns,
            unfamiliar="strong" if config.unfamiliar == "strong" else UNFAMILIAR,
        )
        self.scan: Callable[[Sequence[Mapping[str, Any]], Mapping[str, Any]], _core.Scan] = self.rules.read
        self._until = 0
        self._told: set[str] = set()
        self._looking = threading.Lock()
        self._follow()

    def __repr__(self) -> str:
        return f"LearnedClassifier({'prior' if self.header is None else 'router'}, share={self.share:g})"

    def after_fork(self) -> None:
        """In a forked child: a thread of the parent may have held the lock."""
        self._looking = threading.Lock()

    @property
    def forecast(self) -> ForecastRow | None:
        """The forecast of the calibration for the share nearest to the configured one, if it has any."""
        rows = () if self.header is None else self.header.forecast
        return min(rows, key=lambda row: abs(row.share - self.share), default=None)

    def equals(self, other: LearnedClassifier) -> bool:
        """Whether both were made from the same file."""
        return (self.digest, self.header) == (other.digest, other.header)

    # ------------------------------------------------------------------------------------------ explanation

    def explain(
        self, scan: _core.Scan, messages: Sequence[Mapping[str, Any]] | None = None
    ) -> Classification:
        """The classification for a scan by this classifier, with the reason in words.

        Args:
            messages: the request's; with them, the words that moved the score most are found.
        """
        return Classification(
            level=scan.level,
            score=None if math.isnan(scan.score) else scan.score,
            confidence=scan.confidence,
            matches={} if messages is None else self._moved(messages),
            classifier=LEARNED,
            reason=self._reason(scan),
        )

    def classify(
        self, messages: Sequence[Mapping[str, Any]], params: Mapping[str, Any]
    ) -> tuple[Classification, _core.Scan]:
        """`scan` and `explain` in one; raises what `scan` does."""
        scan = self.scan(messages, params)
        return self.explain(scan, messages), scan

    def _moved(self, messages: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
        """The words, and pairs of words, that moved the score most, by the level that they moved it to."""
        found: dict[str, dict[str, None]] = {"strong": {}, "weak": {}}
        for words, by in self._model.moved(_core.learned_bytes(messages), 4 * _MOST_MATCHES):
            # A pair may have a line feed or a control character between its tokens.
            shown = " ".join("".join(c if c.isprintable() else " " for c in words).split())
            if shown and by and sum(map(len, found.values())) < _MOST_MATCHES:
                found["strong" if by > 0 else "weak"].setdefault(shown)
        return {level: tuple(words) for level, words in found.items() if words}

    def _reason(self, scan: _core.Scan) -> str:
        ground = _core.LEARNED_GROUNDS[scan.ground]
        if ground == "score":
            side = "at least" if scan.level == "strong" else "below"
            text = (
                f"score {scan.score:.3f} is {side} the threshold {self.rules.threshold:.3f} for "
                f"{self.share:.0%} of the calls to strong"
            )
        elif ground == "warm-up":
            text = (
                f"the first {WARM_UP} calls are strong, until their scores show the threshold for "
                f"{self.share:.0%} of the calls to strong"
            )
        else:
            served = "so it is strong" if scan.level == "strong" else "so the default tier serves it"
            text = f"{_WORDS[ground]}, {served}"
        doubt = unaccepted(self.header)
        return f"{text}; {doubt}" if doubt else text

    # ---------------------------------------------------------------------------------------------- traffic

    def look(self) -> None:
        """Counts a call, and now and then moves the threshold or reports that the traffic has changed.

        Called once for each call, after its answer or before, but not while it is planned.
        """
        self._until -= 1
        if self._until > 0:
            return
        # One thread at a time: two would emit the same event.
        if not self._looking.acquire(blocking=False):
            return
        try:
            events = self._look()
        finally:
            self._looking.release()
        for event in events:
            log.warning("learned: %s", _in_words(event))
            if self._hooks.wanted:
                self._hooks.emit(event)

    def _look(self) -> list[TrafficChanged]:
        self._until = LOOK_EVERY
        self._follow()
        found = []
        for change, apart, limit in self._compared():
            # Half, so that a value about the limit is not reported again and again.
            if apart <= limit / 2:
                self._told.discard(change.kind)
            elif apart > limit and change.kind not in self._told:
                self._told.add(change.kind)
                found.append(change)
        return found

    def _compared(self) -> list[tuple[TrafficChanged, float, float]]:
        """What is watched, how far it is from what was expected, and how far it may be."""
        figures = self.figures()
        found = []
        share, unfamiliar = figures["share"], figures["unfamiliar"]
        if share is not None and figures["scored"] >= ENOUGH and not self._follows:
            change = TrafficChanged("share", share, self.share, figures["scored"])
            found.append((change, abs(share - self.share), MOST_DRIFT))
        if unfamiliar is not None and figures["calls"] >= ENOUGH:
            change = TrafficChanged("unfamiliar", unfamiliar, 0.0, figures["calls"])
            found.append((change, unfamiliar, MOST_UNFAMILIAR))
        return found

    def changes(self) -> list[str]:
        """In words, how the last calls differ from the calibration, if they do."""
        return [_in_words(change) for change, apart, limit in self._compared() if apart > limit]

    def _follow(self) -> None:
        """Sets the threshold by the scores of the calls, where it follows them and there are enough."""
        if not self._follows:
            return
        rules = self.rules
        if sum(rules.traffic.figures()[3]) >= WARM_UP:
            place = rules.traffic.place(self.share)
            if place is not None:
                rules.threshold = _at_share(self.share, rules.low + place * (rules.high - rules.low))
        elif math.isnan(rules.threshold):
            self._until = (
                1  # looked at again after the next call, so that the warm-up is not longer than it must
            )

    def figures(self) -> dict[str, Any]:
        """What the last one to two thousand calls were, of all processes that share the state.

        Returns:
            ``calls``; ``scored``, those with a score that decides; ``share``, of the scored ones those above
            the present threshold (None without any); ``expected``, the share that is configured;
            ``unfamiliar``, the share of the calls that went by something else than the score; ``threshold``
            (None in the warm-up).
        """
        rules = self.rules
        calls, _, unfamiliar, bins = rules.traffic.figures()
        scored = sum(bins)
        threshold = rules.threshold
        share = None
        if scored and not math.isnan(threshold):
            # Of the bin that the threshold is in, the part above it.
            place = min(max((threshold - rules.low) / (rules.high - rules.low), 0.0), 1.0) * len(bins)
            above = sum(count * min(max(at + 1 - place, 0.0), 1.0) for at, count in enumerate(bins))
            share = above / scored
        return {
            "calls": calls,
            "scored": scored,
            "share": share,
            "expected": self.share,
            "unfamiliar": min(unfamiliar / calls, 1.0) if calls else None,
            "threshold": threshold if math.isfinite(threshold) else None,
        }


def _in_words(change: TrafficChanged) -> str:
    if change.kind == "share":
        return (
            f"{change.value:.0%} of the last {change.calls} scored calls are above the threshold, not "
            f"{change.expected:.0%}; calibrate again with newer prompts, or set learned.hold = true"
        )
    return (
        f"{change.value:.0%} of the last {change.calls} calls are unfamiliar, so their score does not "
        "decide; calibrate again with newer prompts"
    )


def usable_file(config: LearnedConfig) -> RouterFile | None:
    """The router file of a configuration; None for the shipped prior.

    Raises:
        ConfigError: it cannot be read, or its calibration was refused, or the configured share needs what it
            lacks.
    """
    if not config.file:
        if config.share is None:
            raise ConfigError("learned.share: is required without learned.file; set it, such as to 0.4")
        return None
    try:
        file = read_router(config.file)
    except ConfigError as error:
        raise ConfigError([f"learned.file: {problem}" for problem in error.problems]) from None
    header = file.header
    if not header.accepted and not header.forced:
        raise ConfigError(
            f"learned.file: the calibration of {config.file} was refused"
            f"{f' ({header.reason})' if header.reason else ''}; label more prompts and calibrate again, or "
            "write it with fastroute calibrate --force"
        )
    if list(header.quantiles) != sorted(header.quantiles):
        raise ConfigError(f"learned.file: {config.file} has quantiles that fall; calibrate again")
    if len(header.quantiles) != _PERCENTS:
        raise ConfigError(
            f"learned.file: {config.file} has {len(header.quantiles)} quantiles of scores instead of "
            f"{_PERCENTS}; calibrate again"
        )
    return file


def scale_of(config: LearnedConfig, header: RouterHeader | None) -> ScoreScale:
    """Where the bins of scores and the threshold are, by the file's quantiles or the prior's training."""
    if header is None:
        assert config.share is not None
        head = struct.unpack_from("<8f", prior())
        reach = 4 * head[_SCORE_SD]
        low, high = head[_SCORE_MEAN] - reach, head[_SCORE_MEAN] + reach
        # No scores are needed to know that all calls are to go to one side.
        return ScoreScale(low=low, high=high, threshold=_at_share(config.share, math.nan), share=config.share)
    low, high = _quantile(header.quantiles, 0.005), _quantile(header.quantiles, 0.995)
    # All scores may be the same, or differ by less than a float can tell beside their size.
    margin = max(0.1 * (high - low), 1e-6 * max(1.0, abs(low), abs(high)))
    share, threshold = header.share, header.threshold
    if config.share is not None and config.share != header.share:
        share = config.share
        threshold = _at_share(share, _quantile(header.quantiles, 1.0 - share))
    return ScoreScale(low=low - margin, high=high + margin, threshold=threshold, share=share)


def _at_share(share: float, threshold: float) -> float:
    """The threshold for a share: without exception, none or all of the calls are above it at 0 or 1."""
    return math.inf if share == 0.0 else -math.inf if share == 1.0 else threshold


def _quantile(quantiles: Sequence[float], part: float) -> float:
    """The score below which this part of the prompts is, 0..1, between two percents by a straight line."""
    place = part * (len(quantiles) - 1)
    below = min(int(place), len(quantiles) - 2)
    return quantiles[below] + (place - below) * (quantiles[below + 1] - quantiles[below])


def unaccepted(header: RouterHeader | None) -> str:
    """What to say of a file that is used although its calibration was not accepted; else nothing."""
    if header is None:
        return "the prior is not calibrated on your prompts"
    if header.accepted:
        return ""
    return f"the file is used although it was not accepted: {header.reason or 'it was refused'}"


def advice(config: Config, classifier: LearnedClassifier) -> list[str]:
    """Warnings for `check`: not calibrated or not accepted, other models than calibrated, changed traffic."""
    header = classifier.header
    found = []
    doubt = unaccepted(header)
    if doubt:
        found.append(f"learned.file: {doubt}; label prompts and run fastroute calibrate")
    if header is not None and config.policy.classifier == LEARNED:
        for level, model in ((LEARNED_LEVELS[0], header.weak), (LEARNED_LEVELS[1], header.strong)):
            tier = config.policy.classes.get(level, level)
            models = config.tiers.get(tier)
            if model and models is not None and model not in models:
                found.append(
                    f"learned.file: was calibrated with {model} as {level}, which is not in the tier {tier} "
                    f"({', '.join(models)}); calibrate with the models of the tiers"
                )
    for change in classifier.changes():
        found.append(f"learned.file: {change}")
    return found


def classifier_of(config: Config, segment: _core.Segment, hooks: Hooks) -> Classifier | LearnedClassifier:
    """The classifier of a configuration.

    Raises:
        ConfigError: there is none of that name, or its file cannot be used.
    """
    if config.policy.classifier == LEARNED:
        return LearnedClassifier(config.learned, segment, hooks)
    return Classifier.named(config.policy.classifier, config.classifiers)


__all__ = ["LearnedClassifier", "advice", "classifier_of"]
