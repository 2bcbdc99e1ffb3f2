// Everything that was made, newest first or the most alike first.
find(".gallery").setAttribute("aria-label", say("gallery"));

function paint() {
  const { items, total, filtered, best, rest } = { items: [], ...props.value };
  if (!items.length) {
    find(".gallery").replaceChildren(make("p", { class: "empty" }, say(filtered ? "gallery.unfit" : "gallery.empty")));
    return;
  }
  const thumbs = items.map((item, index) =>
    make("button", { type: "button", class: "thumb", "data-index": index, "data-id": item.id, title: item.prompt, "aria-label": named(item) },
      make("img", { src: item.thumbnail, alt: "", loading: "lazy" }), ...badge(item)));
  const shown = [make("p", { class: "count" }, say(best ? "gallery.best" : filtered ? "gallery.fit" : "gallery.all", total)), make("div", { class: "grid" }, ...thumbs)];
  if (rest) shown.push(make("button", { type: "button", class: "more" }, say("gallery.more", rest)));
  find(".gallery").replaceChildren(...shown);
}

// What an image says of its likeness; without a number it shows nobody.
const figure = (said) => said.text || say("likeness.nobody");

function badge({ badge: said }) {
  return said ? [make("span", { class: `badge is-${said.level}`, title: say("likeness", said.name, figure(said)) }, figure(said))] : [];
}

function named(item) {
  const said = say("enlarge", item.prompt);
  return item.badge ? `${said} (${say("likeness", item.badge.name, figure(item.badge))})` : said;
}

element.addEventListener("click", (event) => {
  const thumb = event.target.closest(".thumb");
  if (thumb) {
    const detail = { items: props.value.items, index: Number(thumb.dataset.index) };
    window.dispatchEvent(new CustomEvent("isengard:image", { detail }));
  } else if (event.target.closest(".more")) {
    trigger("more", {});
  }
});
paint();
watch("value", paint);
