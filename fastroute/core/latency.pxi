# latency
