// In front of each script of the characters tab. Text is only ever set as text here: Gradio runs its templates as
// scripts, with what was put into them, so that no word of a user may stand in one.
function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== undefined) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

// The words of the browser's language; "{0}" stands for the first further argument.
const language = navigator.languages.map((each) => each.slice(0, 2)).find((each) => each in props.words) || "en";
function say(key, ...given) {
  const text = props.words[language]["characters.say." + key] || props.words.en["characters.say." + key] || key;
  return given.reduce((said, value, place) => said.replaceAll(`{${place}}`, value), text);
}
