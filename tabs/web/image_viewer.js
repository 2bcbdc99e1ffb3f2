// The enlarged image with what is known of it. Arrow keys walk through the list it was opened from.
const dialog = element.querySelector("dialog");
const find = (selector) => dialog.querySelector(selector);
let items = [];
let index = 0;

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
  find("dl").replaceChildren(...item.details.flatMap((fact) => [cell("dt", fact.name), cell("dd", fact.value)]));
}

function cell(tag, text) {
  const made = document.createElement(tag);
  made.textContent = text;
  return made;
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
  if (!confirm("Delete this image? It goes into the trash folder.")) return;
  dialog.close();
  trigger("remove", { id: items[index].id });
});
