"""fastroute: routes LLM calls from blocking Python."""
