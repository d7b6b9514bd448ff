// A chat as a tree: editing a question and answering again add branches, and nothing is lost. Plain data, no DOM.

import { randomId } from "./dom.js";

/**
 * Nodes alternate: an answer's parent is its question, a question's parent is the answer before it (null for the
 * first). Of several children the node's `chosen` one is shown.
 *
 * A question: `{ id, kind, parent, chosen, text, images }` with ids of images. An answer: `{ id, kind, parent, chosen,
 * text, state, problem, end, options, varied, model, firstS, seconds }`; `varied` says how its options differ from the
 * settings, and why; `state` is asked, writing, done, stopped or failed.
 */
export class Conversation {
  constructor(saved = {}) {
    this.id = saved.id ?? randomId();
    this.begun = saved.begun ?? Date.now();
    this.chosen = saved.chosen ?? null;
    this.nodes = new Map((saved.nodes ?? []).map((node) => [node.id, { ...node }]));
    for (const node of this.nodes.values()) {
      if (node.kind === "answer" && isOpen(node)) node.state = "stopped"; // the tab was closed or reloaded meanwhile
    }
  }

  toJSON() {
    return { id: this.id, begun: this.begun, chosen: this.chosen, nodes: [...this.nodes.values()] };
  }

  get title() {
    return this.path()[0]?.question.text ?? "";
  }

  /** The exchanges that are shown: `[{ question, answer }]`. */
  path() {
    const exchanges = [];
    for (let question = this.nodes.get(this.chosen); question; ) {
      const answer = this.nodes.get(question.chosen);
      exchanges.push({ question, answer });
      question = this.nodes.get(answer.chosen);
    }
    return exchanges;
  }

  get last() {
    return this.path().at(-1) ?? null;
  }

  /** The node and the other branches at its place, oldest first. */
  siblings(node) {
    return [...this.nodes.values()].filter((other) => other.parent === node.parent);
  }

  choose(node) {
    this.#setChosen(node.parent, node.id);
  }

  /** Add a question at the end. A last question whose answer has no words is replaced; its images come along. */
  ask(text, images) {
    const last = this.last;
    if (last && !last.answer.text) {
      if (this.siblings(last.answer).length === 1) this.#remove(last);
      return this.#add(last.question.parent, text, [...last.question.images, ...images]);
    }
    return this.#add(last?.answer.id ?? null, text, images);
  }

  /** Add a branch beside a question; a question whose answer has no words is replaced. */
  edit(question, text, images) {
    const answer = this.nodes.get(question.chosen);
    if (!answer.text && this.siblings(answer).length === 1) this.#remove({ question, answer });
    return this.#add(question.parent, text, images);
  }

  /** Add another answer to a question; one without words is replaced. */
  again(question) {
    const before = this.nodes.get(question.chosen);
    if (!before.text) this.nodes.delete(before.id);
    return { question, answer: this.#addAnswer(question) };
  }

  /** The chat up to an exchange as the API takes it; `urlOf` gives the data URL for an image's id. */
  messages(exchange, urlOf) {
    const messages = [];
    for (const { question, answer } of this.path()) {
      const images = question.images.map((id) => ({ type: "image_url", image_url: { url: urlOf(id) } }));
      messages.push({ role: "user", content: [...images, { type: "text", text: question.text }] });
      if (answer.id === exchange.answer.id) break;
      messages.push({ role: "assistant", content: answer.text });
    }
    return messages;
  }

  /** Ids of the images that the path shows, up to and with a question if one is given. */
  images(until = null) {
    const path = this.path();
    const end = until ? path.findIndex(({ question }) => question.id === until.id) + 1 : path.length;
    return path.slice(0, end).flatMap(({ question }) => question.images);
  }

  /** Ids of the images of all branches. */
  allImages() {
    return new Set([...this.nodes.values()].flatMap((node) => node.images ?? []));
  }

  #add(parent, text, images) {
    const question = { id: randomId(), kind: "question", parent, chosen: null, text, images };
    this.nodes.set(question.id, question);
    this.#setChosen(parent, question.id);
    return { question, answer: this.#addAnswer(question) };
  }

  #addAnswer(question) {
    const answer = { id: randomId(), kind: "answer", parent: question.id, chosen: null, text: "", state: "asked", problem: "", end: null, options: {}, model: "", firstS: 0, seconds: 0 };
    this.nodes.set(answer.id, answer);
    question.chosen = answer.id;
    return answer;
  }

  #setChosen(parent, id) {
    if (parent === null) this.chosen = id;
    else this.nodes.get(parent).chosen = id;
  }

  /** Remove a question together with its only answer, which has no questions below it. */
  #remove({ question, answer }) {
    this.nodes.delete(answer.id);
    this.nodes.delete(question.id);
  }
}

/** Whether an answer is still being made. */
export function isOpen(answer) {
  return answer.state === "asked" || answer.state === "writing";
}
