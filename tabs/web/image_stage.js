// While a generation runs, its picture and bar follow the header's own clock; all else comes with a new value.
const find = (selector) => element.querySelector(selector);
let asking = false;
let heard = false; // that the header knows of the running generation; it looks seldom while nothing runs

function follow(event) {
  if (!element.isConnected) return window.removeEventListener("isengard", follow);
  const job = event.detail.job;
  heard = job !== null && job.kind === "generate_images";
  if (heard) look();
}

function bridge() {
  if (!element.isConnected || heard || !find(".is-active")) return;
  look();
  setTimeout(bridge, 1000);
}

async function look() {
  if (asking || document.hidden || !find(".is-active")) return;
  asking = true;
  try {
    const now = await server.watch({});
    if (now.job && now.job === find(".stage").dataset.job) paint(now);
  } catch (error) {
    // the header says that the server does not answer
  } finally {
    asking = false;
  }
}

function paint(now) {
  find(".headline").textContent = now.headline;
  find(".steps").textContent = now.steps;
  const bar = find(".bar");
  if (bar) {
    bar.setAttribute("aria-valuenow", now.percent);
    bar.firstElementChild.style.width = now.percent + "%";
  }
  const picture = find(".live");
  if (picture && now.preview) {
    picture.src = now.preview;
    picture.hidden = false;
  }
}

window.addEventListener("isengard", follow);
watch("value", () => {
  if (find(".is-active")) setTimeout(bridge, 400);
  else heard = false;
});
element.addEventListener("click", (event) => {
  const stop = event.target.closest("[data-cancel]");
  const picture = event.target.closest("button.picture");
  if (stop) trigger("stop", { id: stop.dataset.cancel });
  if (picture) {
    const detail = { items: props.value.items, index: Number(picture.dataset.index) };
    window.dispatchEvent(new CustomEvent("isengard:image", { detail }));
  }
});
