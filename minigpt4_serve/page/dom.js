// DOM builders. Text becomes text nodes, never HTML; the page's policy forbids HTML sinks as well.

/** An element with properties, attributes (names with a dash, and role), listeners (on…) and children. */
export function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name.includes("-") || name === "role") node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** An SVG element with attributes and children. */
export function makeSvg(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const ICONS = {
  add: "M12 5v14M5 12h14",
  again: "M19 12a7 7 0 1 1-2.2-5.1M19 4v4h-4",
  camera: "M4 8h3l2-3h6l2 3h3v11H4zM12 10a3.5 3.5 0 1 0 0 7 3.5 3.5 0 0 0 0-7z",
  close: "M6 6l12 12M18 6L6 18",
  copy: "M9 9h10v11H9zM5 15V4h10",
  download: "M12 4v11M7 10l5 5 5-5M5 20h14",
  edit: "M5 19l1-4L16 5l3 3L9 18zM14 7l3 3",
  forget: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13M10 11v5M14 11v5",
  history: "M4 12a8 8 0 1 0 2.6-5.9M4 4v4h4M12 8v4.5l3 1.8",
  link: "M10 14a4 4 0 0 0 5.7 0l3-3A4 4 0 0 0 13 5.300l-1 1M14 10a4 4 0 0 0-5.7 0l-3 3A4 4 0 0 0 11 18.700l1-1",
  more: "M6 10l6 6 6-6",
  next: "M10 6l6 6-6 6",
  previous: "M14 6l-6 6 6 6",
  send: "M12 19V5M6 11l6-6 6 6",
  settings: "M4 7h9M17 7h3M4 17h3M11 17h9M15 5v4M9 15v4",
  share: "M12 15V4M8 8l4-4 4 4M7 11H5v9h14v-9h-2",
  stop: "M7 7h10v10H7z",
};

export function icon(name) {
  return makeSvg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, makeSvg("path", { d: ICONS[name] }));
}

/** A button with an icon and a label; `bare` shows the icon only and keeps the label for assistive technology. */
export function button(iconName, label, onclick, { className = "quiet", bare = false, ...properties } = {}) {
  const node = make("button", { type: "button", className, onclick, ...properties });
  if (iconName) node.append(icon(iconName));
  if (bare) {
    node.setAttribute("aria-label", label);
    node.title = label;
  } else {
    node.append(make("span", {}, label));
  }
  return node;
}

/** A modal dialog that removes itself when it closes; Escape and a click beside it close it. */
export function openDialog(title, { className = "", children = [], onclose = () => {} }) {
  const head = make("div", { className: "dialog-head" }, make("h2", {}, title),
    button("close", "Close", () => dialog.close(), { bare: true }));
  const dialog = make("dialog", { className, "aria-label": title }, head, ...children);
  dialog.addEventListener("close", () => { dialog.remove(); onclose(); });
  dialog.addEventListener("pointerdown", (event) => {
    const area = dialog.getBoundingClientRect();
    const inside = event.clientX >= area.left && event.clientX <= area.right && event.clientY >= area.top && event.clientY <= area.bottom;
    if (event.target === dialog && !inside) dialog.close();
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

/** A random identifier; `crypto.randomUUID` exists in secure contexts only. */
export function randomId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
