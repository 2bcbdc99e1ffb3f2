// Rows of a LoRA and its strength. Each edit makes a new value, so that the form's listeners hear of it.
const MOST = 7; // the character's own LoRA is the eighth

function rows() {
  return [...element.querySelectorAll(".row")].map((row) => ({
    lora: row.querySelector("select").value,
    strength: Number(row.querySelector("input").value),
  }));
}

function keep(kept) {
  const choices = props.value.choices;
  const shown = kept.map((row) => ({
    ...row,
    options: choices.map((choice) => ({ ...choice, selected: choice.value === row.lora })),
  }));
  props.value = { choices, rows: shown, more: shown.length < MOST };
  trigger("change");
}

element.addEventListener("change", (event) => {
  if (event.target.matches("select, input")) keep(rows());
});
element.addEventListener("click", (event) => {
  if (event.target.closest(".add")) {
    const taken = rows().map((row) => row.lora);
    const free = props.value.choices.find((choice) => !taken.includes(choice.value)) || props.value.choices[0];
    keep([...rows(), { lora: free.value, strength: 1 }]);
  } else if (event.target.closest(".remove")) {
    const index = Number(event.target.closest(".row").dataset.index);
    keep(rows().filter((_, place) => place !== index));
  }
});
