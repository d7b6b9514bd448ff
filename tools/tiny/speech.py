"""Learning to speak about what is seen: batches of one picture's rows with many dialogues after them.

Knows ids, scenes and the LLM's rows; nothing of pixels. "Oracle" rows stand for perfect eyes: for each query the sum of
the LLM's own words for what it sees, and where. Eyes and speech so learn apart, and meet through a linear map.
"""

import random
from collections.abc import Sequence

import numpy as np
import torch
from network import CELLS, QUERIES
from pictures import GEOMETRY, geometry
from questions import KINDS_OF_QUESTION, Dialogue, ask
from tokens import Branch, branch, prefix
from torch import nn
from torch.nn import functional
from vision import match
from world import BACKGROUNDS, COLOURS, COLUMNS, KINDS, ROWS, Scene, Thing

from minigpt4_serve.model import MiniGPT4ForConditionalGeneration, MiniGPT4Tokenizer

__all__ = ["Oracle", "dialogues", "in_order", "spoken_loss"]


def in_order(scene: Scene, presence: np.ndarray | None = None) -> tuple[list[Thing], list[int]]:
    """The scene's things in the order of the queries that own them, and those queries.

    Args:
        presence: ``[CELLS²]`` what the eyes claim to see, for ties between cells; None: none.
    """
    places = np.array([[(thing.x, thing.y) for thing in scene.things]], np.float32)
    seen = np.zeros((1, CELLS * CELLS), np.float32) if presence is None else presence[None]
    owners = match(seen, places, np.array([len(scene.things)]))[0]
    order = sorted(range(len(scene.things)), key=lambda i: int(owners[i]))
    return [scene.things[i] for i in order], [int(owners[i]) for i in order]


class Oracle(nn.Module):
    """Perfect eyes: scenes → rows for the LLM.

    Attributes:
        steps: how the LLM wants place and size to be shown.
        empty, whole: a cell without a thing, the picture as a whole.
    """

    def __init__(self, model: MiniGPT4ForConditionalGeneration, tokenizer: MiniGPT4Tokenizer) -> None:
        super().__init__()
        width = model.config.text_config.hidden_size
        self.steps = nn.Linear(GEOMETRY, width)
        nn.init.normal_(self.steps.weight, std=0.01)
        self.empty = nn.Parameter(0.02 * torch.randn(width))
        self.whole = nn.Parameter(0.02 * torch.randn(width))
        words = [*KINDS, *COLOURS, *ROWS, *COLUMNS, *BACKGROUNDS, "one", "two", "three", "four"]
        self._ids = {word: self._id(tokenizer, word) for word in words}

    @staticmethod
    def _id(tokenizer: MiniGPT4Tokenizer, word: str) -> int:
        ids = tokenizer.encode_segment(word)
        if len(ids) != 1:
            raise ValueError(f"{word!r} isn't one piece of the vocabulary: make it anew from more lines.")
        return ids[0]

    def rows(
        self,
        scenes: Sequence[Scene],
        owners: Sequence[Sequence[int]],
        embedding: nn.Module,
    ) -> torch.Tensor:
        """``[N, QUERIES, hidden]``; ``owners`` are the queries of each scene's things."""
        table = embedding.weight
        rows = self.empty.repeat(len(scenes), QUERIES, 1)
        picture, cell, words, places = [], [], [], []
        for n, (scene, cells) in enumerate(zip(scenes, owners, strict=True)):
            for thing, owner in zip(scene.things, cells, strict=True):
                picture.append(n)
                cell.append(owner)
                words.append([self._ids[w] for w in (thing.kind, thing.colour, thing.row, thing.column)])
                places.append(geometry(thing))
        seen = table[torch.tensor(words)].sum(1) + self.steps(torch.from_numpy(np.stack(places)))
        numbers = ("", "one", "two", "three", "four")
        about = torch.tensor([[self._ids[numbers[len(s.things)]], self._ids[s.background]] for s in scenes])
        rows = rows.index_put((torch.tensor(picture), torch.tensor(cell)), seen)
        last = torch.full((len(scenes),), QUERIES - 1)
        return rows.index_put((torch.arange(len(scenes)), last), table[about].sum(1) + self.whole)


def dialogues(scene: Scene, count: int, rng: random.Random, weights: dict[str, float] | None = None) -> list[Dialogue]:
    """``count`` dialogues about the scene, weak kinds more often."""
    weights = weights or KINDS_OF_QUESTION
    asked: list[Dialogue] = []
    while len(asked) < count:
        dialogue = ask(scene, rng.choices(tuple(weights), tuple(weights.values()))[0], rng)
        if dialogue is not None:
            asked.append(dialogue)
    return asked


def spoken_loss(
    model: MiniGPT4ForConditionalGeneration,
    tokenizer: MiniGPT4Tokenizer,
    images: torch.Tensor,
    asked: Sequence[Sequence[Dialogue]],
) -> tuple[torch.Tensor, dict[str, list[bool]]]:
    """(weighted loss of all answers, by kind of question whether each answer's tokens were all the likeliest).

    One row holds a picture once and its dialogues one after the other; a block mask hides them from each other.

    Args:
        images: ``[N, QUERIES, hidden]``.
        asked: dialogues about each picture.
    """
    language = model.language_model
    start = prefix(tokenizer)
    first = len(start) + QUERIES
    branches = [[branch(dialogue, tokenizer) for dialogue in row] for row in asked]
    length = first + max(sum(len(one.ids) for one in row) for row in branches)
    ids, labels, weights, positions, block = _packed(branches, first, length)
    table = language.get_input_embeddings()
    embeds = table(ids)
    head = table(torch.tensor(start)).expand(len(images), -1, -1)
    embeds = torch.cat([head, images.to(embeds.dtype), embeds[:, first:]], 1)
    after = torch.arange(length)
    sees = (block[:, :, None] == block[:, None, :]) | (block[:, None, :] == 0)  # same dialogue, or the picture
    sees &= (after[:, None] >= after[None, :]) & (block[:, None, :] >= 0)
    sees |= torch.eye(length, dtype=torch.bool)
    mask = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min).unsqueeze(1)
    hidden = language.model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions).last_hidden_state
    graded = weights > 0  # [N, length]; the row that predicts
    logits = functional.linear(hidden[graded], table.weight)
    wanted = labels[graded]
    each = functional.cross_entropy(logits, wanted, reduction="none")
    loss = (each * weights[graded]).sum() / weights.sum()
    hits = torch.zeros(graded.shape, dtype=torch.bool).masked_scatter(graded, logits.argmax(-1) == wanted)
    exact: dict[str, list[bool]] = {}
    for n, row in enumerate(asked):
        for number, dialogue in enumerate(row, start=1):
            mine = graded[n] & (block[n] == number)
            exact.setdefault(dialogue.kind, []).append(bool(hits[n][mine].all()))
    return loss, exact


def _packed(branches: Sequence[Sequence[Branch]], first: int, length: int) -> tuple[torch.Tensor, ...]:
    """(ids, label of each row's next id, its weight, position, block): ``[N, length]`` each.

    Block 0 is the picture with what stands before it, then 1 … for the dialogues, -1 for padding.
    """
    shape = (len(branches), length)
    ids, labels, block = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.full(shape, -1)
    weights, positions = np.zeros(shape, np.float32), np.zeros(shape, np.int64)
    block[:, :first] = 0
    positions[:, :first] = np.arange(first)
    for n, row in enumerate(branches):
        at = first
        for number, one in enumerate(row, start=1):
            size = len(one.ids)
            ids[n, at : at + size] = one.ids
            labels[n, at : at + size - 1] = one.ids[1:]
            weights[n, at : at + size - 1] = one.weights[1:]
            positions[n, at : at + size] = np.arange(first, first + size)
            block[n, at : at + size] = number
            at += size
    return tuple(torch.from_numpy(a) for a in (ids, labels, weights, positions, block))
