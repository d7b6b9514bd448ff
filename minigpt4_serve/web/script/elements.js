// Small tools to build the page. Words become text nodes, never HTML: what a model says can't do anything here.

/** An element with properties, attributes (names with a dash, and role), listeners (on…) and children. */
function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name.includes("-") || name === "role") node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const ICONS = {
  attach: "M12 5v14M5 12h14",
  camera: "M4 8h3l2-3h6l2 3h3v11H4zM12 10a3.5 3.5 0 1 0 0 7 3.5 3.5 0 0 0 0-7z",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  again: "M19 12a7 7 0 1 1-2.2-5.1M19 4v4h-4",
  edit: "M5 19l1-4L16 5l3 3L9 18zM14 7l3 3",
  copy: "M9 9h10v11H9zM5 15V4h10",
  settings: "M4 7h9M17 7h3M4 17h3M11 17h9M15 5v4M9 15v4",
  over: "M5 12a7 7 0 1 0 2.2-5.1M5 4v4h4",
  more: "M6 10l6 6 6-6",
  close: "M6 6l12 12M18 6L6 18",
  go: "M5 12h14M13 6l6 6-6 6",
};

function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** A button with an icon and words; words alone for screen readers if the button is only an icon. */
function button(iconName, words, onclick, { className = "quiet", bare = false } = {}) {
  const node = make("button", { type: "button", className, onclick });
  if (iconName) node.append(icon(iconName));
  if (bare) {
    node.setAttribute("aria-label", words);
    node.title = words;
  } else {
    node.append(make("span", {}, words));
  }
  return node;
}

/** A dialog over the page that removes itself; Escape closes it. */
function openDialog(title, ...children) {
  const closing = button("close", "Close", () => dialog.close(), { bare: true });
  const dialog = make("dialog", { "aria-label": title, onclose: () => dialog.remove() },
    make("div", { className: "dialog-head" }, make("h2", {}, title), closing), ...children);
  root.append(dialog);
  dialog.showModal();
  return dialog;
}
