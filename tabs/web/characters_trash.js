const place = element.querySelector(".trash");

function paint() {
  place.replaceChildren(...(props.value || []).map(entry));
}

function entry(deleted) {
  const restore = make("button", { type: "button" }, say("trash.restore"));
  const purge = make("button", { type: "button", class: "purge" }, say("trash.purge"));
  restore.addEventListener("click", () => bringBack(deleted, ""));
  purge.addEventListener("click", () => {
    if (confirm(say("trash.ask_purge", deleted.name, deleted.count))) trigger("purge", { id: deleted.id });
  });
  const words = make("span", { class: "words" }, make("b", {}, deleted.name), make("small", {}, `${deleted.count} · ${deleted.when}`));
  return make("div", { class: "entry" }, words, restore, purge);
}

async function bringBack(deleted, word) {
  try {
    const answer = await server.restore({ entry: deleted.id, trigger: word });
    if (!answer.error) return trigger("restored", { id: answer.id });
    if (!answer.trigger) return alert(answer.error);
    const other = prompt(answer.error + "\n\n" + say("trash.ask_trigger"), answer.trigger);
    if (other) await bringBack(deleted, other);
  } catch (error) {
    alert(say("unreachable"));
  }
}

watch("value", paint);
paint();
