// Ended trainings: look at one, take its settings again, go on with it, forget it.
const FEW = 6;
let everything = false;

function button(text, parent, act, className = "") {
  const made = make("button", { type: "button", textContent: text, className }, parent);
  made.addEventListener("click", act);
  return made;
}

function more(row, parent) {
  const opener = button(say("history.more"), parent, () => {
    form.hidden = !form.hidden;
    opener.setAttribute("aria-expanded", String(!form.hidden));
    if (!form.hidden) form.querySelector("input").focus();
  });
  opener.setAttribute("aria-expanded", "false");
  const form = make("form", { hidden: true }, parent);
  const label = make("label", { textContent: say("history.further") + " " }, form);
  const input = make("input", { type: "number", min: 1, max: 100000, value: 100, required: true }, label);
  make("button", { type: "submit", textContent: say("history.go") }, form);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    trigger("more", { job: row.job, steps: Number(input.value) });
  });
}

function paint() {
  const rows = props.value || [];
  find(".empty").hidden = rows.length > 0;
  const list = find("ol");
  list.replaceChildren();
  for (const row of everything ? rows : rows.slice(0, FEW)) {
    const item = make("li", {}, list);
    const head = make("button", { type: "button", className: "head", title: say("history.show") }, item);
    make("span", { className: "badge " + row.tone, textContent: say("status." + row.status) }, head);
    make("b", { textContent: row.name }, head);
    make("time", { textContent: new Date(row.at * 1000).toLocaleString([], { dateStyle: "medium", timeStyle: "short" }) }, head);
    head.addEventListener("click", () => trigger("show", { job: row.job }));
    const where = row.where ? " · " + say("live.on", row.where) : "";
    make("p", { className: "said", textContent: row.about + where }, item);
    if (row.result) make("p", { className: "said", textContent: row.result }, item);
    if (row.error) make("p", { className: "said error", textContent: row.error }, item);
    const actions = make("div", { className: "do" }, item);
    if (row.again) button(say("history.again"), actions, () => trigger("again", { job: row.job }));
    if (row.more) more(row, actions);
    button(say("history.remove"), actions, () => {
      const lost = row.status === "succeeded" ? " " + say("history.stays") : "";
      if (confirm(say("history.confirm", row.name) + lost)) trigger("forget", { job: row.job });
    }, "danger");
  }
  if (rows.length > FEW && !everything) {
    const item = make("li", {}, list);
    button(say("history.all", rows.length), make("div", { className: "do" }, item), () => { everything = true; paint(); });
  }
}

paint();
watch("value", paint);
