// The owner's texts: watched folders, searching, adding and deleting.
import { call } from "./call.js";
import { $, button, count, fill, h, later, number, onClick, onSubmit, plain, put, said, tell, toast, waiting, when } from "./dom.js";

const TEXTS = 50, MOST_BYTES = 1e6, IMPORT = "Use `pocketllm import`.", NEXT = "Names in it are suggested from now on; the rest it learns next.";
let look = async () => {}, serving = null;
let listed = "", next = null, sources = [];

const chosen = () => document.querySelector("[name=source]:checked")?.value ?? "";
const letters = (word) => word.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();

// The words of a query are marked where a text has them.
function marked(text, query) {
  const words = new Set(letters(query).match(/[\p{L}\p{N}]+/gu));
  if (!words.size) return [text];
  return text.split(/([\p{L}\p{M}\p{N}]+)/u).map((piece, place) => (place % 2 && words.has(letters(piece)) ? h("mark", piece) : piece));
}

// Around the first match of a long text, so that it is seen.
function passage(text, query) {
  const parts = marked(text, query), first = parts.findIndex((part) => part.nodeName === "MARK");
  const before = parts.slice(0, Math.max(0, first)).join("");
  return before.length < 80 ? parts : ["…", before.slice(-50), ...parts.slice(first)];
}

function textRow(text, query) {
  const old = waiting(text.id);
  if (old) return old;
  const name = text.label ? `label: ${text.label}` : text.held_out ? "for testing" : text.learned ? "learned" : "new";
  const whole = text.text + (text.completion ?? ""), body = h("span.body", passage(whole, query)), row = h("li");
  const more = h("button", { type: "button", class: "more", "aria-expanded": "false", onclick: () => {
    const isOpen = row.classList.toggle("open");
    more.setAttribute("aria-expanded", String(isOpen));
    body.replaceChildren(...(isOpen ? marked(whole, query) : passage(whole, query)));
  } }, body);
  const file = text.file && h("span", { title: text.file }, text.file.split("/").at(-1));
  row.append(h("div.what", more, h("div.meta", h("span", text.source), file, h("span", when(text.created_at)), h("span.size", count(text.words, "word")),
    h("span", { class: name === "new" ? "tag new" : "tag" }, name), button("Delete", "quiet", () => remove(text, row), `the text: ${whole.slice(0, 40)}`))));
  return row;
}

// What a deletion costs, in words.
function costOf({ adapters, serving: then }) {
  if (!adapters.length) return "Nothing has learned from it yet.";
  if (!adapters.includes(serving)) return "An older version has learned from it.";
  return `Your personal model has learned from it, and is withdrawn until it has learned the rest anew. Until then ${then ? "the version before it" : "the model as it came"} answers.`;
}

function told({ texts, adapters, copies, files }) {
  const withdrawn = adapters.includes(serving) ? " Your personal model is withdrawn until it has learned the rest anew." : "";
  if (!copies.length && !files.length) return toast(`Deleted ${count(texts, "text")}.${withdrawn}`);
  const inFiles = files.length ? ` These files still have it; it is not learned from them again: ${files.slice(0, 5).join(", ")}.` : "";
  tell(`Deleted ${count(texts, "text")}.${withdrawn}${inFiles}${copies.length ? ` These copies may still have it: ${copies.join(", ")}.` : ""}`);
}

async function remove(text, row) {
  const cost = costOf(await call("GET", `/deletions/cost?id=${text.id}`));
  later(text.id, row, "Deleting in", cost, async () => told((await call("DELETE", `/texts/${text.id}`)).deletion), () => { listed = ""; return look(); });
}

async function removeSource() {
  const source = chosen(), one = sources.find((found) => found.source === source), asked = new URLSearchParams({ source });
  if (!confirm(`Delete ${count(one.texts, "text")} from ${source}? ${costOf(await call("GET", `/deletions/cost?${asked}`))}`)) return;
  told(await call("DELETE", `/texts?${asked}`));
  await look();
}

// ---- The list: all texts, those of a source, or what is found
async function list(after) {
  const query = $("query").value.trim(), source = query ? "" : chosen();
  const page = await call("GET", `/texts?${new URLSearchParams({ limit: TEXTS, ...(query && { query }), ...(source && { source }), ...(after && { after }) })}`);
  const rows = page.data.map((text) => textRow(text, query));
  if (after) $("text-list").append(...rows);
  else fill($("text-list"), rows.length ? rows : h("li", h("p.hint", query ? "No text has these words." : "No texts yet. Add some, or watch a folder.")));
  next = page.next;
  $("more-texts").hidden = !page.has_more;
  put("more-texts", query ? "More" : "Older texts");
  put("found", query ? `${count($("text-list").querySelectorAll(".what").length, "text")} found${page.has_more ? ", and more" : ""}.` : "");
  $("delete-source").hidden = !source;
  put("delete-source", `Delete all from ${source}`);
}

function filters() {
  const before = sources.some((one) => one.source === chosen()) ? chosen() : "";
  const chip = (value, name, many) => h("label", h("input", { type: "radio", name: "source", value, "aria-label": name, onchange: again }), h("span", name, many !== undefined && h("small", ` ${number(many)}`)));
  const again = () => { $("query").value = ""; list().catch((error) => tell(error.message)); };
  fill($("filter"), chip("", "all"), sources.map((one) => chip(one.source, one.source, one.texts)));
  for (const one of document.querySelectorAll("[name=source]")) one.checked = one.value === before;
}

function folderRow(folder) {
  const one = sources.find(({ source }) => source === folder.name);
  const trouble = [folder.problem, folder.unreadable && `${count(folder.unreadable, "file")} cannot be read, or named in other than UTF-8.`,
    folder.nobodys.length && `None of the names in ${folder.nobodys[0]} is yours. Add the folder again with \`--me NAME\`.`,
    folder.vanished && `${count(folder.vanished, "file")} missing, and so kept. If you deleted them: \`pocketllm folders scan --forget\`.`];
  return h("li", h("div.line", h("code", folder.path), one?.new_words ? h("span.tag.new", `${number(one.new_words)} new`) : null),
    h("small", `${count(folder.texts, "text")}${one ? `, ${count(one.words, "word")}` : ""}; ${folder.scanned_at ? `read ${when(folder.scanned_at)}` : "not read yet"}`),
    trouble.filter(Boolean).map((text) => h("p.trouble", said(text))));
}

export async function showTexts({ texts, model }) {
  serving = model.adapter;
  const [{ data }, folders] = await Promise.all([call("GET", "/sources"), call("GET", "/folders")]);
  const now = JSON.stringify([data, model.adapter]);
  sources = data;
  put("texts-lead", texts.count ? `${count(texts.count, "text")} with ${number(data.reduce((sum, one) => sum + one.words, 0))} words, of which ${number(texts.new_words)} are new. They stay on this device.` : "None yet. They stay on this device.");
  fill($("folders"), folders.data.length ? folders.data.map(folderRow) : h("li", h("small", "None yet.")));
  if (now === listed) return;
  listed = now;
  filters();
  if (!$("text-list").querySelector(".open")) await list(); // else one reads
}

// ---- Adding
// told: what to say of it; more: its label and source. There is a way back.
export async function keep(text, told = `Added ${count(plain(text), "word")}. ${NEXT}`, more = { source: "page" }) {
  const { ids: [id], created } = await call("POST", "/texts", { text, ...more });
  await look();
  toast(created ? told : "It has this text already.", created ? async () => { await call("DELETE", `/texts/${id}`); await look(); } : null);
}

// Returns whether one is added.
export async function addFiles(files) {
  let added = 0, words = 0;
  try {
    for (const file of files) {
      if (file.size > MOST_BYTES) throw new Error(`${file.name} is too large for this page. ${IMPORT}`);
      const bytes = await file.arrayBuffer();
      let text;
      try { text = new TextDecoder("utf-8", { fatal: true }).decode(bytes); } catch { throw new Error(`${file.name} is not UTF-8 text. ${IMPORT}`); }
      if (text.trim()) { added++; words += plain(text); await call("POST", "/texts", { text, source: file.name.slice(0, 200) }); }
    }
    tell(null);
    toast(`Added ${count(added, "file")} with ${count(words, "word")}. ${NEXT}`);
  } catch (error) {
    tell(error.message);
  }
  await look();
  return added > 0;
}

// again: shows everything anew.
export function onTexts(again) {
  look = again;
  onSubmit("add", async () => { await keep($("new-text").value); $("new-text").value = ""; });
  onSubmit("search", () => list());
  $("query").addEventListener("search", () => { if (!$("query").value) list().catch((error) => tell(error.message)); }); // the cross in the field
  onClick("more-texts", () => list(next));
  onClick("delete-source", removeSource);
  $("files").addEventListener("change", async (event) => { await addFiles(event.target.files); event.target.value = ""; });
  addEventListener("dragover", (event) => event.preventDefault());
  addEventListener("drop", (event) => { event.preventDefault(); if (event.dataTransfer.files.length) addFiles(event.dataTransfer.files); });
}
