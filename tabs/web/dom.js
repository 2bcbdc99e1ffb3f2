// In front of the scripts of a tab. Text is only ever set as text here: Gradio runs its templates as scripts, with what
// was put into them, so that no word of a user may stand in one.
const find = (selector) => element.querySelector(selector);

function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== undefined) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

// The words of the browser's language; "{0}" stands for the first further argument.
const language = navigator.languages.map((each) => each.slice(0, 2)).find((each) => each in WORDS) || "en";
function say(key, ...given) {
  const text = WORDS[language][key] || WORDS.en[key] || key;
  return given.reduce((said, value, place) => said.replaceAll(`{${place}}`, () => value), text);
}
