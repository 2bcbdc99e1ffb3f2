// A row for each prompt, a picture for each step; the dialog shows two steps of one prompt under a slider.
const dialog = find("dialog");
let open = null;
const named = (cell) => (cell.step === 0 ? say("samples.base") : say("samples.step", cell.step));

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
    strip.setAttribute("aria-label", say("samples.of", row.prompt));
    row.cells.forEach((cell, place) => {
      const button = make("button", { type: "button" }, strip);
      make("img", { src: cell.small, alt: row.prompt + ", " + named(cell), loading: "lazy" }, button);
      make("span", { textContent: named(cell) }, button);
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
    row.cells.forEach((cell, number) => make("option", { value: number, textContent: named(cell) }, select));
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
  find(".over").alt = named(left);
  find(".under").src = right.whole;
  find(".under").alt = named(right);
  find(".title").textContent = open.cells.length < 2 ? named(right) : say("samples.both", named(left), named(right));
  const share = Number(find(".slider").value);
  find(".over").style.clipPath = "inset(0 " + (100 - share) + "% 0 0)";
  find(".stage i").style.left = share + "%";
}

for (const name of [".left", ".right", ".slider"]) find(name).addEventListener("input", look);
find(".close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
paint();
watch("value", paint);
