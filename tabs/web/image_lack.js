function paint() {
  const lack = props.value || {};
  find(".lack").replaceChildren(make("b", {}, lack.title || ""), make("p", {}, lack.text || ""));
}

paint();
watch("value", paint);
