// What was said: questions, answers while they grow, and what can be done with the last one.

// What a generated page may do inside its frame: its own scripts and styles, nothing from anywhere.
const FRAME_RULES = "<!doctype html><meta http-equiv='Content-Security-Policy' content=\"default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; font-src data:; media-src data:; form-action 'none'; base-uri 'none'\">";

const list = make("ol", { className: "exchanges" });
const spoken = make("div", { className: "unseen", role: "status" });
const empty = make("section", { className: "empty" });
const log = make("main", { className: "log", tabIndex: -1, "aria-label": "The talk" }, empty, list, spoken);
let following = true;   // keep the newest words in sight
let shownExchanges = []; // what each list item was built from
log.addEventListener("scroll", () => { following = log.scrollHeight - log.scrollTop - log.clientHeight < 80; });

function showEmpty() {
  empty.hidden = view.exchanges.length > 0;
  if (empty.hidden || empty.childElementCount) return;
  const examples = props.fixed.examples.map((example) => make("button",
    { type: "button", className: "example", onclick: () => askExample(example) },
    make("img", { src: `examples/${example.picture}`, alt: example.name }), make("span", {}, example.question)));
  empty.append(
    make("h2", {}, "Show a picture, ask about it."),
    make("p", {}, "Drop one here, paste it, add it below or take a photo. Or begin with one of these:"),
    make("div", { className: "examples" }, ...examples));
}

function showExchanges() {
  const exchanges = view.exchanges;
  while (list.childElementCount > exchanges.length) list.lastChild.remove();
  exchanges.forEach((exchange, index) => {
    const last = index === exchanges.length - 1;
    const before = shownExchanges[index] ?? {};
    const item = list.children[index] ?? list.appendChild(make("li", {}, make("div"), make("div", { className: "answer" }, make("div"), make("div"))));
    const [asked, answered] = item.children;
    const growing = exchange.state === "asked" || exchange.state === "writing";
    answered.classList.toggle("growing", growing);
    // Each part is built anew only when it changed: a generated page would begin again, a picture flicker.
    const now = {
      state: exchange.state,
      pieces: exchange.pieces,
      question: JSON.stringify([exchange.question, exchange.pictures, last && !view.busy]),
      words: JSON.stringify([exchange.pieces, growing]),
      foot: JSON.stringify([exchange.state, exchange.waiting, exchange.drawn, exchange.problem, exchange.notes, last]),
    };
    if (now.question !== before.question) asked.replaceWith(question(exchange, last));
    if (now.words !== before.words && !grow(before, exchange, answered.firstChild)) {
      answered.firstChild.replaceWith(make("div", { className: "said" }, ...pieces(exchange, growing)));
    }
    if (now.foot !== before.foot) answered.lastChild.replaceWith(foot(exchange, last, growing));
    if (last && before.state && before.state !== exchange.state) announce(exchange);
    shownExchanges[index] = now;
  });
  shownExchanges.length = exchanges.length;
  if (following) log.scrollTop = log.scrollHeight;
}

/** Add to the text on the page what an answer gained; true if that was all. Building it anew takes longer and longer. */
function grow(before, exchange, node) {
  const had = before.pieces ?? [];
  const has = exchange.pieces;
  if (before.state !== "writing" || exchange.state !== "writing" || !had.length || had.length !== has.length) return false;
  if (JSON.stringify(had.slice(0, -1)) !== JSON.stringify(has.slice(0, -1))) return false;
  const [old, now] = [had.at(-1), has.at(-1)];
  if (now.kind !== "words" || old.kind !== "words" || !now.text.startsWith(old.text)) return false;
  const newest = node.lastChild?.lastChild;
  if (newest?.data !== old.text) return false;
  newest.appendData(now.text.slice(old.text.length));
  return true;
}

function question(exchange, last) {
  const pictures = exchange.pictures.map((picture, index) => make("img",
    { src: `pictures/${picture.key}`, alt: `Picture ${index + 1} of this question`, width: picture.width, height: picture.height, onload: keepInSight }));
  const edit = last && !view.busy ? button("edit", "Edit this question", startEditing, { bare: true }) : null;
  return make("div", { className: "question" },
    pictures.length ? make("div", { className: "pictures" }, ...pictures) : null,
    make("div", { className: "bubble" }, edit, make("p", {}, exchange.question)));
}

function keepInSight() {
  if (following) log.scrollTop = log.scrollHeight;
}

/** What stands below the words: the wait, boxes on the picture, trouble, what it took, and what can be done. */
function foot(exchange, last, growing) {
  const node = make("div", { className: "foot" });
  if (exchange.state === "asked") {
    node.append(make("p", { className: "waiting" }, make("span", { className: "dots", "aria-hidden": "true" }), exchange.waiting || ""));
  }
  if (exchange.drawn) {
    node.append(make("img", { className: "drawn", src: `pictures/${exchange.drawn.key}`, alt: "The picture with the boxes of the answer", width: exchange.drawn.width, height: exchange.drawn.height, onload: keepInSight }));
  }
  if (exchange.problem) node.append(make("p", { className: "problem", role: "alert" }, exchange.problem));
  for (const note of exchange.notes) node.append(make("p", { className: "note" }, note));
  if (last && !growing) node.append(actions(exchange));
  return node;
}

function actions(exchange) {
  const retry = () => { following = true; view.busy = true; showSend(); trigger("retry", { ...moved }); };
  const text = exchange.pieces.map((piece) => piece.text).join("");
  const copy = button("copy", "Copy", async () => {
    await navigator.clipboard.writeText(text);
    copy.lastChild.textContent = "Copied";
  });
  return make("div", { className: "actions" },
    exchange.problem ? button("again", "Try again", retry, { className: "quiet strong" }) : button("again", "Answer again", retry),
    text && navigator.clipboard ? copy : null);
}

/** Words in paragraphs as they came; code and pages in blocks of their own. */
function pieces(exchange, growing) {
  const blocks = [];
  for (const piece of exchange.pieces) {
    if (piece.kind === "page" && !growing) blocks.push(webPage(piece.text));
    else if (piece.kind === "page" || piece.kind === "code") blocks.push(make("pre", { tabIndex: 0, "aria-label": "Code" }, make("code", {}, piece.text)));
    else {
      let block = blocks[blocks.length - 1];
      if (block?.tagName !== "P") blocks.push((block = make("p", { className: "words" })));
      block.append(piece.kind === "phrase" ? phrase(piece) : piece.text);
    }
  }
  return blocks;
}

function phrase(piece) {
  const node = make("mark", {}, piece.text);
  node.style.setProperty("--own", piece.colour);
  return node;
}

/** A page that the model wrote: shown in a frame that can do nothing but show it, and as code. */
function webPage(code) {
  const frame = make("iframe", { title: "The website that the model wrote", "sandbox": "allow-scripts", srcdoc: FRAME_RULES + code });
  const source = make("pre", { hidden: true, tabIndex: 0, "aria-label": "Code" }, make("code", {}, code));
  const tabs = ["Website", "Code"].map((label, index) => make("button", { type: "button", "aria-pressed": String(index === 0), onclick: () => choose(index) }, label));
  function choose(chosen) {
    frame.hidden = chosen !== 0;
    source.hidden = chosen !== 1;
    tabs.forEach((tab, index) => tab.setAttribute("aria-pressed", String(index === chosen)));
  }
  return make("div", { className: "website" }, make("div", { className: "tabs" }, ...tabs), frame, source);
}

/** What a screen reader hears when an answer ends: the whole of it, once. */
function announce(exchange) {
  if (exchange.state === "done" || exchange.state === "stopped") spoken.textContent = exchange.pieces.map((piece) => piece.text).join("");
}
