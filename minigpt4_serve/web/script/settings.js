// The sliders. One that wasn't moved sends nothing: then the server's own rule counts.

const SLIDERS = [
  { name: "temperature", label: "Temperature", hint: "0 gives the likeliest words; more varies more", low: 0, high: () => 2, step: 0.1 },
  { name: "top_p", label: "Top-p", hint: "Share of likely words to choose from", low: 0.05, high: () => 1, step: 0.05 },
  { name: "max_tokens", label: "Longest answer", hint: "In tokens, about ¾ of a word each", low: 16, high: (limits) => limits.longest, step: 4 },
  { name: "beams", label: "Beams", hint: "Searches for the likeliest answer, which then comes all at once", low: 1, high: (limits) => limits.max_beams, step: 1 },
];

const moved = {};
let sliderLimits = "";
const settingsPanel = make("section", { className: "settings", id: "talk-settings", hidden: true, "aria-label": "Settings" });

function showSettings(limits) {
  if (!limits || JSON.stringify(limits) === sliderLimits) return;
  sliderLimits = JSON.stringify(limits);
  for (const name of Object.keys(moved)) delete moved[name];
  const sliders = SLIDERS.filter((slider) => slider.name !== "beams" || limits.max_beams > 1);
  settingsPanel.replaceChildren(...sliders.map((slider) => sliderRow(slider, limits)),
    button("again", "Back to the model's own", () => { sliderLimits = ""; showSettings(limits); }));
}

function sliderRow(slider, limits) {
  const initial = slider.name === "beams" ? 1 : limits[slider.name];
  const id = `talk-${slider.name}`;
  const shown = make("output", {}, String(initial));
  shown.setAttribute("for", id);
  const input = make("input", { type: "range", id, min: slider.low, max: slider.high(limits), step: slider.step, "aria-describedby": `${id}-hint` });
  input.value = initial;
  input.addEventListener("input", () => {
    moved[slider.name] = Number(input.value);
    shown.textContent = input.value;
  });
  const label = make("label", {}, slider.label);
  label.htmlFor = id;
  return make("div", { className: "slider" }, label, shown, input, make("small", { id: `${id}-hint` }, slider.hint));
}
