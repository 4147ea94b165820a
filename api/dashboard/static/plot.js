// Line plots in SVG, as large as their place.
import { number, s } from "./dom.js";

const BOTTOM = 26;

// lines: [{ name, points: [[x, y], ...] }, ...]; dots: [[x, y, name], ...]; labels: [[x, text], ...] of the x axis, none for a small plot.
// area: whether what lies between the first two lines is filled, and y begins at 0. write: how numbers on the y axis are shown.
export function plot(place, { lines, dots = [], labels = [], area = false, write = number }) {
  const points = [...lines.flatMap((line) => line.points), ...dots];
  const { clientWidth: width, clientHeight: height } = place;
  if (!points.length || !width) return place.replaceChildren();
  const xs = points.map((point) => point[0]), ys = points.map((point) => point[1]), x0 = Math.min(...xs), across = Math.max(...xs) - x0 || 1;
  const high = Math.max(...ys), low = area ? 0 : Math.min(...ys), top = high + ((high - low) * 0.08 || 1), step = steps((top - low) / 4);
  const ticks = labels.length ? Array.from({ length: 9 }, (_, i) => (Math.ceil(low / step) + i) * step).filter((value) => value <= top) : [];
  const left = ticks.length ? 14 + 7 * Math.max(...ticks.map((value) => write(value).length)) : 0, bottom = height - (ticks.length ? BOTTOM : 4);
  const x = (value) => (left + (value - x0) / across * (width - left - 8)).toFixed(1), y = (value) => (8 + (top - value) / (top - low) * (bottom - 8)).toFixed(1);
  const path = (some) => some.map((point) => `${x(point[0])},${y(point[1])}`).join(" ");
  const svg = s("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  for (const value of ticks) svg.append(s("line", { class: "grid", x1: left, x2: width - 8, y1: y(value), y2: y(value) }), s("text", { x: left - 8, y: Number(y(value)) + 4, "text-anchor": "end" }, write(value)));
  for (const [at, text] of labels) svg.append(s("text", { x: x(at), y: height - 4, "text-anchor": at - x0 < across / 4 ? "start" : at - x0 > 0.75 * across ? "end" : "middle" }, text));
  if (area) svg.append(s("polygon", { class: "area", points: path([...lines[0].points, ...lines[1].points.toReversed()]) }));
  for (const { name, points: some } of lines) svg.append(s("polyline", { class: `l-${name}`, points: path(some.length === 1 ? [some[0], some[0]] : some) }));
  for (const [at, value, name] of dots) svg.append(s("circle", { class: `dot ${name}`, cx: x(at), cy: y(value), r: 5 }));
  place.replaceChildren(svg);
}

// The next of 1, 2, 5, 10, ...
function steps(least) {
  const power = 10 ** Math.floor(Math.log10(least));
  return power * [1, 2, 5, 10].find((one) => one * power >= least);
}
