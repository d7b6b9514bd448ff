"""The configuration of a training run: read once from a YAML file, checked as a whole, immutable.

Every number that decides what a run computes is here, loss weights included. Unknown keys are refused.
"""

from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from minigpt4_serve.errors import InvalidRequest

__all__ = [
    "DataConfig",
    "FinetuneConfig",
    "FitProjectionConfig",
    "InitialWeights",
    "LanguageConfig",
    "LanguageLossWeights",
    "ModelConfig",
    "StageName",
    "TrainConfig",
    "TrainingBudget",
    "VisionConfig",
    "VisionLossWeights",
]

StageName = Literal["render", "vision", "language", "fit-projection", "finetune", "export"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(_Section):
    """Dimensions of the model. Its image is 112 × 112 pixels in patches of 14, its queries are those of a 4 × 4 grid
    and one for the whole image; both follow from the data (``world.SIDE``, ``network.CELLS``).
    """

    vocabulary_size: int = Field(default=800, ge=400)
    """Pieces of the vocabulary, where the run trains its own."""
    vision_width: int = Field(default=128, ge=16)
    """Hidden size of the vision encoder and the Q-Former; the feed-forward layers are four times as wide."""
    vision_layers: int = Field(default=5, ge=1)
    vision_heads: int = Field(default=4, ge=1)
    qformer_layers: int = Field(default=2, ge=1)
    language_width: int = Field(default=192, ge=16)
    language_feed_forward: int = Field(default=512, ge=16)
    language_layers: int = Field(default=5, ge=5)
    """Attention supervision uses layers 1 to 4 (``attention_supervision.Role``)."""
    language_heads: int = Field(default=6, ge=3)
    """Attention supervision uses heads 0 to 2."""
    context_length: int = Field(default=1024, ge=256)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.vision_width % (4 * self.vision_heads):
            raise ValueError("vision_width must be a multiple of 4 × vision_heads")
        if self.language_width % (2 * self.language_heads):
            raise ValueError("language_width must be a multiple of 2 × language_heads")
        return self


class InitialWeights(_Section):
    """An exported model to continue from. Its dimensions must be those of the section ``model``."""

    model: Path
    """A folder in Hugging Face layout, as the stage ``export`` writes it."""
    heads: Path
    """The vision heads that were trained with it (``heads.safetensors``)."""


class DataConfig(_Section):
    """How many images are rendered. A shard is one file of ``shard_size`` images, generated from the shard's number."""

    shard_size: int = Field(default=4000, ge=1)
    dense_shards: int = Field(default=16, ge=1)
    """Shards of dense scenes, for the first part of vision training."""
    vision_shards: int = Field(default=44, ge=1)
    """Shards of scenes for vision training; the last ``validation_images`` of them are held out."""
    language_shards: int = Field(default=10, ge=1)
    """Shards that vision training never sees. The projection and the language model are trained on these: on images
    that it was trained on, the vision encoder makes fewer mistakes than it makes elsewhere."""
    validation_images: int = Field(default=500, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.validation_images >= self.vision_shards * self.shard_size:
            raise ValueError("validation_images must be fewer than vision_shards × shard_size")
        return self


class TrainingBudget(_Section):
    """Length and learning rate of a stage. The rate rises linearly for ``warmup_steps``, and falls linearly to 2 % over
    the last 61 % of the steps.
    """

    steps: int = Field(ge=1)
    learning_rate: float = Field(gt=0, le=0.1)
    warmup_steps: int = Field(default=100, ge=0)
    processes: int = Field(default=1, ge=1, le=64)
    """Data-parallel processes; each draws batches of its own, and gradients are averaged. Tiny layers gain more from
    this than from threads."""


class VisionLossWeights(_Section):
    """Weights of the terms of the vision loss (``vision.vision_losses``)."""

    kind: float = Field(default=1.0, ge=0)
    """Kind of the object that a query owns, or none."""
    color: float = Field(default=0.6, ge=0)
    row: float = Field(default=0.6, ge=0)
    column: float = Field(default=0.6, ge=0)
    position: float = Field(default=4.0, ge=0)
    """Smooth L1 distance of the center, in fractions of the image."""
    geometry: float = Field(default=1.5, ge=0)
    """Soft steps of position and size (``shards.geometry``)."""
    count: float = Field(default=0.3, ge=0)
    """Number of objects, from the query of the whole image; scenes of up to four."""
    background: float = Field(default=0.3, ge=0)
    patch_kind: float = Field(default=0.5, ge=0)
    """Kind of the object that covers a patch's center, or none."""
    patch_color: float = Field(default=0.3, ge=0)
    empty_class: float = Field(default=0.8, ge=0)
    """Class weight of "no object" within ``kind`` and ``patch_kind``."""


class VisionConfig(TrainingBudget):
    """Vision encoder and Q-Former on rendered scenes, without language."""

    batch_size: int = Field(default=48, ge=1)
    dense_batch_size: int = Field(default=32, ge=1)
    dense_probability: float = Field(default=1.0, ge=0, le=1)
    """Share of batches of dense scenes at the first step; it falls linearly …"""
    dense_until: float = Field(default=0.714, gt=0, le=1)
    """… to zero at this fraction of the steps."""
    rare_weight: float = Field(default=1.5, ge=0)
    """Sampling weight of a scene: its number of objects, plus this for each that is hollow or turned by more than 24°.
    Batches that are sampled by weight give way to uniform ones over the course of training."""
    brightness: tuple[float, float] = (0.9, 1.1)
    """Range of the random factor on pixel values."""
    noise: float = Field(default=0.03, ge=0)
    """Standard deviation of the noise added to normalized pixels."""
    noise_pool: int = Field(default=160, ge=1)
    """Images of noise, drawn once and reused: new noise in every step costs time and hardly improves accuracy."""
    loss_weights: VisionLossWeights = VisionLossWeights()

    @model_validator(mode="after")
    def _check(self) -> Self:
        low, high = self.brightness
        if not 0 < low <= high:
            raise ValueError("brightness must be two positive factors, the smaller one first")
        if self.noise_pool < max(self.batch_size, self.dense_batch_size):
            raise ValueError("noise_pool must be at least the size of a batch")
        return self


class LanguageLossWeights(_Section):
    """Weights within the language loss (``language.LanguageLoss``)."""

    key_word: float = Field(default=3.0, gt=0)
    """Weight of answer tokens that carry facts (``questions.KEY_WORDS``), relative to other answer tokens."""
    attention: float = Field(default=0.1, ge=0)
    """Weight of attention supervision."""


class _LanguageBatches(TrainingBudget):
    scenes_per_step: int = Field(default=12, ge=1)
    """Scenes in a batch; each carries about fifteen dialogues."""
    loss_weights: LanguageLossWeights = LanguageLossWeights()


class LanguageConfig(_LanguageBatches):
    """The language model on oracle features, without images."""

    feature_noise: float = Field(default=0.15, ge=0)
    """Standard deviation of the noise on oracle features, as a fraction of theirs."""
    simple_scenes: float = Field(default=0.7, ge=0, le=1)
    """Share of scenes of at most two objects at the first step; it falls linearly …"""
    simple_until: float = Field(default=0.233, gt=0, le=1)
    """… to zero at this fraction of the steps. Finding an object is learned before comparing several."""


class FinetuneConfig(_LanguageBatches):
    """Projection and language model on cached features of rendered images; the vision encoder is frozen."""


class FitProjectionConfig(_Section):
    """The projection in closed form: ridge regression from Q-Former outputs to the language model's inputs."""

    images: int = Field(default=3000, ge=1)
    ridge: float = Field(default=1e-3, gt=0)
    """Regularization as a fraction of the mean squared feature."""
    brightness: tuple[float, float] = (0.93, 1.07)
    noise: float = Field(default=0.02, ge=0)
    """Augmentation of the images whose features are cached, as in ``VisionConfig``."""


_SECTIONS: dict[StageName, tuple[str, ...]] = {
    "render": ("data",),
    "vision": ("seed", "model", "initialize", "data", "vision"),
    "language": ("seed", "model", "initialize", "tokenizer", "language"),
    "fit-projection": ("seed", "model", "initialize", "tokenizer", "data", "vision", "language", "fit_projection"),
    "finetune": (
        *("seed", "model", "initialize", "tokenizer", "data", "vision", "language", "fit_projection"),
        "finetune",
    ),
}


class TrainConfig(_Section):
    """The configuration of a run; ``stages`` lists its stages."""

    seed: int = Field(default=0, ge=0)
    threads: int = Field(default=1, ge=1)
    """Threads that PyTorch computes with in each process. Results are bit-for-bit reproducible for a given number."""
    log_steps: int = Field(default=50, ge=1)
    """Steps between lines of the log."""
    checkpoint_steps: int = Field(default=100, ge=1)
    """Steps between checkpoints."""
    render_processes: int = Field(default=2, ge=1)
    tokenizer: Path | None = None
    """A SentencePiece model to use; the run trains its own if not given."""
    initialize: InitialWeights | None = None
    """Continue from an exported model instead of training from random weights."""
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    vision: VisionConfig
    language: LanguageConfig | None = None
    """Needed unless the run continues from an exported model, which has learned language already."""
    fit_projection: FitProjectionConfig = FitProjectionConfig()
    finetune: FinetuneConfig

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.initialize is None) == (self.language is None):
            raise ValueError("exactly one of the sections 'initialize' and 'language' must be given")
        if self.initialize is not None and self.tokenizer is not None:
            raise ValueError("'tokenizer' is that of the model in 'initialize'; leave it out")
        if self.fit_projection.images > self.data.language_shards * self.data.shard_size:
            raise ValueError("fit_projection.images must be at most data.language_shards × data.shard_size")
        if self.finetune.scenes_per_step > self.data.language_shards * self.data.shard_size:
            raise ValueError("finetune.scenes_per_step must be at most data.language_shards × data.shard_size")
        return self

    @classmethod
    def read(cls, file: Path, *, steps: int | None = None) -> "TrainConfig":
        """Read a YAML file.

        Args:
            steps: replaces the number of steps of every training stage, for trials.

        Raises:
            InvalidRequest: the file can't be read, or a value is missing, unknown or impossible; names the key.
        """
        try:
            values = yaml.safe_load(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InvalidRequest(f"There is no configuration file {file}.") from None
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InvalidRequest(f"The configuration file {file} can't be read as YAML.") from error
        if not isinstance(values, dict):
            raise InvalidRequest(f"The configuration file {file} must hold keys and values, such as 'seed: 0'.")
        if steps is not None:
            for stage in ("vision", "language", "finetune"):
                if isinstance(values.get(stage), dict):
                    values[stage] = {**values[stage], "steps": steps}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            key = ".".join(str(part) for part in first["loc"])
            reason = "unknown key" if first["type"] == "extra_forbidden" else first["msg"].removeprefix("Value error, ")
            raise InvalidRequest(
                f"Configuration {file}: {f'{key}: ' if key else ''}{reason}.", param=key or None
            ) from None

    @property
    def stages(self) -> tuple[StageName, ...]:
        """The stages of this run, in order. Each depends on all before it, except that ``vision`` and ``language`` are
        independent of each other.
        """
        if self.language is None:
            return ("render", "vision", "fit-projection", "finetune", "export")
        return ("render", "vision", "language", "fit-projection", "finetune", "export")

    def stage_inputs(self, stage: StageName) -> dict[str, Any]:
        """All settings that the result of a stage depends on, as plain values."""
        return {name: self.model_dump(mode="json", include={name})[name] for name in _SECTIONS[stage]}
