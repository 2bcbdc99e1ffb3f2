// What uses the disk, and what can go: chosen, confirmed with its size, and then removed as it was shown.
const chosen = new Set();
let shownLook = null;
let painted = "";

const picked = (value) => value.policies.filter((each) => chosen.has(each.policy));

function listParts(value) {
  const items = value.parts.map((each) => {
    const item = make("li", {});
    make("span", { textContent: say("part." + each.part) }, item);
    make("b", { textContent: each.size }, item);
    return item;
  });
  find(".parts").replaceChildren(...items);
}

function listEntries(value) {
  const items = value.entries.map((each) => {
    const item = make("li", {});
    make("span", { textContent: say("one." + each.part) + " " + each.name }, item);
    make("b", { textContent: each.size }, item);
    const inside = Object.entries(each.inside).map(([name, size]) => say("inside." + name) + " " + size);
    if (inside.length) make("small", { textContent: inside.join(" · ") }, item);
    return item;
  });
  find(".entries").replaceChildren(...items);
}

function listPolicies(value) {
  const items = value.policies.map((each) => {
    const item = make("li", {});
    const label = make("label", { className: each.lines.length ? "" : "none" }, item);
    const box = make("input", { type: "checkbox", name: each.policy, disabled: !each.lines.length, checked: chosen.has(each.policy) }, label);
    make("span", { textContent: say("policy." + each.policy) }, label);
    make("b", { textContent: each.lines.length ? each.size : "–" }, label);
    box.addEventListener("change", () => {
      if (box.checked) chosen.add(each.policy);
      else chosen.delete(each.policy);
      offer();
    });
    if (each.lines.length) {
      const more = make("details", {}, item);
      make("summary", { textContent: say("show") }, more);
      const lines = make("ul", {}, more);
      for (const line of each.lines) make("li", { textContent: line }, lines);
      if (each.more) make("li", { textContent: say("more", each.more) }, lines);
    }
    return item;
  });
  find(".policies").replaceChildren(...items);
}

function sized(count) {
  return count >= 1e9 ? (count / 1e9).toFixed(1) + " GB" : (count / 1e6).toFixed(1) + " MB";
}

function offer() {
  const value = props.value;
  const going = picked(value);
  const bytes = going.reduce((sum, each) => sum + each.bytes, 0);
  const button = find(".clean");
  button.disabled = value.counting || !going.length;
  button.textContent = going.length ? say("remove", sized(bytes)) : say("remove.none");
}

function paint() {
  const value = props.value || {};
  const key = JSON.stringify(value);
  if (key === painted) return;
  painted = key;
  find(".counting").hidden = !value.counting;
  find(".known").hidden = !value.look;
  if (!value.look) return;
  if (value.look !== shownLook) chosen.clear();
  shownLook = value.look;
  find(".sum").textContent = say("sum", value.used, value.free, value.total) + (value.quota ? " " + say("quota", value.quota) : "");
  find(".bar i").style.width = value.percent + "%";
  find(".bar").setAttribute("aria-valuenow", value.percent);
  find(".note").hidden = !value.beyond;
  find("select").value = value.days === null ? "" : String(value.days);
  find("select").disabled = find(".look").disabled = value.counting;
  listParts(value);
  listEntries(value);
  listPolicies(value);
  offer();
}

const asked = () => (find("select").value === "" ? null : Number(find("select").value));
find("select").addEventListener("change", () => trigger("look", { days: asked() }));
find(".look").addEventListener("click", () => trigger("look", { days: asked() }));
find(".clean").addEventListener("click", () => {
  const going = picked(props.value);
  const said = going.map((each) => say("policy." + each.policy) + ": " + each.size).join("\n");
  if (confirm(say("confirm") + "\n\n" + said)) trigger("clean", { look: props.value.look, policies: going.map((each) => each.policy) });
});
paint();
watch("value", paint);
