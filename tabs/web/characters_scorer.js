// What the photos suggest, under the field where something else may be chosen.
function paint() {
  const { scorer } = props.value || {};
  find(".suggested").replaceChildren(...(scorer ? [say("scorer.suggested", say(`scorer.${scorer}`))] : []));
}

paint();
watch("value", paint);
