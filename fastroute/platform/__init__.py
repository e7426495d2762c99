"""The process: forks, greenlets, interpreters, servers, threads, the timer, private files, locks, mounts."""
