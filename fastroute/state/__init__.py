"""Live endpoints, and where their numbers live: shared memory, segment files, Redis."""
