// The sliders. One that wasn't moved sends nothing, so that the server's own rule applies.

import { button, make } from "./dom.js";

const FALLBACK_CONTEXT = 2048;
const FALLBACK_MAX_TOKENS = 300;
const SLIDERS = [
  { name: "temperature", label: "Temperature", hint: "0 takes the likeliest words; higher values vary more", low: 0, step: 0.1 },
  { name: "top_p", label: "Top-p", hint: "Share of likely words to choose from", low: 0.05, step: 0.05 },
  { name: "max_tokens", label: "Longest answer", hint: "In tokens, about ¾ of a word each", low: 16, step: 4 },
  { name: "beams", label: "Beams", hint: "Searches for the likeliest answer, which then arrives all at once", low: 1, step: 1 },
];
const SAMPLING = ["temperature", "top_p"]; // a beam search takes neither

export class Settings {
  #card = null;
  #moved = {};
  #onchange;

  constructor(onchange) {
    this.#onchange = onchange;
    this.element = make("div", { className: "sliders" });
  }

  /** What was moved, as the API's fields. */
  get options() {
    const moved = Object.entries(this.#moved);
    return Object.fromEntries(this.#moved.beams > 1 ? moved.filter(([name]) => !SAMPLING.includes(name)) : moved);
  }

  /** Take over options, such as those of a link. What isn't a number within a slider's range is left out. */
  set options(options) {
    this.#moved = {};
    for (const slider of SLIDERS) {
      const value = Number.parseFloat(options[slider.name]);
      const { low, high } = this.#range(slider);
      if (value >= low && value <= high) this.#moved[slider.name] = value;
    }
    this.#show();
    this.#onchange();
  }

  /** The model's card, whose defaults and limits the sliders show. */
  set card(card) {
    const before = JSON.stringify(this.#card);
    this.#card = card;
    if (JSON.stringify(card) !== before) this.options = this.#moved;
  }

  #range({ name, low }) {
    const high = {
      temperature: 2,
      top_p: 1,
      max_tokens: this.#card?.context_length ?? FALLBACK_CONTEXT,
      beams: this.#card?.capabilities?.max_beams ?? 1,
    }[name];
    return { low, high };
  }

  #initial(name) {
    if (name === "beams") return 1;
    return this.#card?.defaults?.[name] ?? { temperature: 1, top_p: 1, max_tokens: FALLBACK_MAX_TOKENS }[name];
  }

  #show() {
    const shown = SLIDERS.filter((slider) => slider.name !== "beams" || this.#range(slider).high > 1);
    const rows = shown.map((slider) => this.#row(slider));
    const reset = button("again", "Back to the model's defaults", () => { this.options = {}; });
    this.element.replaceChildren(...rows.map((row) => row.element), reset);
    const refresh = () => {
      for (const { slider, input, element } of rows) {
        input.disabled = SAMPLING.includes(slider.name) && this.#moved.beams > 1;
        element.classList.toggle("off", input.disabled);
      }
      reset.disabled = Object.keys(this.#moved).length === 0;
    };
    for (const { slider, input, output } of rows) {
      input.addEventListener("input", () => {
        this.#moved[slider.name] = Number(input.value);
        output.textContent = input.value;
        refresh();
        this.#onchange();
      });
    }
    refresh();
  }

  #row(slider) {
    const { low, high } = this.#range(slider);
    const id = `setting-${slider.name}`;
    const value = this.#moved[slider.name] ?? this.#initial(slider.name);
    const input = make("input", { type: "range", id, min: low, max: high, step: slider.step, "aria-describedby": `${id}-hint` });
    input.value = value;
    const output = make("output", {}, String(value));
    output.setAttribute("for", id);
    const label = make("label", { htmlFor: id }, slider.label);
    const element = make("div", { className: "slider" }, label, output, input, make("small", { id: `${id}-hint` }, slider.hint));
    return { slider, input, output, element };
  }
}
