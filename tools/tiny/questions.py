"""What can be asked about a scene, and the true answer to it. Knows the world and its wordings; nothing of tensors.

Ambiguous questions aren't asked: things as good as level aren't left or right of each other, and sizes that are near
aren't compared.
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from wordings import TRAINED, word
from world import COLOURS, COLUMNS, KINDS, ROWS, Scene, Thing

__all__ = ["KEY_WORDS", "KINDS_OF_QUESTION", "Dialogue", "ask", "is_right"]

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
_APART, _LEVEL = 0.09, 0.03
"""Of the picture's side: further apart is left or above for sure, nearer is neither."""
_BIGGER = 1.22

REFUSAL = "I can't tell that from the picture."
GREETING = "Hello! Ask me about the picture."
KEY_WORDS = frozenset(
    [*KINDS, *COLOURS, *ROWS, *COLUMNS, *_NUMBERS, *(f"{kind}s" for kind in KINDS), "fish", "crosses"]
    + ["white", "gray", "black", "beige", "Yes", "No", "Nothing", "above", "below", "not", "nothing", "on"]
    + [name.capitalize() for name in ("a", "an", "the", "there", "i", "hello", "two")]
)
"""Words of answers that carry facts, for the loss."""


@dataclass(frozen=True)
class Dialogue:
    """Turns of (question, answer); the last one is the one that counts."""

    kind: str
    turns: tuple[tuple[str, str], ...]

    @property
    def answer(self) -> str:
        return self.turns[-1][1]


def plural(kind: str) -> str:
    return {"fish": "fish", "cross": "crosses"}.get(kind, kind + "s")


def _a(words: str) -> str:
    return ("an " if words[0] in "aeio" else "a ") + words


def _full(thing: Thing) -> str:
    return f"{thing.colour} {thing.kind}"


def _listed(things: Sequence[Thing]) -> str:
    names = [_a(_full(thing)) for thing in things]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _place(thing: Thing) -> str:
    return (
        "in the center" if (thing.row, thing.column) == ("middle", "center") else f"at the {thing.row} {thing.column}"
    )


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


class _Asker:
    """One scene and the choices of one dialogue."""

    def __init__(self, scene: Scene, rng: random.Random, patterns: Mapping[str, tuple[str, ...]]) -> None:
        self.scene, self.rng, self.patterns = scene, rng, patterns
        self.things = scene.things
        self.kinds = Counter(thing.kind for thing in scene.things)
        self.colours = Counter(thing.colour for thing in scene.things)
        self.pairs = Counter((thing.kind, thing.colour) for thing in scene.things)

    def words(self, kind: str, **parts: str) -> str:
        return word(self.patterns[kind], self.rng, **parts)

    def names(self, thing: Thing, *, colour: bool = True) -> list[str]:
        """What the thing can be called without doubt, without article."""
        names = []
        if self.kinds[thing.kind] == 1:
            names.append(thing.kind)
        if colour and self.pairs[thing.kind, thing.colour] == 1:
            names.append(_full(thing))
        if colour and self.colours[thing.colour] == 1 and self.rng.random() < 0.2:
            names.append(f"{thing.colour} {self.rng.choice(('thing', 'object', 'shape', 'one'))}")
        return names

    def named(
        self, *, colour: bool = True, where: Callable[[Thing], bool] = lambda thing: True
    ) -> tuple[Thing, str] | None:
        """A random thing that fits, and a name of it."""
        fitting = [
            (thing, names) for thing in self.things if where(thing) and (names := self.names(thing, colour=colour))
        ]
        if not fitting:
            return None
        thing, names = self.rng.choice(fitting)
        return thing, self.rng.choice(names)

    # Each returns (question, answer), or None when the scene has no clear case.

    def colour(self) -> tuple[str, str] | None:
        if len(self.things) == 1 and self.rng.random() < 0.3:
            (thing,) = self.things
            name = self.rng.choice(("it", "this", f"the {self.rng.choice(('thing', 'object', 'shape'))}"))
            return self.words("colour", x=name), f"The {thing.kind} is {thing.colour}."
        found = self.named(colour=False)
        return found and (self.words("colour", x=f"the {found[1]}"), f"The {found[1]} is {found[0].colour}.")

    def which(self) -> tuple[str, str] | None:
        single = [thing for thing in self.things if self.colours[thing.colour] == 1]
        if not single:
            return None
        thing = self.rng.choice(single)
        return self.words("which", c=thing.colour), f"The {thing.colour} thing is {_a(thing.kind)}."

    def count_all(self) -> tuple[str, str]:
        count = len(self.things)
        return self.words(
            "count_all"
        ), f"There {'is' if count == 1 else 'are'} {_NUMBERS[count]} object{'s' * (count != 1)}."

    def count(self) -> tuple[str, str]:
        if self.rng.random() < 0.6:
            kind = self._likely(KINDS, self.kinds)
            count, one, many = self.kinds[kind], kind, plural(kind)
        else:
            colour = self._likely(tuple(COLOURS), self.colours)
            noun = self.rng.choice(("thing", "object", "shape"))
            count, one, many = self.colours[colour], f"{colour} thing", f"{colour} things"
            question = self.words("count", n=f"{colour} {noun}s")
            return question, f"There {'is' if count == 1 else 'are'} {_NUMBERS[count]} {one if count == 1 else many}."
        question = self.words("count", n=many)
        return question, f"There {'is' if count == 1 else 'are'} {_NUMBERS[count]} {one if count == 1 else many}."

    def _likely(self, names: Sequence[str], there: Counter[str]) -> str:
        """Something that is there, more often what is there twice; sometimes something that isn't."""
        if self.rng.random() < 0.25:
            return self.rng.choice([name for name in names if not there[name]])
        often = [name for name in names if there[name] > 1]
        if often and self.rng.random() < 0.6:
            return self.rng.choice(often)
        return self.rng.choice([name for name in names if there[name]])

    def exists(self) -> tuple[str, str]:
        thing = self.rng.choice(self.things)
        form = self.rng.choice(("kind", "full", "colour"))
        kind, colour = thing.kind, thing.colour
        if self.rng.random() < 0.5:  # something that isn't there, often by half
            for _ in range(20):
                new_kind = self.rng.choice((kind, self.rng.choice(KINDS))) if form == "full" else self.rng.choice(KINDS)
                kind, colour = new_kind, self.rng.choice(tuple(COLOURS))
                if not self._there(form, kind, colour):
                    break
        words = {"kind": kind, "full": f"{colour} {kind}", "colour": f"{colour} thing"}[form]
        many = {"kind": plural(kind), "full": f"{colour} {plural(kind)}", "colour": f"{colour} things"}[form]
        there = self._there(form, kind, colour)
        question = self.words("exists", a=_a(words), n=many)
        return question, f"Yes, there is {_a(words)}." if there else f"No, there is no {words}."

    def _there(self, form: str, kind: str, colour: str) -> bool:
        return bool({"kind": self.kinds[kind], "full": self.pairs[kind, colour], "colour": self.colours[colour]}[form])

    def where(self) -> tuple[str, str] | None:
        found = self.named(where=lambda thing: thing.has_certain_place)
        return found and (self.words("where", x=f"the {found[1]}"), f"The {found[1]} is {_place(found[0])}.")

    def _beyond(self, thing: Thing, side: str) -> list[Thing] | None:
        """Things on that side of it, or None when one of them is neither clearly there nor clearly not."""
        found = []
        for other in self.things:
            if other is thing:
                continue
            far = {
                "left": thing.x - other.x,
                "right": other.x - thing.x,
                "above": thing.y - other.y,
                "below": other.y - thing.y,
            }[side]
            if far > _APART:
                found.append(other)
            elif far > -_LEVEL:
                return None
        return found

    def relation(self) -> tuple[str, str] | None:
        cases = []
        for thing in self.things:
            for side in ("left", "right", "above", "below"):
                beyond = self._beyond(thing, side)
                if beyond is not None and len(beyond) <= 1 and len(self.things) > 1:
                    cases.append((thing, side, beyond))
        full = [case for case in cases if case[2]]
        empty = [case for case in cases if not case[2]]
        cases = full if full and (not empty or self.rng.random() < 0.75) else empty
        self.rng.shuffle(cases)
        for thing, side, beyond in cases:
            names = self.names(thing)
            if names:
                name = self.rng.choice(names)
                of = side + " of" if side in ("left", "right") else side
                there = f"The {_full(beyond[0])}" if beyond else "Nothing"
                return self.words(side, x=f"the {name}"), f"{there} is {of} the {name}."
        return None

    def relation_yn(self) -> tuple[str, str] | None:
        if len(self.things) < 2:
            return None
        for _ in range(10):
            one, other = self.rng.sample(self.things, 2)
            side = self.rng.choice(("left", "right", "above", "below"))
            far = one.x - other.x if side in ("left", "right") else one.y - other.y
            names, others = self.names(one), self.names(other)
            if abs(far) > _APART and names and others:
                true = (far < 0) == (side in ("left", "above"))
                x, y = f"the {self.rng.choice(names)}", f"the {self.rng.choice(others)}"
                of = side + " of" if side in ("left", "right") else side
                answer = f"Yes, {x} is {of} {y}." if true else f"No, {x} is not {of} {y}."
                return self.words(f"{side}_yn", x=x, y=y), answer
        return None

    def is_it(self) -> tuple[str, str] | None:
        found = self.named(colour=False)
        if found is None:
            return None
        thing, name = found
        true = self.rng.random() < 0.5
        others = [colour for colour in COLOURS if colour != thing.colour]
        seen = [colour for colour in others if self.colours[colour]]
        asked = thing.colour if true else self.rng.choice(seen if seen and self.rng.random() < 0.5 else others)
        return self.words(
            "is_it", x=f"the {name}", c=asked
        ), f"{'Yes' if true else 'No'}, the {name} is {thing.colour}."

    def _by_size(self, biggest: bool) -> tuple[str, str] | None:
        if len(self.things) < 2:
            return None
        first, second = sorted(self.things, key=lambda thing: -thing.radius if biggest else thing.radius)[:2]
        ratio = first.radius / second.radius if biggest else second.radius / first.radius
        if ratio < _BIGGER:
            return None
        name = "biggest" if biggest else "smallest"
        return self.words(name), f"The {name} thing is the {_full(first)}."

    def biggest(self) -> tuple[str, str] | None:
        return self._by_size(True)

    def smallest(self) -> tuple[str, str] | None:
        return self._by_size(False)

    def background(self) -> tuple[str, str]:
        return self.words("background"), f"The background is {self.scene.background}."

    def short(self) -> tuple[str, str]:
        return self.words("short"), _sentence(f"{_listed(self.things)} on a {self.scene.background} background")

    def caption(self) -> tuple[str, str]:
        return self.words("caption"), _sentence(_listed(self.things))

    def detail(self) -> tuple[str, str] | None:
        if not all(thing.has_certain_place for thing in self.things):
            return None
        count = len(self.things)
        head = f"There {'is' if count == 1 else 'are'} {_NUMBERS[count]} object{'s' * (count != 1)}"
        lines = [f"{head} on a {self.scene.background} background."]
        lines += [_sentence(f"{_a(_full(thing))} is {_place(thing)}") for thing in self.things]
        return self.words("detail"), " ".join(lines)

    def refusal(self) -> tuple[str, str]:
        return self.words("refusal"), REFUSAL

    def greeting(self) -> tuple[str, str]:
        return self.words("greeting"), GREETING

    def follow_up(self) -> tuple[tuple[str, str], ...] | None:
        """Two turns; the second says "it" or "they"."""
        rng = self.rng
        turns = rng.choice((self._then_more_of_it, self._then_more_of_it, self._then_its_place, self._then_a_list))()
        if turns is None:
            return None
        first, (asked, answer) = turns
        asked = asked[0].lower() + asked[1:]
        if not asked.startswith("and"):
            asked = rng.choice(("and ", "", "ok, ", "so ", "now ")) + asked
        if rng.random() < 0.7:
            asked = asked[0].upper() + asked[1:]
        if asked[-1].isalpha():
            asked += rng.choice(("?", "?", ""))
        return first, (asked, answer)

    def _of_it(self, kind: str) -> str:
        """A question of that kind about what was spoken of: with "it" in its place, or without a word for it."""
        if f"follow_{kind}" in self.patterns and self.rng.random() < 0.4:
            return self.words(f"follow_{kind}")
        return self.words(kind, x=self.rng.choice(("it", "it", "that", "that one")))

    def _then_more_of_it(self) -> tuple[tuple[str, str], tuple[str, str]] | None:
        found = self.named(colour=False, where=lambda thing: thing.has_certain_place)
        if found is None:
            return None
        thing, name = found
        colour = f"The {name} is {thing.colour}."
        place = f"The {name} is {_place(thing)}."
        exists = (self.words("exists", a=_a(name), n=plural(name)), f"Yes, there is {_a(name)}.")
        ask_colour = (self._of_it("colour"), colour)
        ask_place = (self._of_it("where"), place)
        if len(self.things) == 1 and self.rng.random() < 0.5:
            return self.short(), self.rng.choice((ask_colour, ask_place))
        return self.rng.choice(
            (
                ((self.words("where", x=f"the {name}"), place), ask_colour),
                ((self.words("colour", x=f"the {name}"), colour), ask_place),
                (exists, ask_colour),
                (exists, ask_place),
            )
        )

    def _then_its_place(self) -> tuple[tuple[str, str], tuple[str, str]] | None:
        form = self.rng.choice(("which", "biggest", "smallest"))
        if form == "which":
            single = [thing for thing in self.things if self.colours[thing.colour] == 1]
            if not single:
                return None
            thing = self.rng.choice(single)
            name = thing.kind
            first = (self.words("which", c=thing.colour), f"The {thing.colour} thing is {_a(thing.kind)}.")
        else:
            asked = self._by_size(form == "biggest")
            if asked is None:
                return None
            thing = (max if form == "biggest" else min)(self.things, key=lambda thing: thing.radius)
            first, name = asked, _full(thing)
        if not thing.has_certain_place:
            return None
        return first, (self._of_it("where"), f"The {name} is {_place(thing)}.")

    def _then_a_list(self) -> tuple[tuple[str, str], tuple[str, str]]:
        many = ("what are they", "what are these", "which ones", "name them", "list them", "what")
        one = ("what is it", "which one", "name it", "what")
        asked = self.rng.choice(one if len(self.things) == 1 else many)
        if "follow_list" in self.patterns and len(self.things) > 1 and self.rng.random() < 0.5:
            asked = self.words("follow_list")
        return self.count_all(), (asked, _sentence(_listed(self.things)))


KINDS_OF_QUESTION: dict[str, float] = {
    "colour": 1,
    "which": 1,
    "count_all": 0.7,
    "count": 1.6,
    "exists": 1.3,
    "where": 1,
    "relation": 2.4,
    "relation_yn": 2.4,
    "is_it": 1.2,
    "biggest": 1.2,
    "smallest": 1.2,
    "background": 0.5,
    "short": 1,
    "caption": 1.2,
    "detail": 1,
    "refusal": 1.2,
    "greeting": 0.4,
    "follow_up": 2,
}
"""How often each kind is asked in training."""


def ask(
    scene: Scene, kind: str, rng: random.Random, patterns: Mapping[str, tuple[str, ...]] = TRAINED
) -> Dialogue | None:
    """A question of that kind with its true answer, or None when the scene has no clear case of it.

    Args:
        scene: the order of its things is the order in which answers list them.
        patterns: others than the trained ones are for evaluation.
    """
    asker = _Asker(scene, rng, patterns)
    asked = getattr(asker, kind)()
    if asked is None:
        return None
    turns = asked if kind == "follow_up" else (asked,)
    if len(turns) == 1 and patterns is TRAINED and rng.random() < 0.12:  # after another exchange, nothing changes
        before = _Asker(scene, rng, TRAINED)
        turn = getattr(before, rng.choice(("count_all", "background", "exists", "greeting")))()
        turns = (turn, *turns)
    return Dialogue(kind, tuple(turns))


def is_right(dialogue: Dialogue, answer: str) -> bool:
    """Whether all facts are right; lists and descriptions may come in any order."""
    return _facts(dialogue.answer) == _facts(answer)


def _facts(text: str) -> list[str]:
    first, *rest = text.strip().split(". ")
    sentences = [first, *sorted(sentence.rstrip(".") for sentence in rest)]
    head, mark, ground = first.rstrip(".").partition(" on a ")
    things = head.replace(" and ", ", ").split(", ")
    if len(sentences) == 1 and things[0].split(" ")[0].lower() in ("a", "an") and len(things[0].split()) == 3:
        return [*sorted(thing.lower() for thing in things), mark + ground]
    return [sentence.rstrip(".") for sentence in sentences]
