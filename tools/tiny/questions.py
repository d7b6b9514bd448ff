"""Questions about a scene and their true answers, as text.

Ambiguous questions are left out: objects at nearly the same height or nearly one above the other aren't compared by
place, and objects of similar size aren't compared by size.
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from minigpt4_serve.evaluation.scene_answers import states_the_facts
from tools.tiny.wordings import TRAINED, word
from tools.tiny.world import COLORS, COLUMNS, KINDS, ROWS, Scene, Thing

__all__ = ["KEY_WORDS", "KINDS_OF_QUESTION", "Dialogue", "ask", "is_correct", "plural"]

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six")
_APART = 0.09
_LEVEL = 0.03
"""Fractions of the image's side: objects further apart than the first are clearly left of or above each other, nearer
than the second clearly not."""
_BIGGER = 1.22
"""Ratio of radii from which one object is clearly the bigger one."""

REFUSAL = "I can't tell that from the picture."
GREETING = "Hello! Ask me about the picture."
KEY_WORDS = frozenset(
    [*KINDS, *COLORS, *ROWS, *COLUMNS, *_NUMBERS, *(f"{kind}s" for kind in KINDS), "fish", "crosses"]
    + ["white", "gray", "black", "beige", "Yes", "No", "Nothing", "above", "below", "not", "nothing", "on"]
    + [name.capitalize() for name in ("a", "an", "the", "there", "i", "hello", "two")]
)
"""Words of answers that carry facts; the language loss gives them a higher weight."""


@dataclass(frozen=True)
class Dialogue:
    """A conversation about one scene.

    Attributes:
        kind: a key of ``KINDS_OF_QUESTION``.
        turns: (question, answer) pairs; the last answer is the one that is trained and evaluated.
    """

    kind: str
    turns: tuple[tuple[str, str], ...]

    @property
    def answer(self) -> str:
        """The last turn's answer."""
        return self.turns[-1][1]


def plural(kind: str) -> str:
    """The plural of a kind of object."""
    return {"fish": "fish", "cross": "crosses"}.get(kind, kind + "s")


def _a(words: str) -> str:
    return ("an " if words[0] in "aeio" else "a ") + words


def _full(thing: Thing) -> str:
    return f"{thing.color} {thing.kind}"


def _listed(things: Sequence[Thing]) -> str:
    names = [_a(_full(thing)) for thing in things]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def _there_are(count: int, one: str, many: str) -> str:
    return f"There is {_NUMBERS[count]} {one}" if count == 1 else f"There are {_NUMBERS[count]} {many}"


def _place(thing: Thing) -> str:
    return (
        "in the center" if (thing.row, thing.column) == ("middle", "center") else f"at the {thing.row} {thing.column}"
    )


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."


class _Asker:
    """Makes one dialogue about one scene; each method named after a kind of question makes one turn of it."""

    def __init__(self, scene: Scene, rng: random.Random, patterns: Mapping[str, tuple[str, ...]]) -> None:
        self.scene = scene
        self.rng = rng
        self.patterns = patterns
        self.things = scene.things
        self.kinds = Counter(thing.kind for thing in scene.things)
        self.colors = Counter(thing.color for thing in scene.things)
        self.pairs = Counter((thing.kind, thing.color) for thing in scene.things)

    def words(self, kind: str, **parts: str) -> str:
        return word(self.patterns[kind], self.rng, **parts)

    def names(self, thing: Thing, *, color: bool = True) -> list[str]:
        """Unambiguous names of the object, without article."""
        names = []
        if self.kinds[thing.kind] == 1:
            names.append(thing.kind)
        if color and self.pairs[thing.kind, thing.color] == 1:
            names.append(_full(thing))
        if color and self.colors[thing.color] == 1 and self.rng.random() < 0.2:
            names.append(f"{thing.color} {self.rng.choice(('thing', 'object', 'shape', 'one'))}")
        return names

    def named(
        self, *, color: bool = True, where: Callable[[Thing], bool] = lambda thing: True
    ) -> tuple[Thing, str] | None:
        """A random object that fits and has an unambiguous name, with that name; None if there is none."""
        fitting = [
            (thing, names) for thing in self.things if where(thing) and (names := self.names(thing, color=color))
        ]
        if not fitting:
            return None
        thing, names = self.rng.choice(fitting)
        return thing, self.rng.choice(names)

    # Each returns (question, answer), or None when the scene has no clear case.

    def color(self) -> tuple[str, str] | None:
        if len(self.things) == 1 and self.rng.random() < 0.3:
            (thing,) = self.things
            name = self.rng.choice(("it", "this", f"the {self.rng.choice(('thing', 'object', 'shape'))}"))
            return self.words("color", x=name), f"The {thing.kind} is {thing.color}."
        found = self.named(color=False)
        return found and (self.words("color", x=f"the {found[1]}"), f"The {found[1]} is {found[0].color}.")

    def which(self) -> tuple[str, str] | None:
        single = [thing for thing in self.things if self.colors[thing.color] == 1]
        if not single:
            return None
        thing = self.rng.choice(single)
        return self.words("which", c=thing.color), f"The {thing.color} thing is {_a(thing.kind)}."

    def count_all(self) -> tuple[str, str]:
        count = len(self.things)
        return self.words("count_all"), _there_are(count, "object", "objects") + "."

    def count(self) -> tuple[str, str]:
        if self.rng.random() < 0.6:
            kind = self._likely(KINDS, self.kinds)
            question = self.words("count", n=plural(kind))
            answer = _there_are(self.kinds[kind], kind, plural(kind))
        else:
            color = self._likely(tuple(COLORS), self.colors)
            noun = self.rng.choice(("thing", "object", "shape"))
            question = self.words("count", n=f"{color} {noun}s")
            answer = _there_are(self.colors[color], f"{color} thing", f"{color} things")
        return question, answer + "."

    def _likely(self, names: Sequence[str], there: Counter[str]) -> str:
        """One of ``names``: mostly one that the scene shows, preferably more than once; one in four that it doesn't."""
        if self.rng.random() < 0.25:
            return self.rng.choice([name for name in names if not there[name]])
        often = [name for name in names if there[name] > 1]
        if often and self.rng.random() < 0.6:
            return self.rng.choice(often)
        return self.rng.choice([name for name in names if there[name]])

    def exists(self) -> tuple[str, str]:
        thing = self.rng.choice(self.things)
        form = self.rng.choice(("kind", "full", "color"))
        kind = thing.kind
        color = thing.color
        if self.rng.random() < 0.5:  # absent, or only half of it present
            for _ in range(20):
                new_kind = self.rng.choice((kind, self.rng.choice(KINDS))) if form == "full" else self.rng.choice(KINDS)
                kind = new_kind
                color = self.rng.choice(tuple(COLORS))
                if not self._there(form, kind, color):
                    break
        words = {"kind": kind, "full": f"{color} {kind}", "color": f"{color} thing"}[form]
        many = {"kind": plural(kind), "full": f"{color} {plural(kind)}", "color": f"{color} things"}[form]
        there = self._there(form, kind, color)
        question = self.words("exists", a=_a(words), n=many)
        return question, f"Yes, there is {_a(words)}." if there else f"No, there is no {words}."

    def _there(self, form: str, kind: str, color: str) -> bool:
        return bool({"kind": self.kinds[kind], "full": self.pairs[kind, color], "color": self.colors[color]}[form])

    def where(self) -> tuple[str, str] | None:
        found = self.named(where=lambda thing: thing.has_unambiguous_place)
        return found and (self.words("where", x=f"the {found[1]}"), f"The {found[1]} is {_place(found[0])}.")

    def _beyond(self, thing: Thing, side: str) -> list[Thing] | None:
        """Objects on that side of ``thing``, or None if any other object is a borderline case."""
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
            names = self.names(one)
            others = self.names(other)
            if abs(far) > _APART and names and others:
                true = (far < 0) == (side in ("left", "above"))
                x = f"the {self.rng.choice(names)}"
                y = f"the {self.rng.choice(others)}"
                of = side + " of" if side in ("left", "right") else side
                answer = f"Yes, {x} is {of} {y}." if true else f"No, {x} is not {of} {y}."
                return self.words(f"{side}_yn", x=x, y=y), answer
        return None

    def is_it(self) -> tuple[str, str] | None:
        found = self.named(color=False)
        if found is None:
            return None
        thing, name = found
        true = self.rng.random() < 0.5
        others = [color for color in COLORS if color != thing.color]
        seen = [color for color in others if self.colors[color]]
        asked = thing.color if true else self.rng.choice(seen if seen and self.rng.random() < 0.5 else others)
        return self.words("is_it", x=f"the {name}", c=asked), f"{'Yes' if true else 'No'}, the {name} is {thing.color}."

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
        if not all(thing.has_unambiguous_place for thing in self.things):
            return None
        head = _there_are(len(self.things), "object", "objects")
        lines = [f"{head} on a {self.scene.background} background."]
        lines += [_sentence(f"{_a(_full(thing))} is {_place(thing)}") for thing in self.things]
        return self.words("detail"), " ".join(lines)

    def refusal(self) -> tuple[str, str]:
        return self.words("refusal"), REFUSAL

    def greeting(self) -> tuple[str, str]:
        return self.words("greeting"), GREETING

    def follow_up(self) -> tuple[tuple[str, str], ...] | None:
        """Two turns; the second refers back with "it" or "they"."""
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
        """A question of that kind about the object mentioned before: by a pronoun, or without naming it."""
        if f"follow_{kind}" in self.patterns and self.rng.random() < 0.4:
            return self.words(f"follow_{kind}")
        return self.words(kind, x=self.rng.choice(("it", "it", "that", "that one")))

    def _then_more_of_it(self) -> tuple[tuple[str, str], tuple[str, str]] | None:
        found = self.named(color=False, where=lambda thing: thing.has_unambiguous_place)
        if found is None:
            return None
        thing, name = found
        color = f"The {name} is {thing.color}."
        place = f"The {name} is {_place(thing)}."
        exists = (self.words("exists", a=_a(name), n=plural(name)), f"Yes, there is {_a(name)}.")
        ask_color = (self._of_it("color"), color)
        ask_place = (self._of_it("where"), place)
        if len(self.things) == 1 and self.rng.random() < 0.5:
            return self.short(), self.rng.choice((ask_color, ask_place))
        return self.rng.choice(
            (
                ((self.words("where", x=f"the {name}"), place), ask_color),
                ((self.words("color", x=f"the {name}"), color), ask_place),
                (exists, ask_color),
                (exists, ask_place),
            )
        )

    def _then_its_place(self) -> tuple[tuple[str, str], tuple[str, str]] | None:
        form = self.rng.choice(("which", "biggest", "smallest"))
        if form == "which":
            single = [thing for thing in self.things if self.colors[thing.color] == 1]
            if not single:
                return None
            thing = self.rng.choice(single)
            name = thing.kind
            first = (self.words("which", c=thing.color), f"The {thing.color} thing is {_a(thing.kind)}.")
        else:
            asked = self._by_size(form == "biggest")
            if asked is None:
                return None
            thing = (max if form == "biggest" else min)(self.things, key=lambda thing: thing.radius)
            first = asked
            name = _full(thing)
        if not thing.has_unambiguous_place:
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
    "color": 1,
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
"""Relative frequency of each kind of question in training."""


def ask(
    scene: Scene, kind: str, rng: random.Random, patterns: Mapping[str, tuple[str, ...]] = TRAINED
) -> Dialogue | None:
    """A dialogue whose last question is of that kind, or None if the scene has no unambiguous case of it.

    Args:
        scene: the order of its objects is the order in which answers list them.
        kind: a key of ``KINDS_OF_QUESTION``.
        patterns: wordings by kind; other than ``TRAINED`` for evaluation.
    """
    asker = _Asker(scene, rng, patterns)
    asked = getattr(asker, kind)()
    if asked is None:
        return None
    turns = asked if kind == "follow_up" else (asked,)
    if len(turns) == 1 and patterns is TRAINED and rng.random() < 0.12:  # after an unrelated turn
        before = _Asker(scene, rng, TRAINED)
        turn = getattr(before, rng.choice(("count_all", "background", "exists", "greeting")))()
        turns = (turn, *turns)
    return Dialogue(kind, tuple(turns))


def is_correct(dialogue: Dialogue, answer: str) -> bool:
    """Whether the answer states exactly the facts of the true one; lists and descriptions may be in any order."""
    return states_the_facts(answer, dialogue.answer)
