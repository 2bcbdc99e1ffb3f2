// The prompt as the model gets it, with what was put in marked.
function paint() {
  const { error, pieces } = { error: "", pieces: [], ...props.value };
  const said = error ? [make("span", { class: "wrong" }, error)] : pieces.map((piece) => (piece.mark ? make("mark", {}, piece.text) : piece.text));
  if (!error && pieces.length) said.unshift(make("span", { class: "label" }, say("sent")), " ");
  find(".sent").replaceChildren(...said);
}

paint();
watch("value", paint);
