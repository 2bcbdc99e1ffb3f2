// Captions are saved as they are typed. A figure that is being typed in, or whose text is not saved yet, keeps its text
// when the pictures are painted again; what was not saved when the page went away is saved when it is back.
const grid = element.querySelector(".grid");
const figures = new Map();
let character = "";

function paint() {
  const value = props.value || { images: [] };
  if (value.character !== character) {
    for (const figure of figures.values()) save(figure);
    figures.clear();
    grid.replaceChildren();
    character = value.character;
  }
  const ids = new Set(value.images.map((image) => image.id));
  for (const [id, figure] of figures) {
    if (!ids.has(id)) { clearTimeout(figure.timer); figure.root.remove(); figures.delete(id); }
  }
  value.images.forEach((image, place) => {
    if (!figures.has(image.id)) figures.set(image.id, created(image));
    const figure = figures.get(image.id);
    if (grid.children[place] !== figure.root) grid.insertBefore(figure.root, grid.children[place] || null);
    update(figure, image);
  });
  paintEmpty(Boolean(value.character) && value.images.length === 0);
}

function created(image) {
  const remove = make("button", { type: "button", class: "remove", title: say("grid.remove"), "aria-label": say("grid.remove_named", image.name) }, "✕");
  const picture = make("img", { alt: "", loading: "lazy" });
  const figure = {
    id: image.id, owner: character, picture, saved: image.caption, timer: 0,
    flags: make("div", { class: "flags" }),
    text: make("textarea", { rows: "3", "aria-label": say("grid.caption", image.name), placeholder: say("grid.placeholder") }),
    note: make("small", { class: "note", role: "alert" }),
  };
  if (image.before) move(draft({ ...figure, id: image.before }), draft(figure));
  figure.text.value = sessionStorage.getItem(draft(figure)) ?? image.caption;
  figure.root = make("figure", { "data-id": image.id }, make("div", { class: "picture", title: `${image.name} · ${image.size}` }, picture, remove, figure.flags), figure.text, figure.note);
  figure.text.addEventListener("input", () => {
    sessionStorage.setItem(draft(figure), figure.text.value);
    clearTimeout(figure.timer);
    figure.timer = setTimeout(() => save(figure), 700);
  });
  figure.text.addEventListener("change", () => save(figure));
  figure.text.addEventListener("keydown", (event) => next(event, figure));
  remove.addEventListener("click", () => { if (confirm(say("grid.ask_remove", image.name))) trigger("remove", { id: image.id }); });
  if (figure.text.value !== image.caption) save(figure);
  return figure;
}

function update(figure, image) {
  if (figure.picture.getAttribute("src") !== image.picture) figure.picture.setAttribute("src", image.picture);
  figure.picture.hidden = !image.picture;
  const typing = document.activeElement === figure.text || figure.text.value !== figure.saved;
  if (!typing) figure.text.value = figure.saved = image.caption;
  paintFlags(figure, image.flags);
}

function paintFlags(figure, flags) {
  figure.flags.replaceChildren(...flags.map((flag) => make("span", { title: flag.text }, say(`flag.${flag.kind}`))));
}

async function save(figure) {
  clearTimeout(figure.timer);
  const text = figure.text.value;
  if (text === figure.saved) return sessionStorage.removeItem(draft(figure));
  try {
    const answer = await server.caption({ character: figure.owner, image: figure.id, text });
    if (answer.error) return failed(figure, answer.error);
    figure.saved = text;
    if (figure.text.value === text) sessionStorage.removeItem(draft(figure));
    figure.note.textContent = "";
    figure.root.classList.remove("failed");
    figure.root.classList.add("saved");
    setTimeout(() => figure.root.classList.remove("saved"), 1200);
    paintFlags(figure, answer.flags);
    announce();
  } catch (error) {
    failed(figure, say("grid.unsaved"));
    figure.timer = setTimeout(() => save(figure), 5000);
  }
}

function failed(figure, reason) {
  figure.note.textContent = reason;
  figure.root.classList.add("failed");
}

let announcing = 0;
function announce() {
  clearTimeout(announcing);
  announcing = setTimeout(() => trigger("changed", {}), 900);
}

function next(event, figure) {
  if (event.key !== "Enter" || event.shiftKey || event.ctrlKey || event.metaKey || event.isComposing) return;
  event.preventDefault();
  const following = figure.root.nextElementSibling?.querySelector("textarea");
  figure.text.blur();
  following?.focus();
}

function draft(figure) {
  return `isengard-caption ${figure.owner} ${figure.id}`;
}

// What was typed and not saved, to the id that the picture has since it was fixed.
function move(from, to) {
  const text = sessionStorage.getItem(from);
  if (text === null) return;
  sessionStorage.removeItem(from);
  sessionStorage.setItem(to, text);
}

function paintEmpty(empty) {
  const place = element.querySelector(".empty");
  place.hidden = !empty;
  if (!empty || place.children.length) return;
  const rules = ["grid.rule_number", "grid.rule_varied", "grid.rule_sharp", "grid.rule_alone", "grid.rule_allowed"];
  place.append(make("b", {}, say("grid.empty")), make("ul", {}, ...rules.map((key) => make("li", {}, say(key)))));
}

watch("value", paint);
paint();
