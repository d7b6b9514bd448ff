// Where a question is made: images by file, drop, paste or camera, words, and one-click tasks.

import { button, make, openDialog } from "./dom.js";
import { ACCEPTED, prepareImage } from "./images.js";
import { DEFAULT_QUESTION, TAGS, TASKS, exampleUrl } from "./tasks.js";

const NARROW = "(max-width: 40rem)";

export class Composer {
  #tray = []; // { image, ready }
  #editing = null; // the question that is being edited
  #busy = false;
  #boxes = false;
  #begun = null;
  #next = null;
  #sending = false;
  #preparing = Promise.resolve(); // the images before the next one

  /**
   * `app` offers send({ text, images, editing }), stop(), card, images (of the chat, or up to before a question) and
   * addImage(image).
   */
  constructor(element, app) {
    this.element = element;
    this.app = app;
    const find = (selector) => element.querySelector(selector);
    this.words = find("textarea");
    this.notice = find(".notice");
    this.trayList = find(".tray");
    this.chips = find(".chips");
    this.moreChips = find(".more-chips");
    this.sendButton = find(".send");
    this.stopButton = find(".stop");
    this.editingNote = find(".editing");
    this.files = find(".files");
    this.camera = find(".camera-file");
    this.files.accept = ACCEPTED;
    find(".add").addEventListener("click", () => this.files.click());
    find(".photo").addEventListener("click", () => this.#takePhoto());
    find(".keep").addEventListener("click", () => this.stopEditing());
    this.moreChips.addEventListener("click", () => this.showAllChips(!this.chips.classList.contains("all")));
    for (const input of [this.files, this.camera]) {
      input.addEventListener("change", () => {
        this.attach([...input.files]);
        input.value = "";
      });
    }
    element.addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    this.stopButton.addEventListener("click", () => app.stop());
    this.words.addEventListener("input", () => {
      this.tell("");
      this.#refresh();
    });
    this.words.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send();
    });
    this.#acceptDrops();
    this.#showChips();
    this.#refresh();
  }

  /** Show a sentence above the composer; an empty one hides it. */
  tell(sentence) {
    this.notice.textContent = sentence;
    this.notice.hidden = !sentence;
  }

  focus() {
    // On a phone the keyboard would cover what was just answered.
    if (!matchMedia("(pointer: coarse)").matches) this.words.focus();
  }

  setWords(text) {
    this.words.value = text;
    this.#refresh();
  }

  /** Follow the state of the chat: `busy`, whether the model reads `boxes`, and the task that comes `next`. */
  show({ busy, boxes, next, begun }) {
    this.#busy = busy;
    if (begun !== this.#begun || boxes !== this.#boxes) this.showAllChips(!begun && !boxes && !matchMedia(NARROW).matches);
    if (boxes !== this.#boxes || next !== this.#next) {
      this.#boxes = boxes;
      this.#next = next;
      this.#showChips();
    }
    this.#begun = begun;
    this.#refresh();
  }

  clear() {
    this.#editing = null;
    this.editingNote.hidden = true;
    this.#tray = [];
    this.words.value = "";
    this.tell("");
    this.#showTray();
  }

  startEditing(question, images) {
    this.clear();
    this.#editing = question;
    this.editingNote.hidden = false;
    this.words.value = question.text;
    this.#tray = images.map((image) => ({ image, ready: Promise.resolve(true) }));
    this.#showTray();
    this.words.focus();
  }

  stopEditing() {
    if (this.#editing) this.clear();
    this.words.focus();
  }

  /** Add files; resolves to whether all of them can be sent. */
  async attach(files) {
    this.tell("");
    const most = this.app.card?.max_images;
    const added = [];
    for (const file of files) {
      if (most && this.#earlier().length + this.#tray.length >= most) {
        this.tell(`A chat can hold ${most} picture${most === 1 ? "" : "s"}. Start over to show others.`);
        added.push(false);
        break;
      }
      const entry = { image: null, ready: null };
      this.#tray.push(entry);
      entry.ready = this.#prepare(entry, file);
      added.push(entry.ready);
    }
    this.#showTray();
    this.focus();
    return (await Promise.all(added)).every(Boolean);
  }

  async send() {
    if (this.#busy || this.#sending || !(this.words.value.trim() || this.#tray.length)) return;
    this.#sending = true;
    try {
      if (!(await Promise.all(this.#tray.map((entry) => entry.ready))).every(Boolean)) return;
    } finally {
      this.#sending = false;
    }
    const text = this.words.value.trim() || DEFAULT_QUESTION;
    const asked = { text, images: this.#tray.map((entry) => entry.image), editing: this.#editing };
    this.clear();
    this.app.send(asked);
    this.focus();
  }

  /** Ask with one click; without an image the words wait for one. */
  askTask(text) {
    this.setWords(text);
    if (this.#hasImage()) {
      this.send();
    } else {
      this.tell("Add a picture first, then send the question.");
      this.words.focus();
    }
  }

  async askExample({ file, question }) {
    const response = await fetch(exampleUrl(file));
    const example = new File([await response.blob()], file, { type: "image/png" });
    if (!(await this.attach([example]))) return;
    this.setWords(question);
    this.send();
  }

  showAllChips(all) {
    this.chips.classList.toggle("all", all);
    this.moreChips.setAttribute("aria-expanded", String(all));
    this.chips.scrollLeft = 0;
  }

  #earlier() {
    return this.app.images(this.#editing);
  }

  #hasImage() {
    return this.#tray.length > 0 || this.#earlier().length > 0;
  }

  async #prepare(entry, file) {
    try {
      // One after the other: each gets a share of the bytes that the others leave.
      const preparing = this.#preparing.then(() => {
        const others = [...this.#earlier(), ...this.#tray.map((other) => other.image).filter(Boolean)];
        const sentBytes = others.reduce((sum, image) => sum + image.bytes, 0);
        return prepareImage(file, { maxBytes: this.app.card?.max_image_bytes, sentBytes });
      });
      this.#preparing = preparing.catch(() => {});
      entry.image = await preparing;
      this.app.addImage(entry.image);
      this.#showTray();
      return true;
    } catch (error) {
      this.#drop(entry);
      this.tell(`${file.name ? `${file.name}: ` : ""}${error.message}`);
      return false;
    }
  }

  #drop(entry) {
    this.#tray = this.#tray.filter((other) => other !== entry);
    this.#showTray();
  }

  #showTray() {
    this.trayList.hidden = this.#tray.length === 0;
    this.trayList.replaceChildren(...this.#tray.map((entry, index) => {
      const alt = `Picture ${index + 1}`;
      const { image } = entry;
      const shown = image?.width
        ? make("img", { src: image.url, alt, width: image.width, height: image.height })
        : make("span", { className: "undecodable", role: "img", "aria-label": alt });
      const remove = button("close", `Remove picture ${index + 1}`, () => { this.#drop(entry); this.words.focus(); }, { bare: true });
      return make("li", { className: image ? "" : "loading" }, shown, remove);
    }));
    this.#refresh();
  }

  #refresh() {
    this.sendButton.disabled = !(this.words.value.trim() || this.#tray.length);
    this.sendButton.hidden = this.#busy;
    this.stopButton.hidden = !this.#busy;
    this.words.style.height = "auto";
    this.words.style.height = `${this.words.scrollHeight}px`;
  }

  #showChips() {
    const chip = (label, title, onclick, kind = "") => make("button", { type: "button", className: `chip ${kind}`, title, onclick }, label);
    const next = this.#next ? [chip(this.#next.label, this.#next.question, () => this.askTask(this.#next.question), "first")] : [];
    const tags = this.#boxes ? TAGS.map((tag) => chip(tag.label, tag.hint, () => this.#useTag(tag), "tag")) : [];
    const tasks = TASKS.map((task) => chip(task.label, task.question, () => this.askTask(task.question)));
    this.chips.replaceChildren(...next, ...tags, ...tasks);
    this.chips.scrollLeft = 0;
  }

  #useTag(tag) {
    if (tag.needsBox && this.#hasImage()) {
      const image = this.#tray.at(-1)?.image ?? this.#earlier().at(-1);
      markBox(image, (box) => this.askTask(tag.text + box));
    } else if (tag.whole) {
      this.askTask(tag.text);
    } else {
      this.setWords(tag.text);
      this.tell(`${tag.hint}.`);
      this.words.focus();
    }
  }

  #acceptDrops() {
    const carriesFiles = (event) => [...event.dataTransfer.types].includes("Files");
    document.addEventListener("dragover", (event) => {
      if (!carriesFiles(event)) return;
      event.preventDefault();
      document.body.classList.add("dropping");
    });
    document.addEventListener("dragleave", (event) => {
      if (!event.relatedTarget) document.body.classList.remove("dropping");
    });
    document.addEventListener("drop", (event) => {
      document.body.classList.remove("dropping");
      if (!carriesFiles(event)) return;
      event.preventDefault();
      this.attach([...event.dataTransfer.files]);
    });
    document.addEventListener("paste", (event) => {
      const files = [...event.clipboardData.files];
      if (!files.length) return;
      event.preventDefault();
      this.attach(files);
    });
  }

  async #takePhoto() {
    if (matchMedia("(pointer: coarse)").matches || !navigator.mediaDevices) {
      this.camera.click();
      return;
    }
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1920 } } });
    } catch {
      this.tell("There is no camera that this page may use.");
      return;
    }
    const video = make("video", { autoplay: true, playsInline: true, muted: true, srcObject: stream });
    const shoot = make("button", { type: "button", className: "main wide", disabled: true }, "Take the photo");
    const dialog = openDialog("Take a photo", { children: [video, shoot], onclose: () => stream.getTracks().forEach((track) => track.stop()) });
    video.addEventListener("loadeddata", () => {
      shoot.disabled = false;
      shoot.focus();
    });
    shoot.addEventListener("click", () => {
      const canvas = make("canvas", { width: video.videoWidth, height: video.videoHeight });
      canvas.getContext("2d").drawImage(video, 0, 0);
      canvas.toBlob((blob) => this.attach([new File([blob], "photo.jpg", { type: "image/jpeg" })]), "image/jpeg", 0.92);
      dialog.close();
    });
  }
}

/**
 * Mark a part of an image, by pointer or with the arrow keys (with Shift they change the size). MiniGPT-v2 reads it as
 * whole percents of width and height.
 */
function markBox(image, use) {
  const marked = make("i");
  const drag = "Drag over the part.";
  const keys = "With the keyboard: arrows move the mark, Shift and arrows resize it.";
  const picture = image?.width ? make("img", { src: image.url, alt: "", draggable: false, width: image.width, height: image.height }) : null;
  const frame = make("div", { className: "mark", tabIndex: 0, role: "application", "aria-label": `The picture. ${drag} ${keys}` }, picture, marked);
  const done = make("button", { type: "button", className: "main wide", disabled: true }, "Ask what is there");
  let start = null;
  let box = null;

  function show(next) {
    box = next;
    const [left, top, right, bottom] = box;
    Object.assign(marked.style, { left: `${left}%`, top: `${top}%`, width: `${right - left}%`, height: `${bottom - top}%` });
    done.disabled = left === right || top === bottom;
  }

  function place(event) {
    const area = frame.getBoundingClientRect();
    return [(event.clientX - area.left) / area.width, (event.clientY - area.top) / area.height]
      .map((share) => Math.round(100 * Math.min(1, Math.max(0, share))));
  }

  frame.addEventListener("pointerdown", (event) => {
    start = place(event);
    frame.setPointerCapture(event.pointerId);
  });
  frame.addEventListener("pointermove", (event) => {
    if (!start) return;
    const [x, y] = place(event);
    show([Math.min(x, start[0]), Math.min(y, start[1]), Math.max(x, start[0]), Math.max(y, start[1])]);
  });
  frame.addEventListener("pointerup", () => { start = null; });
  frame.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [-2, 0], ArrowRight: [2, 0], ArrowUp: [0, -2], ArrowDown: [0, 2] };
    const step = steps[event.key];
    if (!step) return;
    event.preventDefault();
    if (!box) return show([30, 30, 70, 70]);
    const [left, top, right, bottom] = box;
    const next = event.shiftKey
      ? [left, top, right + step[0], bottom + step[1]]
      : [left + step[0], top + step[1], right + step[0], bottom + step[1]];
    if (next.every((edge) => edge >= 0 && edge <= 100) && next[2] > next[0] && next[3] > next[1]) show(next);
  });
  const dialog = openDialog("Mark a part of the picture", { children: [frame, make("p", { className: "note" }, drag, make("span", { className: "by-mouse" }, ` ${keys}`)), done] });
  done.addEventListener("click", () => {
    dialog.close();
    use(`{<${box.join("><")}>}`);
  });
  frame.focus();
}
