// Waiting and paused trainings: change their order, let them go on, take them out.

function paint() {
  const rows = props.value || [];
  find(".queue").classList.toggle("none", rows.length === 0);
  const list = find("ol");
  list.replaceChildren();
  for (const row of rows) {
    const item = make("li", {}, list);
    const what = make("button", { type: "button", className: "what" }, item);
    make("b", { textContent: (row.place ? row.place + ". " : say("status." + row.status) + ": ") + row.name }, what);
    make("span", { textContent: row.about }, what);
    if (row.why) make("span", { className: "why", textContent: row.why }, what);
    what.addEventListener("click", () => trigger("show", { job: row.job }));
    const actions = make("div", { className: "do" }, item);
    const button = (text, label, act, options = {}) => {
      const made = make("button", { type: "button", textContent: text, title: label, ...options }, actions);
      made.setAttribute("aria-label", label + ": " + row.name);
      made.addEventListener("click", act);
    };
    if (row.place) {
      button("↑", say("queue.up"), () => trigger("move", { job: row.job, before: row.up }), { disabled: row.up === "" });
      button("↓", say("queue.down"), () => trigger("move", { job: row.job, before: row.down }), { disabled: !row.can_down });
    } else button(say("queue.resume"), say("queue.resume"), () => trigger("resume", { job: row.job }));
    button(say("queue.remove"), say("queue.remove"), () => {
      if (confirm(say("queue.confirm", row.name))) trigger("drop", { job: row.job });
    }, { className: "danger" });
  }
}

paint();
watch("value", paint);
