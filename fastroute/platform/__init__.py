"""The process: forks, gevent, hosting servers, threads, the timer, private files and locks, mounts."""
