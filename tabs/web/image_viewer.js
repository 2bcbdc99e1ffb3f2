// The enlarged image with what is known of it. Arrow keys walk through the list it was opened from.
const dialog = element.querySelector("dialog");
let items = [];
let index = 0;
for (const part of dialog.querySelectorAll("[data-say]")) part.textContent = say(part.dataset.say);
for (const part of [dialog, ...dialog.querySelectorAll("[data-label]")]) part.setAttribute("aria-label", say(part.dataset.label));

function open(event) {
  if (!element.isConnected) return window.removeEventListener("isengard:image", open);
  ({ items, index } = event.detail);
  paint();
  if (!dialog.open) dialog.showModal();
}

function paint() {
  const item = items[index];
  find("img").src = item.whole;
  find("img").alt = item.prompt;
  find(".prompt").textContent = item.prompt;
  find(".download").href = item.whole;
  find(".download").download = item.id + ".png";
  find(".back").disabled = index === 0;
  find(".on").disabled = index === items.length - 1;
  find("dl").replaceChildren(...item.details.flatMap((fact) => [make("dt", {}, fact.name), make("dd", {}, fact.value)]));
}

function walk(by) {
  if (items[index + by] === undefined) return;
  index += by;
  paint();
}

window.addEventListener("isengard:image", open);
find(".back").addEventListener("click", () => walk(-1));
find(".on").addEventListener("click", () => walk(1));
find(".close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") walk(-1);
  if (event.key === "ArrowRight") walk(1);
});
find(".use").addEventListener("click", () => {
  dialog.close();
  trigger("use", { id: items[index].id });
});
find(".remove").addEventListener("click", () => {
  if (!confirm(say("viewer.ask"))) return;
  dialog.close();
  trigger("remove", { id: items[index].id });
});
