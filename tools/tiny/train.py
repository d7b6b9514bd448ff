"""Train the embedded model: pictures, then seeing and speaking apart, then both together.

``python tools/tiny/train.py RUN_DIR begin|pictures|vision|oracle|ridge|tune|export [--minutes M] [--processes N]``

Every stage saves its state each minute and goes on from there when it is started again, also on another machine. Rates
follow the share of the stage's minutes that has been spent, so a slower machine learns less but ends in order.
``vision`` and ``oracle`` don't need each other: run them side by side. ``begin`` makes a new run of the model that is
committed, to go on from.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from network import new_model, optimizers
from torch import distributed, nn

__all__ = ["Training"]

HEADS = Path(__file__).parent / "heads.safetensors"
"""What the eyes were asked while they learnt: not part of the model, but needed to go on training."""
_SCENES, _CROWDS = range(44), range(16)
"""Shards that the eyes learn from. A third of them was learnt by heart: 96 % of these were right, 91 % of others."""
_UNSEEN = range(44, 54)
"""The words are learnt about pictures that are new to the eyes: there they err as they will err anywhere."""


class Training:
    """Steps of one stage against the clock, with a checkpoint to go on from.

    Args:
        modules: what is saved, by name.
        optimizers: their rates are scaled to a warm start and a linear end.
        minutes: the whole stage, earlier runs of it included.
    """

    def __init__(
        self,
        file: Path,
        modules: dict[str, nn.Module | nn.Parameter],
        optimizers: Sequence[torch.optim.Optimizer],
        minutes: float,
        *,
        warm_steps: int = 100,
    ) -> None:
        self.file, self.modules, self.optimizers = file, modules, optimizers
        self.seconds, self.warm_steps = 60 * minutes, warm_steps
        self.step, self.spent, self._saved = 0, 0.0, 0.0
        if file.exists():
            held: dict[str, Any] = torch.load(file, weights_only=True)
            load_modules(modules, held["modules"])
            for optimizer, state in zip(optimizers, held["optimizers"] or [], strict=bool(held["optimizers"])):
                optimizer.load_state_dict(state)
            self.step, self.spent = held["step"], held["spent"]
            self._saved = self.spent
            print(f"going on from step {self.step} after {self.spent / 60:.1f} minutes")

    @property
    def progress(self) -> float:
        """0 … 1: the share of the minutes that is spent."""
        return min(1.0, self.spent / self.seconds)

    def run(self, loss_of: Callable[[int, float], torch.Tensor], watch: Callable[[], str], every: int) -> None:
        """Train until the minutes are spent; ``loss_of(step, progress)`` makes each step's loss."""
        parameters = [p for o in self.optimizers for g in o.param_groups for p in g["params"]]
        first = not distributed.is_initialized() or distributed.get_rank() == 0
        mean = 0.0
        while self.progress < 1:
            start = time.thread_time()  # a machine that others use, or a pause, costs no lesson
            rate = min(1.0, (self.step + 1) / self.warm_steps) * min(1.0, 1.6 * (1 - self.progress) + 0.02)
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * rate
            loss = loss_of(self.step, self.progress)
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            loss.backward()
            if distributed.is_initialized():
                _average([p for p in parameters if p.grad is not None])
            nn.utils.clip_grad_norm_(parameters, 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
            self.step += 1
            self.spent = _shared(self.spent + time.thread_time() - start)
            mean = loss.item() if self.step == 1 else 0.97 * mean + 0.03 * loss.item()
            if not math.isfinite(mean):
                raise SystemExit(f"The loss is not a number at step {self.step}: start again from the last checkpoint.")
            if self.step % every == 0 and first:
                print(f"step {self.step} · {self.spent / 60:.1f} min · loss {mean:.3f} · {watch()}", flush=True)
            if self.spent - self._saved > 60 and first:
                self.save()
        if first:
            self.save()

    def save(self) -> None:
        partial = self.file.with_suffix(".partial")
        state = {
            "modules": {name: state_of(module) for name, module in self.modules.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "spent": self.spent,
        }
        torch.save(state, partial)
        partial.rename(self.file)
        self._saved = self.spent


def _average(parameters: list[nn.Parameter]) -> None:
    """Gradients become the mean over all processes."""
    flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for parameter, grad in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = grad.view_as(parameter)


def _shared(seconds: float) -> float:
    """The first process's clock, so that all end after the same step."""
    if not distributed.is_initialized():
        return seconds
    clock = torch.tensor(seconds, dtype=torch.float64)
    distributed.broadcast(clock, 0)
    return float(clock)


def state_of(module: nn.Module | nn.Parameter) -> Any:
    return module.data if isinstance(module, nn.Parameter) else module.state_dict()


def load_modules(modules: dict[str, nn.Module | nn.Parameter], states: dict[str, Any]) -> None:
    """Fill modules from a checkpoint's states, strictly."""
    for name, module in modules.items():
        if isinstance(module, nn.Parameter):
            module.data.copy_(states[name])
        else:
            module.load_state_dict(states[name])


def train_vision(run: Path, minutes: float, rate: float) -> None:
    """Eyes alone, on drawn pictures with targets for every cell."""
    import numpy as np
    from pictures import stock
    from vision import SeeingHeads, normalised, see, seeing_accuracy, seeing_loss
    from world import SIDE

    model = new_model(800)
    heads = SeeingHeads(model.config.vision_config.hidden_size)
    crowds, scenes = stock(run / "pictures", _CROWDS, packed=True), stock(run / "pictures", _SCENES)
    watched = np.arange(len(scenes.scenes) - 500, len(scenes.scenes))  # never trained on
    assert model.query_tokens is not None
    assert model.qformer is not None
    queries = torch.optim.AdamW([model.query_tokens], lr=rate * 2e-3, weight_decay=0)
    queries.param_groups[0]["initial_lr"] = rate * 2e-3
    # Full pictures and rare looks are where eyes fail: they come more often, less so towards the end.
    rare = [sum(abs(t.turn) > 24 or t.style == "hollow" for t in s.things) for s in scenes.scenes[: watched[0]]]
    lessons = scenes.counts[: watched[0]] + 1.5 * np.array(rare)
    lessons /= lessons.sum()
    grain = 0.03 * torch.randn(160, 3, SIDE, SIDE)  # drawing new noise for every picture costs more than it teaches
    modules = {"vision": model.vision_model, "qformer": model.qformer, "queries": model.query_tokens, "heads": heads}
    training = Training(
        run / "vision.pt",
        modules,
        [*optimizers([model.vision_model, model.qformer, heads], rate * 2e-3), queries],
        minutes,
    )

    def loss(step: int, progress: float) -> torch.Tensor:
        rng = np.random.default_rng(step)
        crowded = rng.random() < rate * (1 - 1.4 * progress)
        source, batch = (crowds, 32) if crowded else (scenes, 48)
        if crowded:
            rows = rng.integers(0, len(crowds.scenes), batch)
        else:
            rows = rng.choice(watched[0], batch, p=lessons if rng.random() > progress else None)
        pixels = normalised(source.pictures[rows])
        # Pictures come lighter and darker, and never twice the same.
        at = int(rng.integers(0, len(grain) - batch))
        pixels = pixels * (0.9 + 0.2 * torch.rand(batch, 1, 1, 1)) + grain[at : at + batch]
        patches, cells = see(model, pixels)
        return seeing_loss(heads, patches, cells, source, rows)

    @torch.no_grad()
    def watch() -> str:
        _, cells = see(model, normalised(scenes.pictures[watched]))
        return " ".join(f"{name} {value:.3f}" for name, value in seeing_accuracy(heads, cells, scenes, watched).items())

    training.run(loss, watch, every=50)


def tokenizer_of(run: Path) -> Any:
    """The run's vocabulary, made when it is asked for first."""
    from tokens import make_vocabulary

    from minigpt4_serve.model import MiniGPT4Tokenizer

    file = run / "tokenizer.model"
    if not file.exists():
        run.mkdir(parents=True, exist_ok=True)
        make_vocabulary(file)
    return MiniGPT4Tokenizer(str(file))


class _Exactness:
    """Running shares of exact answers by kind; what is being learnt is asked more than what is known or far off."""

    def __init__(self) -> None:
        self.shares: dict[str, float] = {}

    def note(self, exact: dict[str, list[bool]]) -> None:
        for kind, hits in exact.items():
            share = sum(hits) / len(hits)
            self.shares[kind] = 0.97 * self.shares.get(kind, share) + 0.03 * share

    def weights(self) -> dict[str, float]:
        from questions import KINDS_OF_QUESTION

        shares = {kind: self.shares.get(kind, 0.5) for kind in KINDS_OF_QUESTION}
        return {
            kind: weight * (0.3 + 4 * shares[kind] * (1 - shares[kind])) for kind, weight in KINDS_OF_QUESTION.items()
        }

    def __str__(self) -> str:
        return " ".join(f"{kind} {share:.2f}" for kind, share in sorted(self.shares.items()))


def train_oracle(run: Path, minutes: float) -> None:
    """The LLM alone, told by perfect eyes what there is. No picture is drawn."""
    import random
    from dataclasses import replace

    import numpy as np
    from speech import Oracle, dialogues, in_order, spoken_loss
    from world import scene

    tokenizer = tokenizer_of(run)
    model = new_model(tokenizer.vocab_size)
    model.language_model.set_attn_implementation("bins")
    oracle = Oracle(model, tokenizer)
    modules: dict[str, nn.Module | nn.Parameter] = {"language": model.language_model, "oracle": oracle}
    training = Training(
        run / "oracle.pt", modules, optimizers([model.language_model.model, oracle], 2e-3), minutes, warm_steps=150
    )
    exactness = _Exactness()

    def loss(step: int, progress: float) -> torch.Tensor:
        rng = random.Random(f"oracle {step}")
        scenes, owners = [], []
        for _ in range(12):
            # Few things at first: finding the one that is asked for comes before comparing them.
            one = scene(rng, most=4 if rng.random() < 0.3 + 3 * progress else 2)
            things, cells = in_order(one, np.array([rng.random() * 0.6 for _ in range(16)], np.float32))
            scenes.append(replace(one, things=tuple(things)))
            owners.append(cells)
        rows = oracle.rows(scenes, owners, model.get_input_embeddings())
        rows = rows + rows.detach().std() * 0.15 * torch.randn_like(rows)
        asked = [dialogues(one, rng, tokenizer, exactness.weights()) for one in scenes]
        value, exact = spoken_loss(model, tokenizer, rows, asked, list(zip(scenes, owners, strict=True)))
        exactness.note(exact)
        return value

    training.run(loss, lambda: str(exactness), every=50)


def eyes_of(run: Path, model: Any) -> Any:
    """Fill the model's eyes from the stage ``vision``; returns the heads that were trained with them."""
    from vision import SeeingHeads

    heads = SeeingHeads(model.config.vision_config.hidden_size)
    modules = {"vision": model.vision_model, "qformer": model.qformer, "queries": model.query_tokens, "heads": heads}
    load_modules(modules, torch.load(run / "vision.pt", weights_only=True)["modules"])
    return heads


@torch.no_grad()
def look(run: Path) -> None:
    """What the trained eyes make of new pictures: rows of the Q-Former and which cells they claim to see."""
    import numpy as np
    from pictures import stock
    from vision import normalised, presence_of, see

    model = new_model(tokenizer_of(run).vocab_size).eval()
    heads = eyes_of(run, model).eval()
    scenes = stock(run / "pictures", _UNSEEN)
    torch.manual_seed(0)
    rows, presence = [], []
    for start in range(0, len(scenes.scenes), 100):
        pixels = normalised(scenes.pictures[start : start + 100])
        pixels = pixels * (0.93 + 0.14 * torch.rand(len(pixels), 1, 1, 1)) + 0.02 * torch.randn_like(pixels)
        _, cells = see(model, pixels)
        rows.append(cells.half())
        presence.append(presence_of(heads, cells))
        print(f"\rlooking: {start + 100:,} of {len(scenes.scenes):,}", end="", flush=True)
    print()
    torch.save({"rows": torch.cat(rows), "presence": torch.from_numpy(np.concatenate(presence))}, run / "seen.pt")


@torch.no_grad()
def fit_projection(run: Path) -> None:
    """The projection in closed form: ridge regression from what the eyes give to what the LLM learnt to be told."""
    from dataclasses import replace

    from pictures import stock
    from speech import Oracle, in_order

    tokenizer = tokenizer_of(run)
    model = new_model(tokenizer.vocab_size)
    oracle = Oracle(model, tokenizer)
    held = torch.load(run / "oracle.pt", weights_only=True)["modules"]
    load_modules({"language": model.language_model, "oracle": oracle}, held)
    seen = torch.load(run / "seen.pt", weights_only=True)
    scenes = stock(run / "pictures", _UNSEEN[:1]).scenes[:3000]
    ordered = [in_order(one, seen["presence"][n].numpy()) for n, one in enumerate(scenes)]
    told = oracle.rows(
        [replace(one, things=tuple(things)) for one, (things, _) in zip(scenes, ordered, strict=True)],
        [cells for _, cells in ordered],
        model.get_input_embeddings(),
    )
    _regress(model.language_projection, seen["rows"][: len(scenes)].float(), told)
    eyes_of(run, model)
    torch.save(model.state_dict(), run / "joined.pt")


@torch.no_grad()
def refit_projection(run: Path) -> None:
    """A model that could speak before its eyes were trained further: what they give now becomes what it was told."""
    from pictures import stock
    from vision import normalised, see

    model = new_model(tokenizer_of(run).vocab_size).eval()
    model.load_state_dict(torch.load(run / "joined.pt", weights_only=True))
    given = torch.load(run / "seen.pt", weights_only=True)["rows"][:4000].float()
    pictures = stock(run / "pictures", _UNSEEN[:1]).pictures[:4000]
    before = torch.cat([see(model, normalised(pictures[i : i + 100]))[1] for i in range(0, len(pictures), 100)])
    _regress(model.language_projection, given, model.language_projection(before))
    eyes_of(run, model)
    torch.save(model.state_dict(), run / "joined.pt")


def _regress(projection: nn.Linear, given: torch.Tensor, wanted: torch.Tensor) -> None:
    """Fit the projection so that it makes ``wanted`` from ``given``, ``[N, QUERIES, width]`` each."""
    given, wanted = given.flatten(0, 1), wanted.flatten(0, 1)
    middle, aim = given.mean(0), wanted.mean(0)
    squares = (given - middle).T @ (given - middle)
    squares += 1e-3 * squares.diagonal().mean() * torch.eye(len(squares))
    weight = torch.linalg.solve(squares, (given - middle).T @ (wanted - aim))  # [eyes, hidden]
    left = wanted - aim - (given - middle) @ weight
    print(f"projection: R² {1 - left.square().sum().item() / (wanted - aim).square().sum().item():.3f}")
    projection.weight.copy_(weight.T)
    projection.bias.copy_(aim - middle @ weight)


def tune(rank: int, run: Path, minutes: float, processes: int) -> None:
    """Projection and LLM on what the trained eyes see; the eyes stay as they are. Processes share every step."""
    import random
    from dataclasses import replace

    import numpy as np
    from pictures import stock
    from speech import dialogues, in_order, spoken_loss

    if processes > 1:
        torch.set_num_threads(1)
        meeting = f"file://{(run / 'meeting').resolve()}"
        distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=processes)
    tokenizer = tokenizer_of(run)
    model = new_model(tokenizer.vocab_size)
    model.load_state_dict(torch.load(run / "joined.pt", weights_only=True))
    model.language_model.set_attn_implementation("bins")
    seen = torch.load(run / "seen.pt", weights_only=True)
    scenes = stock(run / "pictures", _UNSEEN).scenes
    modules: dict[str, nn.Module | nn.Parameter] = {
        "language": model.language_model,
        "projection": model.language_projection,
    }
    trained = [model.language_model.model, model.language_projection]
    training = Training(run / "tune.pt", modules, optimizers(trained, 1.5e-3), minutes)
    exactness = _Exactness()

    def loss(step: int, progress: float) -> torch.Tensor:
        rng = random.Random(f"tune {step} {rank}")
        picked = rng.sample(range(len(scenes)), 12)
        shown = []
        for n in picked:
            things, owners = in_order(scenes[n], seen["presence"][n].numpy())
            shown.append((replace(scenes[n], things=tuple(things)), owners))
        asked = [dialogues(one, rng, tokenizer, exactness.weights()) for one, _ in shown]
        rows = model.language_projection(seen["rows"][torch.from_numpy(np.array(picked))].float())
        value, exact = spoken_loss(model, tokenizer, rows, asked, shown)
        exactness.note(exact)
        return value

    training.run(loss, lambda: str(exactness), every=50)
    if rank == 0:
        torch.save(model.state_dict(), run / "tuned.pt")
    if distributed.is_initialized():
        distributed.destroy_process_group()


def export(run: Path, out: Path) -> None:
    """The model as a Hugging Face folder in bfloat16, with its example picture."""
    import json

    from evaluate import answers, load
    from network import QUERIES
    from questions import Dialogue
    from safetensors.torch import save_file
    from world import SIDE, draw, example

    from minigpt4_serve.model import MiniGPT4ImageProcessor, MiniGPT4Processor

    tokenizer = tokenizer_of(run)
    model = new_model(tokenizer.vocab_size)
    tuned = run / "tuned.pt"
    model.load_state_dict(torch.load(tuned if tuned.exists() else run / "joined.pt", weights_only=True))
    if not tuned.exists() and (run / "tune.pt").exists():
        held = torch.load(run / "tune.pt", weights_only=True)["modules"]
        load_modules({"language": model.language_model, "projection": model.language_projection}, held)
    model.config.name_or_path = model.name_or_path = ""
    model.to(torch.bfloat16).save_pretrained(out)
    processor = MiniGPT4Processor(
        MiniGPT4ImageProcessor(SIDE),
        tokenizer,
        conversation_format=model.config.conversation_format,
        num_image_tokens=QUERIES,
        image_token_id=model.config.image_token_id,
    )
    processor.save_pretrained(out)
    save_file({name: tensor.contiguous() for name, tensor in eyes_of(run, model).state_dict().items()}, HEADS)
    picture = draw(example(), side=480)
    picture.save(out / "example.png", optimize=True)
    question = "What is in this picture?"
    (answer,) = answers(*load(out), [(picture, Dialogue("short", ((question, ""),)))])
    selftest = {"image": "example.png", "question": question, "answer": answer}
    (out / "selftest.json").write_text(json.dumps(selftest, indent=2) + "\n", encoding="utf-8")
    print(answer)


def begin(run: Path, folder: Path) -> None:
    """A new run from a model that was exported before, so that training goes on from what is committed.

    The optimizers start afresh; ``vision`` can go on, then ``ridge`` (which lets the projection follow) and ``tune``.
    """
    import shutil

    from evaluate import load
    from safetensors.torch import load_file
    from vision import SeeingHeads

    model, _ = load(folder)
    heads = SeeingHeads(model.config.vision_config.hidden_size)
    heads.load_state_dict(load_file(HEADS))
    run.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "tokenizer.model", run / "tokenizer.model")
    modules = {"vision": model.vision_model, "qformer": model.qformer, "queries": model.query_tokens, "heads": heads}
    states = {name: state_of(module) for name, module in modules.items()}
    torch.save({"modules": states, "optimizers": [], "step": 0, "spent": 0.0}, run / "vision.pt")
    torch.save(model.state_dict(), run / "joined.pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the run's pictures and checkpoints")
    parser.add_argument("stage", choices=("begin", "pictures", "vision", "oracle", "ridge", "tune", "export"))
    parser.add_argument("--minutes", type=float, default=35.0, help="length of the stage vision, oracle or tune")
    parser.add_argument("--rate", type=float, default=1.0, help="of the stage vision: less than 1 to go on gently")
    parser.add_argument("--processes", type=int, default=2, help="for drawing and for tune")
    parser.add_argument(
        "--out", type=Path, default=Path("minigpt4_serve/weights/tiny"), help="for export, and for begin"
    )
    given = parser.parse_args()
    if given.stage == "begin":
        begin(given.run, given.out)
    elif given.stage == "pictures":
        from pictures import render

        render(given.run / "pictures", shards=_UNSEEN.stop, packed=len(_CROWDS), processes=given.processes)
    elif given.stage == "vision":
        train_vision(given.run, given.minutes, given.rate)
    elif given.stage == "oracle":
        train_oracle(given.run, given.minutes)
    elif given.stage == "ridge":
        look(given.run)
        if (given.run / "oracle.pt").exists():
            fit_projection(given.run)
        else:
            refit_projection(given.run)
    elif given.stage == "tune":
        (given.run / "meeting").unlink(missing_ok=True)
        if given.processes > 1:
            torch.multiprocessing.spawn(tune, args=(given.run, given.minutes, given.processes), nprocs=given.processes)
        else:
            tune(0, given.run, given.minutes, 1)
    else:
        export(given.run, given.out)


if __name__ == "__main__":
    main()
