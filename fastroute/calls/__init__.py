"""One call carried out: cache, admission, dispatch, attempts, settlement, streams, hedges."""
