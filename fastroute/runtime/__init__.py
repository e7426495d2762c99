"""The parts of a running client: the current generation, reload, health checks, discovery."""
