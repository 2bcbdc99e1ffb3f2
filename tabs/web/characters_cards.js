const list = element.querySelector(".cards");
let chosen;

function paint() {
  remember((props.value || []).find((each) => each.chosen)?.id);
  const focused = document.activeElement?.closest?.(".cards button")?.dataset.id;
  list.replaceChildren(...(props.value || []).map(card));
  if (focused) [...list.children].find((each) => each.dataset.id === focused)?.focus();
}

// The choice stands in the address, so that a reload keeps it; the page reads it from there.
function remember(id) {
  if (chosen && id && id !== chosen) {
    const address = new URL(location.href);
    address.searchParams.set("character", id);
    history.replaceState(history.state, "", address);
  }
  chosen = id;
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
