// Tells in the browser's own way how runs ended, also while the page is hidden. Of several open pages one tells.
const WISH = "isengard.bell";
const TOLD = "isengard.told";
const KEPT = 50; // ends that are remembered as told
const IDLE_MS = 20 * 60 * 1000; // an idle machine is mentioned once in so long
const possible = "Notification" in window && window.isSecureContext;
const button = find(".bell");
const seen = new Set();
let since = null; // when the last run ended before this page began to listen
let wasIdle = false;
let unable = false; // browsers of phones have the name and refuse the use

const rings = () => possible && !unable && Notification.permission === "granted" && localStorage.getItem(WISH) === "on";

function paint() {
  const refused = possible && Notification.permission === "denied";
  button.setAttribute("aria-checked", rings());
  button.disabled = !possible || refused || unable;
  button.title = say(!possible || unable ? "impossible" : refused ? "refused" : rings() ? "on" : "off");
}

async function turn() {
  const wish = !rings();
  if (wish && Notification.permission !== "granted") await Notification.requestPermission();
  localStorage.setItem(WISH, wish ? "on" : "off");
  paint();
}

// One page at a time looks whether another has told it, and tells.
function once(key, tell) {
  return navigator.locks.request(TOLD, () => {
    const told = JSON.parse(localStorage.getItem(TOLD) || "[]");
    if (told.includes(key)) return;
    localStorage.setItem(TOLD, JSON.stringify([...told, key].slice(-KEPT)));
    tell();
  });
}

function show(title, body, tag, lead) {
  try {
    const note = new Notification(title, { body, tag, lang: language });
    note.addEventListener("click", () => { window.focus(); lead(); note.close(); });
  } catch (error) {
    unable = true;
    paint();
  }
}

function tell(run) {
  const title = say(run.what + (run.failed ? ".failed" : ".done"), run.name);
  const lead = () => window.dispatchEvent(new CustomEvent("isengard:job", { detail: { job: run.job, kind: run.kind } }));
  // Short work that somebody watches needs no word; a hidden page is to be silent then as well.
  return once(run.key, () => { if (run.always || document.hidden) show(title, run.said, run.key, lead); });
}

function hear(event) {
  if (!element.isConnected) return window.removeEventListener("isengard", hear);
  const { ended, pod } = event.detail;
  if (!ended) { since = null; return; }
  if (since === null) {
    since = Math.max(0, ...ended.map((run) => run.at));
    for (const run of ended) seen.add(run.key);
  }
  for (const run of ended) {
    if (run.at < since || seen.has(run.key)) continue;
    seen.add(run.key);
    tell(run);
  }
  const idle = pod.idle_min !== null;
  if (idle && !wasIdle) {
    const key = "idle " + Math.floor(Date.now() / IDLE_MS);
    once(key, () => show(say("idle", pod.idle_min), pod.price ? say("costs", pod.price) : "", key, () => {}));
  }
  wasIdle = idle;
}

window.isengardRings = rings; // the poller asks: a hidden page goes on asking then
window.addEventListener("isengard", hear);
window.addEventListener("storage", paint);
button.addEventListener("click", turn);
paint();
