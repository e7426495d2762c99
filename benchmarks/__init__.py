"""Benchmarks of fastroute and the packages that it is compared with; see docs/benchmarks.md."""
