"""Simulators that the benchmark runs in."""
