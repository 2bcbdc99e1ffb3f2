// How the images would be made on this machine.
function paint() {
  const { words = "", fits, measured, peak, total } = props.value || {};
  if (words && fits) find(".fit").replaceChildren(say(measured ? "fit.measured" : "fit.expected", words, peak, total));
  else find(".fit").replaceChildren(...(words ? [make("span", { class: "wrong" }, words)] : []));
}

paint();
watch("value", paint);
