"""The HTTP server: the only package that knows Ray and FastAPI."""
