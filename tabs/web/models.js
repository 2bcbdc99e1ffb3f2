// The base models. A download or a check runs on when the page is closed; how far it is comes with the page's own poll.
let painted = "";

function link(text, href, parent) {
  return make("a", { textContent: text, href, target: "_blank", rel: "noopener noreferrer" }, parent);
}

function button(key, event, row, parent, { confirmed = "", className = "" } = {}) {
  const made = make("button", { type: "button", textContent: say(key), className }, parent);
  made.setAttribute("aria-label", say(key) + ": " + row.title);
  made.addEventListener("click", () => { if (!confirmed || confirm(confirmed)) event(); });
}

function move(item, course) {
  const bar = item.querySelector(".bar");
  bar.querySelector("i").style.width = (course.percent || 0) + "%";
  if (course.percent === null) bar.removeAttribute("aria-valuenow");
  else bar.setAttribute("aria-valuenow", course.percent);
  const left = course.left ? say("left", course.left) : "";
  item.querySelector(".figures").textContent = [course.figures, left, course.file].filter(Boolean).join(" · ");
}

function about(row, item) {
  const line = make("p", { className: "said about" }, item);
  const memory = Object.entries(row.memory).map(([what, size]) => say("memory." + what, size));
  const facts = [row.describes ? say("describes") : "", row.size, ...memory, row.place ? say("place." + row.place.replaceAll(" ", "_")) : ""];
  line.append(facts.filter(Boolean).join(" · ") + " · ");
  link(row.licence, row.licence_url, line);
  if (row.gated && row.state !== "ready") {
    line.append(" · ");
    link(say("gated"), row.gated, line);
  }
  if (row.begun && row.state === "incomplete") make("p", { className: "said", textContent: say("begun", row.begun) }, item);
  if (row.lacks_adapter) make("p", { className: "said", textContent: say("adapter") }, item);
  if (row.partner) make("p", { className: "said", textContent: say("partner", row.partner) }, item);
  if (row.checked) {
    const said = row.checked.length ? say("damaged", row.checked.join(", ")) : say("whole");
    make("p", { className: "said" + (row.checked.length ? " error" : ""), textContent: said }, item);
  }
  if (row.error) make("p", { className: "said error", textContent: row.error }, item);
}

function add(row, list) {
  const item = make("li", {}, list);
  item.dataset.model = row.name;
  const head = make("div", { className: "head" }, item);
  make("b", { textContent: row.title }, head);
  make("span", { className: "badge " + row.state, textContent: say("state." + row.state) }, head);
  about(row, item);
  if (row.course) {
    const bar = make("div", { className: "bar", role: "progressbar", ariaValueMin: 0, ariaValueMax: 100 }, item);
    bar.setAttribute("aria-label", say("progress", row.title));
    make("i", {}, bar);
    make("p", { className: "said figures" }, item);
    move(item, row.course);
  }
  const actions = make("div", { className: "do" }, item);
  const model = row.name;
  if (row.can.fetch) button(row.begun ? "resume" : "fetch", () => trigger("fetch", { model }), row, actions);
  if (row.can.halt) button("halt", () => trigger("halt", { model }), row, actions);
  if (row.can.check) button("check", () => trigger("check", { model }), row, actions);
  if (row.can.drop) {
    button("drop", () => trigger("drop", { model }), row, actions, { confirmed: say("confirm", row.title), className: "danger" });
  }
}

function paint() {
  const value = props.value || {};
  const key = JSON.stringify(value, (name, each) => (name === "course" ? Boolean(each) : each));
  if (key === painted) return;
  painted = key;
  const list = find("ul");
  list.replaceChildren();
  for (const row of value.rows || []) add(row, list);
  find(".offline").hidden = !value.offline;
  find(".origin").textContent = value.token ? say("origin", say("origin." + value.token.replaceAll(" ", "_"))) : say("none");
  find(".forget").hidden = value.token !== "typed here";
}

function hear(event) {
  if (!element.isConnected) {
    window.removeEventListener("isengard", hear);
    return;
  }
  for (const [name, course] of Object.entries(event.detail.models || {})) {
    const item = [...element.querySelectorAll("li")].find((each) => each.dataset.model === name);
    if (item && item.querySelector(".bar")) move(item, course);
  }
}

find("form").addEventListener("submit", (event) => {
  event.preventDefault();
  const input = find("input");
  trigger("token", { token: input.value });
  input.value = "";
});
find(".forget").addEventListener("click", () => trigger("forget", {}));
window.addEventListener("isengard", hear);
paint();
watch("value", paint);
