const list = element.querySelector(".cards");

function paint() {
  const focused = document.activeElement?.closest?.(".cards button")?.dataset.id;
  list.replaceChildren(...(props.value || []).map(card));
  if (focused) [...list.children].find((each) => each.dataset.id === focused)?.focus();
}

function card(character) {
  const picture = character.picture
    ? make("img", { src: character.picture, alt: "" })
    : make("span", { class: "initial", "aria-hidden": "true" }, character.initial);
  const words = make("span", { class: "words" }, make("b", {}, character.name), make("small", {}, character.count));
  const badge = make("span", { class: `badge ${character.badge}` }, say(`badge.${character.badge}`));
  const attributes = { type: "button", "data-id": character.id, class: character.badge, "aria-pressed": String(character.chosen) };
  return make("button", attributes, picture, words, badge);
}

list.addEventListener("click", (event) => {
  const pressed = event.target.closest("button");
  if (pressed) trigger("pick", { id: pressed.dataset.id });
});
watch("value", paint);
paint();
