"""One HTML file with answers for people to rate: without a network; votes stay in the browser until they are saved.

Source of the question: the MiniGPT-4 paper, section 4.2, counts the answers that do what was asked.
"""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from minigpt4_serve.evaluation.answer_log import AnswerRecord
from minigpt4_serve.evaluation.image_preview import preview_url
from minigpt4_serve.evaluation.questions import Question

__all__ = ["SHEET", "write_sheet"]

SHEET = "sheet.html"

_STYLE = """
body{font:16px sans-serif;max-width:60em;margin:0 auto;padding:0 1em 4em}
header{position:sticky;top:0;background:#fff;border-bottom:1px solid #ccc;padding:.6em 0}
article{margin:1.5em 0;padding-top:1em;border-top:1px solid #ddd}
img{max-width:100%;max-height:420px}
.answer{white-space:pre-wrap}
fieldset{border:0;padding:0}
label{margin-right:1.5em}
"""

_SCRIPT = """
"use strict";
const sheet = JSON.parse(document.getElementById("sheet").textContent);
const key = "minigpt4-votes-" + sheet.run;
let votes = {};
try { votes = JSON.parse(localStorage.getItem(key)) || {}; } catch (error) { votes = {}; }

function showTotals() {
  const parts = Object.entries(sheet.splits).map(([split, ids]) => {
    const rated = ids.filter((id) => id in votes);
    const good = rated.filter((id) => votes[id] === "yes");
    return `${split || "all"}: ${good.length} of ${rated.length} rated (${ids.length} in all)`;
  });
  document.getElementById("totals").textContent = parts.join(" · ");
}

for (const input of document.querySelectorAll("input[type=radio]")) {
  input.checked = votes[input.name] === input.value;
  input.addEventListener("change", () => {
    votes[input.name] = input.value;
    try { localStorage.setItem(key, JSON.stringify(votes)); } catch (error) { /* saving still works */ }
    showTotals();
  });
}

document.getElementById("save").addEventListener("click", () => {
  const rater = document.getElementById("rater").value;
  const content = JSON.stringify({ model: sheet.model, run: sheet.run, rater, votes }, null, 2);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type: "application/json" }));
  link.download = `votes-${rater || "rater"}.json`;
  link.click();
  URL.revokeObjectURL(link.href);
});

showTotals();
"""


def write_sheet(
    folder: Path,
    title: str,
    run: Mapping[str, object],
    questions: Sequence[Question],
    records: Mapping[str, AnswerRecord],
) -> Path:
    """Write ``sheet.html`` with all answered questions, and return its path."""
    answered = [question for question in questions if question.id in records and records[question.id].error is None]
    splits: dict[str, list[str]] = {}
    for question in answered:
        splits.setdefault(question.split, []).append(question.id)
    # "</" would end the element early.
    data = json.dumps({"run": run["questions"], "model": run["model"], "splits": splits}).replace("</", "<\\/")
    articles = "".join(_article(question, records[question.id].answer) for question in answered)
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style><h1>{html.escape(title)}</h1>"
        "<p>Look at each picture, read the answer, and say whether it does what was asked.</p>"
        '<header><span id="totals"></span> <label>Your name <input id="rater"></label>'
        '<button id="save">Save votes</button></header>'
        f'{articles}<script type="application/json" id="sheet">{data}</script><script>{_SCRIPT}</script></html>\n'
    )
    path = folder / SHEET
    path.write_text(page, encoding="utf-8")
    return path


def _article(question: Question, answer: str) -> str:
    name = html.escape(question.id, quote=True)
    choices = "".join(
        f'<label><input type="radio" name="{name}" value="{value}"> {words}</label>'
        for value, words in (("yes", "does what was asked"), ("no", "does not"))
    )
    return (
        f'<article><img alt="" src="{preview_url(question)}"><p><b>{html.escape(question.prompt)}</b></p>'
        f'<p class="answer">{html.escape(answer)}</p><fieldset>{choices}</fieldset></article>'
    )
