// A row for each prompt, a picture for each step; the dialog shows two steps of one prompt under a slider.
const find = (selector) => element.querySelector(selector);
const dialog = find("dialog");
let open = null;

function make(tag, options, parent) {
  const made = Object.assign(document.createElement(tag), options);
  parent.append(made);
  return made;
}

function paint() {
  const { rows = [] } = props.value || {};
  find(".samples").classList.toggle("none", rows.length === 0);
  const places = [...element.querySelectorAll(".strip")].map((strip) => strip.scrollLeft);
  const list = find(".rows");
  list.replaceChildren();
  rows.forEach((row, number) => {
    const part = make("div", { className: "row" }, list);
    make("p", { textContent: row.prompt }, part);
    const strip = make("div", { className: "strip", tabIndex: 0 }, part);
    strip.setAttribute("role", "group");
    strip.setAttribute("aria-label", "Samples of: " + row.prompt);
    row.cells.forEach((cell, place) => {
      const button = make("button", { type: "button" }, strip);
      make("img", { src: cell.small, alt: row.prompt + ", step " + cell.step, loading: "lazy" }, button);
      make("span", { textContent: cell.step === 0 ? "base model" : "step " + cell.step }, button);
      button.addEventListener("click", () => show(row, place));
    });
    strip.scrollLeft = places[number] ?? strip.scrollWidth;
  });
}

function show(row, place) {
  open = row;
  for (const name of [".left", ".right"]) {
    const select = find(name);
    select.replaceChildren();
    row.cells.forEach((cell, number) => make("option", { value: number, textContent: cell.step === 0 ? "base model" : "step " + cell.step }, select));
  }
  find(".left").value = place === 0 ? Math.min(1, row.cells.length - 1) : 0;
  find(".right").value = place;
  find(".prompt").textContent = row.prompt;
  dialog.classList.toggle("single", row.cells.length < 2);
  find(".slider").value = 0;
  look();
  dialog.showModal();
}

function look() {
  const [left, right] = [".left", ".right"].map((name) => open.cells[Number(find(name).value)]);
  find(".over").src = left.whole;
  find(".over").alt = "step " + left.step;
  find(".under").src = right.whole;
  find(".under").alt = "step " + right.step;
  find(".title").textContent = open.cells.length < 2 ? "Step " + right.step : "Step " + left.step + " and step " + right.step;
  const share = Number(find(".slider").value);
  find(".over").style.clipPath = "inset(0 " + (100 - share) + "% 0 0)";
  find(".stage i").style.left = share + "%";
}

for (const name of [".left", ".right", ".slider"]) find(name).addEventListener("input", look);
find(".close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
paint();
watch("value", paint);
