// Loss by step. Drawn when the points or the width change, and never else.
const chart = element.querySelector(".chart");
const output = element.querySelector("output");
const edge = { left: 48, right: 10, top: 8, bottom: 34 };
let scale = null;

function ticks(low, high, most) {
  const rough = (high - low) / most || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step / 1e6; at += step) found.push(Number(at.toPrecision(10)));
  return found;
}

function draw() {
  const { loss = [], smooth = [], validation = [], steps = 1 } = props.value || {};
  const points = [...loss, ...validation];
  chart.classList.toggle("none", points.length === 0);
  svg.replaceChildren();
  scale = null;
  const width = svg.clientWidth, height = svg.clientHeight;
  if (points.length === 0 || width === 0) return;
  const values = points.map(([, value]) => value).sort((a, b) => a - b);
  // A single wild step must not press everything else flat.
  const high = Math.max(values[Math.floor((values.length - 1) * 0.995)], ...validation.map(([, value]) => value));
  const pad = (high - values[0]) * 0.06 || 0.01;
  const low = Math.max(0, values[0] - pad), top = high + pad;
  const right = Math.max(steps, points.at(-1)[0]);
  const x = (step) => edge.left + (step / right) * (width - edge.left - edge.right);
  const y = (value) => edge.top + (1 - (Math.min(value, top) - low) / (top - low)) * (height - edge.top - edge.bottom);
  const bottom = height - edge.bottom;
  for (const at of ticks(low, top, 5)) {
    shape("line", { class: "grid", x1: edge.left, x2: width - edge.right, y1: y(at), y2: y(at) });
    shape("text", { x: edge.left - 8, y: y(at) + 4, "text-anchor": "end" }, String(at));
  }
  for (const at of ticks(0, right, Math.max(3, Math.floor(width / 110)))) {
    shape("line", { class: "grid", x1: x(at), x2: x(at), y1: edge.top, y2: bottom });
    shape("text", { x: x(at), y: bottom + 16, "text-anchor": "middle" }, at.toLocaleString("en"));
  }
  shape("text", { x: (edge.left + width - edge.right) / 2, y: height - 3, "text-anchor": "middle" }, say("chart.step"));
  const path = (line) => line.map(([step, value], place) => (place ? "L" : "M") + x(step).toFixed(1) + " " + y(value).toFixed(1)).join("");
  for (const [name, line] of [["raw", loss], ["smooth", smooth], ["validation", validation]]) shape("path", { class: name, d: path(line) });
  for (const [step, value] of validation) shape("circle", { cx: x(step), cy: y(value), r: 2.6 });
  scale = { x, right, width, bottom, cursor: shape("line", { class: "cursor", x1: 0, x2: 0, y1: edge.top, y2: bottom, visibility: "hidden" }) };
}

const nearest = (line, step) => line.reduce((best, point) => (Math.abs(point[0] - step) < Math.abs(best[0] - step) ? point : best), line[0]);

svg.addEventListener("pointermove", (event) => {
  if (!scale) return;
  const { loss, smooth, validation } = props.value;
  const at = event.clientX - svg.getBoundingClientRect().left;
  const step = Math.round(((at - edge.left) / (scale.width - edge.left - edge.right)) * scale.right);
  const here = nearest(loss.length ? loss : validation, step);
  scale.cursor.setAttribute("x1", scale.x(here[0]));
  scale.cursor.setAttribute("x2", scale.x(here[0]));
  scale.cursor.setAttribute("visibility", "visible");
  const said = [say("chart.step") + " " + here[0]];
  if (loss.length) said.push(nearest(loss, here[0])[1].toFixed(4), say("chart.smooth") + " " + nearest(smooth, here[0])[1].toFixed(4));
  if (validation.length) {
    const [, value] = nearest(validation, here[0]);
    said.push(say("chart.validation") + " " + value.toFixed(4));
  }
  output.textContent = said.join(" · ");
});
svg.addEventListener("pointerleave", () => {
  if (scale) scale.cursor.setAttribute("visibility", "hidden");
  output.textContent = "";
});

let drawnWidth = 0;
new ResizeObserver(() => {
  if (svg.clientWidth !== drawnWidth) { drawnWidth = svg.clientWidth; draw(); }
}).observe(element);
draw();
watch("value", draw);
