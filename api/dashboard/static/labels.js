// Which label a text has, and examples for it.
import { call } from "/dashboard/call.js";
import { element, made, onSubmit } from "/dashboard/dom.js";

async function give(text, label) {
  if (!label) throw new Error("Enter the label of this example.");
  await call("POST", "/texts", { text, label, source: "labels" });
  element("label-text").value = "";
  element("label-answer").replaceChildren(made("li", "Added."));
}

async function ask(text) {
  element("label-answer").replaceChildren(made("li", "Reading the examples…"));
  try {
    const { labels, examples, accuracy } = await call("POST", "/classify", { text });
    element("label-answer").replaceChildren(...labels.map((one) => made("li", `${one.label}: ${(100 * one.probability).toFixed(0)} %`)));
    element("labels-about").textContent = `Based on ${examples} examples; they predict ${(100 * accuracy).toFixed(0)} % of each other's labels correctly.`;
  } catch (error) {
    element("label-answer").replaceChildren();
    throw error;
  }
}

export function onLabels() {
  onSubmit("label", (pressed) => {
    const text = element("label-text").value, label = element("label-name").value.trim();
    return pressed.name === "give" ? give(text, label) : ask(text);
  });
}
