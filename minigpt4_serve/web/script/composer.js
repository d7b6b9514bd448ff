// Where a question is made: pictures by file, drop, paste or camera, words, and one-click tasks.

const KINDS = "image/png,image/jpeg,image/webp,image/gif,image/bmp,image/tiff,image/avif,image/heic";
let tray = [];          // { key, url, ready: Promise<boolean> }
let replacing = false;  // the last question is being edited

const notice = make("p", { className: "notice", role: "alert", hidden: true });
const trayList = make("ul", { className: "tray", "aria-label": "Pictures of this question" });
const chips = make("div", { className: "chips", role: "group", "aria-label": "Ask with one click" });
const moreChips = button("more", "All tasks", () => showAllChips(!chips.classList.contains("all")), { bare: true });
moreChips.setAttribute("aria-expanded", "false");
const words = make("textarea", { rows: 1, maxLength: 4000, id: "talk-words", placeholder: "Ask about a picture …", "aria-label": "Your question" });
const sendButton = button("send", "Ask", () => send(), { className: "main", bare: true });
const stopButton = button("stop", "Stop", () => trigger("stop"), { className: "main", bare: true });
const fileInput = make("input", { type: "file", accept: KINDS, multiple: true, hidden: true, "aria-label": "Pictures", onchange: takeFiles });
const cameraInput = make("input", { type: "file", accept: "image/*", hidden: true, "aria-label": "Photo", onchange: takeFiles });
cameraInput.setAttribute("capture", "environment");
const cancelEdit = button("close", "Keep the old question", () => stopEditing());
const editing = make("p", { className: "editing", hidden: true }, "Your last question is asked anew. ", cancelEdit);
const composer = make("div", { className: "composer" }, editing, notice,
  make("div", { className: "chips-line" }, chips, moreChips),
  make("div", { className: "box" }, trayList,
    make("div", { className: "line" },
      button("attach", "Add pictures", () => fileInput.click(), { bare: true }),
      button("camera", "Take a photo", takePhoto, { bare: true, className: "quiet camera" }),
      words, sendButton, stopButton)),
  fileInput, cameraInput);

function tell(sentence) {
  notice.textContent = sentence;
  notice.hidden = !sentence;
}

function takeFiles(event) {
  attach([...event.target.files]);
  event.target.value = "";
}

/** Send pictures to the page's memory while the person writes on. */
async function attach(files) {
  tell("");
  const most = view.settings?.max_images;
  const here = view.exchanges.reduce((sum, exchange) => sum + exchange.pictures.length, 0);
  for (const file of files) {
    if (most && here + tray.length >= most) {
      tell(`A chat can hold ${most} picture${most === 1 ? "" : "s"}. Start over to show others.`);
      break;
    }
    const entry = { key: null, url: URL.createObjectURL(file) };
    tray.push(entry);
    entry.ready = upload(file).then((key) => { entry.key = key; return true; }, (problem) => {
      drop(entry);
      tell(problem.message);
      return false;
    }).finally(showTray);
  }
  showTray();
  words.focus();
  return Promise.all(tray.map((entry) => entry.ready));
}

async function upload(file) {
  const named = file.name ? `${file.name}: ` : "";
  if (file.size > props.fixed.max_picture_bytes) {
    throw new Error(`${named}this file is larger than ${Math.round(props.fixed.max_picture_bytes / 2 ** 20)} MiB. Choose a smaller one.`);
  }
  const sent = await fetch("pictures", { method: "POST", body: file, headers: { "content-type": "application/octet-stream" } })
    .catch(() => { throw new Error("The page's own server can't be reached. Is it still running?"); });
  const answer = await sent.json().catch(() => ({}));
  if (!sent.ok) throw new Error(named + (answer.error?.message ?? "this picture can't be used."));
  return answer.key;
}

function drop(entry) {
  tray = tray.filter((other) => other !== entry);
  if (entry.url.startsWith("blob:")) URL.revokeObjectURL(entry.url);
  showTray();
}

function showTray() {
  trayList.hidden = tray.length === 0;
  trayList.replaceChildren(...tray.map((entry, index) => {
    const image = make("img", { src: entry.url, alt: `Picture ${index + 1}` });
    const remove = button("close", `Remove picture ${index + 1}`, () => { drop(entry); words.focus(); }, { bare: true });
    return make("li", { className: entry.key ? "" : "loading" }, image, remove);
  }));
  showSend();
}

function showSend() {
  sendButton.disabled = !(words.value.trim() || tray.length);
  sendButton.hidden = view.busy;
  stopButton.hidden = !view.busy;
  words.style.height = "auto";
  words.style.height = `${words.scrollHeight}px`;
}

async function send() {
  if (view.busy || !(words.value.trim() || tray.length)) return;
  if (!(await Promise.all(tray.map((entry) => entry.ready))).every((good) => good !== false)) return;
  ask(words.value, tray.map((entry) => entry.key), replacing);
  words.value = "";
  tray.forEach((entry) => entry.url.startsWith("blob:") && URL.revokeObjectURL(entry.url));
  tray = [];
  stopEditing();
  words.focus();
}

function ask(text, pictures, instead) {
  tell("");
  view.busy = true;  // until the server says so itself: no question is sent twice
  showSend();
  following = true;
  trigger("submit", { text, pictures, instead, options: { ...moved } });
}

function hasPicture() {
  return tray.length > 0 || view.exchanges.some((exchange) => exchange.pictures.length > 0);
}

/** One click asks; without a picture the words wait for one. */
function askTask(question) {
  words.value = question;
  showSend();
  if (hasPicture()) send();
  else {
    tell("Add a picture first, then send the question.");
    words.focus();
  }
}

async function askExample(example) {
  const found = await fetch(`examples/${example.picture}`);
  if (!(await attach([new File([await found.blob()], example.picture)])).every(Boolean)) return;
  words.value = example.question;
  send();
}

function useTag(tag) {
  if (tag.needs_box && hasPicture()) return markBox((box) => askTask(tag.text + box));
  if (tag.whole) return askTask(tag.text);
  words.value = tag.text;
  tell(tag.hint + ".");
  showSend();
  words.focus();
  return undefined;
}

function showChips() {
  const fixed = props.fixed;
  const tags = view.boxes ? fixed.tags.map((tag) => chip(tag.label, tag.hint, () => useTag(tag), "chip tag")) : [];
  const tasks = fixed.tasks.map((task) => chip(task.label, task.question, () => askTask(task.question), "chip"));
  const goOn = view.go_on.map((task) => chip(task.label, task.question, () => askTask(task.question), "chip first"));
  chips.replaceChildren(...goOn, ...tags, ...tasks);
  chips.scrollLeft = 0;
}

/** Before the first question all tasks are shown, then one row of them. */
function showAllChips(all) {
  chips.classList.toggle("all", all);
  moreChips.setAttribute("aria-expanded", String(all));
  moreChips.firstChild.style.transform = all ? "" : "rotate(180deg)";
}

function chip(label, title, onclick, className) {
  return make("button", { type: "button", className, title, onclick }, label);
}

function startEditing() {
  const last = view.exchanges[view.exchanges.length - 1];
  replacing = true;
  words.value = last.question;
  tray = last.pictures.map((picture) => ({ key: picture.key, url: `pictures/${picture.key}`, ready: Promise.resolve(true) }));
  editing.hidden = false;
  showTray();
  words.focus();
}

function stopEditing() {
  if (replacing && words.value) { words.value = ""; tray = []; }
  replacing = false;
  editing.hidden = true;
  showTray();
}

async function takePhoto() {
  if (matchMedia("(pointer: coarse)").matches || !navigator.mediaDevices) return cameraInput.click();
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { width: { ideal: 1280 } } });
  } catch {
    return tell("There is no camera that this page may use.");
  }
  const video = make("video", { autoplay: true, playsInline: true, muted: true, srcObject: stream });
  const shoot = make("button", { type: "button", className: "main wide", disabled: true }, "Take the photo");
  video.addEventListener("loadeddata", () => { shoot.disabled = false; shoot.focus(); });
  const dialog = openDialog("Take a photo", video, shoot);
  dialog.addEventListener("close", () => stream.getTracks().forEach((track) => track.stop()));
  shoot.addEventListener("click", () => {
    const canvas = make("canvas", { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob((blob) => attach([new File([blob], "photo.jpg")]), "image/jpeg", 0.92);
    dialog.close();
  });
  return undefined;
}

/** Mark a part of the newest picture; MiniGPT-v2 reads it as whole percents of width and height. */
function markBox(use) {
  const seen = [...view.exchanges.flatMap((exchange) => exchange.pictures.map((picture) => `pictures/${picture.key}`)), ...tray.map((entry) => entry.url)];
  const frame = make("div", { className: "mark" }, make("img", { src: seen[seen.length - 1], alt: "The picture", draggable: false }), make("i"));
  const marked = frame.lastChild;
  const done = make("button", { type: "button", className: "main wide", disabled: true }, "Ask what is there");
  let start = null;
  let box = [];
  const place = (event) => {
    const area = frame.getBoundingClientRect();
    return [(event.clientX - area.left) / area.width, (event.clientY - area.top) / area.height]
      .map((share) => Math.round(100 * Math.min(1, Math.max(0, share))));
  };
  frame.addEventListener("pointerdown", (event) => { start = place(event); frame.setPointerCapture(event.pointerId); });
  frame.addEventListener("pointermove", (event) => {
    if (!start) return;
    const [x, y] = place(event);
    box = [Math.min(x, start[0]), Math.min(y, start[1]), Math.max(x, start[0]), Math.max(y, start[1])];
    Object.assign(marked.style, { left: `${box[0]}%`, top: `${box[1]}%`, width: `${box[2] - box[0]}%`, height: `${box[3] - box[1]}%` });
    done.disabled = box[0] === box[2] || box[1] === box[3];
  });
  frame.addEventListener("pointerup", () => { start = null; });
  const dialog = openDialog("Mark a part of the picture", frame, done);
  done.addEventListener("click", () => { dialog.close(); use(`{<${box.join("><")}>}`); });
}

words.addEventListener("input", () => { tell(""); showSend(); });
words.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
