// The settings: inputs are made once from `props.groups`; values come with `props.value`, changes go into its `overrides`.
const fields = new Map();
let overrides = (props.value || {}).overrides || {};
let soon = 0;

function input(field, id) {
  if (field.kind === "choice") {
    const select = make("select", { id });
    for (const [textContent, value] of field.choices) make("option", { value, textContent }, select);
    return select;
  }
  if (field.kind === "lines") return make("textarea", { id, rows: 3 });
  if (field.kind === "switch") return make("input", { id, type: "checkbox" });
  const made = make("input", { id, type: "text", autocomplete: "off", spellcheck: false });
  if (field.kind === "number") made.inputMode = "decimal";
  return made;
}

function build() {
  for (const group of props.groups) {
    const set = make("fieldset", {}, find(".groups"));
    make("legend", { textContent: group.title }, set);
    for (const field of group.fields) {
      const id = "training-field-" + field.name;
      const row = make("div", { className: "field" + (field.kind === "lines" ? " wide" : "") }, set);
      make("label", { textContent: field.label, htmlFor: id }, row);
      const control = input(field, id);
      control.setAttribute("aria-describedby", id + "-about");
      row.append(control);
      const about = make("small", { id: id + "-about", textContent: field.explain + ". " }, row);
      if (field.range) make("b", { textContent: field.range }, about);
      const other = make("span", { className: "other", hidden: true }, about);
      if (field.suggest.length) {
        const list = make("datalist", { id: id + "-list" }, row);
        for (const value of field.suggest) make("option", { value }, list);
        control.setAttribute("list", list.id);
      }
      control.addEventListener("change", () => changed(field.name));
      const labels = Object.fromEntries(field.choices.map(([label, value]) => [value, label]));
      fields.set(field.name, { row, control, other, labels, kind: field.kind });
    }
  }
}

const read = (entry) => (entry.kind === "switch" ? entry.control.checked : entry.control.value);

function keep(changes) {
  overrides = changes;
  props.value = { ...(props.value || {}), overrides };
}

function changed(name) {
  const { [name]: former, ...others } = overrides;
  const value = read(fields.get(name));
  keep(String(value).trim() === String(props.value.base[name]) ? others : { ...others, [name]: value });
  // Later, because leaving the field is often a click elsewhere, and what is clicked must not move away under it.
  clearTimeout(soon);
  soon = setTimeout(() => { paint(); trigger("changed", {}); }, 250);
}

// A preset's values come without changes: those made here stay, also one that was made while the answer was on its way.
function take() {
  const { base = {}, overrides: given } = props.value || {};
  const changes = Object.entries(given || overrides).filter(([name, value]) => String(value).trim() !== String(base[name]));
  keep(Object.fromEntries(changes));
  paint();
}

function paint(forced = false) {
  const { base = {}, compared = {}, compared_with = "" } = props.value || {};
  find(".groups").hidden = Object.keys(base).length === 0;
  for (const [name, entry] of fields) {
    if (!(name in base)) continue;
    const value = name in overrides ? overrides[name] : base[name];
    if (entry.kind === "switch") entry.control.checked = value === true;
    else if (entry.control !== document.activeElement || forced) entry.control.value = String(value);
    entry.row.classList.toggle("changed", name in overrides);
    const differs = name in overrides ? base[name] : compared[name];
    entry.other.hidden = differs === undefined;
    const said = differs === true ? say("form.on") : differs === false ? say("form.off") : String(entry.labels[differs] || differs).replaceAll("\n", " / ");
    entry.other.textContent = differs === undefined ? "" : (name in overrides ? say("form.preset") : compared_with) + ": " + (said === "" ? say("form.none") : said);
  }
  const label = (name) => fields.get(name).row.querySelector("label").textContent.toLowerCase();
  const names = Object.keys(compared).filter((name) => fields.has(name)).map(label);
  find(".note").hidden = names.length === 0;
  find(".note").textContent = say("form.differs", compared_with, names.join(", "));
  find(".reset").hidden = Object.keys(overrides).length === 0;
}

find(".reset").addEventListener("click", () => {
  keep({});
  paint(true);
  trigger("changed", {});
});
build();
paint();
watch("value", take);
