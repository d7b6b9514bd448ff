"""Reads data sets in the layouts that their authors, and the original's evaluation, use.

Each ``read_…`` function returns the questions of one task with the prompts of the original's ``eval_vqa.py`` and
``eval_ref.py``, POPE's and CHAIR's. Files may lie in the data folder itself or in a folder of the task's name in it.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt4_serve.errors import InvalidRequest
from minigpt4_serve.evaluation.chair import ObjectNames, read_synonyms
from minigpt4_serve.evaluation.questions import Question

__all__ = [
    "DataFolder",
    "read_chair",
    "read_creative",
    "read_gqa",
    "read_hateful_memes",
    "read_iconvqa",
    "read_okvqa",
    "read_pope",
    "read_refcoco",
    "read_scenes",
    "read_vizwiz",
    "read_vqav2",
    "read_vsr",
]

SHORT_ANSWER = "[vqa] Based on the image, respond to this question with a short answer: {}"
VIZWIZ = (
    "[vqa] The question is '{}' Based on the image, answer the question with a single word or phrase. "
    "and reply 'unanswerable' when the provided information is insufficient"
)
VSR = "[vqa] Based on the image, is this statement true or false? {}"
HATEFUL = "This is an image writting '{}'. Is this image hateful? Answer yes or no. Answer:"
REFER = "[refer] give me the location of {}"
CAPTION = "Generate a short caption of the image."
CREATIVE = {
    "meme": "Explain why this meme is funny.",
    "recipe": "How should I make something like this?",
    "advertisement": "Help me draft a professional advertisement for this.",
    "poem": "Can you craft a beautiful poem about this image?",
}
"""The four tasks of the MiniGPT-4 paper, section 4.2; a data folder has a folder of images for each."""

_IMAGE_FOLDERS = ("images", "train2017", "val2017", "train2014", "val2014", "test2015", "")
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
_POPE_SPLITS = ("random", "popular", "adversarial")
_COCO_NAMES = ("{:012d}.jpg", "COCO_val2014_{:012d}.jpg", "COCO_train2014_{:012d}.jpg", "COCO_test2015_{:012d}.jpg")

Record = Mapping[str, Any]


@dataclass(frozen=True)
class DataFolder:
    """The folder of a data set.

    Attributes:
        path: annotations and, unless ``images`` is given, images.
        images: the folder of the images.
        prompt: replaces the task's prompt; ``{}`` stands for the question.
    """

    path: Path
    images: Path | None = None
    prompt: str | None = None

    def find(self, *names: str, folder: str = "") -> Path | None:
        """The first of these files that exists in the folder, or in ``folder`` inside it."""
        places = [self.path, self.path / folder] if folder else [self.path]
        return next((place / name for name in names for place in places if (place / name).is_file()), None)

    def require(self, *names: str, folder: str = "") -> Path:
        """As ``find``.

        Raises:
            InvalidRequest: there is none.
        """
        if (found := self.find(*names, folder=folder)) is None:
            wanted = " or ".join(names)
            raise InvalidRequest(f"{self.path} has no {wanted}. docs/evaluation.md lists the files of each task.")
        return found

    def image_finder(self, *folders: str) -> Callable[..., Path]:
        """A function that gives the path of the first of several names that exists; of the first if none does.

        Args:
            folders: of this data set, tried before the usual ones.
        """
        if self.images is not None:
            places = [self.images, *(self.images / name for name in folders)]
        else:
            places = [self.path / name for name in (*folders, *_IMAGE_FOLDERS)]
        places = [place for place in places if place.is_dir()] or [self.path]

        def find(*names: str) -> Path:
            candidates = (place / name for name in names for place in places)
            return next((path for path in candidates if path.is_file()), places[0] / names[0])

        return find

    def ask(self, template: str, text: str) -> str:
        """The prompt for a question."""
        return (self.prompt or template).replace("{}", text)


def read_okvqa(data: DataFolder) -> list[Question]:
    """OK-VQA: ``okvqa_test_split.json`` and the clean annotations of the original, or the published files."""
    questions = data.require(
        "okvqa_test_split.json",
        "OpenEnded_mscoco_val2014_questions_clean.json",
        "OpenEnded_mscoco_val2014_questions.json",
        folder="okvqa",
    )
    annotations = data.require(
        "mscoco_val2014_annotations_clean.json", "mscoco_val2014_annotations.json", folder="okvqa"
    )
    return _read_vqa(data, questions, annotations, ("okvqa/okvqa_images", "okvqa_images"), by_answer_type=False)


def read_vqav2(data: DataFolder) -> list[Question]:
    """VQAv2: questions and annotations of val2014 as published, split by the kind of answer."""
    questions = data.require("v2_OpenEnded_mscoco_val2014_questions.json", folder="vqav2")
    annotations = data.require("v2_mscoco_val2014_annotations.json", folder="vqav2")
    return _read_vqa(data, questions, annotations, ("vqav2/vqav2_images", "vqav2_images"), by_answer_type=True)


def _read_vqa(
    data: DataFolder, questions: Path, annotations: Path, images: tuple[str, ...], *, by_answer_type: bool
) -> list[Question]:
    find = data.image_finder(*images)
    by_id = {int(record["question_id"]): record for record in _records(annotations, "annotations")}
    found = []
    for record in _records(questions, "questions"):
        number = int(record["question_id"])
        truth = by_id.get(number)
        if truth is None:
            raise InvalidRequest(f"{annotations} has no answers to question {number} of {questions.name}.")
        found.append(
            Question(
                id=str(number),
                image=find(*(name.format(int(record["image_id"])) for name in _COCO_NAMES)),
                prompt=data.ask(SHORT_ANSWER, record["question"]),
                truth=[answer["answer"] for answer in truth["answers"]],
                split=str(truth.get("answer_type", "")) if by_answer_type else "",
            )
        )
    return found


def read_vizwiz(data: DataFolder) -> list[Question]:
    """VizWiz: ``val.json`` and ``vizwiz_images/``."""
    file = data.require("val.json", "vizwiz_val.json", folder="vizwiz")
    find = data.image_finder("vizwiz/vizwiz_images", "vizwiz_images", "val")
    return [
        Question(
            id=record["image"],
            image=find(record["image"]),
            prompt=data.ask(VIZWIZ, record["question"]),
            truth=[answer["answer"] for answer in record["answers"]],
        )
        for record in _records(file)
    ]


def read_iconvqa(data: DataFolder) -> list[Question]:
    """IconQA's questions with choices in words: ``choose_text_val.json`` and ``iconvqa_images/ID/image.png``."""
    file = data.require("choose_text_val.json", folder="iconvqa")
    find = data.image_finder("iconvqa/iconvqa_images", "iconvqa_images", "choose_txt")
    return [
        Question(
            id=str(number),
            image=find(f"{record['image_id']}/image.png"),
            prompt=data.ask(SHORT_ANSWER, record["question"]),
            truth={"answer": str(record["answer"]), "choices": [str(choice) for choice in record["choices"]]},
        )
        for number, record in enumerate(_records(file))
    ]


def read_gqa(data: DataFolder) -> list[Question]:
    """GQA: ``testdev_balanced_questions.json`` as the original lists it, or as published, an object by question."""
    file = data.require("testdev_balanced_questions.json", "test_balanced_questions.json", folder="gqa")
    find = data.image_finder("gqa/gqa_images", "gqa_images")
    content = _load(file)
    published = isinstance(content, dict)
    records = [{"id": key, **value} for key, value in content.items()] if published else content
    found = []
    for number, record in enumerate(records):
        name = f"{record['imageId']}.jpg" if "imageId" in record else record["image"]
        found.append(
            Question(
                id=str(record["id"]) if published else str(number),
                image=find(name),
                prompt=data.ask(SHORT_ANSWER, record["question"]),
                truth=record["answer"],
            )
        )
    return found


def read_vsr(data: DataFolder) -> list[Question]:
    """VSR, zero-shot split: ``test.jsonl`` and ``vsr_images/``."""
    file = data.require("test.jsonl", "vsr_test.jsonl", folder="vsr")
    find = data.image_finder("vsr/vsr_images", "vsr_images")
    return [
        Question(
            id=str(number),
            image=find(record["image"]),
            prompt=data.ask(VSR, record["caption"]),
            truth="true" if record["label"] == 1 else "false",
        )
        for number, record in enumerate(_json_lines(file))
    ]


def read_hateful_memes(data: DataFolder) -> list[Question]:
    """Hateful Memes: ``dev.jsonl`` and ``hm_images/`` with the folder ``img`` in it."""
    file = data.require("dev.jsonl", folder="hateful_meme")
    find = data.image_finder("hateful_meme/hm_images", "hm_images", "hateful_meme")
    return [
        Question(
            id=str(number),
            image=find(record["img"], Path(record["img"]).name),
            prompt=data.ask(HATEFUL, record["text"]),
            truth="yes" if int(record["label"]) == 1 else "no",
        )
        for number, record in enumerate(_json_lines(file))
    ]


def read_refcoco(name: str, splits: Iterable[str]) -> Callable[[DataFolder], list[Question]]:
    """A reader of the original's ``NAME_SPLIT.json`` files: ``img_id``, ``sents``, ``bbox``, ``width``, ``height``."""

    def read(data: DataFolder) -> list[Question]:
        find = data.image_finder("train2014")
        files = {split: data.find(f"{name}_{split}.json", folder=name) for split in splits}
        if not any(files.values()):
            data.require(*(f"{name}_{split}.json" for split in splits), folder=name)
        return [
            Question(
                id=f"{split}/{number}",
                image=find(f"{record['img_id'][:27]}.jpg"),
                prompt=data.ask(REFER, _sentence(record)),
                truth={key: record[key] for key in ("bbox", "width", "height")},
                split=split,
            )
            for split, file in files.items()
            if file is not None
            for number, record in enumerate(_records(file))
        ]

    return read


def _sentence(record: Record) -> str:
    """One expression; the published files hold a string, others a list."""
    sentences = record["sents"]
    return sentences if isinstance(sentences, str) else str(sentences[0])


def read_pope(data: DataFolder) -> list[Question]:
    """POPE: ``coco_pope_{random,popular,adversarial}.json``, JSON lines, beside ``val2014/``."""
    files = {split: data.find(f"coco_pope_{split}.json", folder="pope") for split in _POPE_SPLITS}
    if not any(files.values()):
        data.require(*(f"coco_pope_{split}.json" for split in _POPE_SPLITS), folder="pope")
    find = data.image_finder("val2014", "pope/val2014")
    return [
        Question(
            id=f"{split}/{number}",
            image=find(record["image"]),
            prompt=data.ask("{}", record["text"]),
            truth=record["label"],
            split=split,
        )
        for split, file in files.items()
        if file is not None
        for number, record in enumerate(_json_lines(file))
    ]


def read_chair(data: DataFolder) -> list[Question]:
    """CHAIR: captions for the images of ``instances_*2014.json`` that exist; ``captions_*2014.json`` adds objects.

    Objects are those of the masks and those that people's captions name, as in the original metric.
    """
    instances = _annotation_files(data, "instances")
    if not instances:
        data.require("annotations/instances_val2014.json")
    names = chair_names(data)
    find = data.image_finder("val2014", "train2014")
    images: dict[int, Path] = {}
    objects: dict[int, set[str]] = {}
    for file in instances:
        content = _load(file)
        categories = {record["id"]: record["name"] for record in content["categories"]}
        for record in content["images"]:
            path = find(record["file_name"])
            if path.is_file():
                images[int(record["id"])] = path
        for record in content["annotations"]:
            category = categories[record["category_id"]]
            objects.setdefault(int(record["image_id"]), set()).add(names.find_object(category) or category)
    for file in _annotation_files(data, "captions"):
        for record in _records(file, "annotations"):
            if int(record["image_id"]) in images:
                objects.setdefault(int(record["image_id"]), set()).update(names.find(record["caption"]))
    return [
        Question(id=str(number), image=path, prompt=data.ask(CAPTION, ""), truth=sorted(objects.get(number, ())))
        for number, path in sorted(images.items())
    ]


def chair_names(data: DataFolder) -> ObjectNames:
    """The names in the data folder's ``synonyms.txt``, or else this project's own."""
    return read_synonyms(
        data.find("synonyms.txt", folder="annotations") or Path(__file__).with_name("coco_objects.txt")
    )


def _annotation_files(data: DataFolder, kind: str) -> list[Path]:
    names = [f"{kind}_{part}2014.json" for part in ("val", "train")]
    found = [data.find(name, folder="annotations") for name in names]
    return [path for path in found if path is not None]


def read_creative(data: DataFolder) -> list[Question]:
    """The paper's four tasks: the images in ``meme/``, ``recipe/``, ``advertisement/`` and ``poem/``."""
    return [
        Question(id=f"{task}/{path.name}", image=path, prompt=prompt, truth=None, split=task)
        for task, prompt in CREATIVE.items()
        for path in sorted((data.path / task).glob("*"))
        if path.suffix.lower() in _IMAGE_SUFFIXES
    ]


def read_scenes(data: DataFolder) -> list[Question]:
    """Drawn scenes with exact answers: ``questions.jsonl``, which ``python -m tools.tiny.write_questions`` writes.

    A line has ``id``, ``image``, ``turns`` (pairs of question and answer, of which the last is asked) and ``kind``.
    """
    file = data.require("questions.jsonl")
    find = data.image_finder("images")
    found = []
    for record in _json_lines(file):
        *history, (prompt, answer) = record["turns"]
        found.append(
            Question(
                id=str(record["id"]),
                image=find(record["image"]),
                prompt=prompt,
                truth=answer,
                split=str(record.get("kind", "")),
                history=tuple((asked, answered) for asked, answered in history),
            )
        )
    return found


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path} can't be read as JSON.") from error


def _records(path: Path, key: str = "") -> list[dict[str, Any]]:
    """The objects of a file that is a list, or an object with the list under ``key``."""
    content = _load(path)
    if isinstance(content, dict) and key:
        content = content.get(key)
    if not isinstance(content, list):
        raise InvalidRequest(f"{path} holds no list of {key or 'records'}.")
    return content


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        for line in lines:
            if line.strip():
                yield json.loads(line)
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"{path} can't be read as JSON lines.") from error
