// Captions by a model. A job, and a download, runs on when the page is closed; how far they are comes with the page's poll.
let chosen = "";
let listed = "";
let settled = null; // the job that has ended, as painted last
let pressed = false; // until the answer is painted, so that one click asks once

const model = () => (props.value.models || []).find((each) => each.name === chosen);

function paint() {
  const value = props.value || {};
  pressed = false;
  element.querySelector(".describe").hidden = !value.character;
  if (!value.character) return;
  const models = value.models;
  if (!model()) chosen = (models.find((each) => each.here) || models[0] || {}).name || "";
  find(".title").textContent = say("describe.title");
  find(".hint").textContent = say(models.length ? "describe.hint" : "describe.none");
  find(".choose").hidden = models.length === 0;
  paintModels(models);
  find(".over span").textContent = say("describe.overwrite");
  find(".way .cancel").textContent = say("describe.cancel");
  paintChoice();
  paintOutcome(value.job);
  settle(value.character, value.job);
  find(".undo").hidden = !value.undo;
  find(".undo").textContent = say("describe.undo", value.undo);
}

function paintModels(models) {
  const select = find("select");
  select.setAttribute("aria-label", say("describe.model"));
  const titles = models.map((each) => (each.here ? each.title : say("describe.absent", each.title)));
  if (titles.join() !== listed) select.replaceChildren(...titles.map((title, place) => make("option", { value: models[place].name }, title)));
  listed = titles.join(); // an open list would close
  select.value = chosen;
}

function paintChoice() {
  const { job, bare, images } = props.value;
  const one = model();
  const busy = job !== null && ["queued", "running", "paused"].includes(job.status);
  const loading = Boolean(one && one.course);
  const go = find(".go");
  go.textContent = one && !one.here ? say("describe.fetch") : say("describe.go");
  const wanted = find(".over input").checked ? images : bare;
  go.disabled = pressed || busy || loading || (Boolean(one && one.here) && wanted === 0);
  go.title = !busy && one && one.here && wanted === 0 ? say("describe.nothing") : "";
  find(".over").hidden = Boolean(one && !one.here);
  find(".licence").replaceChildren(...(one && !one.here ? [say("describe.licence") + " ", make("a", { href: one.licence_url, target: "_blank", rel: "noopener noreferrer" }, one.licence)] : []));
  find(".way").hidden = !busy && !loading;
  find(".way .cancel").hidden = !busy;
  if (busy) move(job.percent, say("describe." + job.status));
  else if (loading) move(one.course.percent || 0, [one.course.figures, one.course.left].filter(Boolean).join(" · "));
}

function move(percent, said) {
  find(".bar i").style.width = percent + "%";
  find(".bar").setAttribute("aria-valuenow", percent);
  find(".bar").setAttribute("aria-label", say("describe.progress"));
  find(".way .said").textContent = said;
}

function paintOutcome(job) {
  const one = model();
  const error = (one && one.error) || (job && job.error) || "";
  const taken = job !== null && job.written > 0 && !props.value.undo; // back
  const ended = job !== null && ["succeeded", "cancelled"].includes(job.status) && !taken;
  const said = error || (ended ? say("describe." + job.status, job.written) : "");
  const place = find(".outcome");
  place.hidden = said === "";
  place.classList.toggle("error", error !== "");
  if (place.textContent !== said) place.textContent = said;
}

// What is painted while a job runs may be some seconds old; after its end nothing else would paint the last captions.
function settle(character, job) {
  const ended = [character, job !== null && !["queued", "running", "paused"].includes(job.status) ? job.id : ""].join();
  const news = settled !== null && settled !== ended && settled.startsWith(character + ",");
  settled = ended;
  if (news) trigger("settled", {});
}

function hear(event) {
  if (!element.isConnected) return window.removeEventListener("isengard", hear);
  const { job } = props.value || {};
  const running = job && event.detail.jobs.find((each) => each.id === job.id);
  if (running) move(running.percent, running.text);
  const loading = (event.detail.models || {})[chosen];
  if (loading && !running) move(loading.percent || 0, [loading.figures, loading.left].filter(Boolean).join(" · "));
}

find("select").addEventListener("change", () => { chosen = find("select").value; paintChoice(); paintOutcome(props.value.job); });
find(".over input").addEventListener("change", paintChoice);
find(".go").addEventListener("click", () => {
  pressed = true;
  paintChoice();
  if (model().here) trigger("start", { model: chosen, overwrite: find(".over input").checked });
  else trigger("fetch", { model: chosen });
});
find(".way .cancel").addEventListener("click", () => trigger("cancel", { job: props.value.job.id }));
find(".undo").addEventListener("click", () => trigger("undo", {}));
window.addEventListener("isengard", hear);
watch("value", paint);
paint();
