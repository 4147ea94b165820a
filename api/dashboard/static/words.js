// The owner's texts: folders that are watched, texts by source, searching, adding and deleting.
import { call } from "/dashboard/call.js";
import { button, count, element, fill, later, made, onSubmit, takeBack, tell, when } from "/dashboard/dom.js";

const TEXTS = 50, LINE = 80, MOST_BYTES = 1e6;
let look = async () => {};
let listed = ""; // the sources that are listed

// Returns the sources.
export async function showWords({ texts }) {
  element("texts-count").textContent = `${count(texts.count, "text")}, ${count(texts.new_words, "new word")}.`;
  element("empty").hidden = texts.count > 0;
  fill(element("folders"), (await call("GET", "/folders")).data.map(folderItem));
  const { data } = await call("GET", "/sources");
  if (!element("query").value.trim()) showSources(data);
  return data;
}

function folderItem(folder) {
  const item = made("li");
  item.append(made("strong", folder.name), ` ${folder.path}: ${count(folder.texts, "text")}`);
  item.append(made("p", folder.scanned_at ? `scanned ${when(folder.scanned_at)}` : "not scanned yet", "faint"));
  if (folder.problem) item.append(made("p", folder.problem, "bad"));
  if (folder.unreadable) item.append(made("p", `${count(folder.unreadable, "file")} cannot be read, or named in other than UTF-8.`, "bad"));
  if (folder.nobodys.length) item.append(made("p", `None of the names in ${folder.nobodys[0]} is yours. Add the folder again with \`--me NAME\`.`, "bad"));
  if (folder.vanished) item.append(made("p", `${count(folder.vanished, "file")} missing. If you deleted them: \`pocketllm folders scan --forget\`.`, "bad"));
  return item;
}

function showSources(sources) {
  const now = JSON.stringify(sources);
  if (now === listed) return;
  const open = new Set([...element("texts").querySelectorAll(":scope > details[open]")].map((one) => one.dataset.source));
  listed = now;
  element("texts").replaceChildren(...sources.map((source) => sourceItem(source, open.has(source.source))));
}

function sourceItem({ source, texts, words }, isOpen) {
  const item = made("details"), list = made("ul"), name = made("summary");
  name.textContent = `${source}: ${count(texts, "text")}, ${count(words, "word")}`;
  item.dataset.source = source;
  item.append(name, list);
  const show = async (after) => {
    const asked = new URLSearchParams({ limit: TEXTS, source, ...(after && { after }) });
    const page = await call("GET", `/texts?${asked}`);
    list.append(...page.data.map(textItem));
    more.hidden = !page.has_more;
    more.onclick = () => show(page.next);
  };
  const more = button("Older texts", source, () => {});
  const all = button("Delete all", source, () => removeAll(source, texts));
  more.hidden = true;
  item.append(more, all);
  item.addEventListener("toggle", () => { if (item.open && !list.children.length) show().catch((error) => tell(error.message)); });
  item.open = isOpen;
  return item;
}

async function removeAll(source, texts) {
  const asked = new URLSearchParams({ source });
  const { summary } = await call("GET", `/deletions/cost?${asked}`);
  if (!confirm(`Delete ${count(texts, "text")} from ${source}? ${summary}`)) return;
  const receipt = await call("DELETE", `/texts?${asked}`);
  await look();
  return receipt.summary;
}

function textItem(text) {
  const item = made("li"), folded = made("details"), first = made("summary"), words = made("pre");
  const whole = text.text + (text.completion ?? "") + (text.label ? ` [${text.label}]` : "");
  const line = whole.trim().split("\n", 1)[0];
  first.textContent = line.length > LINE ? `${line.slice(0, LINE)}…` : line;
  words.textContent = whole;
  folded.append(first, words);
  const about = `text of ${when(text.created_at)}`;
  const buttons = made("p");
  const offer = () => buttons.replaceChildren(button("Delete", about, remove));
  const remove = async () => {
    const { summary } = await call("GET", `/deletions/cost?id=${text.id}`);
    later(text.id, async () => {
      const { deletion } = await call("DELETE", `/texts/${text.id}`);
      item.remove();
      await look();
      tell(deletion.adapters.length || deletion.copies.length || deletion.files.length ? deletion.summary : null);
    }, offer);
    const undo = async () => { takeBack(text.id); offer(); };
    buttons.replaceChildren(made("span", `Deleting in ten seconds. ${summary} `), button("Undo", about, undo));
  };
  offer();
  folded.append(made("p", `${text.source}, ${when(text.created_at)}, ${count(text.words, "word")}`, "faint"), buttons);
  item.append(folded);
  return item;
}

async function search() {
  const query = element("query").value.trim();
  listed = "";
  if (!query) { await look(); return; }
  const page = await call("GET", `/texts?${new URLSearchParams({ limit: TEXTS, query })}`);
  const list = made("ul");
  list.append(...page.data.map(textItem));
  element("texts").replaceChildren(made("p", page.data.length ? `${count(page.data.length, "text")} found${page.has_more ? ", and more" : ""}:` : "No text contains these words.", "faint"), list);
}

async function add() {
  const field = element("new-text");
  await call("POST", "/texts", { text: field.value, source: "page" });
  field.value = "";
  await look();
}

async function addFiles(files) {
  try {
    for (const file of files) {
      if (file.size > MOST_BYTES) throw new Error(`${file.name} is too large for this page. Use \`pocketllm import\`.`);
      const text = new TextDecoder("utf-8", { fatal: true });
      const words = await file.arrayBuffer().then((bytes) => text.decode(bytes)).catch(() => { throw new Error(`${file.name} is not UTF-8 text. Use \`pocketllm import\`.`); });
      if (words.trim()) await call("POST", "/texts", { text: words, source: file.name.slice(0, 200) });
    }
    tell(null);
  } catch (error) {
    tell(error.message);
  }
  element("files").value = "";
  await look();
}

// again: shows everything anew.
export function onWords(again) {
  look = again;
  onSubmit("add", add);
  onSubmit("search", search);
  element("query").addEventListener("search", () => search().catch((error) => tell(error.message))); // the cross in the field
  element("files").addEventListener("change", (event) => addFiles(event.target.files));
  const drop = element("drop");
  drop.addEventListener("dragover", (event) => event.preventDefault());
  drop.addEventListener("drop", (event) => { event.preventDefault(); addFiles(event.dataTransfer.files); });
}
