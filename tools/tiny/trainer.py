"""The training loop: a budget in steps, random numbers by step, atomic checkpoints, data-parallel processes.

A run that is stopped at any moment and started again computes the same losses and weights, bit for bit (on the same
machine, with the same number of threads), because a step depends on nothing but the last step's state and its own
number.
"""

import math
import os
import random
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import distributed, nn

from minigpt4_serve.errors import InvalidRequest, MiniGPT4Error
from tools.tiny.config import TrainingBudget

__all__ = [
    "Step",
    "Trainer",
    "TrainingDiverged",
    "TrainingTask",
    "learning_rate_factor",
    "random_seeds",
    "read_result",
    "sum_over_processes",
    "write_result",
]

_FINAL_RATE = 0.02
_DECAY_SLOPE = 1.6


class TrainingDiverged(MiniGPT4Error):
    """The loss became infinite or not a number."""

    code = "training_diverged"


@dataclass(frozen=True)
class Step:
    """One training step and its random numbers, which no other step, process or stage shares.

    Attributes:
        number: from 0.
        progress: fraction of the budget's steps that are done, 0 ≤ progress < 1.
        python, numpy, torch: generators seeded for this step and process.
    """

    number: int
    progress: float
    python: random.Random
    numpy: np.random.Generator
    torch: torch.Generator


class TrainingTask(Protocol):
    """The training loop's interface to a stage."""

    @property
    def name(self) -> str:
        """The stage's name; it seeds random numbers."""

    @property
    def network(self) -> nn.Module:
        """The modules in checkpoints."""

    @property
    def optimizers(self) -> Sequence[torch.optim.Optimizer]:
        """Each group's ``initial_lr`` is its full learning rate."""

    def loss(self, step: Step) -> torch.Tensor:
        """The scalar loss of a step's batch in this process."""

    def report(self) -> str:
        """Figures for the log."""

    def state(self) -> dict[str, Any]:
        """State beyond weights that a step passes on to the next one; plain values."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore ``state``."""


def learning_rate_factor(step: int, budget: TrainingBudget) -> float:
    """Factor on the full learning rate: linear warmup, constant, from 39 % of the steps linear decay to 2 %."""
    warmup = min(1.0, (step + 1) / max(1, budget.warmup_steps))
    return warmup * min(1.0, _DECAY_SLOPE * (1 - step / budget.steps) + _FINAL_RATE)


def random_seeds(seed: int, *names: str | int) -> tuple[int, int, int]:
    """Three independent seeds derived from a run's seed and a place in the run, such as ("vision", step, rank)."""
    entropy = [seed, *(zlib.crc32(name.encode()) if isinstance(name, str) else name for name in names)]
    python, numpy, torch_ = np.random.SeedSequence(entropy).generate_state(3, np.uint64)
    return int(python), int(numpy), int(torch_) >> 1  # torch takes 63 bits


class Trainer:
    """Runs a task to the end of its budget, from its checkpoint if there is one.

    Args:
        file: the checkpoint, which is also the stage's result.
        inputs: settings that the result depends on; a checkpoint of others is refused.
        checkpoint_steps: steps between checkpoints; one more is written at the end.
        log_steps: steps between lines of the log.

    Attributes:
        losses: the loss of every step so far, averaged over processes.

    Raises:
        InvalidRequest: the checkpoint was made with other settings.
    """

    def __init__(
        self,
        task: TrainingTask,
        file: Path,
        *,
        budget: TrainingBudget,
        seed: int,
        inputs: Mapping[str, Any],
        checkpoint_steps: int,
        log_steps: int,
    ) -> None:
        self._task = task
        self._file = file
        self._budget = budget
        self._seed = seed
        self._inputs = inputs
        self._checkpoint_steps = checkpoint_steps
        self._log_steps = log_steps
        self._rank = distributed.get_rank() if distributed.is_initialized() else 0
        self._parameters = [p for o in task.optimizers for group in o.param_groups for p in group["params"]]
        self.losses: list[float] = []
        if file.exists():
            self._load()

    @property
    def step(self) -> int:
        """Number of the next step."""
        return len(self.losses)

    def run(self) -> None:
        """Train until all steps are done; does nothing if they are.

        Raises:
            TrainingDiverged: the loss isn't finite; the last checkpoint stays.
        """
        while self.step < self._budget.steps:
            self.losses.append(self._train_step())
            done = self.step == self._budget.steps
            if self._rank == 0 and (done or self.step % self._log_steps == 0):
                recent = self.losses[-self._log_steps :]
                mean = sum(recent) / len(recent)
                print(
                    f"{self._task.name}: step {self.step:,} of {self._budget.steps:,}, loss {mean:.4f}, "
                    f"{self._task.report()}",
                    flush=True,
                )
            if self._rank == 0 and (done or self.step % self._checkpoint_steps == 0):
                self._save()

    def _train_step(self) -> float:
        python, numpy, torch_ = random_seeds(self._seed, self._task.name, self.step, self._rank)
        step = Step(
            self.step,
            self.step / self._budget.steps,
            random.Random(python),
            np.random.default_rng(numpy),
            torch.Generator().manual_seed(torch_),
        )
        factor = learning_rate_factor(self.step, self._budget)
        for optimizer in self._task.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            optimizer.zero_grad()
        loss = self._task.loss(step)
        loss.backward()
        value = _average(loss.detach(), self._parameters)
        if not math.isfinite(value):
            # A checkpoint of another learning rate is refused.
            delete = f", delete {self._file}" if self._file.exists() else ""
            raise TrainingDiverged(
                f"The loss of step {self.step} of {self._task.name} is {value}: lower the learning rate{delete} and "
                "start the stage again."
            )
        nn.utils.clip_grad_norm_(self._parameters, 1.0)
        for optimizer in self._task.optimizers:
            optimizer.step()
        return value

    def _save(self) -> None:
        state = {
            "network": self._task.network.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._task.optimizers],
            "task": self._task.state(),
            "losses": torch.tensor(self.losses, dtype=torch.float64),
        }
        write_result(self._file, self._inputs, state)

    def _load(self) -> None:
        state = read_result(self._file, self._inputs)
        self._task.network.load_state_dict(state["network"])
        for optimizer, of_optimizer in zip(self._task.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(of_optimizer)
        self._task.load_state(state["task"])
        self.losses = state["losses"].tolist()
        if self._rank == 0:
            print(f"{self._task.name}: resuming at step {self.step:,} of {self._budget.steps:,}", flush=True)


def write_result(file: Path, inputs: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write a checkpoint or another result atomically: at any time, ``file`` is the complete old or new one.

    Args:
        inputs: settings that it depends on.
        state: tensors and plain values.
    """
    partial = file.with_name(file.name + ".partial")
    with partial.open("wb") as handle:
        torch.save({"inputs": dict(inputs), **state}, handle)
        handle.flush()
        os.fsync(handle.fileno())
    partial.replace(file)


def read_result(file: Path, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Read a result of ``write_result``.

    Raises:
        InvalidRequest: it was made with other settings.
    """
    state: dict[str, Any] = torch.load(file, weights_only=True)
    for name, value in inputs.items():
        if state["inputs"].get(name) != value:
            raise InvalidRequest(
                f"{file} was made with other settings in '{name}': use the same configuration and --steps, use another "
                "run folder, or delete the file."
            )
    return state


def _average(loss: torch.Tensor, parameters: Sequence[nn.Parameter]) -> float:
    """Replace gradients by their mean over all processes; returns the mean loss."""
    if distributed.is_initialized():
        trained = [p for p in parameters if p.grad is not None]
        flat = torch.cat([loss.flatten(), *(p.grad.flatten() for p in trained if p.grad is not None)])
        flat = sum_over_processes(flat) / distributed.get_world_size()
        loss, *gradients = flat.split([1, *(p.numel() for p in trained)])
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient.view_as(parameter)
    return float(loss)


def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """The elementwise sum over all processes; the tensor itself where there is only one."""
    if distributed.is_initialized():
        distributed.all_reduce(tensor)
    return tensor
