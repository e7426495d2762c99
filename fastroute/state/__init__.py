"""Live endpoints, and where their state is kept: shared memory, segment files, Redis."""
