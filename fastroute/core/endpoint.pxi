# ======================================================================================================================
# Endpoint: the door to admission, limits and figures
# ======================================================================================================================
#
# The steps themselves are in admission.pxi. Here are the settings, and a Python method for each step and figure.

# Class ----------------------------------------------------------------------------------------------------------------


@cython.final
cdef class Endpoint(Limited):
    """One model at one provider: its limits, breaker, latency and permits; state shared by name.

    Limits and rules belong to this object and can be changed in place (``configure``); what was counted stays.

    Args:
        segment: Where the state lives.
        name: Two endpoints of one name in one segment are the same endpoint.
        rpm: Requests a minute; negative: no limit, 0: none.
        request_burst: Most requests at once; 0: a sixth of ``rpm``, at least 1.
        tpm: Tokens a minute; negative: no limit, 0: none.
        token_burst: Most tokens at once; 0: a sixth of ``tpm``, at least 1. A larger request is never admitted.
        max_in_flight: Most calls under way, over all processes, 0 to 4096.
        weight: Its share of load beside others, above 0.
        failures, rate, min_calls, window_s, open_s, max_open_s, reset_s, probe_lease_s, probes_to_close, ramp_s: See
            ``Breaker``.
        tau_s: See ``Latency``.
        adaptive: Whether to limit calls at once to what the endpoint copes with, too (AIMD): 20 at first, at least 1. A
            call that was throttled or failed takes a tenth, at most once a second; one that was OK adds 1 / limit while
            at least half of the limit is in use. It shrinks too where more calls at once take longer.

    Thread safety: all methods are lock-free and may be called from any thread and forked process. ``configure`` should
    be called by one thread at a time.
    """

    cdef Settings settings
    cdef Waiting *waiting_cell
    cdef int waiting_slot          # the worker to which that cell belongs; 0: not looked up yet

    def __init__(
        self, Segment segment not None, str name not None, *, rpm=-1, request_burst=0, tpm=-1,
        token_burst=0, max_in_flight=200, double weight=1.0, failures=5, double rate=0.5,
        min_calls=20, double window_s=30.0, double open_s=5.0, double max_open_s=300.0, double reset_s=60.0,
        double probe_lease_s=35.0, probes_to_close=2, double ramp_s=10.0, double tau_s=10.0,
        bint adaptive=False,
    ) -> None:
        if self.segment is not None:
            raise RuntimeError("an Endpoint cannot be initialised twice; use configure()")
        cdef EndpointParts *e = &self.parts
        cdef uint64_t name_hash = segment.name_hash(name)
        cdef Settings settings
        settings.rpm = integer(rpm)
        settings.request_burst = integer(request_burst)
        settings.tpm = integer(tpm)
        settings.token_burst = integer(token_burst)
        settings.max_in_flight = integer(max_in_flight)
        settings.weight = weight
        settings.failures = integer(failures)
        settings.rate = rate
        settings.min_calls = integer(min_calls)
        settings.window_s = window_s
        settings.open_s = open_s
        settings.max_open_s = max_open_s
        settings.reset_s = reset_s
        settings.probe_lease_s = probe_lease_s
        settings.probes_to_close = integer(probes_to_close)
        settings.ramp_s = ramp_s
        settings.tau_s = tau_s
        settings.adaptive = adaptive
        e.rules.salt = name_hash
        # First, because it raises if a setting is out of range: a refused endpoint is not put on the list.
        self.apply(segment, name_hash, &settings)
        e.hot = <Hot *>segment.claim(name_hash, KIND_ENDPOINT)
        if not enlist(segment.table, segment.mask, &e.hot.key):
            raise SegmentFullError("the segment has no room for another endpoint")
        e.cold = <Cold *>segment.claim(name_hash, KIND_LEDGER)
        e.breaker.control = &e.hot.breaker
        e.breaker.block = &e.hot.block
        e.breaker.window[0] = segment.claim(name_hash, KIND_WINDOW, 0) + 1
        e.bearable = e.breaker.window[0] + 5      # the window uses five of the cell's seven words
        e.breaker.window[1] = segment.claim(name_hash, KIND_WINDOW, 1) + 1
        e.told[0] = e.breaker.window[0] + 6
        e.told[1] = e.breaker.window[1] + 5
        e.reference = e.breaker.window[1] + 6
        follow_told(e)
        claim_latency(&e.latency, segment, name_hash, e.hot, e.cold, tau_s)
        set_retry_rules(&e.retry, 0.2, 1.0, 10.0)
        # Last: `Ranking` and a second `__init__` take an endpoint with a segment for a complete one.
        self.name = name
        self.segment = segment

    cdef int apply(self, Segment segment, uint64_t name_hash, const Settings *s) except -1:
        """Checks all settings, then sets them. If one is refused, nothing is changed."""
        global configurations
        cdef EndpointParts *e = &self.parts
        cdef Limit requests, tokens
        cdef uint64_t *cell
        cdef BreakerRules rules = e.rules
        cdef double tau_s = seconds("tau_s", s.tau_s, 0.001, 86400.0)
        set_limit(&requests, "rpm", s.rpm, s.request_burst)
        set_limit(&tokens, "tpm", s.tpm, s.token_burst)
        whole("max_in_flight", s.max_in_flight, 0, MAX_IN_FLIGHT)
        if not 1e-9 <= s.weight <= 1e9:
            raise ValueError(f"weight must be 1e-9 to 1e9, not {s.weight!r}")
        set_rules(
            &rules, s.failures, s.rate, s.min_calls, s.window_s, s.open_s, s.max_open_s, s.reset_s, s.probe_lease_s,
            s.probes_to_close, s.ramp_s,
        )
        while e.permit_cells * CELL_PERMITS < s.max_in_flight:
            e.permits[e.permit_cells] = segment.claim(name_hash, KIND_PERMITS, e.permit_cells)
            e.permit_cells += 1
        # Another process, or this one before, may have had a higher limit. Calls that hold permits above the new one
        # are still under way and have to be counted and given back.
        while e.permit_cells < PERMIT_CELLS:
            cell = find_cell(segment.table, segment.mask, sub_key(name_hash, KIND_PERMITS, e.permit_cells), False)
            if cell is NULL:
                break
            e.permits[e.permit_cells] = cell
            e.permit_cells += 1
        # One field after the other: a call admitted in another thread at this moment may see some old and some new
        # limits, which is no worse than having come a moment earlier or later.
        e.requests = requests
        e.tokens = tokens
        e.follows[0] = s.rpm < 0
        e.follows[1] = s.tpm < 0
        e.told_seen[0] = e.told_seen[1] = 0
        e.rules = rules
        e.adaptive = s.adaptive
        e.inverse_weight = 1.0 / s.weight
        e.max_in_flight = <int32_t>s.max_in_flight
        # Assumes that permits above the limit are held; the first call that finds none lowers it (permit_take_lowered).
        e.reach = max(e.permit_cells * CELL_PERMITS, e.max_in_flight)
        e.latency.inverse_tau = 1.0 / tau_s
        self.settings = s[0]
        configurations += 1
        return 0

    def __repr__(self) -> str:
        return f"<Endpoint {self.name!r}>"

    def configure(
        self, *, rpm=None, request_burst=None, tpm=None, token_burst=None, max_in_flight=None, weight=None, failures=None,
        rate=None, min_calls=None, window_s=None, open_s=None, max_open_s=None, reset_s=None, probe_lease_s=None,
        probes_to_close=None, ramp_s=None, tau_s=None, adaptive=None,
    ) -> None:
        """Changes the settings given: all of them, or none if one is refused. What was counted and is held stays.

        Raises:
            ValueError: A setting is out of range.
            SegmentFullError: No room for the permits of a larger ``max_in_flight``.
        """
        cdef Settings s = self.settings
        if rpm is not None: s.rpm = integer(rpm)
        if request_burst is not None: s.request_burst = integer(request_burst)
        if tpm is not None: s.tpm = integer(tpm)
        if token_burst is not None: s.token_burst = integer(token_burst)
        if max_in_flight is not None: s.max_in_flight = integer(max_in_flight)
        if weight is not None: s.weight = weight
        if failures is not None: s.failures = integer(failures)
        if rate is not None: s.rate = rate
        if min_calls is not None: s.min_calls = integer(min_calls)
        if window_s is not None: s.window_s = window_s
        if open_s is not None: s.open_s = open_s
        if max_open_s is not None: s.max_open_s = max_open_s
        if reset_s is not None: s.reset_s = reset_s
        if probe_lease_s is not None: s.probe_lease_s = probe_lease_s
        if probes_to_close is not None: s.probes_to_close = integer(probes_to_close)
        if ramp_s is not None: s.ramp_s = ramp_s
        if tau_s is not None: s.tau_s = tau_s
        if adaptive is not None: s.adaptive = adaptive
        self.apply(self.segment, self.segment.name_hash(self.name), &s)

    # The way of a call ------------------------------------------------------------------------------------------------

    def admit(self, tokens=0, now=0, bint reserved=False) -> int:
        """Takes a permit, asks the breaker, pays one request and ``tokens``: all of it or nothing.

        Args:
            tokens: Estimated tokens of the call.
            now: ns; 0 reads the clock.
            reserved: Both buckets were already paid by ``reserve``.

        Returns:
            0 or more: a ticket for ``finish`` or ``undo``, in this process only. Negative: minus (wait in ns << 3 |
            reason), the wait 0 when it is not known (BUSY) or none would help (TOO_LARGE).
        """
        cdef int64_t paid = amount("tokens", tokens, 0)
        cdef int64_t time = moment(now) or fr_clock()
        cdef int64_t answer = self.let_in(paid, reserved, time)
        try:
            return answer
        except MemoryError:  # there is no memory for the number, by which alone the caller could give all back
            if answer >= 0:
                self.take_back(answer, paid, time)
            raise

    cdef inline int64_t let_in(self, int64_t tokens, bint reserved, int64_t now) except? -1:
        cdef int slot = self.segment.worker()
        cdef int64_t answer
        if self.source is not None:
            return self.admit_shared(slot, tokens, reserved, now)
        answer = endpoint_admit(&self.parts, slot, tokens, reserved, now)
        if reserved and answer >= 0:
            stop_waiting(self.waiting(slot), tokens)
        return answer

    cdef int64_t admit_shared(self, int slot, int64_t tokens, bint reserved, int64_t now) except? -1:
        """``let_in`` with limits and probes that many machines share: asks ``source`` for what the pool lacks."""
        # A bounded number of turns, because each can lose what `source` brought to another thread or process. A caller
        # refused after 16 waits or goes elsewhere, as after any refusal.
        cdef int64_t answer = 0
        cdef int64_t wait
        cdef int reason
        cdef int attempt
        cdef bint probe = False
        cdef bint busy = False
        cdef int lacking
        for attempt in range(16):
            if not probe and breaker_peek(&self.parts.rules, fr_load(&self.parts.hot.breaker), now) == 1:
                # One machine of all may send the probe. It is asked for only when nothing here refuses the call: a
                # machine that holds the right to probe and does not send keeps all the others waiting.
                answer = endpoint_wait(&self.parts, tokens, reserved, now)
                if answer == 0:
                    wait = self.source.probe(now)
                    if wait:
                        return refusal(REASON_BREAKER, wait)
                    probe = True
            if not answer:
                answer = endpoint_admit(&self.parts, slot, tokens, reserved, now)
            if answer >= 0:
                if self.parts.low_requests and pool_low(&self.parts, now):
                    self.source.low()
                return answer
            reason = -answer & 7
            if reason == REASON_BUSY:
                busy = True
                lacking = permits_lacking(&self.parts, now)
                if lacking == 0:
                    break
                answer = self.source.permit(now) if lacking == 1 else 0
            elif (reason == REASON_REQUESTS or reason == REASON_TOKENS) and -answer >> 3 == 0:
                # A refusal without a wait: the pool is empty, but the shared limit was not when it was last asked.
                answer = self.source.supply(tokens, now)
                busy = False
            else:
                break
            if answer:
                break
        else:
            answer = refusal(REASON_BUSY if busy else REASON_REQUESTS, 0)
        # Refused after all: the right to send the probe goes back, so that another machine can.
        if probe:
            self.source.judged(0)
        return answer

    def finish(
        self, ticket, outcome, double latency_s=0.0, token_delta=0, now=0
    ) -> int:
        """Ends the call of a ticket: gives its permit back and records the outcome.

        Args:
            ticket: From ``admit``. A ticket that was finished or undone before changes nothing, nor does one of another
                process. (A second ``finish`` goes unnoticed if the permit was taken an exact multiple of 128 times in
                between.)
            outcome: OK, FAILURE, IGNORED, THROTTLED or USELESS.
            latency_s: Of an OK call; 0 if it was not measured.
            token_delta: Real tokens minus those admitted.
            now: ns; 0 reads the clock.

        Returns:
            1: this opened the breaker; 2: this closed it; 0: neither.
        """
        cdef int64_t ended = ticket_of(ticket)
        cdef int flags = endpoint_finish(
            &self.parts, self.segment.worker_if_any(), ended, checked_outcome(outcome),
            checked_latency(latency_s), amount("token_delta", token_delta, -FR_TIME_MAX), moment(now),
        )
        # Other machines care only about a breaker that opened or closed, or a probe that ended.
        if self.source is not None and (flags or ended >> 28 & 1):
            self.source.judged(flags)
        return flags

    def extend(self, ticket, double lease_s, now=0) -> None:
        """Extends a probe's lease to the time that its call may take, at most a day. Other calls: no effect.

        Without this, an endpoint whose answers take longer than the lease would never recover: each probe's result
        would come after the lease ended, and not count.
        """
        cdef int64_t lease = <int64_t>(min(max(lease_s, 0.0), 86400.0) * 1e9)
        cdef int64_t given = ticket_of(ticket)
        if given >> 28 & 1:
            probe_extend(self.parts.breaker.control, given >> 28, (moment(now) or fr_clock_coarse()) + lease)
            if self.source is not None:
                self.source.extended(lease)

    def began(self, ticket, now=0) -> int:
        """Records the first content of a stream: if the stream is a probe, the probe has succeeded.

        ``finish`` gives its permit back as usual; the stream's final outcome no longer counts for the breaker.

        Returns:
            As ``finish``.
        """
        cdef int64_t given = ticket_of(ticket)
        cdef int flags
        if not given >> 28 & 1:
            return 0
        flags = flags_of(
            probe_end(&self.parts, given, self.segment.worker_if_any(), OUTCOME_OK, moment(now) or fr_clock_coarse())
        )
        if flags & FLAG_CLOSED:
            health_mend(&self.parts.latency)
        if self.source is not None:
            self.source.judged(flags)
        return flags

    def undo(self, ticket, tokens, now=0) -> None:
        """Ends a call that was admitted but not sent: gives back permit, probe, request and ``tokens``."""
        self.take_back(ticket_of(ticket), amount("tokens", tokens, 0), moment(now) or fr_clock())

    cdef int take_back(self, int64_t ticket, int64_t tokens, int64_t now) except -1:
        endpoint_undo(&self.parts, self.segment.worker_if_any(), ticket, tokens, now)
        if self.source is not None and ticket >> 28 & 1:
            self.source.judged(0)
        return 0

    def reserve(self, tokens, max_wait, now=0) -> int:
        """Pays one request and ``tokens`` ahead, both or neither, for an ``admit(reserved=True)`` after the wait.

        Returns:
            0 or more: paid, ns to wait. Negative as in ``admit``: REQUESTS or TOKENS with the wait that would have been
            above ``max_wait``, or TOO_LARGE.
        """
        if self.source is not None:
            return self.source.reserve(tokens, max_wait, moment(now) or fr_clock())
        cdef int64_t paid = amount("tokens", tokens, 0)
        cdef int64_t time = moment(now) or fr_clock()
        cdef int64_t answer = endpoint_reserve(
            &self.parts, self.waiting(self.segment.worker()), paid, patience(max_wait), time
        )
        try:
            return answer
        except MemoryError:  # as in `admit`
            if answer >= 0:
                self.give_up(paid, time)
            raise

    def unreserve(self, tokens, now=0) -> None:
        """Gives back what ``reserve`` paid."""
        cdef int64_t paid = amount("tokens", tokens, 0)
        cdef int64_t time = moment(now) or fr_clock()
        if self.source is not None:
            self.source.unreserve(paid, time)
            return
        self.give_up(paid, time)

    cdef int give_up(self, int64_t paid, int64_t time) except -1:
        # The note first: if this process is killed in between, its reaper must not give the same back a second time.
        stop_waiting(self.waiting(self.segment.worker()), paid)
        bucket_settle(&self.parts.requests, &self.parts.cold.tat, -1, time)
        bucket_settle(&self.parts.tokens, &self.parts.hot.tat, -to_pay(&self.parts, paid), time)
        return 0

    cdef Waiting *waiting(self, int slot) noexcept:
        """Where this worker notes what it has paid ahead here; NULL if the segment has no room for that."""
        # Looked up again in a forked child, which has another slot. Without room waiting works all the same, only a
        # killed worker's payments are not given back.
        if self.waiting_slot != slot:
            self.waiting_cell = <Waiting *>find_cell(
                self.segment.table, self.segment.mask, sub_key(self.parts.hot.key, KIND_WAITING, slot), True
            )
            self.waiting_slot = slot
        return self.waiting_cell

    def wait(self, tokens=0, now=0) -> int:
        """What ``admit`` would answer, taking nothing: 0 for yes, else its negative answer."""
        return endpoint_wait(&self.parts, amount("tokens", tokens, 0), False, moment(now) or fr_clock())

    def pace(
        self, requests=-1, double requests_window_s=60.0, tokens=-1, double tokens_window_s=60.0, now=0
    ) -> None:
        """Sets the limits that the provider reports: so many requests and tokens in windows of so many seconds.

        They hold where ``rpm`` or ``tpm`` is not limited, in all processes, until the provider reports others, or none
        (0). -1: not reported now, so the last report stands. A request of more tokens than such a limit allows at once
        is admitted when the bucket is full.
        """
        cdef int64_t request_count = amount("requests", requests, -1)
        cdef int64_t token_count = amount("tokens", tokens, -1)
        cdef int64_t time = moment(now) or fr_clock()
        seconds("requests_window_s", requests_window_s, 0.001, 86400.0)
        seconds("tokens_window_s", tokens_window_s, 0.001, 86400.0)
        if self.parts.follows[0] and request_count >= 0:
            tell_limit(&self.parts, 0, min(request_count, MAX_PER_MINUTE), requests_window_s, time)
        if self.parts.follows[1] and token_count >= 0:
            tell_limit(&self.parts, 1, min(token_count, MAX_PER_MINUTE), tokens_window_s, time)

    @property
    def paced(self) -> bool:
        """Whether the provider's own limits are kept to, of requests or of tokens."""
        cdef EndpointParts *e = &self.parts
        return (e.follows[0] and fr_load(e.told[0]) != 0) or (e.follows[1] and fr_load(e.told[1]) != 0)

    def tighten(self, remaining_requests=-1, remaining_tokens=-1, now=0) -> None:
        """Lowers what is free now to what the provider reports as remaining (-1: not reported). Never raises it."""
        cdef int64_t requests = amount("remaining_requests", remaining_requests, -1)
        cdef int64_t tokens = amount("remaining_tokens", remaining_tokens, -1)
        cdef int64_t time = moment(now) or fr_clock()
        cdef int64_t before = 0
        cdef int64_t after
        follow_told(&self.parts)
        # Other machines are told only when this changed something: providers send these figures with every answer.
        if self.source is not None:
            before = fr_sum(fr_load_i64(&self.parts.cold.tat), fr_load_i64(&self.parts.hot.tat))
            pool_tighten(&self.parts, requests, tokens)
        if requests >= 0:
            bucket_tighten(&self.parts.requests, &self.parts.cold.tat, requests, time)
        if tokens >= 0:
            bucket_tighten(&self.parts.tokens, &self.parts.hot.tat, tokens, time)
        if self.source is not None:
            after = fr_sum(fr_load_i64(&self.parts.cold.tat), fr_load_i64(&self.parts.hot.tat))
            if after != before:
                self.source.tightened(requests, tokens)

    def deposit(self, now=0) -> None:
        """Records a first attempt: see ``RetryBudget``."""
        retry_change(
            &self.parts.retry, &self.parts.cold.retry, self.parts.retry.ratio, 0.0, moment(now) or fr_clock_coarse()
        )

    def withdraw(self, now=0, bint half=False) -> bool:
        """Takes one retry, or a hedge (``half``), on this endpoint; False when there is none: see ``RetryBudget``."""
        cdef double keep = 0.5 * self.parts.retry.rest if half else 0.0
        return retry_change(
            &self.parts.retry, &self.parts.cold.retry, -1.0, keep, moment(now) or fr_clock_coarse()
        )

    def record_ttft(self, double x_s, bint reasoning=False) -> None:
        """Counts one time to first token, seconds: see ``Latency``."""
        ttft_record(&self.parts.latency, checked_latency(x_s), reasoning)

    def record_ttft_timeout(self, bint reasoning=False) -> None:
        """Records that the first token did not come in time, which doubles the next limit."""
        ttft_late(&self.parts.latency, reasoning)

    def block(self, until_ns, reason) -> None:
        """Excludes it until a time, whatever the breaker's state. Never shortens: see ``Breaker.block``."""
        block_until(&self.parts.hot.block, until_ns, reason)
        if self.source is not None:
            self.source.blocked()

    def unblock(self) -> None:
        """Ends the exclusion."""
        fr_store(&self.parts.hot.block, 0)

    def hurry(self, now=0) -> bool:
        """Ends an opening of the breaker early: the next call is the probe. False if it is not open."""
        return breaker_hurry(self.parts.breaker.control, moment(now) or fr_clock())

    # Figures ----------------------------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Calls under way, over all processes."""
        return in_flight_of(self.parts.hot)

    @property
    def spread(self) -> float:
        """The average distance of a latency from the estimate before it, seconds."""
        return spread_of(self.parts.hot)

    @property
    def counts(self) -> tuple[int, int]:
        """(results that were OK, results that were FAILURE), ever."""
        return (fr_load(&self.parts.cold.succeeded), fr_load(&self.parts.cold.failed))

    @property
    def rpm(self) -> int:
        """Requests a minute, configured or, without that, as the provider says; -1: no limit."""
        follow_told(&self.parts)
        return self.parts.requests.per_minute

    @property
    def request_burst(self) -> int:
        """Most requests at once."""
        return self.parts.requests.burst

    @property
    def tpm(self) -> int:
        """Tokens a minute, configured or, without that, as the provider says; -1: no limit."""
        follow_told(&self.parts)
        return self.parts.tokens.per_minute

    @property
    def token_burst(self) -> int:
        """Most tokens at once."""
        return self.parts.tokens.burst

    @property
    def max_in_flight(self) -> int:
        """Most calls under way."""
        return self.parts.max_in_flight

    @property
    def bearable(self) -> float | None:
        """The adaptive limit of calls at once; None unless ``adaptive``."""
        return bearable_now(&self.parts) if self.parts.adaptive else None

    @property
    def weight(self) -> float:
        """Its share of load beside others."""
        return self.settings.weight

    def state(self, now=0) -> int:
        """CLOSED, OPEN or HALF_OPEN; an opening whose time is up reads HALF_OPEN."""
        return breaker_state(&self.parts.rules, fr_load(&self.parts.hot.breaker), moment(now) or fr_clock())

    def reopens_in(self, now=0) -> int:
        """ns until an open breaker lets a probe through; 0 in every other state."""
        return breaker_reopens(&self.parts.rules, fr_load(&self.parts.hot.breaker), moment(now) or fr_clock())

    def blocked(self, now=0) -> tuple[int, int]:
        """(ns left, reason), or (0, 0) when it is not blocked."""
        cdef uint64_t word = fr_load(&self.parts.hot.block)
        cdef int64_t left = block_left(word, moment(now) or fr_clock())
        return (left, <int>(word & 0xFF) if left else 0)

    def health(self, now=0) -> tuple[int, float]:
        """(score 0 to 100, share of failures among the last 50 results). Healthy: above 70 with under 0.05."""
        return health_of(&self.parts.latency, moment(now) or fr_clock())

    def ewma(self, now=0) -> float:
        """The latency estimate faded to ``now``, seconds; 0.0 if never measured."""
        return ewma_at(&self.parts.latency, moment(now) or fr_clock())

    def success_rate(self, now=0) -> float:
        """1 minus the failure rate faded to ``now``."""
        return 1.0 - failure_at(&self.parts.latency, moment(now) or fr_clock())

    def window(self) -> float:
        """Mean of the last 50 latencies, the i-th newest weighing 1 / (1 + 0.1 i); 0.0 when there are none."""
        return window_mean(&self.parts.latency)

    def latencies(self) -> list[float]:
        """The last 50 latencies, seconds, newest first."""
        cdef double latencies[SAMPLES]
        cdef int count = samples_read(&self.parts.latency, latencies)
        return [latencies[i] for i in range(count)]

    def ttft_timeout(self, bint reasoning=False) -> float:
        """How long to wait for a first token, seconds: 0 (no limit) until 20 were seen, then 5 to 600."""
        return ttft_limit(&self.parts.latency, reasoning)

    def load(self, now=0) -> float:
        """What the LATENCY strategy compares, faded to ``now``; less is better."""
        return load_with_decay(&self.parts, moment(now) or fr_clock())

    def usage(self, now=0) -> float:
        """Tokens used lately; each fades with a time constant of 60 s."""
        return usage_at(&self.parts, moment(now) or fr_clock())

    def available_requests(self, now=0) -> int:
        """Requests free now; 2**63 - 1 without a limit."""
        follow_told(&self.parts)
        cdef int64_t time = moment(now) or fr_clock()
        cdef int64_t free = bucket_available(&self.parts.requests, &self.parts.cold.tat, time)
        return free if self.parts.pool is NULL else fr_sum(free, pool_good(&self.parts, True, time))

    def available_tokens(self, now=0) -> int:
        """Tokens free now, negative in debt; 2**63 - 1 without a limit."""
        follow_told(&self.parts)
        cdef int64_t time = moment(now) or fr_clock()
        cdef int64_t free = bucket_available(&self.parts.tokens, &self.parts.hot.tat, time)
        return free if self.parts.pool is NULL else fr_sum(free, pool_good(&self.parts, False, time))

    def snapshot(self, now=0) -> dict[str, object]:
        """All figures as plain values, for statistics. Limits that are not there read None."""
        now = moment(now) or fr_clock()
        score, error_rate = self.health(now)
        left, reason = self.blocked(now)
        succeeded, failed = self.counts
        follow_told(&self.parts)
        limited_requests = self.parts.requests.per_minute >= 0
        limited_tokens = self.parts.tokens.per_minute >= 0
        return {
            "name": self.name,
            "state": ("closed", "open", "half-open")[self.state(now)],
            "reopens_in_s": self.reopens_in(now) / 1e9,
            "blocked_s": left / 1e9,
            "block_reason": reason,
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
            "bearable": self.bearable,
            "succeeded": succeeded,
            "failed": failed,
            "health": score,
            "error_rate": error_rate,
            "success_rate": self.success_rate(now),
            "ewma_s": self.ewma(now),
            "spread_s": self.spread,
            "window_s": self.window(),
            "ttft_timeout_s": self.ttft_timeout(),
            "load": self.load(now),
            "usage_tokens": self.usage(now),
            "rpm": self.rpm if limited_requests else None,
            "available_requests": self.available_requests(now) if limited_requests else None,
            "tpm": self.tpm if limited_tokens else None,
            "available_tokens": self.available_tokens(now) if limited_tokens else None,
        }
