// Puts the parts together: one chat per tab, asked of the server that this page came from.

import { NO_ANSWER, ServerError, fetchCard, key, streamAnswer } from "./api.js";
import { Composer } from "./composer.js";
import { Conversation } from "./conversation.js";
import { button, icon, make, openDialog, randomId } from "./dom.js";
import { History } from "./history.js";
import { ChatImage } from "./images.js";
import { Log } from "./log.js";
import { Settings } from "./settings.js";
import { takeLink } from "./share.js";
import { EXAMPLES, exampleUrl, nextTask } from "./tasks.js";

const TAB = "minigpt4.tab"; // this tab's chat and settings, in sessionStorage
const CHECK_EVERY_MS = 5000; // whether the server answers, while the tab is visible
const VARIED_TEMPERATURE = 0.7; // of another answer where the settings would give the same words
const TINY_MODEL = "minigpt4-tiny";
const SAVE_EVERY_MS = 1000; // while an answer arrives

class App {
  card = null;
  #trouble = "";
  #checking = false;
  #needsKey = false;
  #conversation = new Conversation();
  #images = new Map(); // id → ChatImage
  #writing = null; // AbortController of the answer that is being made
  #drawing = false;
  #saving = 0;

  constructor() {
    for (const place of document.querySelectorAll("[data-icon]")) place.prepend(icon(place.dataset.icon));
    this.history = new History({
      current: () => this.#conversation.id,
      onForgotten: (id) => this.#onForgotten(id),
      onShared: () => this.#separate(),
    });
    this.settings = new Settings(() => this.#saveTab());
    this.log = new Log(document.querySelector(".log"), this);
    this.composer = new Composer(document.querySelector(".composer"), this.#composerApp());
    this.model = document.querySelector(".model");
    this.modelName = document.querySelector(".model span");
    this.modelNote = document.querySelector(".model-note");
    this.overButton = document.querySelector(".over");
    this.overButton.addEventListener("click", () => this.startOver());
    document.querySelector(".open-settings").addEventListener("click", () => this.#openSettings());
    document.querySelector(".open-history").addEventListener("click", () => this.#openHistory());
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !document.querySelector("dialog[open]")) this.stop();
    });
    addEventListener("pagehide", () => { this.#save(); });
    this.#showExamples();
  }

  async begin() {
    const saved = JSON.parse(sessionStorage.getItem(TAB) ?? "{}");
    const link = takeLink();
    this.show();
    await Promise.all([saved.chat ? this.open(saved.chat) : null, this.refreshCard()]);
    if (saved.settings) this.settings.options = saved.settings;
    if (link) {
      this.startOver();
      this.composer.setWords(link.question);
      this.settings.options = link.options;
      if (link.question) this.composer.tell("The link filled in a question and its settings. Add a picture and send it.");
    }
    this.composer.focus();
    const check = () => {
      if (document.visibilityState === "visible" && !this.#needsKey && !this.#writing) this.refreshCard();
    };
    setInterval(check, CHECK_EVERY_MS);
    document.addEventListener("visibilitychange", check);
  }

  /** Ask the server what it serves; ask the person for a key if it wants one. */
  async refreshCard() {
    if (this.#checking) return;
    this.#checking = true;
    try {
      this.card = await fetchCard();
      this.#trouble = "";
      this.#needsKey = false;
      this.settings.card = this.card;
    } catch (error) {
      this.#showTrouble(error);
      this.#needsKey = error.code === "invalid_api_key";
      if (this.#needsKey) this.#askKey();
    } finally {
      this.#checking = false;
    }
    this.show();
  }

  #showTrouble({ code, message }) {
    this.card = null;
    this.#trouble = ["server_unreachable", "cut_short"].includes(code) ? NO_ANSWER : message;
  }

  // What the log's views use.

  images(ids) {
    return ids.map((id) => this.#images.get(id)).filter(Boolean);
  }

  newestImage(question) {
    return this.images(this.#conversation.images(question)).at(-1) ?? null;
  }

  branches(node) {
    const siblings = this.#conversation.siblings(node);
    return { place: siblings.findIndex((other) => other.id === node.id) + 1, of: siblings.length };
  }

  choose(node, step) {
    if (this.#writing) return;
    const siblings = this.#conversation.siblings(node);
    this.#conversation.choose(siblings[siblings.indexOf(node) + step]);
    this.show();
    this.#save();
  }

  edit(question) {
    if (!this.#writing) this.composer.startEditing(question, this.images(question.images));
  }

  again(question) {
    if (this.#writing) return;
    const before = this.#conversation.nodes.get(question.chosen);
    this.#answer(this.#conversation.again(question), { varied: Boolean(before.text) });
  }

  // What the person does.

  send({ text, images, editing }) {
    const ids = images.map((image) => image.id);
    this.#answer(editing ? this.#conversation.edit(editing, text, ids) : this.#conversation.ask(text, ids));
  }

  stop() {
    this.#writing?.abort();
  }

  startOver() {
    this.stop();
    this.#save();
    this.#replaceChat(new Conversation(), []);
    this.composer.focus();
  }

  /** Show a chat of the history. */
  async open(id) {
    const saved = await this.history.load(id);
    if (!saved) return;
    this.stop();
    this.#replaceChat(new Conversation(saved.chat), saved.images.map((image) => new ChatImage(image)));
    this.log.follow();
  }

  #replaceChat(conversation, images) {
    for (const image of this.#images.values()) image.release();
    this.#conversation = conversation;
    this.#images = new Map(images.map((image) => [image.id, image]));
    this.composer.clear();
    this.#saveTab();
    this.show();
  }

  show() {
    const path = this.#conversation.path();
    const last = path.at(-1);
    this.model.classList.toggle("away", Boolean(this.#trouble));
    this.modelName.textContent = this.card?.id ?? (this.#trouble || "Looking for the server …");
    this.modelNote.hidden = this.card?.root !== TINY_MODEL;
    this.overButton.disabled = path.length === 0;
    this.log.show(path, this.#writing !== null);
    this.composer.show({
      busy: this.#writing !== null,
      boxes: this.card?.capabilities?.boxes === true,
      next: last?.answer.state === "done" ? nextTask(last.question.text) : null,
      begun: path.length > 0,
    });
  }

  /** Options of another answer to the same question: where the settings would repeat the words, a temperature above 0. */
  #variedOptions() {
    const { beams, ...options } = this.settings.options;
    const temperature = options.temperature ?? this.card?.defaults?.temperature;
    if (beams > 1) return [{ ...options, temperature: VARIED_TEMPERATURE }, "a beam search"];
    if (temperature === 0) return [{ ...options, temperature: VARIED_TEMPERATURE }, "temperature 0"];
    return [this.settings.options, ""];
  }

  async #answer(exchange, { varied = false } = {}) {
    const { answer } = exchange;
    const conversation = this.#conversation;
    const writing = new AbortController();
    const began = performance.now();
    const elapsedS = () => (performance.now() - began) / 1000;
    let unsure = false; // whether the server still runs
    this.#writing = writing;
    const [options, repeats] = varied ? this.#variedOptions() : [this.settings.options, ""];
    answer.options = options;
    if (repeats) answer.varied = `Temperature ${VARIED_TEMPERATURE} for this answer: ${repeats} would repeat the same words`;
    this.log.follow();
    this.show();
    this.#saveTab();
    this.#save();
    try {
      const card = this.card ?? await fetchCard();
      this.card = card;
      this.settings.card = card;
      this.#trouble = "";
      answer.model = card.id;
      const urls = new Map(await Promise.all(this.images(conversation.images(exchange.question)).map(async (image) => [image.id, await image.dataUrl()])));
      if (urls.size < new Set(conversation.images(exchange.question)).size) {
        throw new ServerError("invalid_image", "A picture of this chat is no longer in this browser. Start over and add it again.");
      }
      const messages = conversation.messages(exchange, (id) => urls.get(id));
      for await (const event of streamAnswer({ model: card.id, messages, ...answer.options }, writing.signal)) {
        if (event.type === "delta") {
          answer.firstS ||= elapsedS();
          answer.state = "writing";
          answer.text += event.text;
          delete answer.waiting;
        } else if (event.type === "completed") {
          answer.end = event;
        } else {
          answer.waiting = event;
        }
        this.#draw();
        this.#saveSoon();
      }
      answer.state = "done";
    } catch (error) {
      if (writing.signal.aborted) {
        answer.state = "stopped";
      } else {
        answer.state = "failed";
        answer.problem = error instanceof ServerError ? error.message : "Something went wrong in the page. Reload it.";
        if (!(error instanceof ServerError)) console.error(error);
        this.#needsKey = error.code === "invalid_api_key";
        if (this.#needsKey) this.#askKey();
        if (["server_unreachable", "cut_short", "model_not_found", "invalid_api_key"].includes(error.code)) {
          this.#showTrouble(error);
          unsure = error.code === "cut_short";
        }
      }
    }
    delete answer.waiting;
    answer.seconds = elapsedS();
    if (this.#writing === writing) this.#writing = null;
    this.show();
    if (unsure) this.refreshCard();
    if (this.#conversation === conversation) this.#save();
  }

  /** Show at most once for each frame that the browser paints; a hidden tab paints none. */
  #draw() {
    if (this.#drawing) return;
    this.#drawing = true;
    const show = () => {
      this.#drawing = false;
      this.show();
    };
    if (document.visibilityState === "visible") requestAnimationFrame(show);
    else setTimeout(show, 500);
  }

  #saveSoon() {
    this.#saving ||= setTimeout(() => this.#save(), SAVE_EVERY_MS);
  }

  #save() {
    clearTimeout(this.#saving);
    this.#saving = 0;
    if (!this.#conversation.last) return undefined;
    return this.history.save(this.#conversation, this.images([...this.#conversation.allImages()]));
  }

  #saveTab() {
    const chat = this.#conversation.last ? this.#conversation.id : null;
    sessionStorage.setItem(TAB, JSON.stringify({ chat, settings: this.settings.options }));
  }

  #onForgotten(id) {
    if (id !== null && id !== this.#conversation.id) return;
    this.stop();
    clearTimeout(this.#saving);
    this.#saving = 0;
    this.#replaceChat(new Conversation(), []);
  }

  /** Go on with a copy: two tabs that save the same chat would overwrite each other's. */
  #separate() {
    this.#conversation.id = randomId();
    this.#saveTab();
    this.#save();
  }

  #composerApp() {
    const app = this;
    return {
      get card() { return app.card; },
      images: (editing) => app.images(editing ? app.#earlierImages(editing) : app.#conversation.images()),
      addImage: (image) => app.#images.set(image.id, image),
      send: (asked) => app.send(asked),
      stop: () => app.stop(),
    };
  }

  #earlierImages(question) {
    const all = this.#conversation.images(question);
    return all.slice(0, all.length - question.images.length);
  }

  #showExamples() {
    const place = document.querySelector(".examples");
    place.replaceChildren(...EXAMPLES.map((example) => make("button",
      { type: "button", className: "example", onclick: () => this.composer.askExample(example) },
      make("img", { src: exampleUrl(example.file).href, alt: example.name, width: 448, height: 336 }), make("span", {}, example.question))));
  }

  #askKey() {
    if (document.querySelector("dialog.key")) return;
    const wrong = key.get() !== "";
    const input = make("input", { type: "password", id: "api-key", autocomplete: "off", required: true, spellcheck: false });
    const form = make("form", { className: "key-form" },
      make("p", {}, "This server requires a key. The key stays in this tab and is deleted when the tab is closed."),
      make("label", { htmlFor: "api-key" }, "API key"), input,
      wrong ? make("p", { className: "problem", role: "alert" }, "The server does not accept this key.") : null,
      make("button", { className: "main wide" }, "Use this key"));
    const dialog = openDialog("This server needs a key", { className: "small key", children: [form] });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      key.set(input.value.trim());
      dialog.close();
      this.refreshCard();
    });
    input.focus();
  }

  #openSettings() {
    const parts = [this.settings.element];
    if (key.get()) {
      parts.push(button("forget", "Forget the key of this tab", () => {
        key.set("");
        this.card = null;
        dialog.close();
        this.refreshCard();
      }));
    } else if (!this.card) {
      parts.push(button("settings", "Enter a key", () => { dialog.close(); this.#askKey(); }));
    }
    const about = this.card ? [`${this.card.id} · ${this.card.context_length} tokens of context · up to ${this.card.max_images} pictures in a chat`] : [];
    const dialog = openDialog("Settings", { className: "sheet right", children: [...parts, make("p", { className: "note" }, ...about)] });
  }

  async #openHistory() {
    const list = make("ul", { className: "chats" });
    const keep = make("input", { type: "checkbox", id: "keep-history", checked: this.history.isOn });
    const all = button("forget", "Forget all chats", async () => {
      await this.history.forgetAll();
      this.#onForgotten(null);
      await fill();
    }, { className: "quiet danger" });
    const dialog = openDialog("History", { className: "sheet left", children: [
      button("add", "New chat", () => { dialog.close(); this.startOver(); }, { className: "quiet strong" }),
      list,
      make("div", { className: "history-foot" },
        make("label", { className: "check", htmlFor: "keep-history" }, keep, "Keep chats in this browser"),
        make("p", { className: "note" }, "They are stored on this device only, with their pictures scaled down."), all),
    ] });
    keep.addEventListener("change", async () => {
      await this.history.setOn(keep.checked);
      if (keep.checked) await this.#save();
      await fill();
    });
    const fill = async () => {
      await this.#save();
      const chats = await this.history.list();
      all.disabled = chats.length === 0;
      list.replaceChildren(...chats.map((chat) => this.#chatRow(chat, dialog, fill)));
      if (!chats.length) list.append(make("li", { className: "note" }, "No chats yet."));
    };
    await fill();
  }

  #chatRow({ id, title, changed }, dialog, refresh) {
    const current = id === this.#conversation.id;
    const when = new Date(changed).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
    const open = make("button", { type: "button", className: "chat", onclick: async () => { await this.open(id); dialog.close(); } },
      make("span", {}, title || "Untitled"), make("small", {}, when));
    if (current) open.setAttribute("aria-current", "true");
    const forget = button("forget", `Forget “${title.slice(0, 40)}”`, async () => {
      if (current) this.#onForgotten(id);
      await this.history.forget(id);
      await refresh();
    }, { bare: true });
    return make("li", {}, open, forget);
  }
}

const app = new App();
app.begin();
