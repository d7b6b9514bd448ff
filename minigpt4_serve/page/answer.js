// One answer: its words while they arrive, boxes, notes, and what can be done with it.

import { drawBoxes, parseGroundings, plainText } from "./boxes.js";
import { isOpen } from "./conversation.js";
import { button, make, openDialog } from "./dom.js";
import { renderBlock, splitBlocks, splitSegments } from "./markdown.js";
import { copyText, download, linkTo, toHtml, toMarkdown } from "./share.js";
import { codeView, websiteView } from "./website.js";

/**
 * The view of an answer. `update()` brings it up to date; only what changed is rendered again, so that a selection, a
 * running website and the place of everything above stay as they are.
 */
export class AnswerView {
  #blocks = []; // { key, kind, node, update }
  #words = null;
  #foot = "";

  /** `app` offers again(question), images(ids), newestImage(question) and branches(node). */
  constructor({ question, answer }, app) {
    this.question = question;
    this.answer = answer;
    this.app = app;
    this.said = make("div", { className: "said" });
    this.foot = make("div", { className: "foot" });
    this.element = make("div", { className: "answer" }, this.said, this.foot);
  }

  update({ last }) {
    const { answer } = this;
    const open = isOpen(answer);
    this.element.classList.toggle("growing", open);
    this.#updateWords(answer.text, !open);
    const foot = JSON.stringify([answer.state, answer.waiting, answer.problem, last, open || this.app.branches(answer)]);
    if (foot !== this.#foot) this.foot.replaceChildren(...this.#footNodes(open));
    this.#foot = foot;
  }

  #updateWords(text, finished) {
    const words = JSON.stringify([text, finished]);
    if (words === this.#words) return;
    this.#words = words;
    const blocks = toBlocks(finished ? text.trim() : text, finished);
    blocks.forEach((block, index) => {
      const key = JSON.stringify(block);
      const shown = this.#blocks[index];
      if (shown?.key === key) return;
      if (shown?.update && shown.kind === block.kind) {
        shown.update(block);
        shown.key = key;
        return;
      }
      const view = { key, kind: block.kind, ...renderView(block) };
      if (shown) shown.node.replaceWith(view.node);
      else this.said.append(view.node);
      this.#blocks[index] = view;
    });
    for (const { node } of this.#blocks.splice(blocks.length)) node.remove();
  }

  #footNodes(open) {
    const { answer } = this;
    const nodes = [];
    if (answer.state === "asked") {
      const dots = make("span", { className: "dots", "aria-hidden": "true" });
      nodes.push(make("p", { className: "waiting" }, dots, make("span", {}, describeWaiting(answer.waiting))));
    }
    if (open) return nodes;
    const drawn = this.#drawn();
    if (drawn) nodes.push(drawn);
    if (answer.problem) nodes.push(make("p", { className: "problem", role: "alert" }, answer.problem));
    for (const note of describeEnd(answer)) nodes.push(make("p", { className: "note" }, note));
    nodes.push(this.#actions());
    return nodes;
  }

  /** The newest image up to the question, the one that v2 speaks about, with the answer's boxes. */
  #drawn() {
    const groundings = findGroundings(this.answer.text);
    const image = groundings.length ? this.app.newestImage(this.question) : null;
    if (!image?.width) return null;
    const drawn = drawBoxes(image.url, image.width, image.height, groundings);
    for (const mark of this.said.querySelectorAll("mark")) {
      const boxes = drawn.querySelectorAll(`[data-phrase="${mark.dataset.phrase}"]`);
      const highlight = (on) => {
        drawn.classList.toggle("pointing", on);
        boxes.forEach((box) => box.classList.toggle("pointed", on));
      };
      mark.addEventListener("pointerenter", () => highlight(true));
      mark.addEventListener("pointerleave", () => highlight(false));
    }
    return drawn;
  }

  #actions() {
    const { answer, question, app } = this;
    const again = answer.problem
      ? button("again", "Try again", () => app.again(question), { className: "quiet strong again" })
      : button("again", "Answer again", () => app.again(question), { className: "quiet again", title: "Answer again" });
    const copy = button("copy", "Copy", async () => {
      copy.lastChild.textContent = (await copyText(plainText(answer.text))) ? "Copied" : "Not copied";
      setTimeout(() => { copy.lastChild.textContent = "Copy"; }, 2000);
    }, { title: "Copy" });
    const share = button("share", "Share", () => this.#share(), { title: "Share" });
    return make("div", { className: "actions" }, branchSwitch(answer, "answer", app), again, ...(answer.text ? [copy, share] : []));
  }

  #share() {
    const choice = (iconName, label, hint, act) => {
      const node = button(iconName, label, async () => {
        const done = await act();
        hints.textContent = done;
      }, { className: "choice" });
      node.append(make("small", {}, hint));
      return node;
    };
    const hints = make("p", { className: "note", role: "status" });
    const { question, answer } = this;
    openDialog("Share this answer", { className: "small", children: [
      choice("link", "Copy a link to its settings", "Fills in the question and the settings; the picture stays here", async () =>
        (await copyText(linkTo(question.text, answer.options))) ? "The link is on the clipboard." : "The browser does not allow copying."),
      choice("download", "Download as HTML", "A page with picture, question and answer", async () => {
        download(fileName(question, "html"), "text/html", toHtml({ ...(await this.#exported()), said: this.#staticWords() }));
        return "Saved.";
      }),
      choice("download", "Download as Markdown", "The same for editors and notes", async () => {
        download(fileName(question, "md"), "text/markdown", toMarkdown({ ...(await this.#exported()), text: plainText(answer.text) }));
        return "Saved.";
      }),
      hints,
    ] });
  }

  async #exported() {
    const { answer, question } = this;
    const shown = this.app.images(question.images);
    const images = await Promise.all(shown.map(async (image) => ({ url: await image.dataUrl() })));
    const settings = Object.entries(answer.options).map(([name, value]) => `${name} ${value}`);
    this.newestUrl = await this.app.newestImage(question)?.dataUrl();
    return { question: question.text, images, footer: [`Answered by ${answer.model || "MiniGPT-4"}`, ...settings].join(" · ") };
  }

  /** The words as they are on the page, without anything that acts. */
  #staticWords() {
    const words = toBlocks(this.answer.text.trim(), true).map((block) =>
      (block.kind === "code" || block.kind === "page" ? make("pre", {}, make("code", {}, block.source)) : renderBlock(block, block)));
    const groundings = findGroundings(this.answer.text);
    const image = groundings.length ? this.app.newestImage(this.question) : null;
    if (image?.width) words.push(drawBoxes(this.newestUrl, image.width, image.height, groundings));
    return words;
  }
}

/** ‹ 1/2 › between the branches at a node's place; null where there is one. */
export function branchSwitch(node, name, app) {
  const { place, of } = app.branches(node);
  if (of < 2) return null;
  return make("span", { className: "branches", role: "group", "aria-label": `Versions of this ${name}` },
    button("previous", `Previous version of this ${name}`, () => app.choose(node, -1), { bare: true, disabled: place === 1 }),
    make("span", {}, `${place}/${of}`),
    button("next", `Next version of this ${name}`, () => app.choose(node, 1), { bare: true, disabled: place === of }));
}

function toBlocks(text, finished) {
  const segments = splitSegments(text);
  const blocks = segments.flatMap((segment) => (segment.kind === "words"
    ? splitBlocks(segment.text)
    : [{ kind: segment.kind, source: segment.text, language: segment.language }]));
  let first = 0;
  return blocks.map((block, index) => {
    const numbered = { ...block, first, finished: finished || index < blocks.length - 1 };
    if (block.kind !== "code" && block.kind !== "page") first += parseGroundings(block.source).length;
    return numbered;
  });
}

function findGroundings(text) {
  return toBlocks(text.trim(), true)
    .filter(({ kind }) => kind !== "code" && kind !== "page")
    .flatMap(({ source }) => parseGroundings(source));
}

function renderView(block) {
  if (block.kind === "page") return websiteView(block);
  if (block.kind === "code") return codeView(block);
  return { node: renderBlock(block, block) };
}

function describeWaiting(waiting) {
  if (waiting?.type === "retrying") return `The server is full. It is asked again in ${Math.max(1, Math.ceil(waiting.inS))} s.`;
  if (waiting?.type !== "queued") return "";
  const { ahead, expectedS } = waiting;
  const place = ahead === 0 ? "You are next" : `${ahead} ${ahead === 1 ? "question is" : "questions are"} ahead of yours`;
  return `${place}${expectedS ? `, about ${Math.ceil(expectedS)} s` : ""}.`;
}

/** The small print below an answer. */
function describeEnd({ state, end, text, firstS, seconds, varied }) {
  const notes = state === "stopped" ? ["Stopped."] : [];
  if (!end) return notes;
  const parts = [text ? `First words after ${describeSeconds(firstS)}` : "No words"];
  if (end.completionTokens) parts.push(`${end.completionTokens} tokens in ${describeSeconds(seconds)}`);
  if (end.promptTokens && end.cachedTokens !== null) parts.push(`${end.cachedTokens} of ${end.promptTokens} prompt tokens from the cache`);
  notes.push(parts.join(" · "));
  if (varied) notes.push(`${varied}.`);
  if (end.reason === "length") notes.push("Cut at the longest answer that the settings allow.");
  if (end.droppedMessages) notes.push(`The chat is long: the words of its oldest ${end.droppedMessages} messages were left out.`);
  return notes;
}

function describeSeconds(seconds) {
  return seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(1)} s`;
}

function fileName(question, suffix) {
  const words = question.text.normalize("NFKD").replace(/[^\w]+/g, "-").replace(/^-|-$/g, "").slice(0, 50).toLowerCase();
  return `${words || "answer"}.${suffix}`;
}
