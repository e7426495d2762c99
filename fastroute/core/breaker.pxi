# breaker
