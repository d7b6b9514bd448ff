"""Small data sets in the published layouts, of drawn images, with the right answer to every question."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drawing import draw, encode

COLORS = ("red", "blue", "green", "yellow")
SIZE = (200, 100)


def write_drawn_data(task: str, folder: Path, number: int = 4) -> dict[str, str]:
    """Write ``number`` questions of a task, each about an image of its own, and return the answer to each prompt."""
    return _WRITERS[task](folder, number)


def _image(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = "PNG" if path.suffix == ".png" else "JPEG"
    path.write_bytes(encode(draw(COLORS[number % 4], SIZE), kind))


def _json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def _lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def _people(answer: str) -> list[dict[str, Any]]:
    return [{"answer": answer if n < 7 else f"a {answer}", "answer_id": n + 1} for n in range(10)]


def _short(text: str) -> str:
    return f"[vqa] Based on the image, respond to this question with a short answer: {text}"


def _okvqa(folder: Path, number: int) -> dict[str, str]:
    questions = [{"image_id": n, "question": f"Color {n}?", "question_id": n} for n in range(number)]
    annotations = [{"question_id": n, "image_id": n, "answers": _people(COLORS[n % 4])} for n in range(number)]
    _json(folder / "okvqa" / "okvqa_test_split.json", questions)
    _json(folder / "okvqa" / "mscoco_val2014_annotations_clean.json", {"annotations": annotations})
    for n in range(number):
        _image(folder / "train2017" / f"{n:012d}.jpg", n)
    return {_short(f"Color {n}?"): COLORS[n % 4].capitalize() for n in range(number)}


def _vqav2(folder: Path, number: int) -> dict[str, str]:
    questions = [{"image_id": n, "question": f"Color {n}?", "question_id": n} for n in range(number)]
    kinds = ("other", "yes/no")
    annotations = [
        {"question_id": n, "image_id": n, "answers": _people(COLORS[n % 4]), "answer_type": kinds[n % 2]}
        for n in range(number)
    ]
    _json(folder / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    _json(folder / "v2_mscoco_val2014_annotations.json", {"annotations": annotations})
    for n in range(number):
        _image(folder / "val2014" / f"COCO_val2014_{n:012d}.jpg", n)
    return {_short(f"Color {n}?"): COLORS[n % 4] for n in range(number)}


def _vizwiz(folder: Path, number: int) -> dict[str, str]:
    records = [
        {"image": f"v{n}.jpg", "question": f"Color {n}?", "answers": _people(COLORS[n % 4])} for n in range(number)
    ]
    _json(folder / "vizwiz" / "val.json", records)
    for n in range(number):
        _image(folder / "vizwiz" / "vizwiz_images" / f"v{n}.jpg", n)
    end = "and reply 'unanswerable' when the provided information is insufficient"
    middle = "Based on the image, answer the question with a single word or phrase."
    return {f"[vqa] The question is 'Color {n}?' {middle} {end}": COLORS[n % 4] for n in range(number)}


def _iconvqa(folder: Path, number: int) -> dict[str, str]:
    records = [
        {"image_id": str(n), "question": f"Color {n}?", "choices": list(COLORS), "answer": COLORS[n % 4]}
        for n in range(number)
    ]
    _json(folder / "iconvqa" / "choose_text_val.json", records)
    for n in range(number):
        _image(folder / "iconvqa" / "iconvqa_images" / str(n) / "image.png", n)
    return {_short(f"Color {n}?"): f"{COLORS[n % 4].capitalize()}." for n in range(number)}


def _gqa(folder: Path, number: int) -> dict[str, str]:
    records = [{"image": f"{n}.jpg", "question": f"Color {n}?", "answer": COLORS[n % 4]} for n in range(number)]
    _json(folder / "gqa" / "testdev_balanced_questions.json", records)
    for n in range(number):
        _image(folder / "gqa" / "gqa_images" / f"{n}.jpg", n)
    return {_short(f"Color {n}?"): COLORS[n % 4].capitalize() for n in range(number)}


def _vsr(folder: Path, number: int) -> dict[str, str]:
    records = [{"image": f"{n}.jpg", "caption": f"Disc {n} is red.", "label": int(n % 4 == 0)} for n in range(number)]
    _lines(folder / "vsr" / "test.jsonl", records)
    for n in range(number):
        _image(folder / "vsr" / "vsr_images" / f"{n}.jpg", n)
    start = "[vqa] Based on the image, is this statement true or false?"
    return {f"{start} Disc {n} is red.": "True" if n % 4 == 0 else "False" for n in range(number)}


def _hm(folder: Path, number: int) -> dict[str, str]:
    records = [{"id": n, "img": f"img/{n}.png", "label": n % 2, "text": f"text {n}"} for n in range(number)]
    _lines(folder / "hateful_meme" / "dev.jsonl", records)
    for n in range(number):
        _image(folder / "hateful_meme" / "hm_images" / "img" / f"{n}.png", n)
    end = "Is this image hateful? Answer yes or no. Answer:"
    return {f"This is an image writting 'text {n}'. {end}": "Yes" if n % 2 else "no" for n in range(number)}


def _refcoco(
    folder: Path, number: int, name: str = "refcoco", splits: tuple[str, ...] = ("val", "testA")
) -> dict[str, str]:
    width, height = SIZE
    for split in splits:
        records = [
            {
                "img_id": f"COCO_train2014_{n:012d}_{n}",
                "sents": f"disc {n} of {split}",
                "bbox": [width / 4, height / 4, width / 2, height / 2],
                "width": width,
                "height": height,
            }
            for n in range(number)
        ]
        _json(folder / name / f"{name}_{split}.json", records)
    for n in range(number):
        _image(folder / "train2014" / f"COCO_train2014_{n:012d}.jpg", n)
    start = "[refer] give me the location of"
    return {f"{start} disc {n} of {split}": "{<25><25><75><75>}" for split in splits for n in range(number)}


def _pope(folder: Path, number: int) -> dict[str, str]:
    answers = {}
    for split in ("random", "popular", "adversarial"):
        records = []
        for n in range(number):
            text = f"Is there a {split} {n} in the image?"
            label = "yes" if n % 2 == 0 else "no"
            answers[text] = "Yes, there is." if label == "yes" else "No, there is not."
            records.append({"question_id": n, "image": f"COCO_val2014_{n:012d}.jpg", "text": text, "label": label})
        _lines(folder / f"coco_pope_{split}.json", records)
    for n in range(number):
        _image(folder / "val2014" / f"COCO_val2014_{n:012d}.jpg", n)
    return answers


def _chair(folder: Path, number: int) -> dict[str, str]:
    names = [f"COCO_val2014_{n:012d}.jpg" for n in range(number)]
    instances = {
        "images": [{"id": n, "file_name": name} for n, name in enumerate([*names, "not_here.jpg"])],
        "categories": [{"id": 1, "name": "dog"}],
        "annotations": [{"image_id": n, "category_id": 1} for n in range(number)],
    }
    captions = {"annotations": [{"image_id": n, "caption": "A man with kites."} for n in range(number)]}
    _json(folder / "annotations" / "instances_val2014.json", instances)
    _json(folder / "annotations" / "captions_val2014.json", captions)
    for n, name in enumerate(names):
        _image(folder / "val2014" / name, n)
    return {"Generate a short caption of the image.": "Two puppies and a woman fly a kite."}


def _scenes(folder: Path, number: int) -> dict[str, str]:
    records = [
        {"id": f"color/{n}", "image": f"{n}.png", "turns": [[f"Color {n}?", f"{COLORS[n % 4]}."]], "kind": "color"}
        for n in range(number)
    ]
    _lines(folder / "questions.jsonl", records)
    for n in range(number):
        _image(folder / "images" / f"{n}.png", n)
    return {f"Color {n}?": f"{COLORS[n % 4]}." for n in range(number)}


_WRITERS: Mapping[str, Any] = {
    "okvqa": _okvqa,
    "vqav2": _vqav2,
    "vizwiz": _vizwiz,
    "iconvqa": _iconvqa,
    "gqa": _gqa,
    "vsr": _vsr,
    "hm": _hm,
    "refcoco": _refcoco,
    "refcoco+": lambda folder, number: _refcoco(folder, number, "refcoco+"),
    "refcocog": lambda folder, number: _refcoco(folder, number, "refcocog", ("val", "test")),
    "pope": _pope,
    "chair": _chair,
    "scenes": _scenes,
}
