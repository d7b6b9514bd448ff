"""The training loop: schedule and random numbers by step, atomic checkpoints, exact resumption, several processes."""

import math
import multiprocessing
import os
import signal
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import spawn
from training_runs import Regression, render, start_worker, train_in_process
from waiting import wait_until

from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.process_tree import descendants
from tools.tiny import trainer as trainer_module
from tools.tiny.config import TrainingBudget
from tools.tiny.trainer import (
    Step,
    Trainer,
    TrainingDiverged,
    learning_rate_factor,
    random_seeds,
    read_result,
    write_result,
)

BUDGET = TrainingBudget(steps=20, learning_rate=0.05, warmup_steps=4)


def _trainer(task: Regression, file: Path, **settings: Any) -> Trainer:
    given = {"budget": BUDGET, "seed": 11, "inputs": {"seed": 11}, "checkpoint_steps": 6, "log_steps": 5} | settings
    return Trainer(task, file, **given)


class _Stopped(Exception):
    pass


class _StoppingRegression(Regression):
    def __init__(self, last: int) -> None:
        super().__init__()
        self._last = last

    def loss(self, step: Step) -> torch.Tensor:
        if step.number > self._last:
            raise _Stopped
        return super().loss(step)


@pytest.mark.parametrize(
    ("step", "factor"),
    [(0, 0.01), (49, 0.5), (99, 1.0), (380, 1.0), (500, 0.82), (750, 0.42), (999, 0.0216)],
)
def test_the_learning_rate_follows_the_step(step: int, factor: float) -> None:
    budget = TrainingBudget(steps=1000, learning_rate=1e-3, warmup_steps=100)
    assert learning_rate_factor(step, budget) == pytest.approx(factor)


def test_groups_get_the_scheduled_rate(tmp_path: Path) -> None:
    task = Regression()
    _trainer(task, tmp_path / "c.pt").run()
    assert task.rates == [0.05 * learning_rate_factor(step, BUDGET) for step in range(BUDGET.steps)]


def test_seeds_differ_by_stage_step_and_process() -> None:
    places = [(stage, step, rank) for stage in ("vision", "language") for step in range(50) for rank in range(3)]
    seeds = {seed for place in places for seed in random_seeds(0, *place)}
    assert len(seeds) == 3 * len(places)
    assert random_seeds(0, "vision", 3, 0) == random_seeds(0, "vision", 3, 0)
    assert random_seeds(0, "vision", 3, 0) != random_seeds(1, "vision", 3, 0)


@pytest.mark.parametrize("last", [5, 6, 10, 18])
def test_a_stopped_run_resumes_exactly(tmp_path: Path, last: int) -> None:
    whole = Regression()
    uninterrupted = _trainer(whole, tmp_path / "whole.pt")
    uninterrupted.run()
    with pytest.raises(_Stopped):
        _trainer(_StoppingRegression(last), tmp_path / "part.pt").run()
    task = Regression()
    resumed = _trainer(task, tmp_path / "part.pt")
    assert resumed.step == (last + 1) // 6 * 6
    resumed.run()
    assert resumed.losses == uninterrupted.losses
    assert len(resumed.losses) == BUDGET.steps
    assert task.points == whole.points
    assert all(torch.equal(a, b) for a, b in zip(task.network.parameters(), whole.network.parameters(), strict=True))


def test_a_finished_stage_does_nothing(tmp_path: Path) -> None:
    _trainer(Regression(), tmp_path / "c.pt").run()
    written = (tmp_path / "c.pt").read_bytes()
    task = Regression()
    _trainer(task, tmp_path / "c.pt").run()
    assert task.rates == []
    assert (tmp_path / "c.pt").read_bytes() == written


def test_a_failed_write_keeps_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "c.pt"
    write_result(file, {"seed": 1}, {"value": 1})

    def fail(state: object, handle: Any) -> None:
        handle.write(b"half a checkpoint")
        raise OSError("No space left on device")

    monkeypatch.setattr(trainer_module.torch, "save", fail)
    with pytest.raises(OSError, match="No space"):
        write_result(file, {"seed": 1}, {"value": 2})
    assert read_result(file, {"seed": 1})["value"] == 1
    monkeypatch.undo()
    write_result(file, {"seed": 1}, {"value": 3})  # over what the failed write left
    assert read_result(file, {"seed": 1})["value"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["c.pt"]


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    _trainer(Regression(), tmp_path / "c.pt").run()
    with pytest.raises(InvalidRequest, match=r"other settings in 'seed'"):
        _trainer(Regression(), tmp_path / "c.pt", inputs={"seed": 12})


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    class Diverging(Regression):
        def loss(self, step: Step) -> torch.Tensor:
            loss = super().loss(step)
            return loss * math.nan if step.number == 8 else loss

    file = tmp_path / "c.pt"
    trainer = _trainer(Diverging(), file)
    with pytest.raises(TrainingDiverged, match=rf"step 8 of regression is nan: .* delete {file} and start"):
        trainer.run()
    assert len(read_result(file, {})["losses"]) == 6  # the last checkpoint
    file.unlink()
    lower = TrainingBudget(steps=8, learning_rate=0.01)
    _trainer(Diverging(), file, budget=lower, inputs={"rate": 0.01}).run()


def test_the_log_has_a_line_every_log_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _trainer(Regression(), tmp_path / "c.pt", log_steps=8).run()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in lines] == [f"regression: step {n} of 20" for n in (8, 16, 20)]


def test_processes_train_on_the_mean_of_their_gradients(tmp_path: Path) -> None:
    spawn(train_in_process, args=(tmp_path, 2), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["losses"] == second["losses"]
    together = Regression(processes=2)
    budget = TrainingBudget(steps=10, learning_rate=0.05, warmup_steps=2)
    trainer = _trainer(together, tmp_path / "one.pt", budget=budget)
    trainer.run()
    assert first["losses"] == pytest.approx(trainer.losses, rel=1e-5)
    for name, value in together.network.state_dict().items():
        assert torch.equal(first["network"][name], second["network"][name])
        assert torch.allclose(first["network"][name], value, rtol=1e-5)


def test_a_worker_ends_when_its_parent_is_killed() -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    parent = multiprocessing.get_context("spawn").Process(target=start_worker, args=(sender,))
    parent.start()
    sender.close()
    worker = receiver.recv()
    _assert_ends_with(parent, [worker], receiver)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, workers don't inherit the pipe")
async def test_render_workers_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    receiver, sender = multiprocessing.Pipe(duplex=False)
    parent = multiprocessing.get_context("spawn").Process(target=render, args=(tmp_path, sender))
    parent.start()
    sender.close()
    await wait_until(lambda: any(tmp_path.glob("*.npy")))
    workers = descendants(parent.pid)
    assert len(workers) >= 2
    _assert_ends_with(parent, workers, receiver)


def _assert_ends_with(parent: multiprocessing.process.BaseProcess, workers: list[int], receiver: Connection) -> None:
    """Kill a process; its workers, the last that hold the other end of ``receiver`` open, must end, too."""
    parent.kill()
    parent.join()
    parent.close()
    ended = receiver.poll(60)
    if not ended:
        for worker in workers:
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
    assert ended
    with pytest.raises(EOFError):
        receiver.recv()
    receiver.close()
