// The newest lines; stays at the end unless somebody scrolled up.
function paint() {
  const log = element.querySelector(".log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 24;
  log.replaceChildren();
  for (const line of props.value || []) {
    const part = document.createElement("p");
    part.className = line.level;
    const time = document.createElement("time");
    time.textContent = new Date(line.at * 1000).toLocaleTimeString();
    part.append(time, line.text);
    log.append(part);
  }
  if (log.childElementCount === 0) log.textContent = say("log.empty");
  if (atEnd) log.scrollTop = log.scrollHeight;
}

paint();
watch("value", paint);
