"""Compare this package with numbers that were recorded from the original MiniGPT-4 code.

    python -m tools.parity tests/golden

GOLDEN_DIR has a MANIFEST.json, the original's files in small, and a folder per variant with the numbers of every stage.
Each variant is converted and loaded, then run stage by stage with both attention implementations; a table shows the
largest error or the number of exact matches of every stage. What a set has not recorded is left out; names, counts and
dimensions are the set's own. Exit status 1 if anything is out of tolerance.
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from minigpt4_serve.errors import MiniGPT4Error
from tools.parity.comparison import Comparison
from tools.parity.generation import batched_answers, chat_answers, sampling_scores
from tools.parity.prompts import chat_prompts, token_tables
from tools.parity.subject import load_subject, recorded_variants
from tools.parity.training import candidate_ranks, training_losses
from tools.parity.vision import vision_stages

__all__ = ["STAGES", "compare", "main"]

ATTENTIONS = ("eager", "sdpa")
STAGES = (
    vision_stages,
    token_tables,
    chat_prompts,
    chat_answers,
    batched_answers,
    sampling_scores,
    training_losses,
    candidate_ranks,
)


def compare(golden: Path, variant: str, attention: str, folder: Path) -> Iterator[Comparison]:
    """All comparisons of one variant with one attention implementation; ``folder`` takes the converted model.

    A stage that raises is one failed comparison.

    Raises:
        MiniGPT4Error: the files can't be converted.
    """
    subject = load_subject(golden, variant, attention, folder)
    for stage in STAGES:
        try:
            for comparison in stage(subject):
                if comparison.compares_something:
                    yield replace(comparison, variant=variant, attention=attention)
        except Exception as error:
            failure = f"{stage.__name__}: {type(error).__name__} {error}"
            yield Comparison(failure, float("inf"), variant=variant, attention=attention)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.parity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("golden", type=Path, metavar="GOLDEN_DIR")
    parser.add_argument("--variant", metavar="NAME", action="append", help="only this one (repeatable)")
    options = parser.parse_args(arguments)
    try:
        recorded = recorded_variants(options.golden)
    except ValueError as error:
        parser.error(str(error))
    if unknown := set(options.variant or ()) - set(recorded):
        parser.error(f"{options.golden} has no {', '.join(sorted(unknown))}; it has {', '.join(recorded)}")
    torch.set_num_threads(1)  # tensors this small are slower on more
    failed = total = 0
    with tempfile.TemporaryDirectory() as scratch:
        for variant in options.variant or recorded:
            for attention in ATTENTIONS:
                try:
                    for comparison in compare(options.golden, variant, attention, Path(scratch) / variant):
                        print(comparison, flush=True)
                        total += 1
                        if not comparison.holds:
                            failed += 1
                except MiniGPT4Error as error:
                    print(f"{variant:<10} {attention:<6} can't be converted: {error}", flush=True)
                    total += 1
                    failed += 1
    print(f"{total - failed} of {total} comparisons hold" + (f"; {failed} FAILED" if failed else ""))
    return 1 if failed or not total else 0
