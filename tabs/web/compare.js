// Which checkpoint looks most like the character: asked for here, then its numbers, a chart, and the pictures behind them.
const COLOURS = 5;
const dialog = find("dialog");
let painted = "";
let run = null;
let shown = ""; // the candidate whose pictures are open
let reached = { id: "" }; // how far the job was when it said so last
let asked = 0; // the newest question for pictures

const nameOf = (row) => row.step + "@" + row.strength;
const percent = (share) => Math.round(100 * share) + "\u00a0%";
const strengthOf = (value) => value.toLocaleString(language, { maximumFractionDigits: 2 });
const figures = (row) => [row.step.toLocaleString(language), strengthOf(row.strength)];
const called = (row) => say("candidate", ...figures(row));
const scored = (row) => say("score", percent(row.value), percent(row.low), percent(row.high));

function button(text, parent, act, className = "") {
  const made = make("button", { type: "button", textContent: text, className }, parent);
  made.addEventListener("click", act);
  return made;
}

function lasting(seconds) {
  const minutes = Math.max(1, Math.round(seconds / 60));
  return minutes < 60 ? say("minutes", minutes) : say("hours", Math.floor(minutes / 60), String(minutes % 60).padStart(2, "0"));
}

// What is asked for

const picked = (name) => [...element.querySelectorAll("." + name + " input:checked")].map((each) => Number(each.value));

function listChoices(name, offered, chosen, words) {
  const place = find("." + name);
  for (const each of place.querySelectorAll("label")) each.remove();
  for (const value of offered) {
    const label = make("label", {}, place);
    make("input", { type: "checkbox", value, checked: chosen.includes(value) }, label).addEventListener("change", count);
    make("span", { textContent: words(value) }, label);
  }
}

function count() {
  const { offer, job, result } = props.value;
  const candidates = picked("steps").length * picked("strengths").length;
  const pictures = (candidates + 1) * offer.each;
  const long = offer.seconds === null ? "" : ", " + say("about", lasting(pictures * offer.seconds));
  const kept = result === null ? "" : ". " + say("cost.kept");
  const said = candidates ? say("cost", candidates, pictures) + long + kept : say("cost.none");
  find(".cost").textContent = offer.refused || said;
  find(".start").disabled = candidates === 0 || offer.refused !== "" || (job !== null && job.active);
}

function paintOffer({ offer, result, job }) {
  const active = job !== null && job.active;
  for (const each of [".setup", ".cost", ".last"]) find(each).hidden = offer === null || active;
  if (offer === null) return;
  listChoices("steps", offer.steps, offer.chosen.steps, (step) => step.toLocaleString(language));
  listChoices("strengths", offer.strengths, offer.chosen.strengths, strengthOf);
  find(".start").textContent = say(result === null ? "start" : result.partial ? "goon" : "again");
  find(".start").classList.toggle("main", result === null || result.partial);
  count();
}

// The job

function paintJob(job) {
  find(".work").hidden = job === null || !job.active;
  find(".error").hidden = job === null || !job.error;
  if (job === null) return;
  find(".error").textContent = job.error;
  if (job.done !== null || job.id !== reached.id) reached = job;
  find(".bar i").style.width = (reached.percent || 0) + "%";
  find(".bar").setAttribute("aria-valuenow", reached.percent || 0);
  const state = job.status === "running" && reached.done === null ? "starting" : job.status;
  const left = job.left ? " · " + say("left", job.left) : "";
  const said = job.stopping ? say("stopping") : say("state." + state, reached.done, job.pictures) + left;
  if (find(".said").textContent !== said) find(".said").textContent = said;
  find(".resume").hidden = job.status !== "paused";
  find(".halt").disabled = job.stopping;
}

// The result

function paintAdvice({ result, usable }) {
  const { finding, recommended, reason, best, rows, partial } = result;
  const sound = rows.filter((row) => row.faults.length === 0).length;
  const words = recommended
    ? say("finding." + finding, ...figures(recommended), (best || 0).toLocaleString(language), sound)
    : finding === "unknown" ? say("finding.unknown") + " " + reason : say("finding.faulty");
  find(".advice .words").textContent = (partial ? say("partial") + " " : "") + words;
  find(".advice").classList.toggle("unsure", partial || (finding !== "best" && finding !== "earliest"));
  const place = find(".advice .do");
  place.replaceChildren();
  const row = recommended && rows.find((each) => nameOf(each) === nameOf(recommended));
  if (row && usable && !row.gone) button(say("use"), place, () => use(row), "main");
  if (row && !row.gone) button(say(row.pinned ? "unpin" : "pin"), place, () => pin(row));
}

const draft = () => JSON.parse(localStorage.getItem("isengard-image") || "null");
const use = (row) => trigger("use", { run: props.value.run, step: row.step, strength: row.strength, draft: draft() });
const pin = (row) => trigger("pin", { run: props.value.run, step: row.step, pinned: !row.pinned });

function paintTable({ result, usable }) {
  const { rows, recommended } = result;
  const judged = rows.some((row) => row.followed !== null); // where there is a model that can
  const columns = ["checkpoint", "likeness", "faceless", "copied", "variety", "spread", ...(judged ? ["followed"] : []), "faults", ""];
  const head = make("tr", {});
  make("td", {}, head);
  for (const column of columns) make("th", { scope: "col", textContent: column && say("head." + column), title: column && say("hint." + column) }, head);
  find("thead").replaceChildren(head);
  const lines = rows.map((row) => {
    const line = make("tr", { className: nameOf(row) === shown ? "shown" : "" });
    line.dataset.candidate = nameOf(row);
    const opener = button("", make("td", { className: "small" }, line), () => look(row), "look");
    opener.setAttribute("aria-label", say("look.of", called(row)));
    if (row.small) make("img", { src: row.small, alt: "", loading: "lazy" }, opener);
    else opener.textContent = say("look");
    const first = make("th", { scope: "row", textContent: called(row) }, line);
    if (row.gone) make("small", { textContent: say("gone") }, first);
    const cell = (column, text) => {
      const made = make("td", { textContent: text }, line);
      made.dataset.head = say("head." + column);
      return made;
    };
    const score = cell("likeness", "");
    make("b", { textContent: percent(row.value) }, score);
    make("small", { textContent: say("interval", percent(row.low), percent(row.high)) }, score);
    for (const column of columns.slice(2, -2)) cell(column, row[column] === null ? "–" : percent(row[column]));
    const faults = make("td", { className: "wide" }, line);
    if (recommended && nameOf(recommended) === nameOf(row)) make("span", { className: "tag good", textContent: say("recommended") }, faults);
    for (const fault of row.faults) make("span", { className: "tag", textContent: say("fault." + fault), title: say("why." + fault) }, faults);
    if (row.pinned) make("span", { className: "tag kept", textContent: say("pinned") }, faults);
    const act = make("div", { className: "do" }, make("td", { className: "wide" }, line));
    if (usable && !row.gone) button(say("use.short"), act, () => use(row)).setAttribute("aria-label", say("use.of", called(row)));
    if (!row.gone) button(say(row.pinned ? "unpin" : "pin"), act, () => pin(row)).setAttribute("aria-label", say(row.pinned ? "unpin.of" : "pin.of", row.step));
    return line;
  });
  find("tbody").replaceChildren(...lines);
}

// The chart

function draw() {
  svg.replaceChildren();
  const result = props.value && props.value.result;
  const width = svg.clientWidth, height = svg.clientHeight;
  if (!result || width === 0) return;
  const { rows, recommended, ceiling, floor } = result;
  const edge = { left: 48, right: 14, top: 14, bottom: 34 };
  const steps = [...new Set(rows.map((row) => row.step))].sort((a, b) => a - b);
  const strengths = [...new Set(rows.map((row) => row.strength))].sort((a, b) => b - a);
  const low = Math.min(-0.05, ...rows.map((row) => row.low)), top = Math.max(1.05, ...rows.map((row) => row.high));
  const span = steps.at(-1) - steps[0] || 1;
  const inner = width - edge.left - edge.right - 40;
  const x = (step) => edge.left + 20 + (steps.length === 1 ? inner / 2 : ((step - steps[0]) / span) * inner);
  const y = (value) => edge.top + (1 - (value - low) / (top - low)) * (height - edge.top - edge.bottom);
  for (let at = Math.ceil(low * 4) / 4; at <= top; at += 0.25) {
    shape("line", { class: "grid", x1: edge.left, x2: width - edge.right, y1: y(at), y2: y(at) });
    shape("text", { x: edge.left - 8, y: y(at) + 4, "text-anchor": "end" }, percent(at));
  }
  const every = Math.ceil(steps.length / Math.max(2, Math.floor(width / 70)));
  steps.forEach((step, place) => {
    if ((steps.length - 1 - place) % every === 0) shape("text", { x: x(step), y: height - edge.bottom + 17, "text-anchor": "middle" }, step.toLocaleString(language));
  });
  shape("text", { x: edge.left + (width - edge.left) / 2, y: height - 2, "text-anchor": "middle" }, say("chart.step"));
  for (const [value, words] of [[0, say("chart.floor", floor)], [1, say("chart.ceiling", ceiling)]]) {
    shape("line", { class: "edge", x1: edge.left, x2: width - edge.right, y1: y(value), y2: y(value) });
    shape("text", { x: width - edge.right, y: y(value) - 5, "text-anchor": "end" }, words);
  }
  const path = (points) => points.map(([step, value], place) => (place ? "L" : "M") + x(step).toFixed(1) + " " + y(value).toFixed(1)).join("");
  const lines = strengths.map((strength) => rows.filter((row) => row.strength === strength).sort((a, b) => a.step - b.step));
  lines.forEach((line, number) => {
    const there = line.map((row) => [row.step, row.high]), back = line.map((row) => [row.step, row.low]).reverse();
    shape("path", { class: "band s" + (number % COLOURS), d: path([...there, ...back]) + "Z" });
  });
  lines.forEach((line, number) => {
    const colour = " s" + (number % COLOURS);
    shape("path", { class: "line" + colour, d: path(line.map((row) => [row.step, row.value])) });
    for (const row of line) drawPoint(row, x(row.step), y(row.value), colour, recommended);
  });
  const legend = strengths.map((strength, number) => make("span", { className: "s" + (number % COLOURS), textContent: say("strength", strengthOf(strength)) }));
  find(".legend").replaceChildren(...legend);
}

function drawPoint(row, x, y, colour, recommended) {
  const cross = "M" + (x - 4) + " " + (y - 4) + "l8 8m0 -8l-8 8";
  const point = row.faults.length ? shape("path", { class: "faulty" + colour, d: cross }) : shape("circle", { class: "dot" + colour, cx: x, cy: y, r: 4.5 });
  if (recommended && nameOf(recommended) === nameOf(row)) shape("circle", { class: "ring", cx: x, cy: y, r: 9 });
  point.addEventListener("pointerenter", () => {
    const faults = row.faults.map((fault) => say("fault." + fault));
    find("output").textContent = [called(row), scored(row), ...faults].join(" · ");
  });
  point.addEventListener("pointerleave", () => { find("output").textContent = ""; });
  point.addEventListener("click", () => look(row));
}

// The pictures

async function look(row) {
  shown = nameOf(row);
  for (const line of element.querySelectorAll("tbody tr")) line.classList.toggle("shown", line.dataset.candidate === shown);
  find(".pictures").hidden = false;
  find("h4").textContent = say("pictures.of", called(row));
  find(".numbers").textContent = scored(row);
  find(".told").textContent = say("loading");
  const question = ++asked;
  let answer;
  try {
    answer = await server.pictures({ run: props.value.run, step: row.step, strength: row.strength });
  } catch (error) {
    answer = { error: say("unreachable") };
  }
  if (question !== asked) return;
  find(".told").textContent = answer.error || "";
  find(".pictures .rows").replaceChildren(...(answer.rows || []).map(pictureRow));
}

function pictureRow(row) {
  const part = make("div", { className: "row" });
  make("p", { textContent: row.prompt }, part);
  const strip = make("div", { className: "strip", tabIndex: 0 }, part);
  strip.setAttribute("role", "group");
  strip.setAttribute("aria-label", row.prompt);
  for (const cell of row.cells) {
    const words = cell.likeness === null ? say("nobody") : say("cosine", cell.likeness.toLocaleString(language, { minimumFractionDigits: 2 }));
    const opener = button("", strip, () => enlarge(row, cell));
    make("img", { src: cell.small, alt: say("picture", row.prompt, cell.seed), loading: "lazy" }, opener);
    make("span", { textContent: words }, opener);
  }
  return part;
}

function enlarge(row, cell) {
  const sides = [[say("without"), cell.base], [say("with"), cell.whole]].filter(([, source]) => source);
  find(".two").replaceChildren(...sides.map(([words, source]) => {
    const figure = make("figure", {});
    make("img", { src: source, alt: words }, figure);
    make("figcaption", { textContent: words }, figure);
    return figure;
  }));
  find("dialog .title").textContent = find("h4").textContent;
  find(".prompt").textContent = row.prompt;
  dialog.showModal();
}

// All of it

function paint() {
  const value = props.value || {};
  const key = JSON.stringify(value);
  if (key === painted) return;
  painted = key;
  find(".compare").hidden = !value.run;
  if (!value.run) return;
  if (value.run !== run) {
    shown = "";
    find(".pictures").hidden = true;
  }
  run = value.run;
  find(".teach").textContent = value.result ? "" : say("teach");
  paintJob(value.job);
  paintOffer(value);
  find(".result").hidden = value.result === null;
  if (value.result === null) return;
  paintAdvice(value);
  const rows = value.result.rows;
  for (const each of ["figure", ".hint", ".scroll"]) find(each).hidden = rows.length === 0;
  find(".hint").textContent = say("scorer." + value.result.scorer) + " " + say("chart.hint");
  paintTable(value);
  draw();
}

function follow(event) {
  if (!element.isConnected) return window.removeEventListener("isengard", follow);
  const { job } = props.value || {};
  const fresh = job && event.detail.comparisons[job.id];
  if (fresh) paintJob(fresh);
}

find(".start").addEventListener("click", () => trigger("compare", { run: props.value.run, steps: picked("steps"), strengths: picked("strengths") }));
find(".halt").addEventListener("click", () => trigger("halt", { job: props.value.job.id }));
find(".resume").addEventListener("click", () => trigger("resume", { job: props.value.job.id }));
find(".close").addEventListener("click", () => dialog.close());
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
let drawnWidth = 0;
new ResizeObserver(() => {
  if (svg.clientWidth !== drawnWidth) { drawnWidth = svg.clientWidth; draw(); }
}).observe(element);
window.addEventListener("isengard", follow);
paint();
watch("value", paint);
