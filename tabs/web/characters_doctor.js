// What the doctor says of the photos. It changes nothing by itself: each finding has its button, and each change its undo.
const place = find(".doctor");
const texts = new Map(); // captions that are being written here, by photo and finding
let painted = "";
let failure = "";
let busy = false;
let polling = false;
let next = ""; // what gets the focus of a button that has done its work
let folded = false;

function paint() {
  const value = props.value || {};
  const key = JSON.stringify([value, failure]);
  if (key === painted) return;
  painted = key;
  const typed = written();
  const open = new Set([...place.querySelectorAll("details[data-name][open]")].map((each) => each.dataset.name));
  place.hidden = !value.character;
  place.setAttribute("aria-label", say("title"));
  place.replaceChildren(...(value.character ? parts(value, open) : []));
  resume(typed);
  if (value.round?.running) poll(value.character);
}

function parts(value, open) {
  const made = [head(value)];
  const wrong = failure || value.round.error;
  if (wrong) made.push(make("p", { class: "failure", role: "alert" }, wrong));
  if (value.round.running) made.push(progress(value.round));
  if (value.former.length) made.push(lastFix(value, value.former[0]));
  if (value.last && value.photos) made.push(...findings(value), facts(value, open));
  if (value.former.length > 1) made.push(earlier(value, open));
  return made;
}

function head(value) {
  const words = make("div", { class: "words" }, make("h3", {}, say("title")), make("p", {}, headline(value)));
  const row = make("div", { class: "head" }, words);
  if (value.photos && !value.round.running) row.append(button("examine", say(value.last ? "again" : "check"), () => start(value.character)));
  return row;
}

function headline(value) {
  if (!value.photos) return say("none");
  if (!value.last) return say("what");
  const count = value.last.findings.length;
  const said = count ? say(count === 1 ? "found_one" : "found", count) : say("fine");
  return said + " " + say(value.current ? "looked_at" : "changed", new Date(value.last.made_at * 1000).toLocaleString(language, { dateStyle: "medium", timeStyle: "short" }));
}

function progress(round) {
  const percent = round.photos ? Math.round((100 * round.done) / round.photos) : 0;
  const bar = make("div", { class: "bar", role: "progressbar", "aria-valuemin": 0, "aria-valuemax": 100, "aria-valuenow": percent, "aria-label": say("progress") }, make("i"));
  bar.firstChild.style.width = percent + "%";
  const row = make("div", { class: "progress" }, make("span", {}, say("looking", Math.min(round.done + 1, round.photos), round.photos)), bar);
  row.append(button("stop", say("stop"), () => ask("stop", { character: props.value.character })));
  return row;
}

// One entry for each photo, then those about all of them.
function findings(value) {
  const photos = new Map(), whole = [];
  for (const finding of value.last.findings) {
    if (!finding.image) whole.push(finding);
    else photos.set(finding.image, [...(photos.get(finding.image) || []), finding]);
  }
  const cards = [...photos].map(([image, own]) => card(value, image, own));
  const list = make("ul", { class: "photos" }, ...cards);
  const sets = make("ul", { class: "set" }, ...whole.map((finding) => make("li", {}, ...explained(finding), ...others(finding))));
  if (!value.last.findings.length) return [];
  const fold = make("details", { open: !folded }, make("summary", {}, say("list")));
  fold.addEventListener("toggle", () => { folded = !fold.open; });
  if (cards.length) fold.append(list);
  if (whole.length) fold.append(make("h4", {}, say("of_all")), sets);
  return [fold];
}

function card(value, image, own) {
  const photo = value.last.pictures[image];
  const list = make("ul", {}, ...own.map((finding) => {
    return make("li", {}, ...explained(finding), ...(finding.fix ? remedy(value.character, finding) : []), ...others(finding));
  }));
  const boxes = own.map((finding) => finding.fix).filter((fix) => fix?.box);
  return make("li", { class: "photo", "data-image": image }, picture(photo, boxes), make("div", {}, make("b", { class: "name" }, photo.name), list));
}

function picture(photo, fixes) {
  const shot = make("div", { class: "shot" });
  if (!photo.picture) return shot;
  shot.append(make("img", { src: photo.picture, alt: "", loading: "lazy" }));
  for (const fix of fixes) {
    const frame = make("i", { class: fix.kind });
    const { left, top, width, height } = fix.box;
    const sides = { left: left / photo.width, top: top / photo.height, width: width / photo.width, height: height / photo.height };
    for (const [name, part] of Object.entries(sides)) frame.style[name] = 100 * part + "%";
    shot.append(frame);
  }
  return shot;
}

function explained(finding) {
  return [make("span", { class: "kind" }, say("kind." + finding.kind)), make("span", { class: "reason" }, reason(finding))];
}

function others(finding) {
  const shown = finding.others.filter((each) => each.picture);
  const images = shown.map((each) => make("img", { src: each.picture, alt: each.name, title: each.name, loading: "lazy" }));
  return images.length ? [make("span", { class: "others" }, ...images)] : [];
}

// The doctor's own words are the command line's; here they are sentences with its numbers.
function reason(finding) {
  const { kind, number, limit, subject } = finding;
  const key = ["why." + kind + (number ? "" : ".none"), "why." + kind].find((each) => each in WORDS[language]);
  const plain = (value) => value.toLocaleString(language, { maximumFractionDigits: Math.abs(value) < 10 ? 2 : 0 });
  const share = (value) => value.toLocaleString(language, { style: "percent", maximumFractionDigits: 1 });
  const about = word(subject.replace(/ (background|clothes)$/, ""));
  return say(key, plain(number), plain(limit), about, finding.others[0]?.name, share(number), share(limit));
}

const word = (text) => WORDS[language]["word." + text] || text;

function remedy(character, finding) {
  const { fix, image, kind } = finding;
  const given = { character, image, fix };
  const label = say("fix." + fix.kind);
  if (fix.kind !== "edit_caption") return [button("fix", label, () => act("fix", given))];
  const key = `${image} ${kind}`;
  const text = make("textarea", { rows: "3", "aria-label": say("caption"), "data-key": key });
  text.value = texts.get(key) ?? fix.caption;
  text.addEventListener("input", () => texts.set(key, text.value));
  return [text, button("fix", label, () => act("fix", { ...given, fix: { ...fix, caption: text.value } }, () => texts.delete(key)))];
}

function facts(value, open) {
  const { facts } = value.last;
  const lines = [say("showing", facts.showing, facts.photos)];
  for (const name of ["views", "expressions", "distances", "light", "backgrounds", "outfits"]) {
    const counts = Object.entries(facts[name] || {});
    if (counts.length) lines.push(say("fact." + name) + " " + counts.map(([each, count]) => `${word(each)} ${count}`).join(", "));
  }
  return details("facts", say("facts"), open, ...lines.map((line) => make("p", {}, line)));
}

function lastFix(value, entry) {
  const row = former(value, entry);
  row.classList.add("latest");
  return row;
}

function earlier(value, open) {
  return details("former", say("former", value.former.length - 1), open, ...value.former.slice(1).map((entry) => former(value, entry)));
}

function former(value, entry) {
  const given = { character: value.character, image: entry.image };
  const row = make("div", { class: "former" });
  if (entry.picture) row.append(make("img", { src: entry.picture, alt: "", loading: "lazy" }));
  row.append(make("span", {}, make("b", {}, entry.name), " ", say("done." + entry.fix)));
  row.append(button("undo", say("undo"), () => act("undo", given), say("undo_named", entry.name)));
  if (entry.fix === "leave_out") {
    const forget = () => { if (confirm(say("ask_forget", entry.name))) act("forget", given); };
    row.append(button("forget", say("forget"), forget, say("forget_named", entry.name)));
  }
  return row;
}

function details(name, title, open, ...content) {
  return make("details", { "data-name": name, open: open.has(name) }, make("summary", {}, title), ...content);
}

function button(name, label, press, spoken) {
  const made = make("button", { type: "button", class: name, "aria-label": spoken }, label);
  made.addEventListener("click", press);
  return made;
}

function start(character) {
  return ask("examine", { character }, (round) => {
    next = ".stop";
    renew({ round });
  });
}

function act(name, given, then = () => {}) {
  return ask(name, given, () => {
    then();
    next = ".latest .undo";
    trigger("changed", {});
  });
}

async function ask(name, given, then = () => {}) {
  if (busy) return;
  busy = true;
  try {
    const answer = await server[name](given);
    failure = name !== "stop" && answer.error ? answer.error : "";
    if (!failure) then(answer);
  } catch (error) {
    failure = say("unreachable");
  }
  busy = false;
  paint();
}

async function poll(character) {
  if (polling) return;
  polling = true;
  let round = { running: true };
  while (round.running && element.isConnected && props.value?.character === character) {
    await new Promise((go) => setTimeout(go, 400));
    try {
      round = await server.look({ character });
      if (props.value?.character === character) renew({ round });
    } catch (error) { /* asked again */ }
  }
  polling = false;
  if (!round.running) trigger("changed", {});
}

// What came of a request of ours, until the page itself is painted anew.
function renew(news) {
  props.value = { ...props.value, ...news };
  paint();
}

function written() {
  const active = document.activeElement;
  return place.contains(active) && active.dataset.key ? { key: active.dataset.key, start: active.selectionStart, end: active.selectionEnd } : null;
}

function resume(typed) {
  if (typed) {
    const text = [...place.querySelectorAll("textarea")].find((each) => each.dataset.key === typed.key);
    text?.focus();
    text?.setSelectionRange(typed.start, typed.end);
  } else if (next && place.querySelector(next)) {
    place.querySelector(next).focus();
    next = "";
  }
}

watch("value", paint);
paint();
