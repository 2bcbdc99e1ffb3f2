// Running trainings beside the one that is shown. Their figures come with the header's event; a click shows one.

function move(item, now) {
  const share = now.at === null || !now.steps ? null : Math.floor((100 * now.at) / now.steps);
  if (share !== null) {
    item.querySelector(".percent").textContent = share + " %";
    item.querySelector(".bar i").style.width = share + "%";
    item.querySelector(".bar").setAttribute("aria-valuenow", share);
  }
  const [done, total] = now.part;
  const phase = now.phase.charAt(0).toUpperCase() + now.phase.slice(1);
  const counted = now.at === null && total ? done + " / " + total : "";
  const where = item.dataset.where ? say("live.on", item.dataset.where) : "";
  const left = now.left ? say("others.left", now.left) : "";
  item.querySelector(".said").textContent = [phase, counted, left, where].filter(Boolean).join(" · ");
}

function paint() {
  const rows = props.value || [];
  find(".others").classList.toggle("none", rows.length === 0);
  const list = find("ol");
  const known = new Map([...list.children].map((item) => [item.dataset.job, item]));
  list.replaceChildren(...rows.map((row) => {
    const item = known.get(row.job) || add(row);
    item.dataset.where = row.where;
    move(item, row.figures);
    return item;
  }));
}

function add(row) {
  const item = make("li", {});
  item.dataset.job = row.job;
  const show = make("button", { type: "button", title: say("history.show") }, item);
  const head = make("span", { className: "head" }, show);
  make("b", { textContent: row.name }, head);
  make("span", { className: "about", textContent: row.about }, head);
  make("strong", { className: "percent" }, head);
  const bar = make("span", { className: "bar", role: "progressbar", ariaValueMin: 0, ariaValueMax: 100 }, show);
  bar.setAttribute("aria-label", say("others.progress", row.name));
  make("i", {}, bar);
  make("span", { className: "said" }, show);
  show.addEventListener("click", () => trigger("show", { job: row.job }));
  return item;
}

function follow(event) {
  if (!element.isConnected) return window.removeEventListener("isengard", follow);
  for (const item of find("ol").children) {
    const fresh = event.detail.trainings[item.dataset.job];
    if (fresh) move(item, fresh);
  }
}

window.addEventListener("isengard", follow);
paint();
watch("value", paint);
