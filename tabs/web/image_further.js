// Rows of a LoRA and its strength. Each edit makes a new value, so that the form's listeners hear of it.
const MOST = 7; // the character's own LoRA is the eighth

function paint() {
  const { choices, rows } = { choices: [], rows: [], ...props.value };
  const shown = rows.map((row, index) => {
    const options = choices.map(({ value, label }) => make("option", { value, selected: value === row.lora }, label));
    return make("div", { class: "row", "data-index": index },
      make("select", { "aria-label": say("further.lora", index + 1) }, ...options),
      make("input", { type: "number", step: 0.05, min: -4, max: 4, value: row.strength, "aria-label": say("further.strength", index + 1) }),
      make("button", { type: "button", class: "remove", "aria-label": say("further.remove"), title: say("further.remove") }, "✕"));
  });
  if (!choices.length) shown.push(make("p", {}, say("further.none")));
  else if (rows.length < MOST) shown.push(make("button", { type: "button", class: "add" }, say("further.add")));
  find(".further").replaceChildren(...shown);
}

function chosen() {
  return [...element.querySelectorAll(".row")].map((row) => ({
    lora: row.querySelector("select").value,
    strength: Number(row.querySelector("input").value),
  }));
}

function keep(rows) {
  props.value = { choices: props.value.choices, rows };
  trigger("change");
}

element.addEventListener("change", (event) => {
  if (event.target.matches("select, input")) keep(chosen());
});
element.addEventListener("click", (event) => {
  if (event.target.closest(".add")) {
    const taken = chosen().map((row) => row.lora);
    const free = props.value.choices.find((choice) => !taken.includes(choice.value)) || props.value.choices[0];
    keep([...chosen(), { lora: free.value, strength: 1 }]);
  } else if (event.target.closest(".remove")) {
    const index = Number(event.target.closest(".row").dataset.index);
    keep(chosen().filter((_, place) => place !== index));
  }
});
paint();
watch("value", paint);
