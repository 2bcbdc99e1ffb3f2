// What is known before the start, and what stands in its way.
function add(parent, tag, text, name = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  made.className = name;
  parent.append(made);
  return made;
}

function paint() {
  const { figures = [], problems = [] } = props.value || {};
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
