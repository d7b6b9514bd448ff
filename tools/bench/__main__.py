"""Dispatch to the benchmarks; ``python -m tools.bench --help`` lists them.

Imports stand where they are needed: with PyTorch and transformers, the engine's benchmarks run without Ray and FastAPI.
"""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark that the first argument names, ``engine`` if it names none. Returns the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    match words:
        case ["serve", *rest]:
            from tools.bench import serve

            return serve.main(rest)
        case ["soak", *rest]:
            from tools.bench import soak

            return soak.main(rest)
        case ["engine", *rest]:
            words = rest
    from tools.bench import engine

    return engine.main(words)


if __name__ == "__main__":
    sys.exit(main())
