"""Attention supervision: where heads of the language model should attend, as targets for an auxiliary loss.

Answering takes a chain of look-ups, which so small a model learns last from answers alone. For "Is the star left of the
moon?" the chain is: find the image tokens of each object when its name is read (``GROUND``); connect the mentions
(``LINK``); attend to the image tokens of what is said next (``RETRIEVE``); read the outcome at the last mention
(``READOUT``). One head counts (``COUNT``). Each link is trained in a layer of its own.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import torch

from minigpt4_serve.model import MiniGPT4Tokenizer
from tools.tiny.network import QUERIES
from tools.tiny.questions import plural
from tools.tiny.tokens import Branch
from tools.tiny.world import BACKGROUNDS, COLORS, COLUMNS, KINDS, ROWS, Scene

__all__ = ["AttentionSupervision", "AttentionTarget", "BatchTarget", "Role", "supervision_loss"]

_WHOLE_IMAGE = QUERIES - 1
"""The image token of the whole image; tokens before it belong to the cells."""
_COUNT_SHARE = 0.2
"""Attention of the counting head to each object that is named; the rest goes to the token of the whole image."""


class Role(Enum):
    """The task of the supervised heads of a layer.

    Attributes:
        layer: index of the layer.
        heads: which of its heads.
        over_image: whether the keys are image tokens; they are tokens of the dialogue otherwise.
    """

    GROUND = (1, 0, 2, True)
    """A word that names objects attends to their image tokens."""
    COUNT = (1, 2, 3, True)
    """A word of a question attends equally to each object that it names."""
    LINK = (2, 0, 2, False)
    """A mention, or the token before a fact, attends to the earlier mention that it is about."""
    RETRIEVE = (3, 0, 2, True)
    """The token before a fact attends to the image tokens that show it."""
    READOUT = (4, 0, 2, False)
    """The token before "yes", "no" or a number attends to the last mention."""

    def __init__(self, layer: int, first_head: int, end_head: int, over_image: bool) -> None:
        self.layer = layer
        self.heads = slice(first_head, end_head)
        self.over_image = over_image


@dataclass(frozen=True)
class AttentionTarget:
    """One token's attention target.

    Attributes:
        position: of the token that attends, in its branch.
        keys: image tokens, or positions in the branch, as the role says.
        share: of the token's attention, for each key.
    """

    role: Role
    position: int
    keys: tuple[int, ...]
    share: float = 1.0


@dataclass(frozen=True)
class BatchTarget:
    """A target's place in a batch: attention ``maps[role][row, :, position, key]`` should be ``share``."""

    row: int
    position: int
    key: int
    share: float


@dataclass(frozen=True)
class _Reference:
    """The objects that one token of a branch refers to.

    Attributes:
        is_name: whether the token is a color or a kind of object.
        named: image tokens of all objects that fit the words so far ("red": all red ones).
        meant: image tokens of what the whole phrase means ("red" in "red star": the red star), or of the place or
            background that the token states.
        completes: whether the token is the noun after a color, so that both are one mention.
    """

    is_name: bool = False
    named: tuple[int, ...] = ()
    meant: tuple[int, ...] = ()
    completes: bool = False


@dataclass(frozen=True)
class _Mention:
    position: int
    meant: tuple[int, ...]


class AttentionSupervision:
    """Makes attention targets for dialogues.

    Args:
        tokenizer: words that aren't a single token in it are ignored.
    """

    def __init__(self, tokenizer: MiniGPT4Tokenizer) -> None:
        def single_tokens(words: Iterable[str]) -> dict[int, str]:
            ids = {word: tokenizer.encode_segment(word) for word in words}
            return {pieces[0]: word for word, pieces in ids.items() if len(pieces) == 1}

        plurals = {plural(kind): kind for kind in KINDS}
        self._kinds = single_tokens(KINDS)
        self._kinds |= {token: plurals[word] for token, word in single_tokens(plurals).items()}
        self._colors = single_tokens(COLORS)
        self._places = single_tokens([*ROWS, *COLUMNS])
        self._backgrounds = single_tokens(BACKGROUNDS)
        self._nothing = single_tokens(["Nothing"])
        self._conclusions = single_tokens(["Yes", "No", "no", "one", "two", "three", "four", "not", "Nothing"])

    def targets(self, branch: Branch, scene: Scene, queries: Sequence[int]) -> Iterator[AttentionTarget]:
        """All targets of a dialogue.

        Args:
            queries: for each object of the scene, the query that owns it.
        """
        mentions: list[_Mention] = []
        question_supervised = False
        references = self._references(branch.ids, scene, queries)
        for position, (token, weight, reference) in enumerate(zip(branch.ids, branch.weights, references, strict=True)):
            in_answer = weight > 0
            if reference.is_name:
                yield from _ground(position, reference.named, count=not in_answer)
            if in_answer:
                if mentions and not question_supervised:
                    about = reference.meant or (mentions[-1].meant if token in self._nothing else ())
                    if about:
                        question_supervised = True
                        yield _retrieve(mentions[-1].position, about)
                yield from self._predict(position - 1, token, reference.meant, mentions)
            if reference.is_name:
                if reference.completes and mentions:
                    mentions.pop()
                if mentions and not in_answer:
                    yield AttentionTarget(Role.LINK, position, (mentions[-1].position,))
                mentions.append(_Mention(position, reference.meant))

    def _references(self, ids: Sequence[int], scene: Scene, queries: Sequence[int]) -> list[_Reference]:
        """The reference of each token."""

        def fitting(color: str | None, kind: str | None) -> tuple[int, ...]:
            pairs = zip(scene.things, queries, strict=True)
            return tuple(q for thing, q in pairs if color in (None, thing.color) and kind in (None, thing.kind))

        references = []
        subject: tuple[int, ...] = ()  # meaning of the last phrase
        color_before: str | None = None
        for token, following in zip(ids, [*ids[1:], None], strict=True):
            kind = self._kinds.get(token)
            color = self._colors.get(token)
            if kind or color:
                noun_ahead = self._kinds.get(following) if color and following is not None else None
                meant = fitting(color or color_before, kind or noun_ahead)
                if not color_before and not noun_ahead:  # "the star is red", "the red thing is a star"
                    meant = tuple(query for query in meant if query in subject) or meant
                subject = meant
                named = fitting(color or color_before, kind)
                references.append(_Reference(True, named, meant, completes=bool(color_before and kind)))
            elif token in self._places:
                references.append(_Reference(meant=subject))
            elif token in self._backgrounds:
                references.append(_Reference(meant=(_WHOLE_IMAGE,)))
            else:
                references.append(_Reference())
            color_before = color
        return references

    def _predict(
        self, position: int, token: int, meant: tuple[int, ...], mentions: Sequence[_Mention]
    ) -> Iterator[AttentionTarget]:
        """Targets of the token at ``position``, which predicts ``token``."""
        concludes = token in self._conclusions
        if meant:
            yield _retrieve(position, meant)
        if mentions and (meant or concludes):
            same = [mention for mention in mentions if mention.meant == meant]
            yield AttentionTarget(Role.LINK, position, ((same or mentions)[-1].position,))
        if mentions and concludes:
            yield AttentionTarget(Role.READOUT, position, (mentions[-1].position,))


def _ground(position: int, named: tuple[int, ...], *, count: bool) -> Iterator[AttentionTarget]:
    """Targets of a word that names objects; the token of the whole image stands for none."""
    yield AttentionTarget(Role.GROUND, position, named or (_WHOLE_IMAGE,), 1 / max(1, len(named)))
    if count:
        if named:
            yield AttentionTarget(Role.COUNT, position, named, _COUNT_SHARE)
        yield AttentionTarget(Role.COUNT, position, (_WHOLE_IMAGE,), 1 - _COUNT_SHARE * len(named))


def _retrieve(position: int, keys: tuple[int, ...]) -> AttentionTarget:
    return AttentionTarget(Role.RETRIEVE, position, keys, 1 / len(keys))


def supervision_loss(maps: Mapping[Role, torch.Tensor], targets: Mapping[Role, Sequence[BatchTarget]]) -> torch.Tensor:
    """Cross-entropy between target and actual attention, averaged over targets and heads, summed over roles; a scalar.

    Args:
        maps: attention weights ``[rows, heads, positions, keys]`` of each role.
    """
    total = torch.zeros(())
    for role, of_role in targets.items():
        row = torch.tensor([target.row for target in of_role])
        position = torch.tensor([target.position for target in of_role])
        key = torch.tensor([target.key for target in of_role])
        share = torch.tensor([target.share for target in of_role])
        attention = maps[role][row, :, position, key]  # [targets, heads]
        total = total - (share.unsqueeze(1) * (attention + 1e-6).log()).sum() / share.sum() / attention.shape[1]
    return total
