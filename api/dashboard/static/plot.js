// Line plots in SVG: axes with a few numbers, and a line for each series.
const SPACE = "http://www.w3.org/2000/svg";
const LEFT = 56, RIGHT = 632, TOP = 12, BOTTOM = 190;

function shape(name, attributes, text) {
  const made = document.createElementNS(SPACE, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

// series: [{name, points: [[x, y], ...], dots}, ...]; the name is the line's class, dots: whether points are marked. write: how numbers on an axis are shown.
export function plot(svg, series, { writeX = String, writeY = String, from = null, to = null } = {}) {
  const points = series.flatMap((one) => one.points);
  if (!points.length) {
    svg.replaceChildren();
    return;
  }
  const xs = points.map((point) => point[0]), ys = points.map((point) => point[1]);
  const x0 = from ?? Math.min(...xs), x1 = to ?? Math.max(...xs), width = x1 - x0 || 1;
  const low = Math.min(...ys), high = Math.max(...ys), margin = (high - low) * 0.05 || Math.abs(high) * 0.05 || 1;
  const y0 = low - margin, y1 = high + margin;
  const place = ([x, y]) => [
    (LEFT + ((x - x0) / width) * (RIGHT - LEFT)).toFixed(1),
    (BOTTOM - ((y - y0) / (y1 - y0)) * (BOTTOM - TOP)).toFixed(1),
  ];
  const parts = [];
  for (const value of [low, (low + high) / 2, high]) {
    const [, y] = place([x0, value]);
    parts.push(shape("line", { class: "grid", x1: LEFT, x2: RIGHT, y1: y, y2: y }));
    parts.push(shape("text", { x: LEFT - 8, y: Number(y) + 5, "text-anchor": "end" }, writeY(value)));
  }
  parts.push(shape("text", { x: LEFT, y: 212 }, writeX(x0)));
  parts.push(shape("text", { x: RIGHT, y: 212, "text-anchor": "end" }, writeX(x1)));
  for (const { name, points: line, dots } of series) {
    const drawn = line.length === 1 ? [line[0], line[0]] : line;
    parts.push(shape("polyline", { class: name, points: drawn.map((point) => place(point).join(",")).join(" ") }));
    if (dots) for (const [cx, cy] of line.map(place)) parts.push(shape("circle", { class: name, cx, cy, r: 4 }));
  }
  svg.replaceChildren(...parts);
}
