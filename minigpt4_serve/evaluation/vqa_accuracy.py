"""The accuracy of VQAv2 and OK-VQA, and VizWiz's in the form that the original's evaluation uses.

Source: the rules of https://visualqa.org/evaluation.html and of the official ``vqaEval.py``
(github.com/GT-Vision-Lab/VQA), whose results are reproduced exactly, oddities included.
"""

import re
from collections.abc import Sequence

__all__ = ["normalize_answer", "soft_accuracy", "vizwiz_accuracy"]

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBERS)}
_ARTICLES = ("a", "an", "the")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MAX_PERIODS = 32
"""The official code passes ``re.UNICODE``, which is 32, where ``re.sub`` expects the number of replacements."""

_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
_CONTRACTIONS += " somebody'd've somebody'll somebody's"  # words: allow
_MISSPELLED = {
    contraction[:at] + contraction[at + 1 :]: contraction
    for contraction in _CONTRACTIONS.split()
    for at, character in enumerate(contraction)
    if character == "'"
} | {"somebody'd": "somebodyd"}  # words: allow
"""Contractions that lack one apostrophe → the right spelling. The last entry is the official table's mistake."""


def normalize_answer(text: str) -> str:
    """An answer without punctuation and articles, in lower case, with digits for small numbers."""
    number = _COMMA_IN_NUMBER.search(text) is not None
    stripped = text
    for mark in _PUNCTUATION:
        at_edge = f"{mark} " in text or f" {mark}" in text
        stripped = stripped.replace(mark, "" if at_edge or number else " ")
    stripped = _PERIOD.sub("", stripped, count=_MAX_PERIODS)
    words = [_DIGITS.get(word, word) for word in stripped.lower().split()]
    return " ".join(_MISSPELLED.get(word, word) for word in words if word not in _ARTICLES)


def soft_accuracy(answer: str, answers: Sequence[str], *, ignore_case: bool = False) -> float:
    """The share of people that agree, 0 … 1: the mean of min(matches / 3, 1) over all sets that lack one person.

    Args:
        answers: of people, usually ten. Nothing is normalized if all are equal.
        ignore_case: compare in lower case, as the copy of ``vqaEval.py`` in the original's repository does.
    """
    given = _one_line(answer)
    people = [_one_line(text) for text in answers]
    if len(set(people)) > 1:
        given = normalize_answer(given)
        people = [normalize_answer(text) for text in people]
    if ignore_case:
        given = given.lower()
        people = [text.lower() for text in people]
    matches = sum(text == given for text in people)
    shares = [min((matches - (text == given)) / 3, 1.0) for text in people]
    return sum(shares) / len(shares) if shares else 0.0


def vizwiz_accuracy(answer: str, answers: Sequence[str]) -> float:
    """min(matches / 3, 1) over people's answers in lower case, as the original's ``eval_vqa.py`` counts."""
    given = answer.strip().lower()
    return min(sum(text.lower() == given for text in answers) / 3, 1.0)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()
