// One PNG at a time is sent to the server, which reads its settings.
const zone = () => find(".zone");
find("input").setAttribute("aria-label", say("drop.label"));
find(".zone span").textContent = say("drop");

function paint() {
  const { title, lacking } = { title: "", lacking: [], ...props.value };
  const said = [make("b", {}, title)];
  if (lacking.length) said.push(make("span", {}, say("drop.lacking")), make("ul", {}, ...lacking.map((each) => make("li", {}, each))));
  find(".said").hidden = !title;
  find(".said").replaceChildren(...said);
}

async function send(file) {
  if (!file) return;
  zone().classList.add("busy");
  try {
    const { path } = await upload(file);
    trigger("dropped", { path, name: file.name });
  } catch (error) {
    props.value = { title: say("drop.failed", file.name, error.message || error), lacking: [] };
  } finally {
    zone().classList.remove("busy");
  }
}

element.addEventListener("change", (event) => {
  if (event.target.type !== "file") return;
  send(event.target.files[0]);
  event.target.value = "";
});
for (const name of ["dragenter", "dragover"]) {
  element.addEventListener(name, (event) => { event.preventDefault(); zone().classList.add("over"); });
}
for (const name of ["dragleave", "drop"]) {
  element.addEventListener(name, (event) => { event.preventDefault(); zone().classList.remove("over"); });
}
element.addEventListener("drop", (event) => send(event.dataTransfer.files[0]));

paint();
watch("value", paint);
