"""The process that the package lives in: forks, gevent, hosting servers, worker threads, locks, mounts."""
