// One PNG at a time is sent to the server, which reads its settings.
const zone = () => element.querySelector(".zone");

async function send(file) {
  if (!file) return;
  zone().classList.add("busy");
  try {
    const { path } = await upload(file);
    trigger("dropped", { path, name: file.name });
  } catch (error) {
    props.value = { title: `${file.name} could not be sent: ${error.message || error}`, lacking: [] };
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
