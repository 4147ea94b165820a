// Which label a text has, and the examples that say so.
import { call } from "./call.js";
import { $, button, count, fill, h, onSubmit, put } from "./dom.js";
import { keep } from "./texts.js";

const ENOUGH = 3;

export async function showLabels() {
  const { data } = await call("GET", "/labels");
  const row = ({ label, examples, newest }) => h("li", h("details.what", h("summary", h("b", label), ` ${count(examples, "example")}${examples < ENOUGH ? `, ${ENOUGH - examples} more needed` : ""}`),
    h("ul", newest.map((text) => h("li.hint", text)))));
  if (!$("label-list").querySelector("[open]")) fill($("label-list"), data.map(row));
  fill($("label-names"), data.map(({ label }) => h("option", { value: label })));
  if (data.filter((one) => one.examples >= ENOUGH).length < 2) put("label-right", "Two labels with three examples each are enough to begin.");
}

const give = (text, label) => keep(text, `Kept as an example of “${label}”.`, { label, source: "labels" });

async function ask() {
  const text = $("label-text").value, answer = $("label-answer");
  answer.replaceChildren(h("p.hint", "Reading the examples…"));
  try {
    const found = await call("POST", "/classify", { text });
    const bar = ({ label, probability }) => h("div.bar", h("b", label), h("meter", { value: probability, "aria-label": label }), h("span", `${Math.round(100 * probability)} %`));
    const none = found.labels[0].probability < found.threshold;
    answer.replaceChildren(h("p", none ? "Perhaps none of these." : h("b", found.label)), h("div", { class: none ? "bars aside" : "bars" }, found.labels.slice(0, 6).map(bar)),
      h("div.line.wrap", h("span.hint", "Which one is right?"), found.labels.slice(0, 3).map(({ label }) => button(label, "plain", () => give(text, label), "an example"))));
    put("label-right", `Tested on your own examples, each by the others: right for ${Math.round(found.accuracy * found.examples)} of ${found.examples}.`);
  } catch (error) {
    answer.replaceChildren();
    throw error;
  }
}

export function onLabels() {
  onSubmit("classify", ask);
  onSubmit("give", async () => {
    await give($("example").value, $("label-name").value.trim());
    $("example").value = "";
  });
}
