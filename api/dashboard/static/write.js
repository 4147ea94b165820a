// Writing with suggestions, and a chat. Nothing typed is stored.
import { call } from "/dashboard/call.js";
import { element, made, onSubmit } from "/dashboard/dom.js";
import { suggestAsTyped } from "/dashboard/suggest.js";

const SUGGEST_MS = 20000; // the first question loads the model
const messages = [];

async function suggestions(context) {
  const { suggestions, adapter } = await call("POST", "/suggest", { context, timeout_ms: SUGGEST_MS });
  element("suggested-by").textContent = adapter ? "From your personal model." : "From the base model: no adapter is served yet.";
  return suggestions;
}

async function chat() {
  const field = element("question"), asked = { role: "user", content: field.value };
  const waiting = made("p", "…", "faint");
  element("said").append(made("p", field.value, "mine"), waiting);
  try {
    const { text } = await call("POST", "/generate", { messages: [...messages, asked], max_tokens: 256 });
    messages.push(asked, { role: "assistant", content: text });
    field.value = "";
    waiting.replaceWith(made("p", text));
  } catch (error) {
    waiting.previousSibling.remove();
    waiting.remove();
    throw error;
  }
}

export function onWriting() {
  suggestAsTyped(element("writing"), element("suggestions"), suggestions);
  onSubmit("chat", chat);
}
