"""The process in which schemas are compiled on trial. Run as a script: it imports nothing of this package.

Writes an empty line when it is ready. Reads a line of JSON text for each schema from stdin and answers a line: empty if
it compiles, else llguidance's message as JSON text. A schema that takes too much time or memory ends the process.
"""

import json
import resource
import signal
import sys
from contextlib import suppress
from typing import Any


class _Bytes:
    """A vocabulary of bytes: what a schema costs hardly depends on the vocabulary."""

    def __init__(self) -> None:
        self.eos_token_id = 256
        self.bos_token_id = None
        self.special_token_ids = [256]
        self.tokens = [bytes([byte]) for byte in range(256)] + [b""]

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def main() -> None:
    """Answer each line of stdin until it ends. Arguments: CPU seconds for a schema, bytes of memory for all."""
    import llguidance

    cpu_s = float(sys.argv[1])
    memory = int(sys.argv[2])
    with suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    vocabulary = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Bytes()), n_vocab=257)
    options: Any = json.loads(sys.argv[3])
    limits = llguidance.LLParserLimits(**json.loads(sys.argv[4]))
    sys.stdout.write("\n")  # ready
    sys.stdout.flush()
    for line in sys.stdin.buffer:
        signal.setitimer(signal.ITIMER_PROF, cpu_s)  # SIGPROF ends the process, whatever it computes
        message = _compile(llguidance, vocabulary, line, options, limits)
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(json.dumps(message) + "\n" if message else "\n")
        sys.stdout.flush()


def _compile(llguidance: Any, vocabulary: Any, line: bytes, options: Any, limits: Any) -> str:
    try:
        grammar = llguidance.LLMatcher.grammar_from_json_schema(line.decode(), overrides=options)
        matcher = llguidance.LLMatcher(vocabulary, grammar, log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()
        return str(matcher.get_error())
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a Rust panic isn't an Exception
        return str(error) or "failed"


if __name__ == "__main__":
    main()
