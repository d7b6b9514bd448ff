"""Compare this package with numbers that were recorded from the original MiniGPT-4 code."""
