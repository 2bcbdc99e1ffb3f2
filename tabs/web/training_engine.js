// Says that AI-Toolkit cannot be used here, and installs it. An installation goes on when the page is closed; every page
// that is open when it ends asks for a toast about it.
let known = null;

function paint() {
  const { matter = "", missing = [], installing = false, stage = "", percent = null, message = "", error = "", ended = null } = props.value || {};
  find(".engine").hidden = matter === "" && !installing;
  find(".said").textContent = installing ? say("engine." + stage) : say("engine." + matter, missing.join(", "));
  const detail = installing ? message : error;
  find(".detail").textContent = detail;
  find(".detail").hidden = detail === "";
  find(".detail").classList.toggle("error", !installing);
  const bar = find(".bar");
  bar.hidden = !installing;
  bar.classList.toggle("unknown", percent === null);
  if (percent === null) bar.removeAttribute("aria-valuenow");
  else bar.setAttribute("aria-valuenow", percent);
  find(".bar i").style.width = percent === null ? "" : percent + "%";
  find(".get").hidden = installing;
  find(".stop").hidden = !installing;
  if (known !== null && ended > known) trigger("ended", {});
  known = ended;
}

find(".get").addEventListener("click", () => trigger("install", {}));
find(".stop").addEventListener("click", () => trigger("halt", {}));
paint();
watch("value", paint);
