// Chats in the browser's own storage (IndexedDB), so that they survive a reload. Nothing leaves the machine.

const NAME = "minigpt4";
const MOST_CHATS = 50;
const OFF = "minigpt4.history";

/** Where chats are kept. Every method does nothing useful, but fails neither, where the browser has no storage. */
export class History {
  #database = null;
  #opened = null; // the chat that this tab has taken from the history
  #channel = new BroadcastChannel(NAME);

  /**
   * `current()` is the id of this tab's chat. `onForgotten` gets the id of a chat that another tab has forgotten, or
   * null for all of them. `onShared` is called when another tab shows this tab's chat already.
   */
  constructor({ current, onForgotten, onShared }) {
    this.#channel.addEventListener("message", ({ data }) => {
      if (data.forgotten !== undefined) onForgotten(data.forgotten);
      else if (data.opened === current()) this.#channel.postMessage({ taken: data.opened });
      else if (data.taken === current() && data.taken === this.#opened) onShared();
    });
  }

  get isOn() {
    return localStorage.getItem(OFF) !== "off";
  }

  /** Switching it off forgets all chats. */
  async setOn(on) {
    if (on) localStorage.removeItem(OFF);
    else {
      localStorage.setItem(OFF, "off");
      await this.forgetAll();
    }
  }

  /** Save a conversation and its images; images that are stored already are not written again. */
  async save(conversation, images) {
    if (!this.isOn) return;
    await this.#run("readwrite", ({ chats, pictures }) => {
      chats.put({ id: conversation.id, changed: Date.now(), title: conversation.title.slice(0, 200), chat: conversation.toJSON() });
      for (const image of images) {
        const place = [conversation.id, image.id];
        pictures.getKey(place).onsuccess = ({ target }) => {
          if (target.result === undefined) pictures.put({ chat: conversation.id, ...image.toJSON() });
        };
      }
    });
    if ((await this.#run("readonly", ({ chats }) => chats.count())) > MOST_CHATS) {
      for (const { id } of (await this.list()).slice(MOST_CHATS)) await this.#remove(id);
    }
  }

  /** Chats, the newest first: `[{ id, changed, title }]`. */
  async list() {
    const found = await this.#run("readonly", ({ chats }) => chats.getAll());
    return (found ?? []).map(({ id, changed, title }) => ({ id, changed, title })).sort((a, b) => b.changed - a.changed);
  }

  /** `{ chat, images }` as they were saved, or null. */
  async load(id) {
    const saved = await this.#run("readonly", ({ chats }) => chats.get(id));
    if (!saved) return null;
    const images = await this.#run("readonly", ({ pictures }) => pictures.getAll(IDBKeyRange.bound([id], [id, []])));
    this.#opened = id;
    this.#channel.postMessage({ opened: id });
    return { chat: saved.chat, images: images ?? [] };
  }

  async forget(id) {
    await this.#remove(id);
    this.#channel.postMessage({ forgotten: id });
  }

  async forgetAll() {
    await this.#run("readwrite", ({ chats, pictures }) => {
      chats.clear();
      pictures.clear();
    });
    this.#channel.postMessage({ forgotten: null });
  }

  async #remove(id) {
    await this.#run("readwrite", ({ chats, pictures }) => {
      chats.delete(id);
      pictures.delete(IDBKeyRange.bound([id], [id, []]));
    });
  }

  /** Run one transaction; the result of the request that `work` returns, if it returns one. */
  async #run(mode, work) {
    try {
      this.#database ??= openDatabase();
      const transaction = (await this.#database).transaction(["chats", "pictures"], mode);
      const done = new Promise((resolve, reject) => {
        transaction.addEventListener("complete", resolve);
        transaction.addEventListener("abort", () => reject(transaction.error));
      });
      const request = work({ chats: transaction.objectStore("chats"), pictures: transaction.objectStore("pictures") });
      await done;
      return request?.result;
    } catch (error) {
      console.warn("history:", error?.name); // private windows and full disks have none
      return undefined;
    }
  }
}

function openDatabase() {
  return new Promise((resolve, reject) => {
    const opening = indexedDB.open(NAME, 1);
    opening.addEventListener("upgradeneeded", () => {
      opening.result.createObjectStore("chats", { keyPath: "id" });
      opening.result.createObjectStore("pictures", { keyPath: ["chat", "id"] });
    });
    opening.addEventListener("success", () => resolve(opening.result));
    opening.addEventListener("error", () => reject(opening.error));
  });
}
