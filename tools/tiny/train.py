"""Train the embedded model: ``python -m tools.tiny.train --config FILE [--run FOLDER] [--stage STAGE] [--steps N]``.

Runs one stage, or all of a configuration in order. Each can be stopped at any moment and started again with the same
command: it goes on from its last checkpoint, and stages that are finished are skipped. README.md lists the commands.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from minigpt4_serve.errors import MiniGPT4Error
from tools.tiny.config import StageName, TrainConfig

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; exits with status 2 and one sentence on a mistake of its user."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.tiny.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file, such as tools/tiny/configs/scratch.yaml")
    parser.add_argument("--run", type=Path, help="folder of the run's results (runs/NAME for NAME.yaml)")
    parser.add_argument("--stage", choices=get_args(StageName), help="only this stage (all of the configuration)")
    parser.add_argument("--steps", type=int, help="steps of every training stage, instead of the configuration's")
    parser.add_argument("--out", type=Path, help="folder of the exported model (model in the run's folder)")
    given = parser.parse_args(arguments)
    try:
        config = TrainConfig.read(given.config, steps=given.steps)
        if given.stage is not None and given.stage not in config.stages:
            parser.error(f"{given.config} has no stage '{given.stage}'; its stages are {', '.join(config.stages)}.")
        from transformers.utils import logging  # torch is slow to import: mistakes are reported first

        from tools.tiny.stages import Run, run_stage

        logging.disable_progress_bar()

        run = Run(config, given.run or Path("runs") / given.config.stem)
        for stage in config.stages if given.stage is None else (given.stage,):
            run_stage(run, stage, out=given.out)
    except MiniGPT4Error as error:
        print(error.message, file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
