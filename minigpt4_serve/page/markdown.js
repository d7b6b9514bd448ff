// The Markdown that models write, as DOM nodes: paragraphs, headings, lists, quotes, emphasis, code. HTML, links and
// images stay text, so that an answer can neither run nor load nor lead anywhere.

import { make } from "./dom.js";
import { phraseColor, splitPhrases } from "./boxes.js";

const FENCE = /```([\w+-]*)[^\S\n]*\n([\s\S]*?)(?:\n?```|$)/g;
const PAGE = /(?:<!doctype html|<html[\s>])[\s\S]*?(?:<\/html>|$)/i;
const HEADING = /^(#{1,6})\s+(.*)$/;
const RULE = /^\s*([-*_])(?:\s*\1){2,}\s*$/;
const ITEM = /^(\s*)([-*+•]|\d{1,3}[.)])\s+(.*)$/;
const QUOTE = /^\s*>\s?/;

/** Segments of an answer: `words`, `code` (a fenced block), and `page` (a website). */
export function splitSegments(text) {
  const segments = [];
  let end = 0;
  for (const match of text.matchAll(FENCE)) {
    segments.push(...splitPage(text.slice(end, match.index)));
    const isPage = match[1].toLowerCase() === "html" || PAGE.exec(match[2].trimStart())?.index === 0;
    segments.push({ kind: isPage ? "page" : "code", text: match[2], language: match[1] });
    end = match.index + match[0].length;
  }
  segments.push(...splitPage(text.slice(end)));
  return segments.filter((segment) => segment.kind !== "words" || segment.text.trim());
}

function splitPage(text) {
  const page = PAGE.exec(text);
  if (page === null) return [{ kind: "words", text }];
  const end = page.index + page[0].length;
  return [{ kind: "words", text: text.slice(0, page.index) }, { kind: "page", text: page[0], language: "html" }, { kind: "words", text: text.slice(end) }];
}

/** Blocks of a `words` segment: `{ kind, source }` with the kinds paragraph, heading, rule, quote, list and ordered. */
export function splitBlocks(text) {
  const blocks = [];
  let open = null;
  for (const line of text.split("\n")) {
    const kind = lineKind(line, open);
    if (kind === "blank") {
      // A list goes on after a blank line if another item follows.
      if (isList(open)) open.lines.push(line);
      else open = null;
    } else if (open?.kind === kind && kind !== "heading" && kind !== "rule") {
      open.lines.push(line);
    } else {
      blocks.push((open = { kind, lines: [line] }));
    }
  }
  return blocks.map(({ kind, lines }) => ({ kind, source: lines.join("\n").trimEnd() }));
}

function lineKind(line, open) {
  if (!line.trim()) return "blank";
  if (HEADING.test(line)) return "heading";
  if (RULE.test(line)) return "rule";
  if (QUOTE.test(line)) return "quote";
  const item = ITEM.exec(line);
  if (item) return isList(open) && item[1].length > 1 ? open.kind : /\d/.test(item[2]) ? "ordered" : "list";
  const goesOn = isList(open) && (/^\s/.test(line) || open.lines.at(-1).trim());
  return goesOn ? open.kind : "paragraph";
}

function isList(block) {
  return block?.kind === "list" || block?.kind === "ordered";
}

/** The node of one block. `first` is the number of its first phrase with boxes. */
export function renderBlock(block, { finished, first }) {
  const context = { finished, first };
  switch (block.kind) {
    case "heading": {
      const [, marks, words] = HEADING.exec(block.source);
      return make(`h${Math.min(marks.length + 2, 6)}`, { className: "words" }, ...inline(words.replace(/\s#+\s*$/, ""), context));
    }
    case "rule":
      return make("hr");
    case "quote": {
      const words = block.source.split("\n").map((line) => line.replace(QUOTE, "")).join("\n");
      return make("blockquote", { className: "words" }, ...inline(words, context));
    }
    case "list":
    case "ordered":
      return renderList(parseItems(block.source), context);
    default:
      return make("p", { className: "words" }, ...inline(block.source, context));
  }
}

function parseItems(source) {
  const items = [];
  for (const line of source.split("\n")) {
    const match = ITEM.exec(line);
    if (match) items.push({ indent: match[1].length, marker: match[2], text: match[3] });
    else if (line.trim() && items.length) items.at(-1).text += `\n${line.trim()}`;
  }
  return items;
}

function renderList(items, context) {
  const ordered = /\d/.test(items[0].marker);
  const list = make(ordered ? "ol" : "ul", { className: "words" });
  if (ordered) list.start = Number.parseInt(items[0].marker, 10);
  for (let index = 0; index < items.length; ) {
    let end = index + 1;
    while (end < items.length && items[end].indent > items[0].indent) end += 1;
    const item = make("li", {}, ...inline(items[index].text, context));
    if (end > index + 1) item.append(renderList(items.slice(index + 1, end), context));
    list.append(item);
    index = end;
  }
  return list;
}

/** Words with phrases in their colors. Numbers the phrases in `context`. */
function inline(text, context) {
  const parts = splitPhrases(text, context);
  return parts.flatMap(({ text: words, number }) => {
    if (number === null) return emphasis(words);
    context.first = number + 1;
    const mark = make("mark", { "data-phrase": String(number) }, words);
    mark.style.setProperty("--own", phraseColor(number));
    return [mark];
  });
}

const LONGEST = "{1,2000}?";
const INLINE = new RegExp(
  [
    String.raw`\\([\\\x60*_{}\[\]()#+.!>~|-])`,
    String.raw`(\x60+)([^\n]${LONGEST})\2(?!\x60)`,
    String.raw`\*\*(?=[^\s*])([\s\S]${LONGEST}(?<=\S))\*\*(?!\*)`,
    String.raw`(?<!\w)__(?=[^\s_])([\s\S]${LONGEST}(?<=\S))__(?!\w)`,
    String.raw`(?<![*\w])\*(?=[^\s*])([^*]${LONGEST}(?<=\S))\*(?![*\w])`,
    String.raw`(?<!\w)_(?=[^\s_])([^_]${LONGEST}(?<=\S))_(?!\w)`,
  ].join("|"),
  "g",
);

function emphasis(text) {
  const nodes = [];
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    if (match.index > end) nodes.push(text.slice(end, match.index));
    const [, escaped, , code, bold, alsoBold, italic, alsoItalic] = match;
    if (escaped) nodes.push(escaped);
    else if (code) nodes.push(make("code", {}, code));
    else if (bold ?? alsoBold) nodes.push(make("strong", {}, ...emphasis(bold ?? alsoBold)));
    else nodes.push(make("em", {}, ...emphasis(italic ?? alsoItalic)));
    end = match.index + match[0].length;
  }
  if (end < text.length) nodes.push(text.slice(end));
  return nodes;
}
