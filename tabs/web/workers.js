// The workers. While they are in sight each look of the header brings them again; what did not change stays as it is.

function add(row) {
  const item = make("li", {});
  item.dataset.worker = row.worker;
  item.dataset.key = keyOf(row);
  item.className = row.state;
  const head = make("div", { className: "head" }, item);
  make("b", { textContent: row.name, title: row.worker }, head);
  make("span", { className: "device", textContent: row.device }, head);
  make("span", { className: "badge " + row.state, textContent: say("state." + row.state) }, head);
  const facts = make("div", { className: "facts" }, item);
  if (row.memory) {
    const bar = make("span", { className: "bar", role: "meter", ariaValueMin: 0, ariaValueMax: 100 }, facts);
    bar.setAttribute("aria-label", say("memory.meter", row.name));
    make("i", {}, bar);
    make("span", { className: "memory" }, facts);
  }
  make("span", { className: "word" }, facts);
  if (row.job) addJob(row, item);
  const actions = make("div", { className: "do" }, item);
  const mayWork = row.state === "idle" || row.state === "busy";
  if (mayWork) button("drain", row, actions, { confirmed: say(row.state === "busy" ? "confirm.busy" : "confirm.idle", row.name) });
  if (row.state === "draining" || row.state === "drained") button("take", row, actions);
  if (row.state === "silent") button("forget", row, actions);
  return item;
}

function addJob(row, item) {
  const job = make("button", { type: "button", className: "job" }, item);
  make("span", { className: "text" }, job);
  const bar = make("span", { className: "bar", role: "progressbar", ariaValueMin: 0, ariaValueMax: 100 }, job);
  bar.setAttribute("aria-label", say("job.progress", row.name));
  make("i", {}, bar);
  const { id, kind } = row.job;
  job.addEventListener("click", () => window.dispatchEvent(new CustomEvent("isengard:job", { detail: { job: id, kind } })));
}

function button(name, row, parent, { confirmed = "" } = {}) {
  const made = make("button", { type: "button", textContent: say(name), title: say(name + ".means") }, parent);
  made.setAttribute("aria-label", say(name) + ": " + row.name);
  made.addEventListener("click", () => { if (!confirmed || confirm(confirmed)) trigger(name, { worker: row.worker }); });
}

function move(item, row) {
  if (row.memory) {
    fill(item.querySelector(".facts .bar"), row.used);
    item.querySelector(".memory").textContent = say("memory", row.memory);
  }
  const titles = (props.value || {}).titles || {};
  const warm = row.warm && row.state !== "silent" ? say("warm", titles[row.warm] || row.warm) : "";
  const word = say(row.state === "silent" ? "silent.for" : "word", span(row.ago_s));
  item.querySelector(".word").textContent = [warm, word].filter(Boolean).join(" · ");
  if (!row.job) return;
  item.querySelector(".job .text").textContent = row.job.text;
  fill(item.querySelector(".job .bar"), row.job.percent);
}

function fill(bar, percent) {
  bar.querySelector("i").style.width = percent + "%";
  bar.setAttribute("aria-valuenow", percent);
}

function span(seconds) {
  if (seconds < 100) return seconds + " s";
  if (seconds < 6000) return Math.round(seconds / 60) + " min";
  return Math.round(seconds / 3600) + " h";
}

const keyOf = (row) => JSON.stringify([row.state, row.name, row.device, row.memory !== "", row.job && row.job.id]);

function paint(rows) {
  const list = find("ul");
  const known = new Map([...list.children].map((item) => [item.dataset.worker, item]));
  const items = rows.map((row) => {
    const old = known.get(row.worker);
    const item = old && old.dataset.key === keyOf(row) ? old : add(row);
    move(item, row);
    return item;
  });
  if (items.length !== list.children.length || items.some((item, place) => item !== list.children[place])) list.replaceChildren(...items);
  const shared = Boolean((props.value || {}).shared);
  const alone = rows.every((row) => row.state === "silent");
  find(".nobody").hidden = !alone;
  find(".hint").hidden = alone;
  find(".nobody").textContent = say(shared ? "nobody.shared" : "nobody");
  find(".hint").textContent = say(shared ? "hint.shared" : "hint");
}

function hear(event) {
  if (!element.isConnected) return window.removeEventListener("isengard", hear);
  if (event.detail.workers) paint(event.detail.workers);
}

window.addEventListener("isengard", hear);
paint((props.value || {}).rows || []);
watch("value", () => paint((props.value || {}).rows || []));
