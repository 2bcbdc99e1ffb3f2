function paint() {
  const lack = props.value || {};
  find(".lack").replaceChildren(...(lack.title ? [make("b", {}, lack.title), make("p", {}, lack.text)] : []));
}

paint();
watch("value", paint);
