"""The stages of a training run. Each reads results of earlier stages from the run's folder and writes its own there."""

import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import distributed, nn
from torch.multiprocessing.spawn import ProcessException, spawn

from minigpt4_serve.errors import InvalidRequest, MiniGPT4Error
from minigpt4_serve.model import (
    MiniGPT4ForConditionalGeneration,
    MiniGPT4ImageProcessor,
    MiniGPT4Processor,
    MiniGPT4Tokenizer,
)
from tools.tiny.config import StageName, TrainConfig, TrainingBudget
from tools.tiny.evaluate import answers, load
from tools.tiny.language import LanguageLoss, OracleEncoder, assign_scene, pack_dialogues
from tools.tiny.network import CELLS, QUERIES, new_model, new_optimizers
from tools.tiny.questions import KINDS_OF_QUESTION, Dialogue
from tools.tiny.shards import ShardKind, Shards, render_shards
from tools.tiny.tokens import make_vocabulary
from tools.tiny.trainer import (
    Step,
    Trainer,
    TrainingTask,
    random_seeds,
    read_result,
    sum_over_processes,
    write_result,
)
from tools.tiny.vision import (
    VisionNetwork,
    normalize,
    predicted_presence,
    vision_accuracy,
    vision_losses,
    weighted_sum,
)
from tools.tiny.worker import end_with_parent
from tools.tiny.world import SIDE, draw, example, scene

__all__ = ["AccuracyByKind", "FinetuneTask", "LanguageTask", "Run", "VisionTask", "fit_linear", "run_stage"]

_FEATURE_BATCH = 100
_EXAMPLE_QUESTION = "What is in this picture?"


@dataclass(frozen=True)
class Run:
    """A configuration and the folder of its results.

    Attributes:
        folder: holds shards, ``tokenizer.model`` and ``tokenizer.json`` (the settings that it was made with), and a
            result file for each stage.
    """

    config: TrainConfig
    folder: Path

    def file(self, stage: StageName) -> Path:
        """The result of a stage."""
        return self.folder / f"{stage}.pt"

    @property
    def features(self) -> Path:
        """Cached features of the stage ``fit-projection``."""
        return self.folder / "features.pt"

    def shards(self, kind: ShardKind, numbers: Sequence[int]) -> Shards:
        """Rendered shards."""
        return Shards(self.folder / "shards", kind, numbers, self.config.data.shard_size)

    def language_shards(self) -> Shards:
        """Shards that vision training never sees."""
        data = self.config.data
        return self.shards("scenes", range(data.vision_shards, data.vision_shards + data.language_shards))

    def tokenizer(self) -> MiniGPT4Tokenizer:
        """The run's tokenizer; the first call copies or trains it.

        Raises:
            InvalidRequest: the one in the run's folder was made with other settings.
        """
        file = self.folder / "tokenizer.model"
        settings_file = self.folder / "tokenizer.json"
        settings = self._tokenizer_settings()
        if not file.exists():
            self._make_tokenizer(file, settings_file, settings)
        elif not settings_file.exists() or json.loads(settings_file.read_text(encoding="utf-8")) != settings:
            raise InvalidRequest(
                f"{file} was made with other settings: use the same configuration, use another run folder, or delete "
                "the file."
            )
        return MiniGPT4Tokenizer(str(file))

    def _tokenizer_settings(self) -> dict[str, Any]:
        """Where the tokenizer comes from: a file, or training with a size."""
        config = self.config
        if config.initialize is not None:
            return {"file": str(config.initialize.model / "tokenizer.model")}
        if config.tokenizer is not None:
            return {"file": str(config.tokenizer)}
        return {"vocabulary_size": config.model.vocabulary_size}

    def _make_tokenizer(self, file: Path, settings_file: Path, settings: dict[str, Any]) -> None:
        """Settings are written first: where a tokenizer exists, so do they. Stages that run side by side both write."""
        self.folder.mkdir(parents=True, exist_ok=True)
        partial_settings = self.folder / f"tokenizer-{os.getpid()}.json"
        partial_settings.write_text(json.dumps(settings) + "\n", encoding="utf-8")
        partial_settings.replace(settings_file)
        partial = self.folder / f"tokenizer-{os.getpid()}.model"
        if "file" in settings:
            shutil.copy(settings["file"], partial)
        else:
            partial.write_bytes(make_vocabulary(settings["vocabulary_size"]))
        partial.replace(file)

    def new_model(self) -> MiniGPT4ForConditionalGeneration:
        """A model with the weights that the run starts from, in training mode."""
        model = new_model(self.config.model, self.tokenizer().vocab_size, seed=self.config.seed)
        if self.config.initialize is not None:
            initial, _ = load(self.config.initialize.model)
            _load_matching(model, initial.state_dict(), self.config.initialize.model)
        return model

    def new_vision_network(self, model: MiniGPT4ForConditionalGeneration) -> VisionNetwork:
        """The model's vision part with the heads that the run starts from."""
        network = VisionNetwork(model)
        if self.config.initialize is not None:
            _load_matching(network.heads, load_file(self.config.initialize.heads), self.config.initialize.heads)
        return network

    def result(self, stage: StageName) -> dict[str, Any]:
        """The result of a finished stage.

        Raises:
            InvalidRequest: the stage hasn't run, hasn't finished, or ran with other settings.
        """
        file = self.file(stage)
        if not file.exists():
            raise InvalidRequest(f"There is no {file}: run the stage '{stage}' first.")
        state = read_result(file, self.config.stage_inputs(stage))
        budget = self.budget(stage)
        if budget is not None and len(state["losses"]) < budget.steps:
            raise InvalidRequest(
                f"The stage '{stage}' has done {len(state['losses']):,} of {budget.steps:,} steps: resume it first."
            )
        return state

    def budget(self, stage: StageName) -> TrainingBudget | None:
        """The budget of a training stage; None for other stages."""
        config = self.config
        budgets: dict[StageName, TrainingBudget | None] = {
            "vision": config.vision,
            "language": config.language,
            "finetune": config.finetune,
        }
        return budgets.get(stage)


def _load_matching(module: nn.Module, state: Mapping[str, torch.Tensor], source: Path) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise InvalidRequest(f"The weights in {source} don't fit the dimensions of the section 'model'.") from error


class VisionTask:
    """Vision encoder and Q-Former on rendered scenes; dense ones first."""

    name = "vision"

    def __init__(self, run: Run) -> None:
        self._config = run.config.vision
        data = run.config.data
        self.network = run.new_vision_network(run.new_model())
        self.optimizers = new_optimizers([self.network], self._config.learning_rate)
        self._dense = run.shards("dense", range(data.dense_shards))
        self._scenes = run.shards("scenes", range(data.vision_shards))
        self._trained = len(self._scenes) - data.validation_images
        rare = [
            sum(abs(thing.rotation) > 24 or thing.style == "hollow" for thing in one.things)
            for one in self._scenes.scenes[: self._trained]
        ]
        weights = self._scenes.counts[: self._trained] + self._config.rare_weight * np.array(rare)
        self._sampling_weights = weights / weights.sum()
        _, _, seed = random_seeds(run.config.seed, "vision noise")
        generator = torch.Generator().manual_seed(seed)
        shape = (self._config.noise_pool, 3, SIDE, SIDE)
        self._noise = self._config.noise * torch.randn(shape, generator=generator)

    def loss(self, step: Step) -> torch.Tensor:
        """See ``TrainingTask``."""
        config = self._config
        dense = step.numpy.random() < config.dense_probability * max(0.0, 1 - step.progress / config.dense_until)
        if dense:
            shards = self._dense
            size = config.dense_batch_size
            indices = step.numpy.integers(0, len(shards), size)
        else:
            shards = self._scenes
            size = config.batch_size
            by_weight = step.numpy.random() > step.progress
            indices = step.numpy.choice(self._trained, size, p=self._sampling_weights if by_weight else None)
        batch = shards.batch(indices)
        low, high = config.brightness
        brightness = low + (high - low) * torch.rand(size, 1, 1, 1, generator=step.torch)
        first = int(step.numpy.integers(0, len(self._noise) - size + 1))
        pixels = normalize(batch.images) * brightness + self._noise[first : first + size]
        patches, queries = self.network(pixels)
        losses = vision_losses(self.network.heads, patches, queries, batch, config.loss_weights.empty_class)
        return weighted_sum(losses, config.loss_weights)

    @torch.no_grad()
    def report(self) -> str:
        """Accuracy on the held-out images."""
        batch = self._scenes.batch(np.arange(self._trained, len(self._scenes)))
        _, queries = self.network(normalize(batch.images))
        accuracy = vision_accuracy(self.network.heads, queries, batch)
        return "accuracy: " + ", ".join(f"{name} {value:.3f}" for name, value in accuracy.items())

    def state(self) -> dict[str, Any]:
        """Nothing beyond weights."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Nothing beyond weights."""


@dataclass
class AccuracyByKind:
    """Running accuracy of answers by kind of question, equal in all processes.

    Attributes:
        accuracy: exponential moving averages in 0 … 1; kinds without a question so far are missing.
    """

    accuracy: dict[str, float] = field(default_factory=dict)

    def update(self, exact: Mapping[str, Sequence[bool]]) -> None:
        """Include a step's answers, of all processes."""
        kinds = tuple(KINDS_OF_QUESTION)
        counts = torch.tensor([[sum(exact.get(kind, ())), len(exact.get(kind, ()))] for kind in kinds])
        for kind, (right, asked) in zip(kinds, sum_over_processes(counts).tolist(), strict=True):
            if asked:
                share = right / asked
                self.accuracy[kind] = 0.97 * self.accuracy.get(kind, share) + 0.03 * share

    def sampling_weights(self) -> dict[str, float]:
        """Weights of the kinds in the next step: ``KINDS_OF_QUESTION``, increased for those of medium accuracy."""
        accuracy = {kind: self.accuracy.get(kind, 0.5) for kind in KINDS_OF_QUESTION}
        return {
            kind: weight * (0.3 + 4 * accuracy[kind] * (1 - accuracy[kind]))
            for kind, weight in KINDS_OF_QUESTION.items()
        }

    def __str__(self) -> str:
        return "exact: " + ", ".join(f"{kind} {share:.2f}" for kind, share in sorted(self.accuracy.items()))


class _LanguageModelTask:
    """Common parts of the stages that train the language model."""

    network: nn.Module
    optimizers: Sequence[torch.optim.Optimizer]

    def __init__(self) -> None:
        self._accuracy = AccuracyByKind()

    def report(self) -> str:
        """Running accuracy of answers."""
        return str(self._accuracy)

    def state(self) -> dict[str, Any]:
        """The running accuracy, which sampling weights depend on."""
        return {"accuracy": dict(self._accuracy.accuracy)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore ``state``."""
        self._accuracy = AccuracyByKind(dict(state["accuracy"]))


class LanguageTask(_LanguageModelTask):
    """The language model on oracle features of random scenes. Needs no image."""

    name = "language"

    def __init__(self, run: Run) -> None:
        super().__init__()
        assert run.config.language is not None
        self._config = run.config.language
        self._tokenizer = run.tokenizer()
        model = run.new_model()
        self._embeddings = model.get_input_embeddings()
        self._oracle = OracleEncoder(model.config.text_config.hidden_size, self._tokenizer)
        self._loss = LanguageLoss(model, self._tokenizer, self._config.loss_weights)
        self.network = nn.ModuleDict({"language_model": model.language_model, "oracle": self._oracle})
        self.optimizers = new_optimizers([model.language_model.model, self._oracle], self._config.learning_rate)

    def loss(self, step: Step) -> torch.Tensor:
        """See ``TrainingTask``."""
        config = self._config
        rng = step.python
        simple = config.simple_scenes * max(0.0, 1 - step.progress / config.simple_until)
        assigned = []
        for _ in range(config.scenes_per_step):
            one = scene(rng, most=2 if rng.random() < simple else 4)
            presence = np.array([rng.random() * 0.6 for _ in range(CELLS * CELLS)], np.float32)
            assigned.append(assign_scene(one, presence))
        features = self._oracle(assigned, self._embeddings.weight)
        noise = torch.randn(features.shape, generator=step.torch)
        features = features + features.detach().std() * config.feature_noise * noise
        weights = self._accuracy.sampling_weights()
        packed = [
            pack_dialogues(one.scene, rng, self._tokenizer, weights, config.loss_weights.key_word) for one in assigned
        ]
        loss, exact = self._loss(features, packed, assigned)
        self._accuracy.update(exact)
        return loss


class FinetuneTask(_LanguageModelTask):
    """Projection and language model on cached features of rendered images."""

    name = "finetune"

    def __init__(self, run: Run) -> None:
        super().__init__()
        self._config = run.config.finetune
        self._tokenizer = run.tokenizer()
        model = run.new_model()
        model.load_state_dict(run.result("fit-projection")["model"])
        features = read_result(run.features, run.config.stage_inputs("fit-projection"))
        self._queries = features["queries"]
        self._presence = features["presence"]
        self._scenes = run.language_shards().scenes
        self._projection = model.language_projection
        self._loss = LanguageLoss(model, self._tokenizer, self._config.loss_weights)
        self.network = nn.ModuleDict({"language_model": model.language_model, "projection": self._projection})
        trained = [model.language_model.model, self._projection]
        self.optimizers = new_optimizers(trained, self._config.learning_rate)

    def loss(self, step: Step) -> torch.Tensor:
        """See ``TrainingTask``."""
        config = self._config
        rng = step.python
        indices = rng.sample(range(len(self._scenes)), config.scenes_per_step)
        assigned = [assign_scene(self._scenes[n], self._presence[n].numpy()) for n in indices]
        weights = self._accuracy.sampling_weights()
        packed = [
            pack_dialogues(one.scene, rng, self._tokenizer, weights, config.loss_weights.key_word) for one in assigned
        ]
        image_tokens = self._projection(self._queries[torch.tensor(indices)].float())
        loss, exact = self._loss(image_tokens, packed, assigned)
        self._accuracy.update(exact)
        return loss


def _train(run: Run, stage: StageName) -> None:
    """Run a training stage in as many processes as its budget says."""
    budget = run.budget(stage)
    assert budget is not None
    run.folder.mkdir(parents=True, exist_ok=True)
    if budget.processes == 1:
        _train_in_process(run, stage)
        return
    run.tokenizer()  # written once, before several processes read it
    if stage == "finetune":
        run.result("fit-projection")  # a missing result is reported once, not by every process
    rendezvous = run.folder / f"{stage}.rendezvous"
    rendezvous.unlink(missing_ok=True)  # of a run that was killed
    errors = multiprocessing.get_context("spawn").SimpleQueue()
    try:
        spawn(_train_in_worker, args=(run, stage, budget.processes, rendezvous, errors), nprocs=budget.processes)
    except ProcessException:
        if errors.empty():
            raise
    finally:
        rendezvous.unlink(missing_ok=True)
    if not errors.empty():
        raise errors.get()


def _train_in_worker(
    rank: int, run: Run, stage: StageName, processes: int, rendezvous: Path, errors: "SimpleQueue[MiniGPT4Error]"
) -> None:
    """Train in one of several data-parallel processes. Puts a ``MiniGPT4Error`` into ``errors`` and returns."""
    end_with_parent()
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all processes are on this machine
    distributed.init_process_group("gloo", init_method=rendezvous.resolve().as_uri(), rank=rank, world_size=processes)
    try:
        _train_in_process(run, stage)
    except MiniGPT4Error as error:
        errors.put(error)
    finally:
        distributed.destroy_process_group()


def _train_in_process(run: Run, stage: StageName) -> None:
    budget = run.budget(stage)
    assert budget is not None
    torch.set_num_threads(run.config.threads)
    tasks: dict[StageName, Callable[[Run], TrainingTask]] = {
        "vision": VisionTask,
        "language": LanguageTask,
        "finetune": FinetuneTask,
    }
    trainer = Trainer(
        tasks[stage](run),
        run.file(stage),
        budget=budget,
        seed=run.config.seed,
        inputs=run.config.stage_inputs(stage),
        checkpoint_steps=run.config.checkpoint_steps,
        log_steps=run.config.log_steps,
    )
    trainer.run()


@torch.no_grad()
def _cache_features(run: Run, model: MiniGPT4ForConditionalGeneration) -> dict[str, Any]:
    """Outputs of the trained vision encoder and Q-Former for the language shards.

    Fills ``model``'s vision part with the result of the stage ``vision``.

    Returns:
        ``queries`` float16 ``[images, QUERIES, width]``; ``presence`` float32 ``[images, CELLS²]``.
    """
    network = VisionNetwork(model)
    network.load_state_dict(run.result("vision")["network"])
    inputs = run.config.stage_inputs("fit-projection")
    if run.features.exists():
        return read_result(run.features, inputs)
    network.eval()
    config = run.config.fit_projection
    shards = run.language_shards()
    _, _, seed = random_seeds(run.config.seed, "feature noise")
    generator = torch.Generator().manual_seed(seed)
    low, high = config.brightness
    queries = []
    presence = []
    for start in range(0, len(shards), _FEATURE_BATCH):
        pixels = normalize(shards.images(range(start, min(start + _FEATURE_BATCH, len(shards)))))
        brightness = low + (high - low) * torch.rand(len(pixels), 1, 1, 1, generator=generator)
        pixels = pixels * brightness + config.noise * torch.randn(pixels.shape, generator=generator)
        _, of_batch = network(pixels)
        queries.append(of_batch.half())
        presence.append(torch.from_numpy(predicted_presence(network.heads, of_batch)))
    features = {"queries": torch.cat(queries), "presence": torch.cat(presence)}
    write_result(run.features, inputs, features)
    return features


@torch.no_grad()
def _fit_projection(run: Run) -> None:
    """Cache features, and fit the projection to the inputs that the language model was trained on."""
    torch.set_num_threads(run.config.threads)
    target_model = run.new_model().eval()
    model = run.new_model().eval()
    features = _cache_features(run, model)
    count = run.config.fit_projection.images
    scenes = run.language_shards()
    if run.config.language is not None:
        tokenizer = run.tokenizer()
        oracle = OracleEncoder(model.config.text_config.hidden_size, tokenizer)
        language = nn.ModuleDict({"language_model": model.language_model, "oracle": oracle})
        language.load_state_dict(run.result("language")["network"])
        assigned = [assign_scene(scenes.scenes[n], features["presence"][n].numpy()) for n in range(count)]
        target = oracle(assigned, model.get_input_embeddings().weight)
    else:  # the initial model's projection of the initial model's features
        network = VisionNetwork(target_model)
        batches = [range(i, min(i + _FEATURE_BATCH, count)) for i in range(0, count, _FEATURE_BATCH)]
        queries = torch.cat([network(normalize(scenes.images(batch)))[1] for batch in batches])
        target = target_model.language_projection(queries)
    r_squared = fit_linear(
        model.language_projection, features["queries"][:count].float(), target, run.config.fit_projection.ridge
    )
    print(f"fit-projection: R² {r_squared:.3f}", flush=True)
    write_result(run.file("fit-projection"), run.config.stage_inputs("fit-projection"), {"model": model.state_dict()})


@torch.no_grad()
def fit_linear(projection: nn.Linear, inputs: torch.Tensor, target: torch.Tensor, ridge: float) -> float:
    """Fit a linear layer by ridge regression.

    Args:
        inputs: ``[..., in_features]``.
        target: ``[..., out_features]``.
        ridge: regularization as a fraction of the mean squared input (around its mean).

    Returns:
        R², the share of the target's variance that the layer explains.
    """
    inputs = inputs.flatten(0, -2)
    target = target.flatten(0, -2)
    input_mean = inputs.mean(0)
    target_mean = target.mean(0)
    centered = inputs - input_mean
    residual = target - target_mean
    gram = centered.T @ centered
    gram += ridge * gram.diagonal().mean() * torch.eye(len(gram))
    weight = torch.linalg.solve(gram, centered.T @ residual)  # [in_features, out_features]
    projection.weight.copy_(weight.T)
    projection.bias.copy_(target_mean - input_mean @ weight)
    unexplained = (residual - centered @ weight).square().sum() / residual.square().sum()
    return 1 - float(unexplained)


def _export(run: Run, out: Path) -> None:
    """Write the model as a Hugging Face folder in bfloat16, with an example image and a self-test; and the vision heads
    to ``heads.safetensors`` in the run's folder.
    """
    torch.set_num_threads(run.config.threads)
    tokenizer = run.tokenizer()
    model = run.new_model()
    model.load_state_dict(run.result("fit-projection")["model"])
    finetuned = nn.ModuleDict({"language_model": model.language_model, "projection": model.language_projection})
    finetuned.load_state_dict(run.result("finetune")["network"])
    network = VisionNetwork(model)
    network.load_state_dict(run.result("vision")["network"])
    heads = {name: tensor.contiguous() for name, tensor in network.heads.state_dict().items()}
    save_file(heads, run.folder / "heads.safetensors")
    model.config.name_or_path = model.name_or_path = ""
    nn.Module.to(model, torch.bfloat16)
    model.save_pretrained(out)
    processor = MiniGPT4Processor(
        MiniGPT4ImageProcessor(SIDE),
        tokenizer,
        conversation_format=model.config.conversation_format,
        num_image_tokens=QUERIES,
        image_token_id=model.config.image_token_id,
    )
    processor.save_pretrained(out)
    image = draw(example(), side=480)
    image.save(out / "example.png", optimize=True)
    (answer,) = answers(*load(out), [(image, Dialogue("short", ((_EXAMPLE_QUESTION, ""),)))])
    self_test = {"image": "example.png", "question": _EXAMPLE_QUESTION, "answer": answer}
    (out / "selftest.json").write_text(json.dumps(self_test, indent=2) + "\n", encoding="utf-8")
    print(f"export: {out}, which answers {answer!r} about its example image", flush=True)


def run_stage(run: Run, stage: StageName, *, out: Path | None = None) -> None:
    """Run a stage, or resume it. A stage that is finished does nothing, except that ``export`` writes its folder again.

    Args:
        out: the folder of ``export``; ``model`` in the run's folder if not given.

    Raises:
        InvalidRequest: a stage that it needs isn't finished, or the run's folder belongs to other settings.
        TrainingDiverged: the loss isn't finite.
    """
    if stage == "render":
        config = run.config
        render_shards(run.folder / "shards", config.data, processes=config.render_processes)
    elif stage == "fit-projection":
        if run.file(stage).exists():
            run.result(stage)
            print(f"{stage}: finished", flush=True)
        else:
            _fit_projection(run)
    elif stage == "export":
        _export(run, out or run.folder / "model")
    elif run.file(stage).exists() and _is_finished(run, stage):
        print(f"{stage}: finished", flush=True)
    else:
        _train(run, stage)


def _is_finished(run: Run, stage: StageName) -> bool:
    budget = run.budget(stage)
    state = read_result(run.file(stage), run.config.stage_inputs(stage))
    return budget is not None and len(state["losses"]) >= budget.steps
