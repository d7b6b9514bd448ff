// Puts the parts together and follows what the server says. Gradio gives element, props, trigger and watch.

let view = structuredClone(props.value);
const root = make("div", { className: "talk" });

const model = make("span");
const status = make("p", { className: "model", role: "status" }, make("i", { "aria-hidden": "true" }), model);
const settingsButton = button("settings", "Settings", () => {
  settingsPanel.hidden = !settingsPanel.hidden;
  settingsButton.setAttribute("aria-expanded", String(!settingsPanel.hidden));
});
settingsButton.setAttribute("aria-expanded", "false");
settingsButton.setAttribute("aria-controls", settingsPanel.id);
const overButton = button("over", "Start over", () => {
  stopEditing();
  words.value = "";
  tray = [];
  tell("");
  showTray();
  trigger("clear");
  words.focus();
});
const top_ = make("header", { className: "top" }, make("h1", {}, "Talk to a picture"), status, settingsButton, overButton);

function show() {
  // What Stop brings may come after the end of the answer that it stopped.
  if (props.value.number < view.number) return;
  view = structuredClone(props.value);
  status.classList.toggle("away", Boolean(view.server.trouble));
  model.textContent = view.server.name ?? (view.server.trouble || "Looking for the server …");
  status.title = view.server.address;
  settingsButton.disabled = !view.settings;
  overButton.disabled = view.exchanges.length === 0;
  showSettings(view.settings);
  showEmpty();
  showExchanges();
  showSend();
  const offered = JSON.stringify([view.boxes, view.go_on]);
  if (offered !== show.offered) showChips();
  show.offered = offered;
  const begun = view.exchanges.length > 0;
  if (begun !== show.begun) showAllChips(!begun && !matchMedia("(max-width: 40rem)").matches);
  show.begun = begun;
}

root.append(top_, settingsPanel, log, composer);
element.replaceChildren(root);
showTray();
watch("value", show);
show();

// Files may be dropped anywhere, and pasted wherever the cursor is.
root.addEventListener("dragover", (event) => {
  if (![...event.dataTransfer.types].includes("Files")) return;
  event.preventDefault();
  root.classList.add("dropping");
});
for (const end of ["dragleave", "drop"]) {
  root.addEventListener(end, (event) => {
    if (end === "drop" || !root.contains(event.relatedTarget)) root.classList.remove("dropping");
  });
}
root.addEventListener("drop", (event) => {
  if (!event.dataTransfer.files.length) return;
  event.preventDefault();
  attach([...event.dataTransfer.files]);
});
document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (!files.length) return;
  event.preventDefault();
  attach(files);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && view.busy && !document.querySelector("dialog[open]")) trigger("stop");
});
// While the server is away, look again now and then; people shouldn't have to.
setInterval(() => {
  if (!view.server.name && !view.busy && document.visibilityState === "visible") trigger("tick");
}, 3000);
