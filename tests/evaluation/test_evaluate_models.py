"""``minigpt4 evaluate`` on real models: the same answers over HTTP and in process, boxes of MiniGPT-v2, killed runs."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from drawn_data import write_drawn_data
from fakes.openai_replies import Gate, Reply
from fakes.openai_requests import ChatRequest
from fakes.openai_server import vision_server
from golden_chats import convert_recorded
from processes import MINIGPT4
from serving_app import serving
from waiting import wait_until

from minigpt4_serve.cli import app
from minigpt4_serve.settings import ModelSettings
from minigpt4_serve.weights.load import load_model
from tools.tiny.write_questions import write_questions

SAME_FIGURES = ("metrics", "intervals", "splits", "questions", "failed", "truncated", "completion_tokens")


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIGPT4_API_KEY", "")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server with the embedded model."""
    with serving(load_model(ModelSettings(device="cpu")), model_name="minigpt4-tiny") as (client, _):
        yield str(client.base_url)


def evaluate(*words: str | Path) -> dict[str, Any]:
    """The report of a run in this process, which ``main`` would end after a model has run in it."""
    app(["evaluate", *map(str, words)], standalone_mode=False)
    output = Path(str(words[words.index("--output") + 1]))
    return json.loads((output / "report.json").read_text())


def read_answers(folder: Path) -> dict[str, str]:
    """The text of each answer of a run."""
    records = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    return {record["id"]: record["answer"] for record in records}


@pytest.mark.parametrize("task", ["scenes", "okvqa"])
def test_http_and_in_process_give_the_same_answers(task: str, address: str, tmp_path: Path) -> None:
    if task == "scenes":
        write_questions(tmp_path / "data", 1)
    else:
        write_drawn_data(task, tmp_path / "data", 3)
    words = (task, "--data", tmp_path / "data", "--output")
    remote = evaluate(*words, tmp_path / "http", "--server", address)
    local = evaluate(*words, tmp_path / "local")
    assert {key: remote[key] for key in SAME_FIGURES} == {key: local[key] for key in SAME_FIGURES}
    assert read_answers(tmp_path / "http") == read_answers(tmp_path / "local")
    assert remote["failed"] == 0
    if task == "scenes":
        assert remote["metrics"]["accuracy"] > 0.7


def test_boxes_of_v2_are_scored(golden: Path, tmp_path: Path) -> None:
    """The recorded model answers this question, in the words it was trained with, with the box of the circle."""
    convert_recorded(golden, "v2", tmp_path / "v2")
    images = tmp_path / "data" / "train2014"
    images.mkdir(parents=True)
    shutil.copy(golden / "inputs" / "circle.png", images / "COCO_train2014_000000000001.jpg")
    right = {"bbox": [30, 22, 38, 58], "width": 100, "height": 100}
    wrong = {"bbox": [0, 0, 10, 10], "width": 100, "height": 100}
    records = [{"img_id": "COCO_train2014_000000000001_1", "sents": "the circle", **truth} for truth in (right, wrong)]
    (tmp_path / "data" / "refcoco_val.json").write_text(json.dumps(records))
    report = evaluate(
        *("refcoco", "--data", tmp_path / "data", "--model", tmp_path / "v2", "--output", tmp_path / "out"),
        *("--prompt", "[refer] {}"),
    )
    assert list(read_answers(tmp_path / "out").values()) == ["{<30><22><68><80>}"] * 2
    assert report["splits"]["val"]["accuracy"] == 0.5
    assert (tmp_path / "out" / "worst.html").read_text().count("data:image/jpeg") == 1


def test_a_killed_run_loses_and_repeats_nothing(tmp_path: Path) -> None:
    answers = write_drawn_data("gqa", tmp_path / "data", 12)
    gate = Gate()
    held = list(answers)[6]

    def answer(request: ChatRequest) -> list[Any]:
        return [gate, answers[request.text]] if request.text == held else [answers[request.text]]

    words = [MINIGPT4, "evaluate", "gqa", "--data", tmp_path / "data", "--output", tmp_path / "out", "--in-flight", "1"]
    log = tmp_path / "out" / "answers.jsonl"
    with vision_server(default=Reply(answer)) as server:
        command = [*map(str, words), "--server", server.origin]
        environment = {**os.environ, "MINIGPT4_API_KEY": ""}
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as killed:
            asyncio.run(wait_until(lambda: len(server.requests) == 7, 240))
            killed.send_signal(signal.SIGKILL)
        assert len(log.read_bytes().splitlines()) == 6
        gate.open()
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=240)
        # The server had not answered the held question: it alone is asked twice.
        assert [request.text for request in server.requests] == [*list(answers)[:7], *list(answers)[6:]]
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [record["id"] for record in records] == [str(n) for n in range(12)]
