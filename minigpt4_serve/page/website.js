// Code and websites that the model writes. A website runs in a document of its own, `/preview`, which the server
// sandboxes: it has no network, no storage and no way to this page.

import { button, make } from "./dom.js";
import { copyText } from "./share.js";

/** A block of code that grows with the answer. */
export function codeView({ source, language }) {
  const code = make("code", {}, source);
  const node = make("div", { className: "code" },
    make("div", { className: "code-head" }, make("span", {}, language || "code"), copyButton(() => code.textContent)),
    make("pre", { tabIndex: 0, "aria-label": "Code" }, code));
  const update = (block) => { code.textContent = block.source; };
  return { node, update };
}

/** A website as it runs, and its code. It has the same size while it is being written. */
export function websiteView(block) {
  const code = make("code", {}, block.source);
  const source = make("pre", { tabIndex: 0, "aria-label": "Code" }, code);
  const stage = make("div", { className: "stage", hidden: true });
  const tabs = ["Website", "Code"].map((label, index) => make("button", { type: "button", onclick: () => choose(index) }, label));
  const node = make("div", { className: "website" },
    make("div", { className: "code-head", role: "group", "aria-label": "Show" }, ...tabs, copyButton(() => code.textContent)), stage, source);

  function choose(chosen) {
    stage.hidden = chosen !== 0;
    source.hidden = chosen !== 1;
    tabs.forEach((tab, index) => tab.setAttribute("aria-pressed", String(index === chosen)));
  }

  function update({ source: text, finished }) {
    code.textContent = text;
    tabs[0].disabled = !finished;
    if (finished && !stage.firstChild) {
      stage.append(previewFrame(text));
      choose(0);
    } else if (!finished) {
      choose(1);
    }
  }

  update(block);
  return { node, update };
}

function previewFrame(html) {
  const frame = make("iframe", { title: "The website that the model wrote", src: new URL("preview", document.baseURI).href });
  frame.setAttribute("sandbox", "allow-scripts");
  // The frame's origin is opaque, so no other target can be named. It gets nothing but the model's own words.
  frame.addEventListener("load", () => frame.contentWindow.postMessage(html, "*"), { once: true });
  return frame;
}

function copyButton(text) {
  const node = button("copy", "Copy", async () => {
    if (await copyText(text())) node.lastChild.textContent = "Copied";
    setTimeout(() => { node.lastChild.textContent = "Copy"; }, 2000);
  });
  return node;
}
