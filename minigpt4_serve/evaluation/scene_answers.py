"""Answers about drawn scenes: the facts that they state, in any order."""

__all__ = ["states_the_facts"]


def states_the_facts(answer: str, truth: str) -> bool:
    """Whether the answer states exactly the facts of the true one; lists and descriptions may be in any order."""
    return _facts(answer) == _facts(truth)


def _facts(text: str) -> list[str]:
    first, *rest = text.strip().split(". ")
    sentences = [first, *sorted(sentence.rstrip(".") for sentence in rest)]
    head, mark, ground = first.rstrip(".").partition(" on a ")
    things = head.replace(" and ", ", ").split(", ")
    if len(sentences) == 1 and things[0].split(" ")[0].lower() in ("a", "an") and len(things[0].split()) == 3:
        return [*sorted(thing.lower() for thing in things), mark + ground]
    return [sentence.rstrip(".") for sentence in sentences]
