"""``minigpt4 evaluate`` against scripted servers: every layout, resuming, reports, comparisons, the sheet."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from drawn_data import write_drawn_data
from fakes.openai_replies import Reply, refusal
from fakes.openai_requests import ChatRequest
from fakes.openai_server import OpenAIServer, vision_server

from minigpt4_serve.cli import main
from minigpt4_serve.evaluation import TASKS

SCORED = [name for name, task in TASKS.items() if task.scorer is not None]


def run_command(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["minigpt4", "evaluate", *map(str, words)])
    monkeypatch.setenv("MINIGPT4_API_KEY", "")
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code, f"exit code {ended.value.code}"


def answering(answers: dict[str, str], **more: Any) -> OpenAIServer:
    """A server that gives these answers."""

    def answer(request: ChatRequest) -> str:
        return answers[request.text]

    return vision_server(default=Reply(answer), **more)


def read_report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize("task", SCORED)
def test_a_perfect_answerer_is_right_in_every_layout(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = write_drawn_data(task, tmp_path / "data")
    out = tmp_path / "out"
    with answering(answers) as server:
        run_command(monkeypatch, task, "--data", tmp_path / "data", "--server", server.origin, "--output", out)
        assert all(request.body["temperature"] == 0 for request in server.requests)
        assert {request.body["max_tokens"] for request in server.requests} == {TASKS[task].max_tokens}
        assert all(len(request.images) == 1 for request in server.requests)
    report = read_report(out)
    main_metric = TASKS[task].main_metric
    assert report["metrics"][main_metric] == (0 if TASKS[task].lower_is_better else 1)
    assert report["failed"] == 0
    assert report["questions"] == len(server.requests)
    page = (out / "report.md").read_text()
    assert f"| {main_metric} |" in page or f" {main_metric} |" in page
    assert "the 0 worst" in (out / "worst.html").read_text()


def test_a_constant_yes_has_known_pope_figures_by_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_drawn_data("pope", tmp_path / "data")
    with vision_server(default=Reply("Yes")) as server:
        run_command(
            monkeypatch, "pope", "--data", tmp_path / "data", "--server", server.origin, "--output", tmp_path / "out"
        )
    report = read_report(tmp_path / "out")
    assert set(report["splits"]) == {"random", "popular", "adversarial"}
    for split in report["splits"].values():
        figures = {name: split[name] for name in TASKS["pope"].metrics}
        assert figures == pytest.approx(
            {"accuracy": 0.5, "precision": 0.5, "recall": 1.0, "f1": 2 / 3, "yes_share": 1.0}
        )
        low, high = split["intervals"]["accuracy"]
        assert low < 0.5 < high
        assert split["intervals"]["yes_share"] == [1, 1]
    worst = (tmp_path / "out" / "worst.html").read_text()
    assert worst.count("data:image/jpeg;base64,") == 6
    assert "Is there a random 1 in the image?" in worst


def test_a_second_start_asks_only_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = write_drawn_data("gqa", tmp_path / "data", 6)
    words = ("gqa", "--data", tmp_path / "data", "--output", tmp_path / "out", "--server")
    with answering(answers) as server:
        run_command(monkeypatch, *words, server.origin)
    log = tmp_path / "out" / "answers.jsonl"
    whole = log.read_bytes()
    first_lines = whole.split(b"\n")[:3]
    log.write_bytes(b"\n".join(first_lines) + b"\n" + whole.split(b"\n")[3][:20])  # killed while it wrote a line
    with answering(answers) as server:
        run_command(monkeypatch, *words, server.origin)
        assert len(server.requests) == 3
        run_command(monkeypatch, *words, server.origin)
        assert len(server.requests) == 3
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert sorted(line["id"] for line in lines) == [str(n) for n in range(6)]
    assert read_report(tmp_path / "out")["metrics"]["accuracy"] == 1


def test_answers_before_a_failure_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = write_drawn_data("gqa", tmp_path / "data", 6)
    words = ("gqa", "--data", tmp_path / "data", "--output", tmp_path / "out", "--in-flight", "1", "--server")
    first = list(answers.items())[0:2]
    replies = [Reply(answer) for _, answer in first]
    with (
        vision_server(answers=replies, default=refusal(401)) as server,
        pytest.raises(AssertionError, match="exit code 1"),
    ):
        run_command(monkeypatch, *words, server.origin)
    with answering(answers) as server:
        run_command(monkeypatch, *words, server.origin)
        assert [request.text for request in server.requests] == list(answers)[2:]
    assert read_report(tmp_path / "out")["metrics"]["accuracy"] == 1


def test_a_question_that_fails_counts_as_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = write_drawn_data("gqa", tmp_path / "data", 4)
    (tmp_path / "data" / "gqa" / "gqa_images" / "1.jpg").write_bytes(b"no image")
    words = ("gqa", "--data", tmp_path / "data", "--output", tmp_path / "out", "--server")
    with answering(answers) as server:
        run_command(monkeypatch, *words, server.origin)
        assert len(server.requests) == 3
    report = read_report(tmp_path / "out")
    assert (report["failed"], report["metrics"]["accuracy"]) == (1, 0.75)
    assert "none (invalid_image" in (tmp_path / "out" / "worst.html").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--max-tokens", "7"], "other options"),
        (["--prompt", "Q: {}"], "other questions or prompts"),
        (["--limit", "2"], "other questions or prompts"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(
    change: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers = write_drawn_data("gqa", tmp_path / "data", 3)
    words = ("gqa", "--data", tmp_path / "data", "--output", tmp_path / "out", "--server")
    with answering(answers) as server:
        run_command(monkeypatch, *words, server.origin)
        with pytest.raises(AssertionError):
            run_command(monkeypatch, *words, server.origin, *change)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda data: (data / "gqa" / "testdev_balanced_questions.json").unlink(), "has no testdev_balanced_questions"),
        (lambda data: (data / "gqa" / "testdev_balanced_questions.json").write_text("{"), "can't be read as JSON"),
        (lambda data: (data / "gqa" / "testdev_balanced_questions.json").write_text("[]"), "holds no questions"),
        (lambda data: (data / "gqa" / "testdev_balanced_questions.json").write_text('[{"image": "a"}]'), "layout"),
        (lambda data: (data / "gqa" / "gqa_images" / "1.jpg").unlink(), "Images are missing"),
    ],
)
def test_bad_data_is_named_before_anything_is_asked(
    prepare: Any,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_drawn_data("gqa", tmp_path / "data", 3)
    prepare(tmp_path / "data")
    with vision_server() as server:
        with pytest.raises(AssertionError, match="exit code 1"):
            run_command(
                monkeypatch, "gqa", "--data", tmp_path / "data", "--output", tmp_path / "o", "--server", server.origin
            )
        assert server.requests == []
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_many_requests_are_in_flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = write_drawn_data("gqa", tmp_path / "data", 12)
    default = Reply(lambda request: answers[request.text], delay_s=0.2)
    with vision_server(default=default) as server:
        run_command(
            monkeypatch,
            *("gqa", "--data", tmp_path / "data", "--output", tmp_path / "out", "--in-flight", "5"),
            *("--server", server.origin),
        )
        assert 2 <= server.max_active <= 5


def test_compare_says_which_run_is_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = write_drawn_data("gqa", tmp_path / "data", 12)
    half = {text: answer if n % 2 else "purple" for n, (text, answer) in enumerate(answers.items())}
    for name, given in (("a", half), ("b", answers), ("c", answers)):
        with answering(given) as server:
            run_command(
                monkeypatch, "gqa", "--data", tmp_path / "data", "--output", tmp_path / name, "--server", server.origin
            )
    capsys.readouterr()
    run_command(monkeypatch, "compare", tmp_path / "a", tmp_path / "b", "--json")
    found = json.loads(capsys.readouterr().out)
    assert (found["better"], found["first_better_on"], found["second_better_on"]) == ("second", 0, 6)
    assert found["metrics"]["accuracy"]["difference"] == 0.5
    low, high = found["metrics"]["accuracy"]["interval"]
    assert 0 < low < 0.5 < high <= 1
    run_command(monkeypatch, "compare", tmp_path / "b", tmp_path / "a")
    assert f"{tmp_path / 'b'} is better" in capsys.readouterr().out
    run_command(monkeypatch, "compare", tmp_path / "b", tmp_path / "c")
    assert "No difference is shown" in capsys.readouterr().out


def test_the_sheet_holds_images_answers_and_choices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from drawing import draw, encode

    for folder in ("meme", "recipe", "advertisement", "poem"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        (tmp_path / "data" / folder / "1.png").write_bytes(encode(draw()))
    with vision_server(default=Reply("<b>Roses</b></script> are red.")) as server:
        run_command(
            monkeypatch,
            *("creative", "--data", tmp_path / "data", "--output", tmp_path / "out", "--sheet"),
            *("--server", server.origin),
        )
        assert "Can you craft a beautiful poem about this image?" in {request.text for request in server.requests}
    page = (tmp_path / "out" / "sheet.html").read_text()
    assert page.count("<article>") == 4
    assert page.count("data:image/jpeg;base64,") == 4
    assert page.count('name="poem/1.png"') == 2
    assert "&lt;b&gt;Roses" in page
    assert "<b>Roses" not in page


def test_certainty_gives_a_reliability_curve(tmp_path: Path) -> None:
    from minigpt4_serve.evaluation.answer_log import AnswerRecord
    from minigpt4_serve.evaluation.layouts import DataFolder
    from minigpt4_serve.evaluation.report import score_answers, write_report
    from minigpt4_serve.evaluation.tasks import read_questions

    write_drawn_data("gqa", tmp_path, 8)
    task = TASKS["gqa"]
    data = DataFolder(tmp_path)
    questions = read_questions(task, data)
    assert task.scorer is not None
    records = {
        q.id: AnswerRecord(q.id, answer=q.truth if n < 4 else "?", certainty=0.95 if n < 4 else 0.35)
        for n, q in enumerate(questions)
    }
    run = {"task": "gqa", "model": "m", "options": {}}
    report = write_report(tmp_path, task, run, score_answers(task, task.scorer(data), questions, records), {})
    calibration = report["calibration"]
    assert [(one["answers"], one["accuracy"]) for one in calibration["bins"]] == [(4, 0), (4, 1)]
    assert calibration["expected_error"] == pytest.approx((0.35 + 0.05) / 2)
    assert "reliability.svg" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "reliability.svg").read_text().count("<circle") == 2
