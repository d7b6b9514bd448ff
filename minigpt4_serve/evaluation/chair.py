"""CHAIR: objects that captions name although the image doesn't show them.

Source: Rohrbach et al., Object Hallucination in Image Captioning (EMNLP 2018), and the rules of its ``chair.py``
(github.com/LisaAnne/Hallucination): words in the singular, two-word names first, each name replaced by its COCO
category. Its list of names (``synonyms.txt``) has no license, so it isn't included: ``read_synonyms`` reads it, and
``coco_objects.txt`` is a list of this project's own.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

__all__ = ["ObjectNames", "count_objects", "read_synonyms"]

_WORD = re.compile(r"\w+(?:-\w+|['’](?!s\b)\w+)*")
"""A possessive's ``s`` is a word of its own: the man's kite names a man."""

_ANIMALS = ["bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub"]
_QUALIFIED = {f"{age} {animal}": animal for animal in _ANIMALS for age in ("baby", "adult")}
_QUALIFIED |= {f"passenger {vehicle}": vehicle for vehicle in ("jet", "train")}
_QUALIFIED |= {"bow tie": "tie", "toilet seat": "toilet"}
_PAIRS = {"home plate", "train track"}
"""Two-word names that are no COCO object, though one of their words is."""

_IRREGULAR = {
    "men": "man",
    "women": "woman",
    "children": "child",
    "people": "person",
    "geese": "goose",
    "mice": "mouse",
    "oxen": "ox",
    "calves": "calf",
    "knives": "knife",
    "loaves": "loaf",
    "wolves": "wolf",
    "shelves": "shelf",
}
_ENDINGS = (("ies", "y"), ("es", ""), ("s", ""))
_UNCHANGED = ("ss", "us", "is")
_MIN_SINGULAR = 2


class ObjectNames:
    """Names of objects in captions.

    Args:
        synonyms: the names of each object; the first one is the object's own.
    """

    def __init__(self, synonyms: Iterable[Collection[str]]) -> None:
        self._objects: dict[str, str] = {}
        for names in synonyms:
            own, *_ = names
            for name in names:
                self._objects[name.lower()] = own.lower()
        self._pairs = {name: name for name in self._objects if name.count(" ") == 1}
        self._pairs |= {pair: pair for pair in _PAIRS} | _QUALIFIED

    def find_object(self, name: str) -> str | None:
        """The object that ``name`` stands for; None if it is none of them."""
        return self._objects.get(name)

    def find(self, caption: str) -> list[str]:
        """The objects that a caption names, in order, as often as it names them."""
        words = self._join_pairs(_WORD.findall(caption.lower()))
        if "toilet" in words and "seat" in words:
            words = [word for word in words if word != "seat"]
        return [found for word in words if (found := self._objects.get(word)) is not None]

    def _join_pairs(self, words: list[str]) -> list[str]:
        """Words in the singular, two-word names as one word."""
        joined = []
        at = 0
        while at < len(words):
            pair = self._pair(words[at : at + 2])
            joined.append(self._singular(words[at]) if pair is None else pair)
            at += 1 if pair is None else 2
        return joined

    def _pair(self, words: list[str]) -> str | None:
        if len(words) < 2:
            return None
        first, second = words
        for name in (f"{first} {second}", f"{self._singular(first)} {_singular(second)}"):
            if name in self._pairs:
                return self._pairs[name]
        return None

    def _singular(self, word: str) -> str:
        """The singular; names decide where endings don't: ``taxis`` is a plural, ``bus`` is not."""
        candidates = [word, word.removesuffix("s")]
        if not word.endswith("ies"):  # skies are no skis
            candidates.append(word.removesuffix("es"))
        return next((name for name in candidates if name in self._objects), None) or _singular(word)


def read_synonyms(path: Path) -> ObjectNames:
    """The names in a file with one object a line: its own name and others, separated by commas."""
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [[name.strip() for name in line.split(",") if name.strip()] for line in lines]
    return ObjectNames(row for row in rows if row)


def count_objects(caption: str, truth: Collection[str], names: ObjectNames) -> Mapping[str, float]:
    """Counts of one caption, of which sums over all captions give CHAIR.

    Returns:
        ``mentioned``: objects that it names; ``hallucinated``: those of them that aren't in ``truth``; ``sentences``:
        1; ``wrong_sentences``: 1 if any is hallucinated.
    """
    found = names.find(caption)
    wrong = [name for name in found if name not in truth]
    return {
        "mentioned": float(len(found)),
        "hallucinated": float(len(wrong)),
        "sentences": 1.0,
        "wrong_sentences": float(bool(wrong)),
    }


def _singular(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith(_UNCHANGED):
        return word
    if word.endswith(("shes", "ches", "sses", "xes", "zes", "buses")):
        return word[:-2]
    for ending, singular in _ENDINGS:
        if ending == "es" and not word.endswith("oes"):
            continue
        if word.endswith(ending) and len(word) > len(ending) + _MIN_SINGULAR:
            return word.removesuffix(ending) + singular
    return word
