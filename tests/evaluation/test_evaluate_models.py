"""``minigpt4 evaluate`` on real models: the same figures over HTTP and in process, boxes of MiniGPT-v2, killed runs."""

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
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

from minigpt4_serve.cli import main
from minigpt4_serve.settings import ModelSettings
from minigpt4_serve.weights.load import load_model
from tools.tiny.write_questions import write_questions


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server with the embedded model."""
    with serving(load_model(ModelSettings(device="cpu")), model_name="minigpt4-tiny") as (client, _):
        yield str(client.base_url)


def evaluate(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> dict[str, Any]:
    """The report of a run."""
    monkeypatch.setattr(sys, "argv", ["minigpt4", "evaluate", *map(str, words)])
    monkeypatch.setenv("MINIGPT4_API_KEY", "")
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    output = Path(str(words[words.index("--output") + 1]))
    return json.loads((output / "report.json").read_text())


def test_http_and_in_process_give_the_same_figures(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_questions(tmp_path / "scenes", 2)
    for task in ("okvqa", "pope", "chair", "refcoco"):
        write_drawn_data(task, tmp_path / task, 3)
    for task in ("scenes", "okvqa", "pope", "chair", "refcoco"):
        data = ("--data", tmp_path / task)
        remote = evaluate(monkeypatch, task, *data, "--output", tmp_path / f"{task}-http", "--server", address)
        local = evaluate(monkeypatch, task, *data, "--output", tmp_path / f"{task}-local")
        for key in ("metrics", "intervals", "splits", "questions", "failed", "completion_tokens"):
            assert remote[key] == local[key], (task, key)
        assert remote["failed"] == 0
        if task == "scenes":
            assert remote["metrics"]["accuracy"] > 0.7


def test_boxes_of_v2_are_scored(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        monkeypatch,
        *("refcoco", "--data", tmp_path / "data", "--model", tmp_path / "v2", "--output", tmp_path / "out"),
        *("--prompt", "[refer] {}"),
    )
    answers = [json.loads(line)["answer"] for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert answers == ["{<30><22><68><80>}"] * 2
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
        words += ["--server", server.origin]
        environment = {**os.environ, "MINIGPT4_API_KEY": ""}
        with subprocess.Popen(list(map(str, words)), env=environment, stderr=subprocess.DEVNULL) as killed:
            asyncio.run(wait_until(lambda: len(server.requests) == 7, 240))
            killed.send_signal(signal.SIGKILL)
        assert len(log.read_bytes().splitlines()) == 6
        gate.open()
        subprocess.run(list(map(str, words)), env=environment, check=True, capture_output=True, timeout=240)
        asked = [request.text for request in server.requests]
        assert asked == [*list(answers)[:7], *list(answers)[6:]]
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [record["id"] for record in records] == [str(n) for n in range(12)]
