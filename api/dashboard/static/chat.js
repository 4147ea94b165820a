// A chat whose answers come word by word. Nothing of it is kept.
import { streamed } from "./call.js";
import { $, h, onSubmit } from "./dom.js";

const messages = [];

async function ask() {
  const field = $("question"), asked = { role: "user", content: field.value }, said = $("said");
  const mine = h("p.me", field.value), theirs = h("p", "…");
  const show = (...nodes) => { said.append(...nodes); said.scrollTop = said.scrollHeight; };
  show(mine, theirs);
  field.value = "";
  try {
    let text = "";
    const answer = await streamed({ messages: [...messages, asked], max_tokens: 256 }, (piece) => {
      theirs.textContent = text += piece;
      said.scrollTop = said.scrollHeight;
    });
    theirs.textContent = answer.text;
    messages.push(asked, { role: "assistant", content: answer.text });
  } catch (error) {
    mine.remove();
    theirs.remove();
    field.value = asked.content;
    throw error;
  }
}

export function onChat() {
  onSubmit("ask", ask);
}
