"""The table of tasks: how each one reads its data, sends its questions, and scores answers.

A score is a set of counts for each question; figures are computed from their sums, so that intervals can resample
questions (``intervals``).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.evaluation import layouts, yes_no
from minigpt4_serve.evaluation.box_overlap import is_located
from minigpt4_serve.evaluation.chair import ObjectNames, count_objects
from minigpt4_serve.evaluation.layouts import DataFolder
from minigpt4_serve.evaluation.questions import Question, check_questions
from minigpt4_serve.evaluation.scene_answers import states_the_facts
from minigpt4_serve.evaluation.vqa_accuracy import soft_accuracy, vizwiz_accuracy

__all__ = ["TASKS", "Counts", "Metric", "Scorer", "Task", "find_task", "read_questions"]

Counts = Mapping[str, float]
Metric = Callable[[Counts], float | None]
"""A figure, 0 … 1, from counts of one question or their sums; None where it isn't defined."""
Scorer = Callable[[Question, str], Counts]


@dataclass(frozen=True)
class Task:
    """One benchmark.

    Attributes:
        title: for people.
        rule: what counts as right, and whose rule it is.
        read: questions of a data folder.
        scorer: the function that scores answers, for a data folder; None for a task that people rate.
        metrics: figures by name; the first one ranks answers and decides comparisons.
        lower_is_better: of all metrics.
        max_tokens: longest answer, as in the original's evaluation.
    """

    title: str
    rule: str
    read: Callable[[DataFolder], list[Question]]
    scorer: Callable[[DataFolder], Scorer] | None
    metrics: Mapping[str, Metric]
    lower_is_better: bool = False
    max_tokens: int = 20

    @property
    def main_metric(self) -> str:
        """The name of the first metric."""
        return next(iter(self.metrics))

    def value(self, counts: Counts) -> float:
        """How good one answer is, 0 … 1, by the main metric."""
        found = self.metrics[self.main_metric](counts)
        if found is None:
            return 1.0
        return 1 - found if self.lower_is_better else found


def find_task(name: str) -> Task:
    """The task of this name.

    Raises:
        InvalidRequest: there is none.
    """
    if name not in TASKS:
        raise InvalidRequest(f"There is no task '{name}'. Tasks: {', '.join(TASKS)}.")
    return TASKS[name]


def read_questions(task: Task, data: DataFolder, limit: int | None = None) -> list[Question]:
    """The first ``limit`` questions of each split, checked.

    Raises:
        InvalidRequest: the folder isn't in the task's layout, or images are missing.
    """
    if not data.path.is_dir():
        raise InvalidRequest(f"{data.path} is not a folder; --data names the folder of the data set.")
    try:
        questions = task.read(data)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        lacking = f": a record has no {error}" if isinstance(error, KeyError) else ""
        layout = "docs/evaluation.md shows the layout"
        raise InvalidRequest(f"{data.path} isn't in the layout of {task.title}{lacking}. {layout}.") from error
    if limit is not None:
        taken: dict[str, int] = {}
        kept = []
        for question in questions:
            taken[question.split] = taken.get(question.split, 0) + 1
            if taken[question.split] <= limit:
                kept.append(question)
        questions = kept
    check_questions(questions)
    return questions


def _mean_score(totals: Counts) -> float | None:
    return totals["score"] / totals["questions"] if totals["questions"] else None


def _share(part: str, whole: str) -> Metric:
    return lambda totals: totals[part] / totals[whole] if totals[whole] else None


def _scored(score: Callable[[Question, str], float]) -> Callable[[DataFolder], Scorer]:
    """A scorer of answers that are worth 0 … 1 each."""
    return lambda _: lambda question, answer: {"score": float(score(question, answer)), "questions": 1.0}


def _plain(answer: str) -> str:
    return answer.replace("<unk>", "").strip().lower()


def _choice(question: Question, answer: str) -> float:
    return float(_plain(answer).rstrip(".") == question.truth["answer"].strip().lower().rstrip("."))


def _located(question: Question, answer: str) -> float:
    truth = question.truth
    return float(is_located(answer, truth["bbox"], truth["width"], truth["height"]))


def _pope(question: Question, answer: str) -> Counts:
    return yes_no.count_outcome(answer, truth=question.truth != "no")


def _chair(data: DataFolder) -> Scorer:
    names: ObjectNames = layouts.chair_names(data)
    return lambda question, answer: count_objects(answer, question.truth, names)


_ACCURACY: Mapping[str, Metric] = {"accuracy": _mean_score}
_EXACT = _scored(lambda question, answer: _plain(answer) == question.truth.lower())
_SOFT = (
    "Agreement with people's ten answers, min(matches / 3, 1) averaged over sets of nine; the official normalization."
)
_IOU = "The answer's one box overlaps the true one with IoU ≥ 0.5, pixels counted inclusively as in the original."


def _referring(title: str, name: str, splits: tuple[str, ...]) -> Task:
    return Task(title, _IOU, layouts.read_refcoco(name, splits), _scored(_located), _ACCURACY)


TASKS: Mapping[str, Task] = {
    "okvqa": Task(
        "OK-VQA",
        _SOFT,
        layouts.read_okvqa,
        _scored(lambda question, answer: soft_accuracy(_plain(answer), question.truth, ignore_case=True)),
        _ACCURACY,
    ),
    "vqav2": Task(
        "VQAv2",
        _SOFT,
        layouts.read_vqav2,
        _scored(lambda question, answer: soft_accuracy(_plain(answer), question.truth)),
        _ACCURACY,
    ),
    "vizwiz": Task(
        "VizWiz",
        "min(matches / 3, 1) over people's ten answers, in lower case, as in the original.",
        layouts.read_vizwiz,
        _scored(lambda question, answer: vizwiz_accuracy(_plain(answer), question.truth)),
        _ACCURACY,
    ),
    "iconvqa": Task(
        "IconVQA",
        "The answer in words equals the right choice. The original ranks the choices by their loss instead, which no "
        "chat API offers: its figures are higher.",
        layouts.read_iconvqa,
        _scored(_choice),
        _ACCURACY,
    ),
    "gqa": Task(
        "GQA", "The answer equals the true one in lower case, as in the original.", layouts.read_gqa, _EXACT, _ACCURACY
    ),
    "vsr": Task("VSR", "The answer is 'true' or 'false' as it should be.", layouts.read_vsr, _EXACT, _ACCURACY),
    "hm": Task(
        "Hateful Memes", "The answer is 'yes' or 'no' as it should be.", layouts.read_hateful_memes, _EXACT, _ACCURACY
    ),
    "refcoco": _referring("RefCOCO", "refcoco", ("val", "testA", "testB")),
    "refcoco+": _referring("RefCOCO+", "refcoco+", ("val", "testA", "testB")),
    "refcocog": _referring("RefCOCOg", "refcocog", ("val", "test")),
    "pope": Task(
        "POPE",
        "The first sentence of an answer is no if it has the word no or not, else yes; yes is positive.",
        layouts.read_pope,
        lambda _: _pope,
        {
            "accuracy": yes_no.accuracy,
            "precision": yes_no.precision,
            "recall": yes_no.recall,
            "f1": yes_no.f1,
            "yes_share": yes_no.yes_share,
        },
    ),
    "chair": Task(
        "CHAIR",
        "Objects that captions name and neither masks nor people's captions have: chair_i is their share of all named "
        "objects, chair_s the share of captions with any. Lower is better.",
        layouts.read_chair,
        _chair,
        {"chair_i": _share("hallucinated", "mentioned"), "chair_s": _share("wrong_sentences", "sentences")},
        lower_is_better=True,
        max_tokens=300,
    ),
    "scenes": Task(
        "Drawn scenes",
        "The answer states exactly the true facts, lists and descriptions in any order.",
        layouts.read_scenes,
        _scored(lambda question, answer: states_the_facts(answer, question.truth)),
        _ACCURACY,
        max_tokens=100,
    ),
    "creative": Task(
        "Memes, recipes, advertisements, poems",
        "People rate the answers: --sheet writes the form.",
        layouts.read_creative,
        None,
        {},
        max_tokens=300,
    ),
}
"""By the name that the command takes."""
