"""What fastroute costs, beside what it is compared with; see docs/benchmarks.md."""
