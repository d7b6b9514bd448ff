"""Training processes that are killed, and a small task for the training loop."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import distributed, nn

from tools.tiny.config import DataConfig, TrainingBudget
from tools.tiny.shards import render_shards
from tools.tiny.trainer import Step, Trainer, random_seeds
from tools.tiny.worker import end_with_parent


def train_until_killed(arguments: Sequence[str], step: int, *, while_saving: bool = False) -> int:
    """Run ``tools.tiny.train`` in a process that gets SIGKILL before ``step``, or during the first checkpoint after it.

    Returns:
        The process's exit code: -9.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tools.tiny.stages"])
    process = context.Process(target=_train_until_killed, args=(list(arguments), step, while_saving))
    process.start()
    process.join()
    code = process.exitcode
    process.close()
    assert code is not None
    return code


def _train_until_killed(arguments: list[str], step: int, while_saving: bool) -> None:
    from tools.tiny import trainer
    from tools.tiny.train import main

    def kill(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    train_step = Trainer._train_step

    def train_step_until(self: Trainer) -> float:
        if self.step == step:
            if not while_saving:
                kill()
            trainer.os.fsync = kill  # type: ignore[attr-defined]
        return train_step(self)

    Trainer._train_step = train_step_until  # type: ignore[method-assign]
    main(arguments)


class Regression:
    """Learns y = 3x + 1 from the step's random numbers; its state is the number of points so far."""

    name = "regression"

    def __init__(self, *, processes: int = 1) -> None:
        torch.manual_seed(5)
        self.network = nn.Linear(1, 1)
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=0.05)
        optimizer.param_groups[0]["initial_lr"] = 0.05
        self.optimizers = [optimizer]
        self.points = 0
        self.rates: list[float] = []
        self._simulated = processes

    def loss(self, step: Step) -> torch.Tensor:
        self.rates.append(self.optimizers[0].param_groups[0]["lr"])
        if self._simulated == 1:
            return self._loss(step.torch)
        seeds = [random_seeds(11, self.name, step.number, rank)[2] for rank in range(self._simulated)]
        return torch.stack([self._loss(torch.Generator().manual_seed(seed)) for seed in seeds]).mean()

    def _loss(self, generator: torch.Generator) -> torch.Tensor:
        x = torch.randn(8, 1, generator=generator)
        self.points += len(x)
        return (self.network(x) - (3 * x + 1)).square().mean()

    def report(self) -> str:
        return f"{self.points} points"

    def state(self) -> dict[str, Any]:
        return {"points": self.points}

    def load_state(self, state: dict[str, Any]) -> None:
        self.points = state["points"]


def train_in_process(rank: int, folder: Path, processes: int) -> None:
    """Train a ``Regression`` in one of several processes; each writes its weights to its own file."""
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group("gloo", init_method=(folder / "meet").as_uri(), rank=rank, world_size=processes)
    task = Regression()
    trainer = Trainer(
        task,
        folder / "checkpoint.pt",
        budget=TrainingBudget(steps=10, learning_rate=0.05, warmup_steps=2),
        seed=11,
        inputs={},
        checkpoint_steps=100,
        log_steps=100,
    )
    trainer.run()
    torch.save({"network": task.network.state_dict(), "losses": trainer.losses}, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def render(folder: Path, ended: Connection) -> None:
    """Render for hours, in two workers that hold ``ended`` open, too."""
    render_shards(folder, DataConfig(shard_size=20, dense_shards=100_000), processes=2)


def start_worker(ready: Connection) -> None:
    """Start a worker that idles, and idle."""
    multiprocessing.get_context("spawn").Process(target=_idle, args=(ready,)).start()
    ready.close()
    threading.Event().wait()


def _idle(ready: Connection) -> None:
    """Send this process's id, and hold ``ready`` open until something ends the process."""
    end_with_parent()
    ready.send(os.getpid())
    threading.Event().wait()
