// The tab's first opening in this page: fill the form, with the draft of this browser if there is one.
function draft() {
  try {
    return JSON.parse(localStorage.getItem("isengard-image"));
  } catch (error) {
    return null;
  }
}

if (!window.isengardImageOpened) {
  window.isengardImageOpened = true;
  document.getElementById("image").inert = true;
  setTimeout(() => trigger("opened", { draft: draft() }), 50);
}
