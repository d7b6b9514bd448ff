// An answer outside of the page: on the clipboard, as a file, and as a link that brings its question and settings.

/** Copy to the clipboard; false if the browser refuses. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyBySelection(text); // pages without TLS have no clipboard API
  }
}

function copyBySelection(text) {
  const area = document.createElement("textarea");
  const focused = document.activeElement;
  area.value = text;
  area.className = "unseen";
  (focused?.closest("dialog") ?? document.body).append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  focused?.focus();
  return copied;
}

/** Save a text as a file. */
export function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type: `${type};charset=utf-8` }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** A link that fills in a question and the settings of its answer. They stand behind the #, which no server sees. */
export function linkTo(question, options) {
  const link = new URL(location.pathname, location.origin);
  link.hash = new URLSearchParams({ question, ...options }).toString();
  return link.href;
}

/** What such a link brought to this page, or null; it is taken out of the address. */
export function takeLink() {
  if (location.hash.length < 2) return null;
  const values = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  window.history.replaceState(null, "", location.pathname + location.search);
  const { question = "", ...options } = values;
  return { question: question.slice(0, 4000), options };
}

const STYLE = `
  :root { color-scheme: light dark; }
  body { max-width: 44rem; margin: 2rem auto; padding: 0 1rem; font: 16px/1.6 system-ui, sans-serif; }
  img, svg { max-width: 100%; height: auto; border-radius: .5rem; }
  h1 { font-size: 1.2rem; } p, blockquote, li { white-space: pre-wrap; overflow-wrap: anywhere; }
  pre { overflow: auto; padding: 1rem; border: 1px solid #8886; border-radius: .5rem; }
  mark { background: none; color: inherit; border-bottom: 3px solid var(--own); } footer { font-size: .85rem; opacity: .75; }
`;
const POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'";

/** A file of its own: question, images and answer, with a policy that lets it load and run nothing. */
export function toHtml({ question, images, said, footer }) {
  const article = document.createElement("article");
  const heading = document.createElement("h1");
  heading.textContent = question;
  const foot = document.createElement("footer");
  foot.textContent = footer;
  article.append(...images.map(({ url }) => Object.assign(new Image(), { src: url, alt: "Picture of the question" })), heading, ...said, foot);
  const head = `<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="${POLICY}">`
    + `<meta name="viewport" content="width=device-width, initial-scale=1"><title>${escapeHtml(question)}</title><style>${STYLE}</style>`;
  return `<!doctype html>\n<html lang="en"><head>${head}</head>\n<body>${article.outerHTML}</body></html>\n`;
}

/** Question, images and answer as Markdown, with the images inside. */
export function toMarkdown({ question, images, text, footer }) {
  const pictures = images.map(({ url }, index) => `![Picture ${index + 1}](${url})\n\n`).join("");
  const asked = escapeHtml(question).split("\n").map((line) => `> ${line}`).join("\n");
  return `${pictures}${asked}\n\n${escapeOutsideCode(text)}\n\n*${escapeHtml(footer)}*\n`;
}

function escapeHtml(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll('"', "&quot;");
}

/** HTML of an answer stays visible as text; fenced code is left as it is. */
function escapeOutsideCode(text) {
  const parts = text.split(/(```[\s\S]*?(?:```|$))/);
  return parts.map((part, index) => (index % 2 ? part : part.replaceAll("&", "&amp;").replaceAll("<", "&lt;"))).join("");
}
