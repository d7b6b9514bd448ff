"""The page reads MiniGPT-v2's notation exactly as ``minigpt4_serve.boxes`` does."""

import json
import random
from pathlib import Path
from typing import Any

from page_serving import ScriptedServer

from minigpt4_serve.boxes import colour_phrases, parse_groundings, plain_text

READ = """async (texts) => {
  const boxes = await import(new URL("page/boxes.js", document.baseURI));
  const phrases = (text, finished) => boxes.splitPhrases(text, { finished })
    .map(({ text, number }) => [text, number === null ? null : boxes.phraseColor(number)]);
  return texts.map((text) => ({
    groundings: boxes.parseGroundings(text).map(({ phrase, boxes }) =>
      [phrase, boxes.map(({ left, top, right, bottom }) => [left, top, right, bottom])]),
    plain: boxes.plainText(text),
    finished: phrases(text, true),
    unfinished: phrases(text, false),
  }));
}"""
PARTS = (
    "<p>", "</p>", "{<1><2><30><40>}", "{<90> <80><-5><120>}", "{<1><2><3>", "<delim>", " ", "\n", "a dog", "<", "{",
    "}", "&lt;p&gt;", "&#123;", "&amp;", "{<1", "<d", "é", "</", "{ <7><7><7><7> }", "<b>", ". ",
)  # fmt: skip


def test_the_page_and_the_package_read_the_same(visit: Any, scripted: ScriptedServer, golden: Path) -> None:
    recorded = json.loads((golden / "boxes.json").read_text(encoding="utf-8"))["cases"]
    chance = random.Random(1)
    made = ["".join(chance.choices(PARTS, k=chance.randint(1, 12))) for _ in range(3000)]
    texts = [case["text"] for case in recorded] + made
    read = visit().evaluate(READ, texts)
    for text, found in zip(texts, read, strict=True):
        expected = [
            [one.phrase, [[box.left, box.top, box.right, box.bottom] for box in one.boxes]]
            for one in parse_groundings(text)
        ]
        assert found["groundings"] == expected, text
        assert found["plain"] == plain_text(text), text
        for name, finished in (("finished", True), ("unfinished", False)):
            assert found[name] == [list(part) for part in colour_phrases(text, finished=finished)], (name, text)


def test_hostile_notation_takes_no_time(visit: Any, scripted: ScriptedServer) -> None:
    texts = [
        part * (20_000 // len(part))
        for part in (" ", "{", "<p>", "{<1><2><3><4>}<delim> ", "*a ", "`", "_", "> ", "- ", "```\n")
    ]
    page = visit()
    took = page.evaluate(
        """async (texts) => {
          const load = (name) => import(new URL(`page/${name}.js`, document.baseURI));
          const [boxes, markdown] = await Promise.all(["boxes", "markdown"].map(load));
          return texts.map((text) => {
            const began = performance.now();
            boxes.plainText(text);
            boxes.splitPhrases(text, { finished: false });
            for (const segment of markdown.splitSegments(text)) {
              for (const block of markdown.splitBlocks(segment.text)) {
                markdown.renderBlock(block, { finished: true, first: 0 });
              }
            }
            return performance.now() - began;
          });
        }""",
        texts,
    )
    assert max(took) < 5000, took
