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
