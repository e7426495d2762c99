"""Fits the router to labels, chooses its threshold, forecasts what it will do, and accepts or refuses it."""

from __future__ import annotations

import datetime
import math
import os
from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import attrs
from attrs import frozen

from fastroute import _core
from fastroute.config.catalog import Catalog
from fastroute.errors import ModelNotFoundError
from fastroute.routing.router_file import ForecastRow, RouterFile, RouterHeader, prior, prior_digest
from fastroute.types import TokenPrices, Usage

from .familiar import guard_of
from .forecast import ACCEPTED, SHARES, Forecast, Forecaster, ranks
from .labels import Label, LabelError, LabelledPrompt, LabelSet

LEAST_LABELS = 100
LEAST_DIFFERENT = 30
GOOD_LABELS = 300
MANY_LABELS = 1000
ALIKE = 0.03
"""A difference of the means below which the weak model alone is good advice."""
_DEFAULT_SHARE = 0.5
_MOST_MODELS = 8  # of which all pairs are forecast
_UNKNOWN = "there were no labels, so the quality is unknown"


@frozen(kw_only=True)
class CalibrationResult:
    """A calibrated router, not yet written.

    Attributes:
        file: what `save` writes.
        forecast: None without labels.
        accepted: whether the forecast shows that it is better than a coin.
        reason: why, or why not, and then what to do; some sentences.
        left_out: labels that were not used, and why; empty if all were.
    """

    file: RouterFile
    forecast: Forecast | None
    accepted: bool
    reason: str
    left_out: tuple[str, ...] = ()

    @property
    def weak(self) -> str:
        """The weak model."""
        return self.file.header.weak

    @property
    def strong(self) -> str:
        """The strong model."""
        return self.file.header.strong

    def save(self, path: str | os.PathLike[str], *, force: bool = False) -> None:
        """Writes the file, readable by its owner only; an older one is replaced at once.

        Args:
            force: whether to write a router that was refused; the file says so wherever it is used.

        Raises:
            LabelError: it was refused, and ``force`` is False.
            OSError: it cannot be written.
        """
        file = self.file
        if not self.accepted and not file.header.forced:
            if not force:
                raise LabelError(f"{os.fspath(path)}: was not written, because {self.reason}")
            file = attrs.evolve(file, header=attrs.evolve(file.header, forced=True))
        file.save(path)


@frozen(kw_only=True)
class PairForecast:
    """The forecast for two models of the labels."""

    weak: str
    strong: str
    labels: int
    forecast: Forecast
    accepted: bool
    reason: str


# ------------------------------------------------------------------------------------------------ calibrate


def calibrate(
    labels: Iterable[Label] | LabelSet,
    *,
    weak: str,
    strong: str,
    share: float | None = None,
    keep: float | None = None,
    cost: float | None = None,
    traffic: Iterable[Label] | LabelSet | None = None,
    prices: Mapping[str, TokenPrices | None] | None = None,
) -> CalibrationResult:
    """Fits the router to labels and forecasts what it will do.

    Args:
        labels: scores of both models on the same prompts. Labels that lack one are left out.
        weak, strong: the models.
        share: of the calls to strong, 0..1; default: .5.
        keep: instead: the smallest share whose quality is, by the lower end of its interval, at least this
            part (0..1) of that of all calls to strong.
        cost: instead: the largest share that costs about this much, in dollars a thousand calls.
        traffic: prompts by which the threshold is set; default: those of the labels.
        prices: of both models; default: those of the built-in catalogue.

    Raises:
        LabelError: no label has scores of both models, or ``cost`` is given and costs are unknown.
        ValueError: more than one of ``share``, ``keep`` and ``cost`` is given, or one is out of range.
    """
    _check(share, keep, cost)
    if weak == strong:
        raise ValueError("weak, strong: must be two models")
    found = labels if isinstance(labels, LabelSet) else LabelSet(labels)
    rows = [each for each in found.prompts if weak in each.models and strong in each.models]
    if not rows:
        raise LabelError(_no_pair(found, weak, strong))
    fitted = _core.LearnedRows(_core.LearnedModel(prior()))
    for row in rows:
        fitted.add(row.text)
    forecaster = _forecaster(fitted, rows, weak, strong, prices)
    chosen, note = _chosen(forecaster, share, keep, cost)
    forecast = _forecast(forecaster, chosen)
    reason = note or _refusal(forecaster, forecast, weak, strong)
    own = None
    if len(rows) >= LEAST_LABELS:
        own, _ = fitted.fit(_doubles(forecaster.gains), b"\x01" * len(rows))
    calls = None if traffic is None else _calls(traffic)
    header = _header(
        weak=weak,
        strong=strong,
        labels=len(rows),
        share=chosen,
        accepted=not reason,
        reason=reason or _praise(forecast),
        forecast=forecast.rows,
    )
    return CalibrationResult(
        file=_file(header, own, rows, calls),
        forecast=forecast,
        accepted=not reason,
        reason=reason or _praise(forecast),
        left_out=_left_out(found, len(rows)),
    )


def by_share(
    traffic: Iterable[Label] | LabelSet, *, share: float, weak: str = "", strong: str = ""
) -> CalibrationResult:
    """A router of the shipped score by the share of calls alone; what it does to quality is unknown.

    Args:
        traffic: prompts without scores.
        share: of the calls to strong.

    Raises:
        LabelError: there are no prompts.
        ValueError: ``share`` is out of range.
    """
    _check(share, None, None)
    calls = _calls(traffic)
    header = _header(
        weak=weak, strong=strong, share=share, accepted=False, reason=_UNKNOWN, forced=True, forecast=()
    )
    return CalibrationResult(
        file=_file(header, None, [], calls), forecast=None, accepted=False, reason=_UNKNOWN
    )


def forecast_pairs(
    labels: Iterable[Label] | LabelSet,
    *,
    share: float = _DEFAULT_SHARE,
    prices: Mapping[str, TokenPrices | None] | None = None,
) -> list[PairForecast]:
    """The forecast of every pair of the labels' models, by lift, the best first; at most eight models.

    The model with the lower mean on the prompts of a pair is the weak one.

    Raises:
        LabelError: no prompt has scores of two models.
    """
    _check(share, None, None)
    found = labels if isinstance(labels, LabelSet) else LabelSet(labels)
    prompts = found.prompts
    pairs = []
    for one, other in combinations(list(found.models)[:_MOST_MODELS], 2):
        rows = [each for each in prompts if one in each.models and other in each.models]
        if len(rows) < 2:
            continue
        gain = math.fsum(each.score(other) - each.score(one) for each in rows)
        weak, strong = (one, other) if gain >= 0 else (other, one)
        fitted = _core.LearnedRows(_core.LearnedModel(prior()))
        for row in rows:
            fitted.add(row.text)
        forecaster = _forecaster(fitted, rows, weak, strong, prices)
        forecast = _forecast(forecaster, share)
        reason = _refusal(forecaster, forecast, weak, strong)
        pairs.append(
            PairForecast(
                weak=weak,
                strong=strong,
                labels=len(rows),
                forecast=forecast,
                accepted=not reason,
                reason=reason or _praise(forecast),
            )
        )
    if not pairs:
        raise LabelError("labels: no two models have scores of the same prompts; score each prompt for both")
    return sorted(pairs, key=lambda pair: -pair.forecast.lift)


def _check(share: float | None, keep: float | None, cost: float | None) -> None:
    given = {"share": share, "keep": keep, "cost": cost}
    if sum(value is not None for value in given.values()) > 1:
        raise ValueError("share, keep, cost: at most one of them may be given")
    for name, value in given.items():
        if value is not None and not (value > 0 if name == "cost" else 0 < value < 1):
            raise ValueError(
                f"{name}: must be above 0{'' if name == 'cost' else ' and below 1'}, not {value}"
            )


def _doubles(values: Iterable[float]) -> array[float]:
    return array("d", values)


def _forecaster(
    fitted: _core.LearnedRows,
    rows: Sequence[LabelledPrompt],
    weak: str,
    strong: str,
    prices: Mapping[str, TokenPrices | None] | None,
) -> Forecaster:
    low, high = [row.score(weak) for row in rows], [row.score(strong) for row in rows]
    target = _doubles(s - w for w, s in zip(low, high))
    if len(rows) < LEAST_LABELS:
        scores = fitted.scores
        places = ranks(len(rows), lambda keep: scores)
    else:
        places = ranks(len(rows), lambda keep: memoryview(fitted.fit(target, keep)[1]).cast("d"))
    of = {model: _price(model, prices) for model in (weak, strong)}
    costs = [_cost(row, of[weak], of[strong], weak, strong) for row in rows]
    return Forecaster(low, high, places, costs)


def _price(model: str, prices: Mapping[str, TokenPrices | None] | None) -> TokenPrices | None:
    if prices is not None:
        return prices.get(model)
    try:
        return Catalog.builtin().model(model).prices
    except ModelNotFoundError:
        return None


def _cost(
    row: LabelledPrompt, low: TokenPrices | None, high: TokenPrices | None, weak: str, strong: str
) -> tuple[float, float] | None:
    used, more = row.tokens(weak), row.tokens(strong)
    if low is None or high is None or used is None or more is None:
        return None
    return low.cost(Usage(*used)) / 1e9, high.cost(Usage(*more)) / 1e9


def _forecast(forecaster: Forecaster, chosen: float) -> Forecast:
    return Forecast(rows=tuple(map(forecaster.row, sorted({*SHARES, chosen}))), share=chosen)


def _chosen(
    forecaster: Forecaster, share: float | None, keep: float | None, cost: float | None
) -> tuple[float, str]:
    """The share, and why there is none that does what was asked for; then the share that comes nearest."""
    hundredths = [part / 100 for part in range(1, 100)]
    if keep is not None:
        for part in hundredths:
            if forecaster.kept(part, keep) >= 0:
                return part, ""
        return 0.99, (
            f"no share of calls below all of them is sure to keep {keep:.0%} of the strong model's "
            "quality: even at "
            "99 % the lower end of the interval is below it. Label more prompts, which narrows the "
            "interval, or ask "
            "for less with --keep"
        )
    if cost is not None:
        if not forecaster.costs:
            raise LabelError(
                "cost: is unknown, because fewer than 30 labels have tokens of both models or a model "
                "has no price; "
                'add "tokens": {model: [input, output]} to the labels and prices to the configuration, '
                "or choose "
                "by share"
            )
        fitting = [part for part in hundredths if forecaster.row(part).cost[0] <= cost]
        if fitting:
            return fitting[-1], ""
        return 0.01, (
            f"a thousand calls to the weak model alone cost about as much as the ${cost:g} that were "
            "asked for. "
            "Ask for more with --cost, or use a cheaper weak model"
        )
    return (_DEFAULT_SHARE if share is None else share), ""


# ------------------------------------------------------------------------------------------- accept or refuse


def _praise(forecast: Forecast) -> str:
    return (
        f"at a share of {forecast.share:.0%} its quality is {forecast.lift:+.3f} against a coin of the "
        "same share, by "
        f"labels that it was not fitted to (90 % interval {forecast.lift_low:+.3f} to "
        f"{forecast.lift_high:+.3f})"
    )


def _refusal(forecaster: Forecaster, forecast: Forecast, weak: str, strong: str) -> str:
    """Why the router must not be used, and what to do; empty if it may be."""
    labels = len(forecaster.gains)
    different = sum(abs(gain) > 1e-9 for gain in forecaster.gains)
    means = f"their mean scores are {forecast.weak[0]:.2f} and {forecast.strong[0]:.2f}"
    if labels < LEAST_LABELS:
        return (
            f"only {labels} different prompts have scores of both models, and a forecast needs "
            f"{LEAST_LABELS}. "
            f"Label {GOOD_LABELS - labels} more: {GOOD_LABELS} show a difference on most traffic"
        )
    if different == 0:
        return (
            f"both models have the same score on all {labels} prompts ({means}): they are too alike on "
            "these, "
            f"or the scores are too coarse. Use {weak} for all calls, or label harder prompts"
        )
    if different < LEAST_DIFFERENT:
        needed = math.ceil(labels * LEAST_DIFFERENT / different) - labels
        alike = forecast.strong[0] - forecast.weak[0] < ALIKE
        return (
            f"the models' scores differ on {different} of {labels} prompts, and a forecast needs "
            f"{LEAST_DIFFERENT} "
            f"such prompts ({means}). "
            + (f"These models are too alike here: use {weak} for all calls, or label" if alike else "Label")
            + f" about {_round(needed)} more prompts, harder ones if there are any"
        )
    if forecast.quality <= forecast.weak[0] and forecast.strong[0] <= forecast.weak[0]:
        return (
            f"{strong} is no better than {weak} on these {labels} prompts ({means}). Use {weak} for all "
            "calls, or "
            "exchange the two models if their names were given the wrong way round"
        )
    if forecast.lift - ACCEPTED * forecast.lift_error > 0:
        return ""
    found = (
        f"at a share of {forecast.share:.0%} its quality is {forecast.lift:+.3f} against a coin of the "
        "same share, and the "
        f"90 % interval, {forecast.lift_low:+.3f} to {forecast.lift_high:+.3f}, includes none at all "
        f"({labels} labels, {different} of them with different scores)"
    )
    size = forecast.lift / forecast.lift_error if forecast.lift_error > 0 else 0.0
    # 2.5 standard errors: then four of five calibrations are accepted.
    more = labels * ((2.5 / size) ** 2 - 1) if size > 0.5 else math.inf
    if more <= 5 * MANY_LABELS:
        advice = f"Label about {_round(more)} more prompts: if the difference is real, that will show it"
    elif labels < MANY_LABELS:
        advice = (
            f"Label {_round(MANY_LABELS - labels)} more prompts: many good routers are refused with few "
            "labels, but few "
            f"with {MANY_LABELS:,}"
        )
    else:
        advice = (
            "More labels will hardly help: the words of these prompts do not show which of them need "
            f"{strong}. Keep "
            "the rule set that is configured, or choose another pair of models: fastroute calibrate --pairs"
        )
    return f"{found}. {advice}"


def _round(labels: float) -> int:
    """Up to two digits, since no estimate of that kind is better."""
    step: int = 10 ** max(1, len(str(int(labels))) - 2)
    return math.ceil(labels / step) * step


def _no_pair(found: LabelSet, weak: str, strong: str) -> str:
    counts = found.models
    known = ", ".join(f"{model} ({count})" for model, count in list(counts.items())[:_MOST_MODELS]) or "none"
    missing = [model for model in (weak, strong) if model not in counts]
    what = f"{missing[0]} has no scores" if missing else "no prompt has scores of both models"
    return f"labels: {what}; the models with scores are {known}: name two that are scored on the same prompts"


def _left_out(found: LabelSet, used: int) -> tuple[str, ...]:
    reasons = []
    if found.without_text:
        reasons.append(f"{found.without_text} labels have no user message with text")
    if len(found) > used:
        reasons.append(f"{len(found) - used} prompts lack a score of one of the models")
    if found.sampled:
        reasons.append(f"there are more different prompts than {len(found):,}, so a sample of them was used")
    return tuple(reasons)


# ------------------------------------------------------------------------------------------------- the file


def _calls(traffic: Iterable[Label] | LabelSet) -> list[LabelledPrompt]:
    found = traffic if isinstance(traffic, LabelSet) else LabelSet(traffic)
    if not len(found):
        raise LabelError(
            "traffic: has no prompt with a user message; give some hundred prompts of your traffic"
        )
    return found.prompts


def _header(*, share: float, forecast: Sequence[ForecastRow], **rest: object) -> RouterHeader:
    from fastroute import __version__

    return RouterHeader(
        kind="router",
        features=_core.LEARNED_VERSION,
        prior=prior_digest(),
        share=share,
        forecast=tuple(forecast),
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        fastroute=__version__,
        **rest,  # type: ignore[arg-type]
    )


def _file(
    header: RouterHeader,
    own: bytes | None,
    rows: Sequence[LabelledPrompt],
    calls: Sequence[LabelledPrompt] | None,
) -> RouterFile:
    """The file with its threshold, the quantiles of the scores, and the guard."""
    model = _core.LearnedModel(prior(), own)
    # Equal labels count once, but a call that is made often counts as often.
    weighted = [(model.score(each.text), 1 if calls is None else each.times) for each in calls or rows]
    prompts = {each.text: each.turns for each in (*rows, *(calls or ()))}
    guard = guard_of(list(prompts), list(prompts.values()))
    header = attrs.evolve(
        header,
        prompts=len(prompts),
        threshold=threshold_of(weighted, header.share),
        quantiles=quantiles_of(weighted),
        own=own is not None,
        guard=guard is not None,
    )
    if guard is not None:
        header = attrs.evolve(
            header,
            most_words=guard.most_words,
            most_structure=guard.most_structure,
            most_turns=guard.most_turns,
        )
    return RouterFile(header=header, own=own, guard=None if guard is None else guard.guard)


def threshold_of(scores: Iterable[tuple[float, int]], share: float) -> float:
    """The score from which on a share of the calls goes to strong, as near as equal scores allow.

    Args:
        scores: each with how often it occurs.
    """
    ordered = sorted(scores, reverse=True)
    wanted = share * sum(times for _, times in ordered)
    taken, best, off = 0, ordered[0][0] + 1.0, wanted
    for place, (score, times) in enumerate(ordered):
        taken += times
        below = ordered[place + 1][0] if place + 1 < len(ordered) else score - 1.0
        if below < score and abs(taken - wanted) < off:
            best, off = (score + below) / 2, abs(taken - wanted)
    return best


def quantiles_of(scores: Iterable[tuple[float, int]]) -> tuple[float, ...]:
    """The scores at 0, 1, …, 100 % of the calls."""
    ordered = sorted(scores)
    total = sum(times for _, times in ordered)
    found: list[float] = []
    taken = 0
    for score, times in ordered:
        taken += times
        while len(found) < 101 and taken * 100 >= len(found) * total and taken > 0:
            found.append(score)
    return tuple(found)


__all__ = [
    "CalibrationResult",
    "PairForecast",
    "by_share",
    "calibrate",
    "forecast_pairs",
    "quantiles_of",
    "threshold_of",
]
