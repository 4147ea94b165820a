// The owner's texts: adding one, searching, and deleting.
import { call } from "/dashboard/call.js";
import { button, count, element, later, made, takeBack, tell, when } from "/dashboard/dom.js";

const TEXTS = 50, LINE = 80;
let oldest = null; // the last text of those that are shown

export async function showTexts(after = null) {
  const query = element("query").value.trim();
  const asked = new URLSearchParams({ limit: TEXTS, ...(query && { query }), ...(after && { after }) });
  const page = await call("GET", `/texts?${asked}`);
  if (!after) element("texts").replaceChildren();
  for (const text of page.data) sourceList(text.source, query).append(textItem(text));
  for (const group of element("texts").children) tally(group);
  if (!page.data.length && !after) element("texts").append(made("p", query ? "No text has these words." : "No texts yet.", "faint"));
  oldest = page.next;
  element("more-texts").hidden = !page.has_more;
}

export const showOlderTexts = () => showTexts(oldest);

// Texts of one source are together, but what a search finds is in its own order.
function sourceList(source, query) {
  for (const group of element("texts").children) if (query || group.dataset.source === source) return group.lastChild;
  const group = made("details");
  group.dataset.source = query ? "Found" : source;
  group.open = Boolean(query);
  group.append(made("summary"), made("ul"));
  element("texts").append(group);
  return group.lastChild;
}

function tally(group) {
  if (!group.dataset.source) return;
  const shown = group.lastChild.children.length;
  if (shown) group.firstChild.textContent = `${group.dataset.source}: ${count(shown, "text")}`;
  else group.remove();
}

function textItem(text) {
  const item = made("li"), folded = made("details");
  const whole = text.text + (text.completion ?? "") + (text.label ? ` [${text.label}]` : "");
  const line = whole.trim().split("\n", 1)[0];
  folded.append(made("summary", line.length > LINE ? `${line.slice(0, LINE)}…` : line), made("pre", whole));
  const about = `text of ${when(text.created_at)}`;
  const buttons = made("p");
  const remove = async () => {
    later(text.id, async () => {
      const { deletion } = await call("DELETE", `/texts/${text.id}`);
      tell(deletion.adapters.length || deletion.copies.length ? deletion.summary : null);
      const group = item.closest("#texts > details");
      item.remove();
      if (group) tally(group);
    });
    const undo = async () => { takeBack(text.id); buttons.replaceChildren(button("Delete", about, remove)); };
    const note = made("span", "Is deleted in ten seconds. ");
    buttons.replaceChildren(note, button("Undo", about, undo));
    folded.open = true;
    note.append(`${(await call("GET", `/deletions/cost?id=${text.id}`)).summary} `);
  };
  buttons.append(button("Delete", about, remove));
  folded.append(made("p", `${when(text.created_at)}, ${count(text.words, "word")}`, "faint"), buttons);
  item.append(folded);
  return item;
}

export async function addText(field) {
  await call("POST", "/texts", { text: field.value, source: "dashboard" });
  field.value = "";
  await showTexts();
}
