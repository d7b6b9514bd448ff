"""Measures a model: the benchmarks of the MiniGPT papers, hallucination, and calibration.

``tasks`` is the table of benchmarks, ``runner`` asks the questions, ``report`` writes the results, ``comparison`` says
which of two runs is better. The command is ``minigpt4 evaluate``.
"""

from minigpt4_serve.evaluation.tasks import TASKS

__all__ = ["TASKS"]
