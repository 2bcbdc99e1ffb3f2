// What a chart is drawn into, and with.
const svg = find("svg");

function shape(tag, attributes, text = "") {
  const made = document.createElementNS(svg.namespaceURI, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  svg.append(made);
  return made;
}
