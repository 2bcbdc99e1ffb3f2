// The one poller of the page: it reads the state, paints the header, and tells the rest through a window event.
// "refresh" is triggered when something changed; while a training runs, "moved" now and then: only what shows its course is
// painted anew then. The server says when to ask again.
const SLOWER = 3.5; // times the pause between two questions
const HIDDEN_S = 5; // between two questions of a page that is hidden and wants to notify
let lastKey = null;
let refreshedAt = 0;
let touchedAt = Date.now(); // by a person; opening the page counts

async function look() {
  if (!element.isConnected) return;
  let wait = 1.5;
  const rings = Boolean(window.isengardRings && window.isengardRings());
  if (!document.hidden || rings) {
    let trouble = "";
    try {
      const list = document.querySelector("#training-workers .workers");
      const untouched_s = (Date.now() - touchedAt) / 1000;
      const state = await server.look({ workers: Boolean(list && list.offsetParent), ended: rings, untouched_s });
      wait = Math.max(state.again_s, document.hidden ? HIDDEN_S : 0);
      if (state.trouble) trouble = say("trouble", state.trouble);
      else tell(state);
    } catch (error) {
      trouble = say((await isLoggedOut()) ? "over" : "away");
      wait = 4;
    }
    warn(trouble);
  }
  setTimeout(look, 1000 * wait);
}

// Nothing is loaded anew by itself: what is half typed stays, and one can log in in another window.
async function isLoggedOut() {
  const answer = await fetch("/config", { method: "HEAD" }).catch(() => null);
  return answer !== null && answer.status === 401;
}

function warn(trouble) {
  const place = find(".trouble");
  find(".status").classList.toggle("stale", trouble !== "");
  place.hidden = trouble === "";
  if (place.textContent !== trouble) place.textContent = trouble; // read out once
  if (trouble) lastKey = ""; // when it is over, all is painted: what was opened meanwhile is empty
}

function tell(state) {
  paint(state);
  window.isengard = state;
  window.dispatchEvent(new CustomEvent("isengard", { detail: state }));
  if (document.hidden) return; // it is painted anew when somebody looks
  const now = Date.now();
  const changed = lastKey !== null && state.key !== lastKey;
  const moves = Object.keys(state.trainings).length > 0 && now - refreshedAt > SLOWER * 1000 * state.again_s;
  if (changed || (lastKey !== null && moves)) {
    refreshedAt = now;
    trigger(changed ? "refresh" : "moved", {});
  }
  lastKey = state.key;
}

function paint(state) {
  find(".device").hidden = state.fleet !== null;
  find(".device b").textContent = state.device;
  find(".device i").textContent = state.memory;
  paintFleet(state.fleet);
  find(".queue").textContent = state.queue;
  find(".price").hidden = !state.pod.price;
  find(".price").textContent = say("price", state.pod.price);
  find(".price").title = say("price.hint");
  const boxes = find(".jobs");
  while (boxes.children.length > state.jobs.length) boxes.lastChild.remove();
  state.jobs.forEach((job, place) => paintJob(boxes.children[place] || addJob(boxes), job));
  find(".more").hidden = state.more === 0;
  find(".more").textContent = "+" + state.more;
  find(".more").title = say("more", state.more);
  find(".more").setAttribute("aria-label", say("more", state.more));
}

function paintFleet(fleet) {
  const chip = find(".fleet");
  chip.hidden = fleet === null;
  if (fleet === null) return;
  const none = fleet.living === 0 && fleet.silent === 0;
  chip.classList.toggle("bad", fleet.living === 0);
  const many = say(fleet.living === 1 ? "worker" : "workers", fleet.living);
  chip.querySelector("b").textContent = none ? say("none") : many;
  const facts = [fleet.living ? say("busy", fleet.busy) : "", fleet.silent ? say("silent", fleet.silent) : ""];
  chip.querySelector("i").textContent = none ? say("start") : facts.filter(Boolean).join(" · ");
  const lines = fleet.named.map(([name, device, state]) => [name, device, say("state." + state)].filter(Boolean).join(" · "));
  chip.title = none ? say("none.hint") : lines.join("\n");
}

function addJob(boxes) {
  const box = make("button", { type: "button", className: "job" }, boxes);
  make("span", { className: "text" }, box);
  const bar = make("span", { className: "bar", role: "progressbar", ariaValueMin: 0, ariaValueMax: 100 }, box);
  bar.setAttribute("aria-label", say("progress"));
  make("i", {}, bar);
  box.addEventListener("click", () => open(box.dataset));
  return box;
}

function paintJob(box, job) {
  box.dataset.job = job.id;
  box.dataset.kind = job.kind;
  box.title = job.where ? say("on", job.where) : "";
  box.querySelector(".text").textContent = job.text;
  box.querySelector(".bar i").style.width = job.percent + "%";
  box.querySelector(".bar").setAttribute("aria-valuenow", job.percent);
}

function open({ job, kind }) {
  trigger("openjob", { job, kind });
  window.scrollTo({ top: 0, behavior: "smooth" });
}

// Other scripts ask for it, too: each row of the workers leads to its job.
function lead(event) {
  if (element.isConnected) open(event.detail);
  else window.removeEventListener("isengard:job", lead);
}

for (const each of [".fleet", ".more"]) find(each).addEventListener("click", () => trigger("openworkers", {}));
window.addEventListener("isengard:job", lead);
for (const kind of ["pointerdown", "keydown", "wheel"]) {
  window.addEventListener(kind, () => { touchedAt = Date.now(); }, { capture: true, passive: true });
}
document.addEventListener("visibilitychange", () => { if (!document.hidden) refreshedAt = 0; });
look();
