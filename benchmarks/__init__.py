"""Benchmarks: run with `make bench` and `make calibrate`."""
