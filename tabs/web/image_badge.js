// What an image says of its likeness; without a number it shows nobody.
const figure = (said) => said.text || say("likeness.nobody");

function badge({ badge: said }) {
  return said ? [make("span", { class: `badge is-${said.level}`, title: say("likeness", said.name, figure(said)) }, figure(said))] : [];
}

function named(item) {
  const said = say("enlarge", item.prompt);
  return item.badge ? `${said} (${say("likeness", item.badge.name, figure(item.badge))})` : said;
}
