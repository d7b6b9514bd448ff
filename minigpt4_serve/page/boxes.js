// MiniGPT-v2's notation: `<p>phrase</p> {<left><top><right><bottom>}<delim>{…}` with whole percents of width and
// height. The grammar and the colors are those of minigpt4_serve/boxes.py; a test compares the two.

import { makeSvg } from "./dom.js";

const BOX = String.raw`\{\s*<(-?\d{1,9})>\s*<(-?\d{1,9})>\s*<(-?\d{1,9})>\s*<(-?\d{1,9})>\s*\}`;
const ANY_BOX = BOX.replaceAll("(-", "(?:-");
const BOXES = String.raw`${ANY_BOX}(?:\s*<delim>\s*${ANY_BOX})*`;
const GROUNDED = new RegExp(String.raw`(?:<p>([^<]*)</p>\s*)?(${BOXES})`, "g");
// A lookahead with a back reference doesn't give back what it matched, so long runs of blanks take linear time.
const BOXES_AND_BLANKS = new RegExp(String.raw`(?<!\s)(?=(\s*))\1(?:<delim>(?=(\s*))\2)?${BOXES}`, "g");
const TAG = /<\/?p>|<delim>/g;
const HALF_WRITTEN = /(?<!\s)(?=(\s*))\1(?:\{[-<>\d\s]*|<\/?p?|<d(?:e|el|eli|elim)?)(?=\n?$)/;

const COLORS = ["#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#f032e6", "#9a6324", "#808000", "#000075"];
const SMALLEST_SIDE = 500; // pixels; smaller images are enlarged so that labels can be read
const LONGEST_LABEL = 100; // characters

/** The color of the n-th phrase of an answer and of its boxes. */
export function phraseColor(number) {
  return COLORS[number % COLORS.length];
}

/** Boxes of an answer in order, with their phrases: `[{ phrase, boxes: [{ left, top, right, bottom }] }]`. */
export function parseGroundings(text) {
  return [...unescapeEntities(text).matchAll(GROUNDED)].map((match) => ({
    phrase: (match[1] ?? "").trim() || null,
    boxes: [...match[2].matchAll(new RegExp(BOX, "g"))].map((corner) => toBox(corner.slice(1).map(Number))),
  }));
}

/** The box between two corners in any order, clamped to the image. */
function toBox([x1, y1, x2, y2]) {
  const clamp = (value) => Math.min(Math.max(value, 0), 100);
  const [left, right] = [clamp(x1), clamp(x2)].sort((a, b) => a - b);
  const [top, bottom] = [clamp(y1), clamp(y2)].sort((a, b) => a - b);
  return { left, top, right, bottom };
}

/** The answer without boxes and tags. */
export function plainText(text) {
  return unescapeEntities(text).replace(BOXES_AND_BLANKS, "").replace(TAG, "").trim();
}

/**
 * The answer without boxes and tags, in parts: `{ text, number }` with the phrase's number, or null for other words.
 * Notation that is still incomplete at the end of an unfinished answer stays hidden.
 */
export function splitPhrases(text, { finished = true, first = 0 } = {}) {
  const shown = finished ? text : text.replace(HALF_WRITTEN, "");
  const unescaped = unescapeEntities(shown);
  const matches = [...unescaped.matchAll(GROUNDED)];
  if (!matches.length && shown.search(TAG) < 0) return shown ? [{ text: shown, number: null }] : [];
  const parts = [];
  let end = 0;
  matches.forEach((match, index) => {
    parts.push({ text: unescaped.slice(end, match.index), number: null });
    parts.push({ text: (match[1] ?? "").trim(), number: first + index });
    end = match.index + match[0].length;
  });
  parts.push({ text: unescaped.slice(end), number: null });
  return parts.map((part) => ({ ...part, text: part.text.replace(TAG, "") })).filter((part) => part.text);
}

const ENTITIES = { amp: "&", apos: "'", gt: ">", lt: "<", nbsp: "\u00a0", quot: '"' };

/** Entities that models write around the notation; others stay as they are. */
function unescapeEntities(text) {
  return text.replace(/&(?:(amp|apos|gt|lt|nbsp|quot)|#(\d{1,7})|#[xX]([\da-fA-F]{1,6}));/g, (whole, name, decimal, hex) => {
    if (name) return ENTITIES[name];
    const code = decimal ? Number(decimal) : Number.parseInt(hex, 16);
    return code > 0 && code <= 0x10ffff && !(code >= 0xd800 && code <= 0xdfff) ? String.fromCodePoint(code) : whole;
  });
}

/** The boxes over an image of that size as SVG, each with its phrase on a plate of its color where there is room. */
export function drawBoxes(href, width, height, groundings) {
  const scale = Math.max(1, SMALLEST_SIDE / Math.max(width, height));
  const size = { width: Math.round(width * scale), height: Math.round(height * scale) };
  const line = Math.max(2, Math.floor(Math.max(size.width, size.height) / 250));
  const image = makeSvg("image", { href, width: size.width, height: size.height, preserveAspectRatio: "none" });
  const outlines = [];
  const labels = [];
  const taken = [];
  groundings.forEach(({ boxes }, number) => {
    for (const box of boxes) outlines.push(outline(toPixels(box, size), number, line));
  });
  groundings.forEach(({ phrase, boxes }, number) => {
    if (phrase === null) return;
    for (const box of boxes) labels.push(label(toPixels(box, size), phrase, number, size, taken));
  });
  const name = "The picture with the boxes of the answer";
  return makeSvg("svg", { class: "drawn", viewBox: `0 0 ${size.width} ${size.height}`, width: size.width, height: size.height,
    role: "img", "aria-label": name, xmlns: "http://www.w3.org/2000/svg" }, image, ...outlines, ...labels);
}

function toPixels(box, { width, height }) {
  return {
    left: Math.floor((box.left * (width - 1)) / 100),
    top: Math.floor((box.top * (height - 1)) / 100),
    right: Math.floor((box.right * (width - 1)) / 100),
    bottom: Math.floor((box.bottom * (height - 1)) / 100),
  };
}

function outline({ left, top, right, bottom }, number, line) {
  const place = { x: left, y: top, width: right - left, height: bottom - top, rx: line, fill: "none" };
  return makeSvg("g", { class: "box", "data-phrase": number },
    makeSvg("rect", { ...place, stroke: "#fff", "stroke-width": line + 2.5 }),
    makeSvg("rect", { ...place, stroke: phraseColor(number), "stroke-width": line }));
}

const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif';
const measuring = document.createElement("canvas").getContext("2d");

function label(box, phrase, number, size, taken) {
  const points = Math.max(14, Math.round(Math.max(size.width, size.height) / 34));
  const margin = Math.round(points * 0.35);
  measuring.font = `600 ${points}px ${FONT}`;
  const limit = Math.max(box.right - box.left, size.width / 2) - 2 * margin;
  let text = phrase.length > LONGEST_LABEL ? `${phrase.slice(0, LONGEST_LABEL).trimEnd()}…` : phrase;
  while (text.length > 1 && measuring.measureText(text).width > limit) text = `${text.slice(0, -2).trimEnd()}…`;
  const plate = { width: Math.ceil(measuring.measureText(text).width) + 2 * margin, height: Math.round(points * 1.5) };
  const { x, y } = freePlace(box, plate, size, taken);
  taken.push({ left: x, top: y, right: x + plate.width, bottom: y + plate.height });
  return makeSvg("g", { class: "box", "data-phrase": number },
    makeSvg("rect", { x, y, width: plate.width, height: plate.height, rx: points / 4, fill: phraseColor(number) }),
    makeSvg("text", { x: x + margin, y: y + points * 1.08, fill: inkOn(phraseColor(number)), "font-size": points, "font-weight": 600, "font-family": FONT }, text));
}

/** Black or white, whichever is easier to read on a color. */
function inkOn(color) {
  const [red, green, blue] = [1, 3, 5].map((at) => (Number.parseInt(color.slice(at, at + 2), 16) / 255) ** 2.2);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.18 ? "#111" : "#fff";
}

/** The upper left corner for a label: above the box, in it, below it, or the nearest free place of a grid. */
function freePlace(box, { width, height }, size, taken) {
  const room = { x: Math.max(size.width - width, 0), y: Math.max(size.height - height, 0) };
  const inside = (x, y) => ({ x: Math.min(Math.max(x, 0), room.x), y: Math.min(Math.max(y, 0), room.y) });
  const free = ({ x, y }) => !taken.some((area) => x < area.right && area.left < x + width && y < area.bottom && area.top < y + height);
  const best = [inside(box.left, box.top - height), inside(box.left, box.top), inside(box.left, box.bottom)];
  const found = best.find(free);
  if (found) return found;
  const grid = [];
  for (let y = 0; y <= room.y; y += Math.max(Math.floor(height / 2), 8)) {
    for (let x = 0; x <= room.x; x += Math.max(Math.floor(width / 4), 8)) grid.push({ x, y });
  }
  const distance = ({ x, y }) => Math.abs(x - box.left) + Math.abs(y - box.top);
  return grid.filter(free).sort((a, b) => distance(a) - distance(b))[0] ?? best[0];
}
