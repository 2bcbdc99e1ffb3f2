element.addEventListener("click", (event) => {
  const thumb = event.target.closest(".thumb");
  if (thumb) {
    const detail = { items: props.value.items, index: Number(thumb.dataset.index) };
    window.dispatchEvent(new CustomEvent("isengard:image", { detail }));
  } else if (event.target.closest(".more")) {
    trigger("more", {});
  }
});
