// The server's own API: the model's card, and one answer as a stream of events. No DOM.

const PATIENCE_MS = 30_000; // a full server is asked again for this long
const CARD_TIMEOUT_MS = 10_000;
const API = new URL("v1/", document.baseURI);
const KEY = "minigpt4.key";

export const NO_ANSWER = "The server does not answer.";
const WHAT_TO_DO = "Check that it is running and that this device is online, then try again.";

/** A failure with a sentence for people. `code` is the server's, or `server_unreachable` or `cut_short`. */
export class ServerError extends Error {
  constructor(code, message, retryAfter = 0) {
    super(message);
    this.code = code;
    this.retryAfter = retryAfter;
  }
}

/** The key of this tab; it ends with the tab. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** What the server says about its model, as in `GET /v1/models`. */
export async function fetchCard() {
  const response = await request("models", { signal: AbortSignal.timeout(CARD_TIMEOUT_MS) });
  if (!response.ok) throw await readError(response);
  const listed = await response.json().catch(() => ({}));
  const card = listed.data?.[0];
  if (typeof card?.id !== "string") throw new ServerError("engine_failed", "The server's list of models can't be read.");
  return card;
}

/**
 * Events of one answer: `queued` (ahead, expectedS), `retrying` (inS), `delta` (text), and at its end `completed`
 * (reason, promptTokens, cachedTokens, completionTokens, timings, droppedMessages).
 *
 * A full server is asked again as its Retry-After says. Aborting `signal` closes the connection, which frees the
 * server's slot.
 */
export async function* streamAnswer(body, signal) {
  const patienceEnds = performance.now() + PATIENCE_MS;
  for (;;) {
    const response = await request("chat/completions", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
      signal,
    });
    if (response.ok) {
      yield* readAnswer(response, signal);
      return;
    }
    const error = await readError(response);
    const waitMs = 1000 * error.retryAfter;
    if (error.code !== "overloaded" || performance.now() + waitMs > patienceEnds) throw error;
    yield { type: "retrying", inS: error.retryAfter };
    await sleep(waitMs, signal);
  }
}

async function request(path, options) {
  const headers = { ...options.headers, ...(key.get() ? { authorization: `Bearer ${key.get()}` } : {}) };
  try {
    return await fetch(new URL(path, API), { ...options, headers, cache: "no-store", credentials: "omit", redirect: "error" });
  } catch (error) {
    if (options.signal?.aborted && error.name === "AbortError") throw error;
    throw unreachable();
  }
}

function unreachable() {
  return new ServerError("server_unreachable", `${NO_ANSWER} ${WHAT_TO_DO}`);
}

async function* readAnswer(response, signal) {
  const dropped = number(response.headers.get("x-minigpt4-dropped-messages")) ?? 0;
  let ahead = number(response.headers.get("x-minigpt4-queue-position"));
  if (ahead !== null) yield { type: "queued", ahead, expectedS: number(response.headers.get("x-minigpt4-expected-wait")) };
  let begun = false;
  let reason = null;
  let last = {};
  try {
    for await (const line of readLines(response.body)) {
      if (line.startsWith(": waiting, ")) {
        const waiting = number(line.split(" ")[2]);
        if (waiting !== null && waiting !== ahead) yield { type: "queued", ahead: waiting, expectedS: null };
        ahead = waiting; // the first comment repeats the header
      }
      if (!line.startsWith("data:")) continue;
      const data = line.slice(5).trim();
      if (data === "[DONE]") {
        reason ??= "stop";
        break;
      }
      const chunk = JSON.parse(data);
      if (chunk.error) throw toError(chunk.error);
      if (chunk.usage) last = chunk;
      for (const choice of chunk.choices ?? []) {
        if (choice.delta?.content) {
          begun = true;
          yield { type: "delta", text: choice.delta.content };
        }
        reason = choice.finish_reason ?? reason;
      }
    }
  } catch (error) {
    if (signal.aborted || error instanceof ServerError) throw error;
    reason = null; // the connection broke, or something that isn't JSON came
  }
  if (reason === null) {
    throw begun
      ? new ServerError("cut_short", `The connection was lost in the middle of the answer. ${WHAT_TO_DO}`)
      : unreachable();
  }
  yield {
    type: "completed",
    reason,
    promptTokens: last.usage?.prompt_tokens ?? null,
    cachedTokens: last.usage?.prompt_tokens_details?.cached_tokens ?? null,
    completionTokens: last.usage?.completion_tokens ?? null,
    timings: last.timings ?? null,
    droppedMessages: dropped,
  };
}

/** Lines of a stream of bytes, without their ends; leaving the loop cancels the stream. */
async function* readLines(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) yield line.endsWith("\r") ? line.slice(0, -1) : line;
    }
    if (rest) yield rest;
  } finally {
    reader.cancel().catch(() => {});
  }
}

const SENTENCES = {
  context_length_exceeded: "This is too long for the model. Ask a shorter question, or start over.",
  invalid_api_key: "The server does not accept this key.",
  model_not_found: "The server has another model now. Try again to ask that one.",
  deadline_exceeded: "The server's time for this answer ran out. Ask for a shorter one, or try again in a moment.",
  engine_failed: "The server failed while answering. Try again in a moment.",
  internal_error: "The server failed while answering. Try again in a moment.",
};
const BY_STATUS = {
  401: "invalid_api_key", 403: "invalid_api_key", 404: "model_not_found", 408: "deadline_exceeded",
  413: "payload_too_large", 429: "overloaded", 502: "server_unreachable", 503: "engine_failed", 504: "server_unreachable",
};

async function readError(response) {
  const body = await response.json().catch(() => ({}));
  const after = number(response.headers.get("retry-after")) ?? 5;
  return toError({ code: BY_STATUS[response.status] ?? "internal_error", ...body?.error }, after);
}

function toError({ code, message }, retryAfter = 0) {
  if (code === "rate_limit_exceeded") {
    return new ServerError(code, `Your share of the server is used up. Try again in ${describeWait(retryAfter)}.`, retryAfter);
  }
  if (code === "overloaded") return new ServerError(code, `The server is full. Try again in ${describeWait(retryAfter)}.`, retryAfter);
  if (code === "server_unreachable") return unreachable();
  if (code === "invalid_api_key" && !key.get()) return new ServerError(code, "This server needs a key.");
  const own = typeof message === "string" && message ? message.slice(0, 300) : "The server refused this question.";
  return new ServerError(String(code), SENTENCES[code] ?? own, retryAfter);
}

/** A wait for people, rounded up: `33 seconds`, `12 hours`. */
function describeWait(seconds) {
  if (seconds <= 1) return "1 second";
  if (seconds < 90) return `${Math.ceil(seconds)} seconds`;
  if (seconds < 90 * 60) return `${Math.ceil(seconds / 60)} minutes`;
  return `${Math.ceil(seconds / 3600)} hours`;
}

function number(text) {
  return text !== null && text !== undefined && /^\d+(\.\d+)?$/.test(text) ? Number(text) : null;
}

function sleep(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    if (signal.aborted) reject(signal.reason);
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => { clearTimeout(timer); reject(signal.reason); }, { once: true });
  });
}
