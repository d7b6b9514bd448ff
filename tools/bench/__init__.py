"""Benchmarks: the engine against plain ways to answer, the server against the bare engine, and a soak test."""
