// Files → images as they are sent and shown: at most 2,048 pixels on the longer side, and small enough that a follow-up
// question, which carries all images of its chat, stays below 1 MB.

import { make, randomId } from "./dom.js";

const LONGEST_SIDE = 2048;
const CHAT_BYTES = 690_000; // of all images of a chat; base64 adds a third
const LEAST_BYTES = 24_000; // an image gets at least that
const QUALITIES = [0.9, 0.8, 0.7, 0.6];
const KEPT_TYPES = ["image/png", "image/jpeg", "image/webp"];
export const ACCEPTED = "image/png,image/jpeg,image/webp,image/gif,image/bmp,image/tiff,image/avif,image/heic,.tif,.tiff,.heic,.heif,.hif";
const SIGNATURES = [[0x89, 0x50, 0x4e, 0x47], [0xff, 0xd8, 0xff], [0x52, 0x49, 0x46, 0x46], [0x47, 0x49, 0x46, 0x38], [0x42, 0x4d], [0x49, 0x49, 0x2a, 0x00], [0x4d, 0x4d, 0x00, 0x2a], [,,,, 0x66, 0x74, 0x79, 0x70]];

/** An image of the chat. `width` and `height` are 0 if the browser can't decode it. */
export class ChatImage {
  #url = null;
  #dataUrl = null;

  constructor({ id = randomId(), blob, width, height }) {
    this.id = id;
    this.blob = blob;
    this.width = width;
    this.height = height;
  }

  /** For `<img>`; lives until `release`. */
  get url() {
    this.#url ??= URL.createObjectURL(this.blob);
    return this.#url;
  }

  /** For the API; encoded once. */
  async dataUrl() {
    this.#dataUrl ??= await readDataUrl(this.blob);
    return this.#dataUrl;
  }

  /** The image is shown no more. */
  release() {
    if (this.#url) URL.revokeObjectURL(this.#url);
    this.#url = null;
  }

  get bytes() {
    return this.blob.size;
  }

  toJSON() {
    return { id: this.id, blob: this.blob, width: this.width, height: this.height };
  }
}

/**
 * Prepare a file for the chat.
 *
 * What is small enough goes as it is, with its metadata; so does what the browser can't decode but the server may.
 * Everything else becomes a JPEG, upright as its EXIF data says.
 *
 * Throws an Error with a sentence for people.
 */
export async function prepareImage(file, { maxBytes, sentBytes }) {
  const budget = Math.max(LEAST_BYTES, Math.floor((CHAT_BYTES - sentBytes) / 2));
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    return new ChatImage({ blob: await keepUndecodable(file, maxBytes), width: 0, height: 0 });
  }
  try {
    const { width, height } = bitmap;
    if (KEPT_TYPES.includes(file.type) && file.size <= budget && Math.max(width, height) <= LONGEST_SIDE) {
      return new ChatImage({ blob: new Blob([file], { type: file.type }), width, height });
    }
    return await encode(bitmap, budget);
  } finally {
    bitmap.close();
  }
}

async function keepUndecodable(file, maxBytes) {
  const begin = new Uint8Array(await file.slice(0, 8).arrayBuffer());
  if (!SIGNATURES.some((signature) => signature.every((byte, index) => begin[index] === byte))) {
    throw new Error("This is not a picture that can be read. Choose a PNG, JPEG, WEBP, GIF, BMP, TIFF, AVIF or HEIC.");
  }
  if (maxBytes && file.size > maxBytes) {
    throw new Error(`This file is larger than ${Math.floor(maxBytes / 2 ** 20)} MiB. Choose a smaller one.`);
  }
  return new Blob([file], { type: file.type || "image/png" });
}

/** The best JPEG within a budget: first less quality, then fewer pixels. */
async function encode(bitmap, budget) {
  let side = Math.min(LONGEST_SIDE, Math.max(bitmap.width, bitmap.height));
  for (;;) {
    const scale = side / Math.max(bitmap.width, bitmap.height);
    const canvas = make("canvas", { width: Math.max(1, Math.round(bitmap.width * scale)), height: Math.max(1, Math.round(bitmap.height * scale)) });
    const context = canvas.getContext("2d");
    context.fillStyle = "#fff"; // what is transparent
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    for (const quality of QUALITIES) {
      const blob = await new Promise((resolve) => { canvas.toBlob(resolve, "image/jpeg", quality); });
      if (blob === null) throw new Error("This picture is too large for the browser. Choose a smaller one.");
      if (blob.size <= budget) return new ChatImage({ blob, width: canvas.width, height: canvas.height });
    }
    side = Math.round(side * 0.75);
  }
}

function readDataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => resolve(reader.result));
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(blob);
  });
}
