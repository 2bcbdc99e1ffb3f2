// What is known before the start, and what stands in its way.
function add(parent, tag, text, name = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = name;
  parent.append(made);
  return made;
}

function paintPlan(plan) {
  find(".plan").hidden = !plan.words;
  if (!plan.words) return;
  find(".words").textContent = say("plan.plan", plan.words);
  find(".plan").classList.toggle("beyond", !plan.fits);
  find(".bar i").style.width = plan.percent + "%";
  find(".bar").setAttribute("aria-valuenow", plan.percent);
  find(".peak").textContent = say(plan.measured ? "plan.measured" : "plan.expected", plan.peak, plan.total);
  find("details").hidden = plan.reasons.length === 0;
  find("details ul").replaceChildren();
  for (const reason of plan.reasons) add(find("details ul"), "li", reason);
}

function paint() {
  const { figures = [], problems = [], plan = {} } = props.value || {};
  paintPlan(plan);
  const list = element.querySelector("dl");
  list.replaceChildren();
  for (const figure of figures) {
    const part = add(list, "div", "");
    add(part, "dt", say("estimate." + figure.label.toLowerCase()));
    add(part, "dd", figure.value);
    add(part, "dd", figure.origin, "origin");
  }
  const said = element.querySelector(".problems");
  said.hidden = problems.length === 0;
  said.replaceChildren();
  for (const problem of problems) add(said, "li", problem);
}

paint();
watch("value", paint);
