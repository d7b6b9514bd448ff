// The chat: exchanges, the welcome before the first one, and keeping the newest words in sight.

import { plainText } from "./boxes.js";
import { AnswerView, branchSwitch } from "./answer.js";
import { isOpen } from "./conversation.js";
import { button, make } from "./dom.js";

const NEAR_END = 80; // pixels

export class Log {
  #items = new Map(); // answer's id → { element, view, question, announced }
  #following = true;

  /** `app` is as for `AnswerView`, with edit(question) and askExample(example). */
  constructor(element, app) {
    this.element = element;
    this.app = app;
    this.welcome = element.querySelector(".welcome");
    this.list = element.querySelector(".exchanges");
    this.status = element.querySelector(".announcer");
    this.jump = button("more", "Show the newest words", () => this.follow(), { className: "jump", bare: true, hidden: true });
    element.after(this.jump);
    element.addEventListener("scroll", () => {
      this.#following = element.scrollHeight - element.scrollTop - element.clientHeight < NEAR_END;
      if (this.#following) this.jump.hidden = true;
    });
  }

  /** Keep the end in sight from now on. */
  follow() {
    this.#following = true;
    this.jump.hidden = true;
    this.element.scrollTop = this.element.scrollHeight;
  }

  show(exchanges, busy) {
    this.welcome.hidden = exchanges.length > 0;
    this.element.toggleAttribute("data-busy", busy);
    const items = exchanges.map((exchange, index) => this.#item(exchange, index === exchanges.length - 1));
    items.forEach((item, index) => {
      if (this.list.children[index] !== item.element) this.list.insertBefore(item.element, this.list.children[index] ?? null);
    });
    while (this.list.children.length > items.length) this.list.lastChild.remove();
    const shown = new Set(exchanges.map(({ answer }) => answer.id));
    for (const id of this.#items.keys()) if (!shown.has(id)) this.#items.delete(id);
    if (this.#following) this.element.scrollTop = this.element.scrollHeight;
    else this.jump.hidden = !busy;
  }

  #item(exchange, last) {
    const { question, answer } = exchange;
    const item = this.#items.get(answer.id) ?? this.#newItem(exchange);
    const asked = JSON.stringify([question.text, question.images, this.app.branches(question)]);
    if (asked !== item.asked) item.element.firstChild.replaceWith(this.#question(question));
    item.asked = asked;
    item.element.classList.toggle("last", last);
    item.view.update({ last });
    if (item.open && !isOpen(answer) && answer.state !== "failed") this.status.textContent = plainText(answer.text);
    item.open = isOpen(answer);
    return item;
  }

  #newItem(exchange) {
    const view = new AnswerView(exchange, this.app);
    const item = { view, asked: "", open: false, element: make("li", {}, make("div"), view.element) };
    this.#items.set(exchange.answer.id, item);
    return item;
  }

  #question(question) {
    const images = this.app.images(question.images).map((image, index) => {
      const alt = `Picture ${index + 1} of this question`;
      if (!image.width) return make("span", { className: "undecodable", role: "img", "aria-label": alt }, "A picture that this browser can't show");
      return make("img", { src: image.url, alt, width: image.width, height: image.height, decoding: "async" });
    });
    return make("div", { className: "question" },
      images.length ? make("div", { className: `pictures${images.length > 1 ? " several" : ""}` }, ...images) : null,
      make("div", { className: "bubble" },
        branchSwitch(question, "question", this.app),
        button("edit", "Edit this question", () => this.app.edit(question), { className: "quiet edit", bare: true }),
        make("p", {}, question.text)));
  }
}
