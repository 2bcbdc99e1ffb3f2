// Files go one by one, each in a request of its own: a proxy that limits a request's size and time does not matter, and
// one failure is one file's. The list lives beside the page, so that a visit to another tab does not lose it.
const uploads = (window.isengardUploads ??= shared());
uploads.bridge = { take: server.take, more: server.more, describe: server.describe, changed: () => trigger("changed", {}), paint };
find(".title").textContent = say("drop.title");
find(".hint").textContent = say("drop.hint");
find(".files").setAttribute("aria-label", say("drop.files"));
find(".again").textContent = say("drop.again_all");
find(".clear").textContent = say("drop.clear");

// Bytes of one file, as the server has it.
const LARGEST = 60 * 2 ** 20;

class TooLarge extends Error {}

function shared() {
  const made = { items: [], running: false };
  window.addEventListener("beforeunload", (event) => { if (made.running) event.preventDefault(); });
  return made;
}

const isText = (file) => /\.txt$/i.test(file.name);

function add(files) {
  const character = props.value?.character;
  if (!character || !files.length) return;
  const stem = (file) => file.name.replace(/\.[^.]*$/, "");
  const texts = new Map(files.filter(isText).map((file) => [stem(file), file]));
  for (const file of files.filter((each) => !isText(each))) {
    const caption = texts.get(stem(file));
    if (caption) texts.delete(stem(file));
    uploads.items.push({ character, file, caption, state: "waiting", results: [] });
  }
  for (const file of texts.values()) uploads.items.push({ character, file, state: "waiting", results: [] });
  paint();
  run();
}

async function run() {
  if (uploads.running) return;
  uploads.running = true;
  let item;
  while ((item = uploads.items.find((each) => each.state === "waiting"))) await send(item);
  uploads.running = false;
}

async function send(item) {
  const state = (name, reason = "") => { item.state = name; item.reason = reason; uploads.bridge.paint(); };
  try {
    state("sending");
    item.results = [];
    if (isText(item.file)) {
      const answer = await uploads.bridge.describe({ character: item.character, name: item.file.name, text: await words(item.file) });
      if (answer.error) return state("refused", answer.error);
      uploads.bridge.changed();
      return state("added", say("drop.described", answer.captions));
    }
    const files = [];
    for (const file of [item.file, item.caption]) {
      if (file) files.push({ path: await sent(file, (seconds) => state("sending", say("drop.later", seconds))), name: file.name });
    }
    state("checking");
    let answer = await uploads.bridge.take({ character: item.character, files });
    while (!answer.error) {
      item.results.push(...answer.results);
      uploads.bridge.paint();
      if (answer.results.some((each) => each.added)) uploads.bridge.changed();
      if (answer.done) break;
      answer = await uploads.bridge.more({ intake: answer.intake, seen: item.results.length });
    }
    if (answer.error) state("failed", answer.error);
    else state(item.results.some((each) => each.added) ? "added" : "refused");
  } catch (error) {
    state("failed", error instanceof TooLarge ? say("drop.too_large") : say("unreachable"));
  }
}

// UTF-8, else what Windows writes.
async function words(file) {
  if (file.size > 65536) throw new TooLarge();
  const content = await file.arrayBuffer();
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(content);
  } catch (error) {
    return new TextDecoder("windows-1252").decode(content);
  }
}

// Gradio's own upload() would raise a toast for each failure, beside the list. When it is too much at once, the server
// says how long to wait.
async function sent(file, later) {
  if (file.size > LARGEST) throw new TooLarge();
  const body = new FormData();
  body.append("files", file, file.name);
  const { root, api_prefix } = window.gradio_config;
  const answer = await fetch(`${root}${api_prefix}/upload`, { method: "POST", body });
  if (answer.status === 413) throw new TooLarge();
  if (answer.status === 429) {
    const seconds = Number(answer.headers.get("retry-after")) || 10;
    later(seconds);
    await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
    return sent(file, later);
  }
  if (!answer.ok) throw new Error(answer.statusText);
  return (await answer.json())[0];
}

function paint() {
  const items = uploads.items.filter((each) => each.character === props.value?.character);
  const results = items.flatMap((each) => each.results);
  const failed = items.filter((each) => each.state === "failed");
  const left = items.filter((each) => ["waiting", "sending", "checking"].includes(each.state));
  find(".sum").hidden = items.length === 0;
  const refused = results.filter((each) => !each.added).length + items.filter((each) => each.state === "refused" && !each.results.length).length;
  find(".sum b").textContent = say("drop.sum", items.length - left.length, items.length, results.filter((each) => each.added).length, refused, failed.length);
  find(".again").hidden = failed.length === 0;
  find(".clear").hidden = left.length > 0;
  find(".files").tabIndex = items.length ? 0 : -1;
  find(".files").replaceChildren(...items.toSorted((one, other) => rank(one) - rank(other)).map(row));
}

// What needs a person's eye comes first.
function rank(item) {
  const noted = item.state === "added" && item.results.some((each) => each.notes.length);
  return noted ? 2.5 : { failed: 0, refused: 1, sending: 2, checking: 2, waiting: 3, added: 4 }[item.state];
}

function row(item) {
  const texts = item.results.flatMap((each) => each.notes.map((note) => (item.results.length > 1 ? `${each.file}: ${note}` : note)));
  if (item.reason) texts.push(item.reason);
  const many = item.results.length > 1 ? say("drop.many", item.results.filter((each) => each.added).length, item.results.length) : "";
  const made = make("li", { class: item.state }, make("span", { class: "state" }, say(`drop.${item.state}`)), make("b", {}, item.file.name), make("span", { class: "many" }, many));
  if (item.state === "failed") {
    const again = make("button", { type: "button" }, say("drop.again"));
    again.addEventListener("click", () => { item.state = "waiting"; paint(); run(); });
    made.append(again);
  }
  for (const text of texts.slice(0, 50)) made.append(make("small", {}, text));
  return made;
}

// What was dropped, with the files in dropped folders.
async function dropped(transfer) {
  const entries = [...transfer.items].map((each) => each.webkitGetAsEntry?.()).filter(Boolean);
  return entries.length ? (await Promise.all(entries.map(inside))).flat() : [...transfer.files];
}

async function inside(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const found = [];
  for (let batch; (batch = await new Promise((resolve, reject) => reader.readEntries(resolve, reject))).length;) found.push(...batch);
  return (await Promise.all(found.filter((each) => !each.name.startsWith(".")).map(inside))).flat();
}

const zone = find(".zone");
zone.addEventListener("dragover", (event) => { event.preventDefault(); zone.classList.add("over"); });
zone.addEventListener("dragleave", () => zone.classList.remove("over"));
zone.addEventListener("drop", async (event) => {
  event.preventDefault();
  zone.classList.remove("over");
  add(await dropped(event.dataTransfer));
});
find("input").addEventListener("change", (event) => { add([...event.target.files]); event.target.value = ""; });
find(".again").addEventListener("click", () => {
  for (const item of uploads.items) if (item.state === "failed" && item.character === props.value?.character) item.state = "waiting";
  paint();
  run();
});
find(".clear").addEventListener("click", () => {
  uploads.items = uploads.items.filter((each) => each.character !== props.value?.character);
  paint();
});
watch("value", paint);
paint();
