const place = element.querySelector(".head");

function paint() {
  const head = props.value || {};
  if (!head.name) return place.replaceChildren(...welcome());
  const parts = [make("h2", {}, head.name)];
  if (!head.damaged) parts.push(line(head));
  const findings = (head.findings || []).map((finding) => make("li", { class: finding.blocks ? "blocks" : "" }, finding.text));
  const blocking = findings.filter((each) => each.className);
  const hints = findings.filter((each) => !each.className);
  if (blocking.length) parts.push(make("ul", {}, ...blocking));
  if (hints.length) {
    const open = place.querySelector("details")?.open || false;
    parts.push(make("details", { open }, make("summary", {}, say("head.hints", hints.length)), make("ul", {}, ...hints)));
  }
  if (head.notes) parts.push(make("p", { class: "notes" }, head.notes));
  place.replaceChildren(...parts);
}

function line(head) {
  const words = make("p", { class: "words" }, say("head.trigger") + " ", make("code", {}, head.trigger), " " + head.class_word + " · " + head.summary + " · ");
  words.append(make("b", { class: head.ready ? "ready" : "" }, say(head.ready ? "head.ready" : "head.not_ready")));
  return words;
}

function welcome() {
  const button = make("button", { type: "button" }, say("welcome.button"));
  button.addEventListener("click", () => trigger("new", {}));
  const steps = ["welcome.one", "welcome.two", "welcome.three"].map((key) => make("li", {}, say(key)));
  return [make("h2", {}, say("welcome.title")), make("p", {}, say("welcome.text")), make("ol", {}, ...steps), button];
}

watch("value", paint);
paint();
