"""Makes plans: which endpoints may serve a request, in which order.

It reads the configuration and the core's state, and sends nothing. Only `Planner.admit` changes something: it
admits the request. The plan as a value is in `plan.py`, its explanation in `explain.py`; `calls/dispatch.py`
carries it out.

A plan has stages, which are tried one after the other: the tier or model that the request asks for, then the
fallback models of those in the first stage, then, for a tier, the cheaper tiers. If an endpoint turns out not
to serve its model, the dearer tiers follow: fastroute chose that model, so the call should not fail for it.
Within a stage the core ranks: the models of a tier by the policy's ``tier_strategy``, the endpoints of a
model by its ``strategy``. Strategies that a program registered are in `strategies.py`. A stage is ranked when
it is reached, by the state at that time.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from attrs import evolve

from fastroute import _core, json_codec
from fastroute.config import AUTO, Config, tiers_of
from fastroute.config.catalog import (
    AUDIO,
    FILE,
    JSON_SCHEMA,
    REASONING,
    STREAMING,
    TOOLS,
    VIDEO,
    VISION,
    Catalog,
    Model,
    sampling_bit,
)
from fastroute.config.messages import near, show
from fastroute.config.model_names import ModelNames
from fastroute.errors import BadRequestError, ModelNotFoundError, NoEndpointError
from fastroute.events import Hooks
from fastroute.providers.media import USUAL_TOKENS, media_of
from fastroute.state.endpoints import LiveEndpoint, State
from fastroute.state.tokens import (
    REASONING_PARAMETERS,
    USUAL_EFFORT,
    USUAL_OUTPUT,
    estimate_input,
    reasoning_tokens,
)
from fastroute.types import SAMPLING_PARAMETERS, Classification, Request, TokenPrices, usd_to_nano

from .classifier import Classifier
from .function_classifier import FunctionClassifier, Opinion, classification
from .learned import LearnedClassifier
from .plan import Judgement, Plan
from .stage import ENDLESS, Estimate, Stage
from .strategies import NUMBERS, FunctionOrder

_CHAIN_NAMES = {
    "fallbacks": "fallback",
    "context_fallbacks": "fallback for long input",
    "content_fallbacks": "fallback for filtered content",
}
_MIDDLE_TIER = "standard"  # serves requests whose class is not certain enough

# Seconds for each token of answer, relative to those of a simple request, by class.
_TIMEOUT_FACTORS = {"simple": 1.0, "moderate": 1.5, "complex": 2.5, "creative": 3.0}


class Planner:
    """Makes plans for one configuration.

    Thread safety: all methods. Stages are kept by name and never removed; of two threads that build the same
    stage at once one result is kept, and both are equal.
    """

    def __init__(
        self,
        config: Config,
        catalog: Catalog,
        state: State,
        classifier: Classifier | LearnedClassifier,
        function_classifier: FunctionClassifier | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        """``function_classifier``: classifies requests for which a model is chosen by class, if given.

        ``hooks``: failures of registered strategies are emitted to them.
        """
        self._config = config
        self._function_classifier = function_classifier or FunctionClassifier(None, Hooks())
        self._catalog = catalog
        self._state = state
        self._classifier = classifier
        self._learned = isinstance(classifier, LearnedClassifier)
        policy = config.policy
        # Where a registered strategy decides, the core filters, and the function orders what is left.
        self._strategy = NUMBERS.get(policy.strategy, _core.ORDERED)
        self._tier_strategy = NUMBERS.get(policy.tier_strategy, _core.VALUE)
        self._functions = FunctionOrder.of(policy.strategy, policy.tier_strategy, hooks or Hooks())
        self._price_ceiling = -1 if policy.price_ceiling is None else usd_to_nano(policy.price_ceiling)
        self._fixed = catalog.resolve(policy.fixed_model) if policy.fixed_model else None
        self._max_price = -1 if policy.max_cost is None else usd_to_nano(policy.max_cost)
        self._models_of = tiers_of(config, catalog)
        self._tiers = tuple(self._models_of)
        self._names = ModelNames(config, catalog, self._tiers)
        self._tier_of = {**dict(zip(self._tiers, self._tiers)), **self._spread(classifier.levels)}
        self._factor_of = _factors(classifier.levels)
        self._stages: dict[tuple[str, ...], Stage | None] = {}
        self._of_tier: dict[str, tuple[Stage, ...]] = {}
        self._above_tier: dict[str, tuple[Stage, ...]] = {}
        self._of_model: dict[str, tuple[Stage, ...]] = {}
        self._explain = self.explain  # bound once, as every plan has it
        self._timeout_base, self._timeout_per_1k = policy.timeout_base, policy.timeout_per_1k
        self.classifier_timeout = policy.classifier_timeout
        self._drop_sampling, self._cascades = policy.drop_sampling, policy.cascade
        self._confidence_threshold = policy.confidence_threshold
        self._floor = policy.quality_floor or 0.0
        self._max_latency = policy.max_latency or 0.0
        self._default_output = policy.default_max_tokens
        self._random = random.Random()

    @property
    def remembered(self) -> int:
        """Entries of its tables. The configuration bounds them, whatever names callers write."""
        return len(self._stages) + len(self._of_tier) + len(self._of_model)

    def plan(self, request: Request, at: LiveEndpoint | None = None) -> Plan:
        """The plan for a request. Sends nothing.

        Args:
            request: the request.
            at: the only endpoint that may serve it; the model and tier of the request are then ignored.

        Raises:
            ModelNotFoundError: if no model, alias or tier has the name; the message has near names.
            BadRequestError: if the tier in ``route`` is unknown.
        """
        scan, failure = self._scan(request)
        params = request.params
        if scan is None:
            chars, utf8, messages, other = _count(request.messages)
        else:
            chars, utf8, messages, other = scan.chars, scan.utf8, scan.messages, scan.media
        tools = params.get("tools") or params.get("functions")
        needs = STREAMING if request.stream else 0
        if tools:
            needs |= TOOLS
        shape = params.get("response_format")
        if shape is not None and isinstance(shape, Mapping) and shape.get("type") == "json_schema":
            needs |= JSON_SCHEMA
        if not _SAMPLES.isdisjoint(params) and not self._drop_sampling and _sets_sampling(params):
            needs |= sampling_bit(params)
        # The function is slow, so it is asked only where the class decides about the model.
        judged = scan
        if at is None and self._function_classifier.wanted and self._chosen_by_class(request):
            judged, failure = self._function_classifier.ask(
                request.messages, params, self._tier_of, self.classifier_timeout
            )
        level = judged.level if judged is not None else ""
        if at is None:
            stages = self._stages_for(request, level, judged.confidence if judged is not None else 0.0)
        else:
            stages = (self._stage_of(f"endpoint {at.name}", None, [(0, at)], among_models=_core.ORDERED),)
        tokens_in = estimate_input(chars, utf8, messages)
        if tools:
            tokens_in += _json_tokens(tools)
        media = media_of(request.messages) if other else ()
        for part in media:
            needs |= _TO_READ[part.kind]
            tokens_in += USUAL_TOKENS[part.kind]
        estimate = self._estimate(tokens_in, request, level, stages[0])
        if media:
            estimate = estimate.with_media(media)
        judgement = Judgement(self._explain, judged, failure)
        judgement.level = level or None
        judgement.score = _score(scan) if self._learned and judged is scan else None
        return Plan(request, estimate, needs, judgement, stages)

    def _estimate(self, tokens_in: int, request: Request, level: str | None, stage: Stage) -> Estimate:
        """The estimate; its time-out is a base and more for each thousand tokens of answer."""
        params, model, outputs = request.params, stage.endpoints[0].model, self._state.outputs
        wanted = request.max_tokens
        if REASONING_PARAMETERS.isdisjoint(params):
            asked, reasoning = USUAL_EFFORT, model.capabilities & REASONING != 0
        else:
            effort = reasoning_tokens(params)
            asked = USUAL_EFFORT if effort is None else effort
            reasoning = model.capabilities & REASONING != 0 if effort is None else effort > 0
        # The 95th percentile counts the reasoning of those answers too.
        tokens = wanted or (outputs.p95.get(model.name) if wanted is None else 0)
        if not tokens:
            tokens = USUAL_OUTPUT + (asked if reasoning else 0)
        expected = outputs.expected_output(wanted, model)
        if wanted is None and self._default_output is not None:
            tokens, expected = min(tokens, self._default_output), min(expected, self._default_output)
        factor = self._factor_of.get(level, 1.0) if level else 1.0
        timeout = self._timeout_base + self._timeout_per_1k * tokens / 1000 * factor
        return Estimate(tokens_in, expected, timeout, reasoning)

    # --------------------------------------------------------------------- another plan for the same request

    def lengthened(self, plan: Plan, request: Request) -> Plan:
        """The plan for the same request with another ``max_tokens``, of the same class and tier."""
        estimate = self._estimate(plan.estimate.input_tokens, request, plan.judgement.level, plan.stages[0])
        if plan.estimate.media:
            estimate = estimate.with_media(plan.estimate.media)
        return Plan(request, estimate, plan.needs, plan.judgement, plan.stages)

    def higher(self, plan: Plan) -> Plan | None:
        """The plan for the same request from the next dearer tier, or None at the top or without a tier."""
        tier = plan.tier
        if tier is None or tier == self._tiers[-1]:
            return None
        return self._from_tier(plan, self._tiers[self._tiers.index(tier) + 1])

    def cheapest(self, plan: Plan) -> Plan | None:
        """The plan for the same request from the cheapest tier; None if there is none cheaper."""
        if self._fixed is not None or not self._tiers or plan.tier == self._tiers[0] or plan.stages[0].pinned:
            return None
        return self._from_tier(plan, self._tiers[0])

    def _from_tier(self, plan: Plan, tier: str) -> Plan:
        return Plan(plan.request, plan.estimate, plan.needs, plan.judgement, self._tier_stages(tier))

    # ----------------------------------------------------------------------------------------- who is asked

    def rank(self, plan: Plan) -> Plan:
        """Ranks all stages of the plan that have not been reached, by the present state."""
        ranked, stages = plan.ranked, plan.stages
        for stage in stages[len(ranked) :] if ranked else stages:
            ranked.append((stage, self._order(plan, stage)))
        # Dearer stages are ranked after those of the plan, so some of them may be in the list already.
        for stage in self._dearer(plan, False)[len(ranked) - len(stages) :]:
            ranked.append((stage, self._order(plan, stage)))
        return plan

    def admit(self, plan: Plan) -> tuple[LiveEndpoint, _core.Ranked] | None:
        """Ranks the first stage and admits the request at the first endpoint that can take it, in one step.

        Returns:
            That endpoint and the object that holds its ticket; None if no endpoint admits it.
        """
        estimate, first = plan.estimate, plan.stages[0]
        if self._functions is None:
            ranked = self._choice(plan, first).admit(
                estimate.input_tokens, estimate.output_tokens, plan.needs, self._random.getrandbits(32)
            )
        else:
            ranked = self._order(plan, first)
            ranked.enter()
        plan.ranked.append((first, ranked))
        return None if ranked.chosen < 0 else (first.endpoints[ranked.chosen], ranked)

    def walk(self, plan: Plan, *, gone: bool = False) -> Iterator[tuple[LiveEndpoint, str | None]]:
        """Every endpoint that may serve the request, with its tier, the first choice first.

        A later stage is ranked when it is reached. ``gone``: during this call an endpoint turned out not to
        serve its model, so for a tier the dearer tiers follow.
        """
        for stage, ranked in self._reached(plan, gone):
            endpoints, tier = stage.endpoints, stage.tier
            # The first one nearly always serves it. The core sorts the others only when `order` is read.
            if ranked.first >= 0:
                yield endpoints[ranked.first], tier
                for place in ranked.order[1:]:
                    yield endpoints[place], tier

    def beside(self, plan: Plan, endpoint: LiveEndpoint) -> Iterator[LiveEndpoint]:
        """The other endpoints of its stage; none if it is in no stage."""
        for stage, ranked in self._reached(plan):
            if endpoint in stage.endpoints:
                for place in ranked.order:
                    if stage.endpoints[place] is not endpoint:
                        yield stage.endpoints[place]
                return

    def detour(self, plan: Plan, chain: str, model: Model) -> Iterator[tuple[LiveEndpoint, str | None]]:
        """As `walk`, over a model's ``context_fallbacks`` or ``content_fallbacks``."""
        stays = self._fixed is not None or plan.stages[0].pinned
        names = () if stays else getattr(model, chain)
        stage = self._stage((chain, *names)) if names else None
        if stage is not None:
            for place in self._order(plan, stage).order:
                yield stage.endpoints[place], None

    def opened(self, plan: Plan) -> Iterator[tuple[LiveEndpoint, str | None]]:
        """Endpoints that only an open breaker or an unreachable host excludes, with their tier."""
        for stage, ranked in self._reached(plan):
            for place, endpoint in enumerate(stage.endpoints):
                verdict = ranked.verdicts[place]
                if verdict == _core.OUT_BREAKER or (verdict == _core.OUT_BLOCKED and endpoint.host_down):
                    yield endpoint, stage.tier

    def room(self, plan: Plan) -> int:
        """Input tokens that would fit, if the request is too long for every endpoint of the plan; else 0."""
        widest = 0
        for stage, ranked in self._reached(plan):
            if ranked.first >= 0:
                return 0
            for place, endpoint in enumerate(stage.endpoints):
                if ranked.verdicts[place] == _core.OUT_WINDOW:
                    widest = max(widest, endpoint.model.context_window)
        return max(widest - plan.estimate.output_tokens, 0)

    def _reached(self, plan: Plan, gone: bool = False) -> Iterator[tuple[Stage, _core.Ranked]]:
        """The plan's stages with their orders; a stage is ranked when the iteration reaches it."""
        ranked = plan.ranked
        for place, stage in enumerate(plan.stages):
            if place == len(ranked):
                ranked.append((stage, self._order(plan, stage)))
            yield ranked[place]
        for place, stage in enumerate(self._dearer(plan, gone), len(plan.stages)):
            if place == len(ranked):
                ranked.append((stage, self._order(plan, stage)))
            yield ranked[place]

    def _dearer(self, plan: Plan, gone: bool) -> tuple[Stage, ...]:
        """The dearer tiers, if an endpoint of the plan is excluded for not serving its model; else none."""
        tier = plan.stages[0].tier
        if tier is None or not self._cascades:
            return ()
        stages = self._dearer_stages(tier, plan.stages)
        if not stages or gone:
            return stages
        for stage, ranked in plan.ranked:
            if _core.OUT_BLOCKED in ranked.verdicts and any(each.model_gone for each in stage.endpoints):
                return stages
        return ()

    def _order(self, plan: Plan, stage: Stage) -> _core.Ranked:
        estimate = plan.estimate
        ranked = self._choice(plan, stage).rank(
            estimate.input_tokens, estimate.output_tokens, plan.needs, self._random.getrandbits(32)
        )
        if self._functions is not None:
            self._functions.apply(stage, ranked, plan.request)
        return ranked

    def after_fork(self) -> None:
        """In a forked child: replaces the locks."""
        if self._functions is not None:
            self._functions.after_fork()

    def _choice(self, plan: Plan, stage: Stage) -> _core.RankingChoice:
        """The criteria of the stage, with those of the request in their place where it has its own."""
        options = plan.request.options
        cost, quality, latency = options.max_cost, options.quality, options.max_latency
        choice = stage.choice
        if stage.base_tokens != ENDLESS:
            choice = stage.choice_for(plan.estimate.input_tokens)
        # Nearly every request: the choice that was checked once is used again.
        if cost is None and quality is None and latency is None:
            return choice
        return choice.ranking.choice(
            self._strategy,
            self._max_price if cost is None else usd_to_nano(cost),
            self._price_ceiling,
            self._floor if quality is None else quality,
            self._max_latency if latency is None else latency,
            stage.among_models,
        )

    def max_price(self, request: Request) -> int:
        """Nano-dollars that the whole call may cost, by estimate; -1 for no limit."""
        wanted = request.options.max_cost
        return self._max_price if wanted is None else usd_to_nano(wanted)

    def explain(
        self, scan: Any, failure: str | None, messages: Sequence[Mapping[str, Any]] | None = None
    ) -> Classification:
        """The classification of a scan or an opinion; if that is None, one that says why there is none.

        Args:
            messages: the request's, for a learned score to find the words that moved it.
        """
        if scan is None:
            name = self._function_classifier.name or self._classifier.name
            return Classification(
                level="unknown",
                score=None,
                confidence=0.0,
                matches={},
                classifier=name,
                reason=f"the classifier failed: {failure}",
            )
        if isinstance(scan, Opinion):
            return classification(scan, self._function_classifier.name)
        return self._classifier.explain(scan, messages)

    # ------------------------------------------------------------------------------------------ what is asked

    def _scan(self, request: Request) -> tuple[Any, str | None]:
        try:
            return self._classifier.scan(request.messages, request.params), None
        except Exception as error:
            # Whether such a message is valid is for the provider to decide, so the call goes on, in the
            # default tier. Only the kind of the error is shown, because its text may quote the message.
            kind = type(error).__name__
            self._function_classifier.failed(self._classifier.name, "unreadable", kind)
            return None, kind

    def _chosen_by_class(self, request: Request) -> bool:
        return request.model.lower() == AUTO and request.options.tier is None and self._fixed is None

    def _stages_for(self, request: Request, level: str, confidence: float) -> tuple[Stage, ...]:
        if self._fixed is not None:
            return (self._fixed_stage(self._fixed),)
        name = request.model
        wanted = request.options.tier
        if wanted is not None:
            if wanted not in self._models_of:
                raise BadRequestError(
                    f'route.tier: unknown tier "{wanted}"; '
                    + (f"use one of {', '.join(self._tiers)}" if self._tiers else "no tiers are configured")
                )
            return self._tier_stages(wanted)
        if name == AUTO:
            tier = self._tier_of.get(level)
            if tier is None or confidence < self._confidence_threshold:
                tier = self._default_tier()
            return self._tier_stages(tier)
        if name in self._models_of:
            return self._tier_stages(name)
        found = self._model_stages(name)
        if found is None and name not in self._config.aliases:
            meant = self._names.meant(name)
            if meant is not None and meant.provider is not None:
                return self._pinned_stages(meant.name, meant.provider)
            if meant is not None and meant.name != name:
                return self._stages_for(evolve(request, model=meant.name), level, confidence)
        if found is None:
            found = self._model_stages(self._model_meant(name))
        if found is None:
            known = sorted(self._state.by_model)
            raise ModelNotFoundError(
                f'no endpoint serves the model "{name}"; there are endpoints for {", ".join(known)}',
                suggestions=known,
                param="model",
            )
        return found

    def _model_meant(self, name: str) -> str:
        try:
            return self._catalog.resolve(name)
        except ModelNotFoundError:
            # Near names of the whole catalogue would suggest models that no endpoint serves here.
            models = sorted(self._state.by_model)
            suggestions = near(name, [*models, *self._config.aliases, *self._tiers, AUTO], 3)
            hint = (
                f"near names are {', '.join(suggestions)}"
                if suggestions
                else f"there are endpoints for {', '.join(models)}"
            )
            raise ModelNotFoundError(
                f"no model, alias or tier is called {show(name)}; {hint}",
                suggestions=suggestions or models,
                param="model",
            ) from None

    def _fixed_stage(self, name: str) -> Stage:
        stage = self._stage(("fixed", name))
        assert stage is not None  # the configuration was checked for an endpoint of this model
        return stage

    def _tier_stages(self, tier: str) -> tuple[Stage, ...]:
        stages = self._of_tier.get(tier)
        if stages is None:
            stage = self._stage(("tier", tier, *self._model_names(tier)))
            if stage is None:
                raise NoEndpointError(f'no model of the tier "{tier}" has an endpoint')
            stages = self._of_tier[tier] = (stage, *self._later_stages(stage))
        return stages

    def _model_stages(self, model: str) -> tuple[Stage, ...] | None:
        stages = self._of_model.get(model)
        if stages is None:
            stage = self._build(f"model {model}", None, (model,), among_models=_core.ORDERED)
            if stage is None:
                return None  # not kept: callers could fill the table with names that they make up
            stages = self._of_model[model] = (stage, *self._later_stages(stage))
        return stages

    def _pinned_stages(self, model: str, provider: str) -> tuple[Stage, ...]:
        """The one stage of a model's endpoints at one provider: no fallback may leave it."""
        stages = self._of_model.get(f"{provider}/{model}")
        if stages is None:
            found = [
                (0, endpoint)
                for endpoint in self._state.by_model.get(model, ())
                if endpoint.config.provider == provider
            ]
            if not found:
                raise NoEndpointError(f"no endpoint at {provider} serves the model {model}")
            stage = self._stage_of(f"model {model} at {provider}", None, found, among_models=_core.ORDERED)
            stages = (evolve(stage, pinned=True),)
            # Kept by the name of the configuration only: callers may write a name in many cases.
            self._of_model[f"{provider}/{model}"] = stages
        return stages

    def _later_stages(self, first: Stage) -> Iterator[Stage]:
        """The fallback models of those in the first stage, breadth first; then cheaper tiers.

        Each endpoint comes once.
        """
        # Without repeats, because several models may name the same fallback.
        seen = {endpoint.model.name for endpoint in first.endpoints}
        level = list({endpoint.model.name: endpoint.model for endpoint in first.endpoints}.values())
        while level:
            names = []
            for model in level:
                for name in model.fallbacks:
                    if name not in seen:
                        seen.add(name)
                        names.append(name)
            stage = self._stage(("fallbacks", *names)) if names else None
            if stage is not None:
                yield stage
            level = [self._catalog.model(name) for name in names]
        if first.tier is None or not self._cascades:
            return
        for tier in reversed(self._tiers[: self._tiers.index(first.tier)]):
            names = [name for name in self._model_names(tier) if name not in seen]
            seen.update(names)
            stage = self._stage(("tier", tier, *names)) if names else None
            if stage is not None:
                yield stage

    def _dearer_stages(self, tier: str, before: Sequence[Stage]) -> tuple[Stage, ...]:
        """The tiers above, the nearest first, without the models of the stages before."""
        stages = self._above_tier.get(tier)
        if stages is None:
            seen = {endpoint.model.name for stage in before for endpoint in stage.endpoints}
            found = []
            for dearer in self._tiers[self._tiers.index(tier) + 1 :]:
                names = [name for name in self._model_names(dearer) if name not in seen]
                seen.update(names)
                stage = self._stage(("tier", dearer, *names)) if names else None
                if stage is not None:
                    found.append(stage)
            stages = self._above_tier[tier] = tuple(found)
        return stages

    def _model_names(self, tier: str) -> list[str]:
        return [self._catalog.resolve(name) for name in self._models_of[tier]]

    def _default_tier(self) -> str:
        if not self._tiers:
            raise NoEndpointError('there are no tiers to choose from for "auto"; name a model')
        return _MIDDLE_TIER if _MIDDLE_TIER in self._models_of else self._tiers[len(self._tiers) // 2]

    def _spread(self, levels: Sequence[str]) -> dict[str, str]:
        """Level → tier: as configured, or the tier of the same name, or spread evenly, cheapest first."""
        tiers = self._tiers
        found = {}
        for place, level in enumerate(levels):
            if level in self._config.policy.classes:
                found[level] = self._config.policy.classes[level]
            elif level in self._models_of:
                found[level] = level
            elif tiers:
                found[level] = tiers[place * len(tiers) // len(levels)]
        return found

    def _stage(self, key: tuple[str, ...]) -> Stage | None:
        if key in self._stages:
            return self._stages[key]
        kind, *names = key
        if kind == "tier":
            tier, *models = names
            stage = self._build(f"tier {tier}", tier, models, among_models=self._tier_strategy)
        elif kind == "fixed":
            stage = self._build(
                f"model {names[0]} (policy.fixed_model)", None, names, among_models=_core.ORDERED
            )
        else:
            stage = self._build(_CHAIN_NAMES[kind], None, names, among_models=_core.ORDERED)
        self._stages[key] = stage
        return stage

    def _build(self, reason: str, tier: str | None, models: Sequence[str], among_models: int) -> Stage | None:
        endpoints = [
            (place, endpoint)
            for place, model in enumerate(models)
            for endpoint in self._state.by_model.get(model, ())
        ]
        return self._stage_of(reason, tier, endpoints, among_models=among_models) if endpoints else None

    def _stage_of(
        self,
        reason: str,
        tier: str | None,
        endpoints: Sequence[tuple[int, LiveEndpoint]],
        *,
        among_models: int,
    ) -> Stage:
        """The stage of these endpoints, each with the place of its model among those of the stage."""
        found = [endpoint for _, endpoint in endpoints]
        # Some providers charge more for every token of a prompt above a length. For such prompts another
        # ranking, with those prices, is made at the first of them and kept; there are few such lengths.
        steps = {
            model.prices.long_context for endpoint in found if (model := endpoint.model).prices is not None
        }
        lengths = sorted(steps - {0})
        made: dict[int, _core.RankingChoice] = {}

        def longer(tokens: int) -> _core.RankingChoice:
            step = lengths[bisect_left(lengths, tokens) - 1]
            if step not in made:
                made[step] = self._choice_of(endpoints, step + 1, among_models)
            return made[step]

        return Stage(
            reason=reason,
            tier=tier,
            endpoints=tuple(found),
            choice=self._choice_of(endpoints, 0, among_models),
            among_models=among_models,
            base_tokens=lengths[0] if lengths else ENDLESS,
            longer=longer,
        )

    def _choice_of(
        self, endpoints: Sequence[tuple[int, LiveEndpoint]], tokens: int, among_models: int
    ) -> _core.RankingChoice:
        """The choice from these endpoints with their prices for a prompt of so many tokens."""
        found = [endpoint for _, endpoint in endpoints]
        prices = [
            _UNKNOWN if (known := endpoint.model.prices) is None else known.at(tokens) for endpoint in found
        ]
        ranking = _core.Ranking(
            [endpoint.core for endpoint in found],
            models=[place for place, _ in endpoints],
            windows=[endpoint.model.context_window for endpoint in found],
            max_outputs=[endpoint.model.max_output_tokens for endpoint in found],
            capabilities=[endpoint.model.reads for endpoint in found],
            input_prices=[price.input for price in prices],
            output_prices=[price.output for price in prices],
            qualities=[endpoint.model.quality for endpoint in found],
            latencies=[endpoint.model.latency for endpoint in found],
            calibrations=[endpoint.calibration for endpoint in found],
        )
        return ranking.choice(
            self._strategy, self._max_price, self._price_ceiling, self._floor, self._max_latency, among_models
        )


_SAMPLES = frozenset(SAMPLING_PARAMETERS)
_UNKNOWN = TokenPrices(-1, -1)  # the core's value for an unknown price
_TO_READ = {"image": VISION, "file": FILE, "audio": AUDIO, "video": VIDEO, "unknown": 0}


def _sets_sampling(params: Mapping[str, Any]) -> bool:
    """Whether a request sets a sampling parameter to anything but its usual value."""
    return any(params.get(name) not in (None, usual) for name, usual in SAMPLING_PARAMETERS.items())


def _json_tokens(value: Any) -> int:
    try:
        return len(json_codec.dumps(value)) // 4 + 1
    except TypeError:
        return 0  # not JSON: the provider's encoder raises an error that names the place


def _score(scan: _core.Scan | None) -> float | None:
    """The learned score; None where there was no text to score, or it could not be read."""
    return None if scan is None or scan.score != scan.score else scan.score


def _count(messages: Sequence[Mapping[str, Any]]) -> tuple[int, int, int, int]:
    """Characters, bytes, messages and lists of parts of messages that the scan could not read."""
    chars = sum(
        len(message["content"])
        for message in messages
        if isinstance(message, Mapping) and isinstance(message.get("content"), str)
    )
    lists = sum(
        isinstance(message, Mapping) and isinstance(message.get("content"), (list, tuple))
        for message in messages
    )
    return chars, chars, len(messages), lists


def _factors(levels: Sequence[str]) -> dict[str, float]:
    """Level → time-out factor: the level's own name, or its place between the cheapest and the hardest."""
    steps = (_TIMEOUT_FACTORS["simple"], _TIMEOUT_FACTORS["moderate"], _TIMEOUT_FACTORS["complex"])
    return {
        level: _TIMEOUT_FACTORS.get(level, steps[place * len(steps) // len(levels)])
        for place, level in enumerate(levels)
    }
