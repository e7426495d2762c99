"""What a client keeps running: the generation in force, reload, health checks, discovery."""
