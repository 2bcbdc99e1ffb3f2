// What is going to happen to the machine, and what would be lost with it. It comes with the header's event.
let endsAt = null; // by this browser's clock

function put(selector, text) {
  const place = find(selector);
  place.hidden = text === "";
  if (place.textContent !== text) place.textContent = text; // read out once
}

function tick() {
  if (endsAt === null) return;
  const left = Math.max(0, Math.round((endsAt - Date.now()) / 1000));
  find(".left").textContent = Math.floor(left / 60) + ":" + String(left % 60).padStart(2, "0");
}

function paint(pod) {
  put(".wiped", pod.wiped ? say("wiped", pod.wiped) : "");
  put(".trouble", pod.trouble);
  const idles = pod.idle_min !== null && pod.stops_in_s === null && !pod.stopping;
  put(".idle", idles ? say(pod.price ? "idle.costs" : "idle", pod.idle_min, pod.price) : "");
  find(".stopping").hidden = !pod.stopping;
  const ends = pod.stops_in_s !== null && !pod.stopping && !pod.trouble;
  if (find(".stop").hidden === ends) find(".stop span").textContent = say("stops");
  find(".stop").hidden = !ends;
  endsAt = ends ? Date.now() + 1000 * pod.stops_in_s : null;
  tick();
}

async function keep() {
  await server.keep();
  endsAt = null;
  find(".stop").hidden = true;
}

function hear(event) {
  if (element.isConnected) return paint(event.detail.pod);
  window.removeEventListener("isengard", hear);
  clearInterval(ticking);
}

const ticking = setInterval(tick, 1000);
find(".stop button").addEventListener("click", keep);
window.addEventListener("isengard", hear);
