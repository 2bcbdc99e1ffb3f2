// While a generation runs, its picture and bar follow the header's own clock; all else comes with a new value.
find(".stage").setAttribute("aria-label", say("stage"));
let asking = false;
let heard = false; // that the header knows of the running generation; it looks seldom while nothing runs

function draw() {
  const value = { state: "empty", items: [], unlike: [], others: [], waiting: [], ...props.value };
  find(".stage").className = `stage is-${value.state}`;
  find(".stage").dataset.job = value.job || "";
  find(".content").replaceChildren(...(value.job ? ofJob(value) : [blank(value)]));
}

function blank(value) {
  const icon = find(".icon").content.cloneNode(true);
  return make("div", { class: "blank" }, icon,
    make("h3", {}, value.headline || say("stage.empty")), make("p", {}, value.detail || say("stage.hint")));
}

function ofJob(value) {
  const head = make("header", {},
    make("div", {}, make("h3", { class: "headline" }, value.headline), make("span", { class: "steps" }, value.steps),
      value.where ? make("span", { class: "where" }, say("on", value.where)) : ""));
  const pictures = make("div", { class: "pictures" }, ...value.items.map((item, index) =>
    make("button", { type: "button", class: "picture", "data-index": index, "aria-label": named(item) },
      make("img", { src: item.whole, alt: item.prompt }), ...badge(item))));
  const shown = [head];
  if (value.note) shown.push(make("p", { class: "note" }, value.note));
  for (const { name, percent, weak, strength } of value.unlike) {
    shown.push(make("p", { class: "note unlike" }, say(weak ? "unlike.weak" : "unlike", name, percent, strength)));
  }
  if (value.left_out) {
    shown.push(make("p", { class: "note left-out" }, say("left_out", value.kept, value.left_out), " ",
      make("button", { type: "button", "data-restore": value.job }, say("left_out.restore"))));
  }
  shown.push(pictures);
  if (value.active) {
    if (value.paused) head.append(make("button", { type: "button", class: "cancel", "data-resume": value.job }, say("resume")));
    if (!value.stopping) head.append(make("button", { type: "button", class: "cancel", "data-cancel": value.job }, say("cancel")));
    const live = make("img", { class: "live", src: value.preview || undefined, alt: say("preview"), hidden: !value.preview });
    pictures.append(make("div", { class: "picture preview", style: `aspect-ratio: ${value.ratio}` }, live));
    shown.push(make("div", { class: "bar", role: "progressbar", "aria-label": say("progress"), "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": value.percent },
      make("i", { style: `width: ${value.percent}%` })));
  }
  if (value.none) pictures.append(make("p", { class: "none" }, value.none));
  shown.push(make("p", { class: "detail" }, value.detail));
  if (value.others.length + value.waiting.length) {
    shown.push(make("ul", { class: "waiting", "aria-label": say("waiting") },
      ...value.others.map((each) => row(each, say("also", each.prompt), make("i", { class: "figures" }, each.steps))),
      ...value.waiting.map((each) => row(each, say("next", each.prompt), make("em", {}, each.why)))));
  }
  return shown;
}

function row(each, text, further) {
  return make("li", { "data-job": each.id }, make("span", {}, text), further,
    make("button", { type: "button", "data-cancel": each.id, "aria-label": say("cancel.waiting") }, "✕"));
}

function follow(event) {
  if (!element.isConnected) return window.removeEventListener("isengard", follow);
  heard = event.detail.generating;
  if (heard) look();
}

function bridge() {
  if (!element.isConnected || heard || !find(".is-active")) return;
  look();
  setTimeout(bridge, 1000);
}

async function look() {
  if (asking || document.hidden || !find(".is-active")) return;
  asking = true;
  try {
    const now = await server.watch({});
    if (now.job && now.job === find(".stage").dataset.job) paint(now);
  } catch (error) {
    // the header says that the server does not answer
  } finally {
    asking = false;
  }
}

function paint(now) {
  find(".headline").textContent = now.headline;
  find(".steps").textContent = now.steps;
  for (const item of element.querySelectorAll(".waiting li")) {
    const figures = item.querySelector(".figures");
    if (figures && now.others[item.dataset.job]) figures.textContent = now.others[item.dataset.job].steps;
  }
  const bar = find(".bar");
  if (bar) {
    bar.setAttribute("aria-valuenow", now.percent);
    bar.firstElementChild.style.width = now.percent + "%";
  }
  const picture = find(".live");
  if (picture && now.preview) {
    picture.src = now.preview;
    picture.hidden = false;
  }
}

window.addEventListener("isengard", follow);
watch("value", () => {
  draw();
  if (find(".is-active")) setTimeout(bridge, 400);
  else heard = false;
});
element.addEventListener("click", (event) => {
  const stop = event.target.closest("[data-cancel]");
  const picture = event.target.closest("button.picture");
  const paused = event.target.closest("[data-resume]");
  const left = event.target.closest("[data-restore]");
  if (left) trigger("restore", { id: left.dataset.restore });
  if (paused) trigger("resume", { id: paused.dataset.resume });
  if (stop) trigger("stop", { id: stop.dataset.cancel });
  if (picture) {
    const detail = { items: props.value.items, index: Number(picture.dataset.index) };
    window.dispatchEvent(new CustomEvent("isengard:image", { detail }));
  }
});
draw();
if (find(".is-active")) setTimeout(bridge, 400);
