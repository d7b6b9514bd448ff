"""Learning to speak about what is seen: batches of one picture's rows with many dialogues after them.

Knows ids, scenes and the LLM's rows; nothing of pixels. "Oracle" rows stand for perfect eyes: for each query the sum of
the LLM's own words for what it sees, and where. Eyes and speech so learn apart, and meet through a linear map.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from network import CELLS, QUERIES
from pictures import GEOMETRY, geometry
from questions import Dialogue, ask, plural
from tokens import Branch, branch, prefix
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface
from vision import match
from world import BACKGROUNDS, COLOURS, COLUMNS, KINDS, ROWS, Scene, Thing

from minigpt4_serve.model import MiniGPT4ForConditionalGeneration, MiniGPT4Tokenizer

__all__ = ["Bins", "Oracle", "dialogues", "in_order", "spoken_loss"]

BINS, BIN = 3, 80
"""Each picture's dialogues lie in so many bins of so many ids."""
_LOUD = torch.tensor([1.0, 1.0, 3.0, 3.0]).unsqueeze(1)
"""How much of kind, colour, row and column a row shows: words for places would drown among the steps otherwise."""
Bins = list[list[tuple[Dialogue, Branch]]]


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
        seen = (table[torch.tensor(words)] * _LOUD).sum(1) + self.steps(torch.from_numpy(np.stack(places)))
        numbers = ("", "one", "two", "three", "four")
        about = torch.tensor([[self._ids[numbers[len(s.things)]], self._ids[s.background]] for s in scenes])
        rows = rows.index_put((torch.tensor(picture), torch.tensor(cell)), seen)
        last = torch.full((len(scenes),), QUERIES - 1)
        return rows.index_put((torch.arange(len(scenes)), last), table[about].sum(1) + self.whole)


class Pointers:
    """Where the words of a dialogue should look, so that attention can be shown it while it learns.

    A word that names things looks at their rows when it is read (layer ``READ``). Before a word is said, the row that
    says it looks back at the mention that it is about (``LINK``), then at the row of the picture that shows it
    (``SAY``); yes, no and numbers come last, from what the mention has found (``TELL``). For them the question's last
    mention has itself looked at what the answer names. One head of the first of these layers counts (``COUNT``): every
    thing that is named gets the same small share of it, the picture as a whole what is left. Such chains are what so
    small an LLM learns last from answers alone.
    """

    READ, LINK, SAY, TELL = 1, 2, 3, 4  # layers; their first heads are shown where to look
    COUNT = -1  # the next head of the layer READ
    HEADS = 2
    EACH = 0.2

    def __init__(self, tokenizer: MiniGPT4Tokenizer) -> None:
        def ids(words: Iterable[str]) -> dict[int, str]:
            pieces = {word: tokenizer.encode_segment(word) for word in words}
            return {piece[0]: word for word, piece in pieces.items() if len(piece) == 1}

        self.kinds = ids(KINDS)
        several = {plural(kind): kind for kind in KINDS}
        self.kinds |= {piece: several[word] for piece, word in ids(several).items()}
        self.colours = ids(COLOURS)
        self.places = ids([*ROWS, *COLUMNS])
        self.grounds = ids(BACKGROUNDS)
        (self.nothing,) = ids(["Nothing"])
        self.others = ids(["Yes", "No", "no", "one", "two", "three", "four", "not", "Nothing"])

    def of(self, one: Branch, scene: Scene, owners: Sequence[int]) -> Iterator[tuple[int, int, list[int], float]]:
        """(layer, position in the branch, where to look, the share of each): queries, or for ``LINK`` and ``TELL`` a
        position.
        """

        def named(colour: str | None, kind: str | None) -> list[int]:
            both = zip(scene.things, owners, strict=True)
            return [o for t, o in both if colour in (None, t.colour) and kind in (None, t.kind)]

        subject: list[int] = []
        before: str | None = None
        mentions: list[tuple[int, list[int]]] = []
        answered = False  # the last mention of the question has been shown what the answer names
        for at, piece in enumerate(one.ids):
            said = one.weights[at] > 0
            kind, colour = self.kinds.get(piece), self.colours.get(piece)
            meant: list[int] = []
            if kind or colour:
                yield from self._read(at, named(colour or before, kind), said)
                ahead = self.kinds.get(one.ids[at + 1]) if colour else None
                meant = named(colour or before, kind or ahead)
                if not before and not ahead:  # "the star is red", "the red thing is a star"
                    meant = [owner for owner in meant if owner in subject] or meant
                subject = meant
            elif piece in self.places:
                meant = subject
            elif piece in self.grounds:
                meant = [QUERIES - 1]
            if said:
                looked = meant or (mentions[-1][1] if mentions and piece == self.nothing else [])
                if mentions and looked and not answered:
                    answered = True
                    yield self.SAY, mentions[-1][0], looked, 1 / len(looked)
                yield from self._say(at - 1, piece, meant, mentions)
            if kind or colour:
                if before and kind and mentions:  # "the red star" is one mention, and its last word knows all of it
                    mentions.pop()
                if mentions and not said:  # "is the star left of the moon": the moon is compared with the star
                    yield self.LINK, at, [mentions[-1][0]], 1.0
                mentions.append((at, meant))
            before = colour

    def _read(self, at: int, rows: list[int], said: bool) -> Iterator[tuple[int, int, list[int], float]]:
        """Where a word that names things looks."""
        yield self.READ, at, rows or [QUERIES - 1], 1 / max(1, len(rows))
        if not said:
            yield self.COUNT, at, rows, self.EACH
            yield self.COUNT, at, [QUERIES - 1], 1 - self.EACH * len(rows)

    def _say(
        self, at: int, piece: int, meant: list[int], mentions: list[tuple[int, list[int]]]
    ) -> Iterator[tuple[int, int, list[int], float]]:
        """Where the row looks that says a piece next."""
        if meant:
            yield self.SAY, at, meant, 1 / len(meant)
        if mentions and (meant or piece in self.others):
            same = [mention for mention in mentions if mention[1] == meant]
            yield self.LINK, at, [(same or mentions)[-1][0]], 1.0
            if piece in self.others:
                yield self.TELL, at, [mentions[-1][0]], 1.0


def dialogues(scene: Scene, rng: random.Random, tokenizer: MiniGPT4Tokenizer, weights: dict[str, float]) -> Bins:
    """As many dialogues about the scene as fill its bins, weak kinds more often."""
    kinds, shares = tuple(weights), tuple(weights.values())
    bins: Bins = [[] for _ in range(BINS)]
    room = [BIN] * BINS
    while True:
        dialogue = ask(scene, rng.choices(kinds, shares)[0], rng)
        if dialogue is None:
            continue
        one = branch(dialogue, tokenizer)
        fitting = [number for number in range(BINS) if room[number] >= len(one.ids)]
        if not fitting:
            return bins
        number = min(fitting, key=lambda n: room[n])
        room[number] -= len(one.ids)
        bins[number].append((dialogue, one))


def spoken_loss(
    model: MiniGPT4ForConditionalGeneration,
    tokenizer: MiniGPT4Tokenizer,
    images: torch.Tensor,
    asked: Sequence[Bins],
    shown: Sequence[tuple[Scene, Sequence[int]]] = (),
) -> tuple[torch.Tensor, dict[str, list[bool]]]:
    """(weighted loss of all answers, by kind of question whether each answer's tokens were all the likeliest).

    One row holds a picture once and its bins of dialogues after it. A dialogue sees the picture and itself.

    Args:
        images: ``[N, QUERIES, hidden]``.
        asked: dialogues about each picture.
        shown: each picture's scene and the queries of its things, to add the loss of looking elsewhere.
    """
    language = model.language_model
    start = prefix(tokenizer)
    first = len(start) + QUERIES
    ids, labels, weights, positions, block = _packed(asked, first)
    table = language.get_input_embeddings()
    head = table(torch.tensor(start)).expand(len(images), -1, -1)
    embeds = torch.cat([head, images.to(head.dtype), table(ids)], 1)
    after = torch.arange(first).expand(len(images), -1)
    looks: dict[int, torch.Tensor] = {}
    hidden = language.model(
        inputs_embeds=embeds,
        attention_mask={"full_attention": None},
        position_ids=torch.cat([after, positions], 1),
        own=_own(block),
        looks=looks,
    ).last_hidden_state[:, first:]
    graded = weights > 0  # [N, BINS · BIN]; the row that predicts
    logits = functional.linear(hidden[graded], table.weight)
    wanted = labels[graded]
    each = functional.cross_entropy(logits, wanted, reduction="none")
    loss = (each * weights[graded]).sum() / weights.sum()
    if shown:
        loss = loss + 0.1 * _astray(looks, _aims(asked, shown, Pointers(tokenizer)))
    hits = torch.zeros(graded.shape, dtype=torch.bool).masked_scatter(graded, logits.argmax(-1) == wanted)
    missed = (graded & ~hits).numpy()
    exact: dict[str, list[bool]] = {}
    for n, bins in enumerate(asked):
        for number, dialogue in enumerate((dialogue for row in bins for dialogue, _ in row), start=1):
            exact.setdefault(dialogue.kind, []).append(not missed[n][block[n] == number].any())
    return loss, exact


def _aims(
    asked: Sequence[Bins], shown: Sequence[tuple[Scene, Sequence[int]]], pointers: Pointers
) -> dict[int, list[tuple[int, int, int, float]]]:
    """By layer: (picture, row after the picture, what to look at, share of the attention that it should get)."""
    aims: dict[int, list[tuple[int, int, int, float]]] = {}
    for n, (bins, (scene, owners)) in enumerate(zip(asked, shown, strict=True)):
        for row, dialogues_of_bin in enumerate(bins):
            at = 0
            for _, one in dialogues_of_bin:
                for layer, position, wanted, each in pointers.of(one, scene, owners):
                    first = at if layer in (Pointers.LINK, Pointers.TELL) else 0
                    here = row * BIN + at + position
                    aims.setdefault(layer, []).extend((n, here, first + to, each) for to in wanted)
                at += len(one.ids)
    return aims


def _astray(looks: dict[int, torch.Tensor], aims: dict[int, list[tuple[int, int, int, float]]]) -> torch.Tensor:
    """Cross-entropy between where words should look and where the first heads of a layer do; a scalar."""
    total = torch.zeros(())
    for layer, wanted in aims.items():
        picture, row, to, share = (torch.tensor(column) for column in zip(*wanted, strict=True))
        seen = looks[layer][picture, :, row, to]  # [aims, HEADS]
        total = total - (share.unsqueeze(1) * (seen + 1e-6).log()).sum() / share.sum() / seen.shape[1]
    return total


def _packed(asked: Sequence[Bins], first: int) -> tuple[Any, ...]:
    """(ids, label of each row's next id, its weight, position: tensors; block: array), ``[N, BINS · BIN]`` each.

    Blocks are 1 … for a picture's dialogues, 0 for what is left of a bin.
    """
    shape = (len(asked), BINS * BIN)
    ids, labels, block = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    weights, positions = np.zeros(shape, np.float32), np.zeros(shape, np.int64)
    for n, bins in enumerate(asked):
        number = 0
        for row, dialogues_of_bin in enumerate(bins):
            at = row * BIN
            for _, one in dialogues_of_bin:
                number += 1
                end = at + len(one.ids)
                ids[n, at:end] = one.ids
                labels[n, at : end - 1] = one.ids[1:]
                weights[n, at : end - 1] = one.weights[1:]
                positions[n, at:end] = np.arange(first, first + len(one.ids))
                block[n, at:end] = number
                at = end
    return (*(torch.from_numpy(a) for a in (ids, labels, weights, positions)), block)


def _own(block: np.ndarray) -> torch.Tensor:
    """What each row may see of its own bin, to add to scores: ``[N, 1, BINS, BIN, BIN]``."""
    rows = torch.from_numpy(block).view(len(block), 1, BINS, BIN)
    sees = (rows.unsqueeze(-1) == rows.unsqueeze(-2)) & torch.ones(BIN, BIN, dtype=torch.bool).tril()
    return torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)


def _attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    own: torch.Tensor,
    looks: dict[int, torch.Tensor],
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of rows that hold a picture once and ``BINS`` bins after it, ``[N, heads, first + BINS · BIN, width]``.

    A quarter of the products that one square mask would take: bins see the picture and themselves.
    """
    shape = (*query.shape[:2], BINS, BIN, query.shape[-1])
    first = query.shape[2] - BINS * BIN
    query = query * scaling
    picture, bins = query[:, :, :first], query[:, :, first:]
    keys, values = key[:, :, :first], value[:, :, :first]
    later = torch.ones(first, first, dtype=torch.bool).triu(1)
    seen = (picture @ keys.mT).masked_fill(later, torch.finfo(torch.float32).min).softmax(-1) @ values
    of_picture = (bins @ keys.mT).view(*shape[:4], first)
    of_own = bins.reshape(shape) @ key[:, :, first:].reshape(shape).mT + own
    shares = torch.cat([of_picture, of_own], -1).softmax(-1)
    queries = shares[..., first - QUERIES : first].flatten(2, 3)
    if module.layer_idx in (Pointers.READ, Pointers.SAY):  # what queries show
        looks[module.layer_idx] = queries[:, : Pointers.HEADS]
    if module.layer_idx == Pointers.READ:
        looks[Pointers.COUNT] = queries[:, Pointers.HEADS : Pointers.HEADS + 1]
    if module.layer_idx in (Pointers.LINK, Pointers.TELL):
        looks[module.layer_idx] = shares[:, : Pointers.HEADS, ..., first:].flatten(2, 3)
    told = shares[..., :first].reshape(*shape[:2], BINS * BIN, first) @ values
    told = told + (shares[..., first:] @ value[:, :, first:].reshape(shape)).reshape(told.shape)
    return torch.cat([seen, told], 2).transpose(1, 2), None


AttentionInterface.register("bins", _attend)
