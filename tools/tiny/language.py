"""Training objective of the language model: many dialogues about one image, packed after its tokens.

Oracle features stand in for the vision encoder while the language model trains apart from it: for each query, the sum
of the language model's own word embeddings for what the query owns. A linear projection later maps the Q-Former's
outputs to them.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from minigpt4_serve.model import MiniGPT4ForConditionalGeneration, MiniGPT4Tokenizer
from tools.tiny.attention_supervision import AttentionSupervision, BatchTarget, Role, supervision_loss
from tools.tiny.config import LanguageLossWeights
from tools.tiny.network import QUERIES
from tools.tiny.packed_attention import BIN_TOKENS, BINS, PACKED_ATTENTION, AttentionMaps, bin_mask
from tools.tiny.questions import Dialogue, ask
from tools.tiny.shards import GEOMETRY, geometry
from tools.tiny.tokens import Branch, branch, prefix
from tools.tiny.vision import assign_queries
from tools.tiny.world import BACKGROUNDS, COLORS, COLUMNS, KINDS, ROWS, Scene

__all__ = ["AssignedScene", "Bins", "LanguageLoss", "OracleEncoder", "assign_scene", "pack_dialogues"]

Bins = list[list[tuple[Dialogue, Branch]]]
"""Dialogues about one scene by bin; those of a bin have at most ``BIN_TOKENS`` tokens together."""
_WORD_WEIGHTS = torch.tensor([1.0, 1.0, 3.0, 3.0]).unsqueeze(1)
"""Weights of the embeddings of kind, color, row and column in an oracle feature. Those of places would otherwise be
drowned out by the geometry."""
_NUMBERS = ("", "one", "two", "three", "four")


@dataclass(frozen=True)
class AssignedScene:
    """A scene whose objects are in the order of the queries that own them.

    Attributes:
        queries: for each object, the index of its query, ascending.
    """

    scene: Scene
    queries: tuple[int, ...]


def assign_scene(scene: Scene, presence: np.ndarray) -> AssignedScene:
    """Assign a scene's objects to queries (see ``vision.assign_queries``) and sort them.

    Args:
        presence: ``[CELLS²]``, the predicted probability that each query owns an object.
    """
    positions = np.array([[(thing.x, thing.y) for thing in scene.things]], np.float32)
    owners = assign_queries(presence[None], positions, np.array([len(scene.things)]))[0]
    order = sorted(range(len(scene.things)), key=lambda i: int(owners[i]))
    things = tuple(scene.things[i] for i in order)
    return AssignedScene(replace(scene, things=things), tuple(int(owners[i]) for i in order))


class OracleEncoder(nn.Module):
    """Perfect image features for the language model, made from scenes.

    Raises:
        ValueError: a word that describes scenes isn't a single token of the vocabulary.
    """

    def __init__(self, width: int, tokenizer: MiniGPT4Tokenizer) -> None:
        super().__init__()
        self.geometry = nn.Linear(GEOMETRY, width)
        nn.init.normal_(self.geometry.weight, std=0.01)
        self.empty_cell = nn.Parameter(0.02 * torch.randn(width))
        self.whole_image = nn.Parameter(0.02 * torch.randn(width))
        words = [*KINDS, *COLORS, *ROWS, *COLUMNS, *BACKGROUNDS, *_NUMBERS[1:]]
        self._ids = {word: self._id(tokenizer, word) for word in words}

    @staticmethod
    def _id(tokenizer: MiniGPT4Tokenizer, word: str) -> int:
        ids = tokenizer.encode_segment(word)
        if len(ids) != 1:
            raise ValueError(f"{word!r} isn't a single token: increase model.vocabulary_size.")
        return ids[0]

    def forward(self, assigned: Sequence[AssignedScene], embeddings: torch.Tensor) -> torch.Tensor:
        """Image tokens ``[N, QUERIES, width]``, from the language model's ``embeddings`` ``[vocabulary, width]``."""
        image = []
        query = []
        words = []
        geometries = []
        for n, one in enumerate(assigned):
            for thing, owner in zip(one.scene.things, one.queries, strict=True):
                image.append(n)
                query.append(owner)
                words.append([self._ids[word] for word in (thing.kind, thing.color, thing.row, thing.column)])
                geometries.append(geometry(thing))
        objects = (embeddings[torch.tensor(words)] * _WORD_WEIGHTS).sum(1)
        objects = objects + self.geometry(torch.from_numpy(np.stack(geometries)))
        summary = torch.tensor(
            [[self._ids[_NUMBERS[len(one.scene.things)]], self._ids[one.scene.background]] for one in assigned]
        )
        tokens = self.empty_cell.repeat(len(assigned), QUERIES, 1)
        tokens = tokens.index_put((torch.tensor(image), torch.tensor(query)), objects)
        last = torch.full((len(assigned),), QUERIES - 1)
        return tokens.index_put((torch.arange(len(assigned)), last), embeddings[summary].sum(1) + self.whole_image)


def pack_dialogues(
    scene: Scene,
    rng: random.Random,
    tokenizer: MiniGPT4Tokenizer,
    kind_weights: Mapping[str, float],
    key_word_weight: float,
) -> Bins:
    """Dialogues about a scene until one doesn't fit into any bin, each put into the fullest bin that takes it.

    Args:
        kind_weights: sampling weights of the kinds of question.
    """
    kinds = tuple(kind_weights)
    weights = tuple(kind_weights.values())
    bins: Bins = [[] for _ in range(BINS)]
    free = [BIN_TOKENS] * BINS
    while True:
        dialogue = ask(scene, rng.choices(kinds, weights)[0], rng)
        if dialogue is None:
            continue
        tokens = branch(dialogue, tokenizer, key_word_weight)
        fitting = [number for number in range(BINS) if free[number] >= len(tokens.ids)]
        if not fitting:
            return bins
        number = min(fitting, key=lambda n: free[n])
        free[number] -= len(tokens.ids)
        bins[number].append((dialogue, tokens))


@dataclass(frozen=True)
class _Packed:
    """Packed dialogues as tensors ``[N, BINS · BIN_TOKENS]``.

    Attributes:
        labels: the id that follows each token in its dialogue.
        weights: of predicting the label; 0 where the loss doesn't count.
        positions: position ids, counted from the start of the prompt.
        dialogue: number of each token's dialogue, from 1 for each image; 0 for padding.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor
    positions: torch.Tensor
    dialogue: torch.Tensor


class LanguageLoss:
    """The loss of a model's answers to packed dialogues, and of its attention.

    Args:
        model: its language model is switched to packed attention.
    """

    def __init__(
        self, model: MiniGPT4ForConditionalGeneration, tokenizer: MiniGPT4Tokenizer, weights: LanguageLossWeights
    ) -> None:
        model.language_model.set_attn_implementation(PACKED_ATTENTION)
        self._language_model = model.language_model
        self._weights = weights
        self._prefix = prefix(tokenizer)
        self._supervision = AttentionSupervision(tokenizer)

    def __call__(
        self, image_tokens: torch.Tensor, packed: Sequence[Bins], assigned: Sequence[AssignedScene]
    ) -> tuple[torch.Tensor, dict[str, list[bool]]]:
        """Compute the loss of a batch.

        Args:
            image_tokens: ``[N, QUERIES, width]``, inputs of the language model.
            packed: dialogues about each image.
            assigned: the scene of each image, for attention supervision.

        Returns:
            The weighted mean cross-entropy of answer tokens plus the weighted supervision loss, a scalar; and by kind
            of question, for each dialogue, whether every token of its answer was the likeliest (teacher forcing).
        """
        first = len(self._prefix) + QUERIES
        batch = _pack(packed, first)
        table = self._language_model.get_input_embeddings().weight
        maps: AttentionMaps = {}
        hidden = self._hidden_states(image_tokens, batch, maps)[:, first:]
        graded = batch.weights > 0
        logits = functional.linear(hidden[graded], table)
        labels = batch.labels[graded]
        each = functional.cross_entropy(logits, labels, reduction="none")
        loss = (each * batch.weights[graded]).sum() / batch.weights.sum()
        if self._weights.attention:
            targets = _batch_targets(self._supervision, packed, assigned)
            loss = loss + self._weights.attention * supervision_loss(maps, targets)
        missed = torch.zeros_like(graded).masked_scatter(graded, logits.argmax(-1) != labels)
        return loss, _exact_answers(packed, batch.dialogue, missed)

    def _hidden_states(self, image_tokens: torch.Tensor, batch: _Packed, maps: AttentionMaps) -> torch.Tensor:
        """``[N, prefix + QUERIES + BINS · BIN_TOKENS, width]``; fills ``maps``."""
        embed = self._language_model.get_input_embeddings()
        count = len(image_tokens)
        start = embed(torch.tensor(self._prefix)).expand(count, -1, -1)
        prefix_positions = torch.arange(len(self._prefix) + QUERIES).expand(count, -1)
        output = self._language_model.model(
            inputs_embeds=torch.cat([start, image_tokens.to(start.dtype), embed(batch.ids)], 1),
            attention_mask={"full_attention": None},
            position_ids=torch.cat([prefix_positions, batch.positions], 1),
            mask=bin_mask(batch.dialogue),
            maps=maps,
        )
        hidden: torch.Tensor = output.last_hidden_state
        return hidden


def _numbered(bins: Bins) -> Iterator[tuple[int, int, Dialogue, Branch]]:
    """(number from 1, first token's index in the row, dialogue, branch) of all dialogues about an image."""
    number = 0
    for index, of_bin in enumerate(bins):
        start = index * BIN_TOKENS
        for dialogue, tokens in of_bin:
            number += 1
            yield number, start, dialogue, tokens
            start += len(tokens.ids)


def _pack(packed: Sequence[Bins], first: int) -> _Packed:
    """Lay out dialogues; ``first`` is the position id of each one's first token."""
    shape = (len(packed), BINS * BIN_TOKENS)
    ids, labels, positions, dialogue_of = (np.zeros(shape, np.int64) for _ in range(4))
    weights = np.zeros(shape, np.float32)
    for n, bins in enumerate(packed):
        for number, start, _, tokens in _numbered(bins):
            end = start + len(tokens.ids)
            ids[n, start:end] = tokens.ids
            labels[n, start : end - 1] = tokens.ids[1:]
            weights[n, start : end - 1] = tokens.weights[1:]
            positions[n, start:end] = np.arange(first, first + len(tokens.ids))
            dialogue_of[n, start:end] = number
    return _Packed(*(torch.from_numpy(array) for array in (ids, labels, weights, positions, dialogue_of)))


def _batch_targets(
    supervision: AttentionSupervision, packed: Sequence[Bins], assigned: Sequence[AssignedScene]
) -> dict[Role, list[BatchTarget]]:
    """Attention targets of all dialogues, by role."""
    targets: dict[Role, list[BatchTarget]] = {}
    for n, (bins, one) in enumerate(zip(packed, assigned, strict=True)):
        for _, start, _, tokens in _numbered(bins):
            for target in supervision.targets(tokens, one.scene, one.queries):
                first_key = 0 if target.role.over_image else start % BIN_TOKENS
                targets.setdefault(target.role, []).extend(
                    BatchTarget(n, start + target.position, first_key + key, target.share) for key in target.keys
                )
    return targets


def _exact_answers(packed: Sequence[Bins], dialogue_of: torch.Tensor, missed: torch.Tensor) -> dict[str, list[bool]]:
    exact: dict[str, list[bool]] = {}
    for n, bins in enumerate(packed):
        for number, _, dialogue, _ in _numbered(bins):
            exact.setdefault(dialogue.kind, []).append(not missed[n][dialogue_of[n] == number].any())
    return exact
