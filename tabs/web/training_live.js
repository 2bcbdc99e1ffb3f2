// The run that is shown. What it is comes with `props.value`; while it runs, its figures come with the header's event.
let known = null; // the newest figures of this run
let lastStep = 0;

function figures() {
  const now = known;
  const speed = now.speed === null ? "" : now.speed >= 1 ? now.speed.toFixed(1) + " steps/s" : (1 / now.speed).toFixed(1) + " s/step";
  return [
    [say("live.step"), now.steps ? lastStep.toLocaleString("en") + " / " + now.steps.toLocaleString("en") : ""],
    [say("live.left"), now.left || ""],
    [say("live.loss"), now.loss === null ? "" : now.loss.toFixed(4)],
    [say("live.validation"), now.validation === null ? "" : now.validation.toFixed(4)],
    [say("live.speed"), speed],
    [say("live.elapsed"), now.elapsed || ""],
    [say("live.memory"), now.memory || ""],
    [say("live.cost"), now.cost.length > 1 ? say("live.cost.of", ...now.cost) : now.cost[0] || ""],
    [say("live.attempt"), now.attempt > 1 ? String(now.attempt) : ""],
  ].filter(([, value]) => value !== "");
}

function phase(card) {
  if (card.status !== "running") return card.said;
  if (known.stop) return say("live." + known.stop);
  const [done, total] = known.part;
  const counted = known.at === null && total ? " · " + done + " of " + total : "";
  const words = known.phase.charAt(0).toUpperCase() + known.phase.slice(1);
  return [words, known.message].filter(Boolean).join(" · ") + counted;
}

function paintFigures(card) {
  lastStep = known.at === null ? Math.max(lastStep, known.last || 0) : known.at;
  const percent = card.status === "succeeded" ? 100 : known.steps ? Math.floor((100 * lastStep) / known.steps) : 0;
  find(".percent").textContent = percent + " %";
  find(".bar i").style.width = percent + "%";
  find(".bar").setAttribute("aria-valuenow", percent);
  const said = phase(card);
  if (find(".phase").textContent !== said) find(".phase").textContent = said;
  const list = find("dl");
  const rows = figures();
  while (list.children.length > rows.length) list.lastChild.remove();
  rows.forEach(([label, value], place) => {
    let row = list.children[place];
    if (!row) {
      row = document.createElement("div");
      row.append(document.createElement("dt"), document.createElement("dd"));
      list.append(row);
    }
    row.firstChild.textContent = label;
    row.lastChild.textContent = value;
  });
}

function paint() {
  const card = props.value || { job: "" };
  find(".none").hidden = card.job !== "";
  find(".run").hidden = card.job === "";
  if (!card.job) return;
  if (known === null || known.id !== card.job) lastStep = 0;
  known = card.figures;
  find(".badge").textContent = say("status." + card.status);
  find(".badge").className = "badge " + card.tone;
  find("h3:not(.none h3)").textContent = card.title;
  find(".about").textContent = [card.about, card.where ? say("live.on", card.where) : ""].filter(Boolean).join(" · ");
  find(".result").hidden = card.result === "";
  find(".result").textContent = card.result;
  find(".file").hidden = !card.file;
  if (card.file) find(".file").href = card.file;
  find(".error").hidden = card.error === "";
  find(".error").textContent = card.error;
  const buttons = card.remedies.map((remedy, number) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = remedy.label;
    button.addEventListener("click", () => trigger("mend", { job: card.job, number }));
    return button;
  });
  find(".remedies").replaceChildren(...buttons);
  paintFigures(card);
}

function follow(event) {
  if (!element.isConnected) return window.removeEventListener("isengard", follow);
  const card = props.value || {};
  const fresh = event.detail.trainings[card.job];
  if (!fresh || card.status !== "running") return;
  known = { ...fresh, last: lastStep };
  paintFigures(card);
}

window.addEventListener("isengard", follow);
paint();
watch("value", paint);
