// The one poller of the page: it reads the state, paints the header, and tells the rest through a window event.
// "refresh" is triggered when something changed, and now and then while a job runs. The server says when to ask again.
const SLOWER = 3.5; // times the pause between two questions
const find = (selector) => element.querySelector(selector);
let lastKey = null;
let refreshedAt = 0;

async function look() {
  if (!element.isConnected) return;
  let wait = 1.5;
  if (!document.hidden) {
    try {
      const state = await server.look({});
      find(".status").classList.remove("stale");
      paint(state);
      window.isengard = state;
      window.dispatchEvent(new CustomEvent("isengard", { detail: state }));
      const now = Date.now();
      const runs = state.job !== null;
      if (lastKey !== null && (state.key !== lastKey || (runs && now - refreshedAt > SLOWER * 1000 * state.again_s))) {
        refreshedAt = now;
        trigger("refresh", {});
      }
      lastKey = state.key;
      wait = state.again_s;
    } catch (error) {
      find(".status").classList.add("stale");
      wait = 4;
    }
  }
  setTimeout(look, 1000 * wait);
}

function paint(state) {
  find(".device b").textContent = state.device;
  find(".device i").textContent = state.memory;
  find(".queue").textContent = state.queue;
  const job = state.job;
  find(".job").hidden = job === null;
  if (job === null) return;
  find(".job .text").textContent = job.text;
  find(".job .bar i").style.width = job.percent + "%";
  find(".job .bar").setAttribute("aria-valuenow", job.percent);
}

find(".job").addEventListener("click", () => trigger("openjob", {}));
document.addEventListener("visibilitychange", () => { if (!document.hidden) refreshedAt = 0; });
look();
