// What every script of this tab begins with.
const find = (selector) => element.querySelector(selector);

function make(tag, options, parent) {
  const made = Object.assign(document.createElement(tag), options);
  if (parent) parent.append(made);
  return made;
}

// The words of the browser's language; "{0}" stands for the first further argument.
const language = navigator.languages.map((each) => each.slice(0, 2)).find((each) => each in WORDS) || "en";
function say(key, ...given) {
  const text = WORDS[language][key] || WORDS.en[key] || key;
  return given.reduce((said, value, place) => said.replaceAll("{" + place + "}", () => value), text);
}

for (const each of element.querySelectorAll("[data-say]")) each.textContent = say(each.dataset.say);
for (const each of element.querySelectorAll("[data-label]")) each.setAttribute("aria-label", say(each.dataset.label));
