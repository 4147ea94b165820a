// Helpers around the document. Everything that is shown is put in as text, never as markup.
const UNDO_SECONDS = 10;

export const $ = (id) => document.getElementById(id);

// tag: with its classes, as in "p.hint". given: attributes, if there are any, and children.
export function h(tag, ...given) {
  const [name, ...classes] = tag.split("."), found = document.createElement(name);
  if (classes.length) found.className = classes.join(" ");
  const attributes = given[0]?.constructor === Object ? given.shift() : {};
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) found.addEventListener(key.slice(2), value);
    else found.setAttribute(key, value === true ? "" : value);
  }
  found.append(...given.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return found;
}

export function s(tag, attributes = {}, text) {
  const found = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) found.setAttribute(name, value);
  if (text !== undefined) found.textContent = text;
  return found;
}

export function icon(name) {
  const found = s("svg", { "aria-hidden": "true" });
  found.append(s("use", { href: `#i-${name}` }));
  return found;
}

// A sentence, with what stands between backticks as code.
export const said = (text) => text.split("`").map((part, place) => (place % 2 ? h("code", part) : part));

// Put elements into a parent, unless they are there already, and leave the focus where it was.
export function fill(parent, ...children) {
  const found = children.flat().filter(Boolean), shell = parent.cloneNode(false);
  shell.append(...found.map((one) => (one.cloneNode ? one.cloneNode(true) : one)));
  if (shell.innerHTML === parent.innerHTML) return;
  const focused = parent.contains(document.activeElement) && document.activeElement.getAttribute("aria-label");
  parent.replaceChildren(...found);
  if (focused) parent.querySelector(`[aria-label="${CSS.escape(focused)}"]`)?.focus();
}

// about: what a screen reader says, where the name alone is not enough.
export const button = (name, kind, act, about) =>
  h("button", { type: "button", class: kind, "aria-label": about && `${name}: ${about}`, onclick: (event) => during(event.currentTarget, act) }, name);

// A button that was pressed waits until what it does is done, and says what went wrong.
export async function during(pressed, act) {
  pressed.disabled = true;
  tell(null);
  try {
    await act();
  } catch (error) {
    tell(error.message);
  } finally {
    pressed.disabled = false;
  }
}

// Nothing is written where it stands already: a screen reader would say it again.
export const put = (id, text) => { if ($(id).textContent !== text) $(id).textContent = text; };

export const onClick = (id, act) => $(id).addEventListener("click", (event) => during(event.currentTarget, act));

export function onSubmit(id, act) {
  $(id).addEventListener("submit", (event) => {
    event.preventDefault();
    during(event.submitter ?? event.target.querySelector("button"), act);
  });
}

// At the foot of the window, wherever one has scrolled to.
export function tell(problem) {
  $("problem").hidden = !problem;
  $("problem").replaceChildren(...(problem ? [h("span", said(problem)), button("Close", "plain", () => {})] : []));
}

// A word at the foot of the window, with a way back.
let toasted = 0;
export function toast(text, undo) {
  clearTimeout(toasted);
  const hide = () => $("toast").replaceChildren();
  const back = () => { hide(); return undo(); };
  $("toast").replaceChildren(h("span", said(text)), ...(undo ? [button("Undo", "plain", back)] : []));
  toasted = setTimeout(hide, UNDO_SECONDS * 1000);
}

// What is to happen in ten seconds unless it is taken back; leaving the page does it at once.
const pending = new Map();

// The row that says what is to happen to this.
export const waiting = (key) => pending.get(key)?.row;

// In the place of a row: what happens to it, and what it costs. done: called afterwards, whether it worked or not.
export function later(key, row, text, cost, act, done = () => {}) {
  const kept = [...row.childNodes];
  row.style.minHeight = `${row.offsetHeight}px`; // nothing below it moves
  let left = UNDO_SECONDS;
  const clock = h("span", { "aria-hidden": "true" }, `${left} s`);
  const stop = () => { clearInterval(timer); pending.delete(key); };
  const restore = () => { stop(); row.replaceChildren(...kept); row.style.minHeight = ""; };
  const back = () => { restore(); row.querySelector("button:last-child")?.focus(); };
  const run = async () => { stop(); await act(); };
  const timer = setInterval(() => {
    clock.textContent = `${--left} s`;
    if (!left) run().catch((error) => { restore(); tell(error.message); }).then(done);
  }, 1000);
  const undo = button("Undo", "plain", back);
  row.replaceChildren(h("div", { class: "what going", role: "status" }, h("p", text, " ", clock), h("small", cost)), undo);
  undo.focus();
  pending.set(key, { row, run });
  if (!row.isConnected) done(); // its list was drawn anew meanwhile
}

window.addEventListener("pagehide", () => [...pending.values()].forEach(({ run }) => run().catch(() => {})));

// A command, or a key, with a button that copies it.
export const command = (text) => h("div.command", h("code", text), button("Copy", "plain", () => navigator.clipboard.writeText(text).then(() => toast("Copied.")), text));


export const number = (value) => (value < 1e6 ? value.toLocaleString("en") : value.toLocaleString("en", { notation: "compact" }));
export const count = (value, one) => `${number(value)} ${one}${value === 1 ? "" : "s"}`;
export const plain = (text) => text.trim().split(/\s+/).filter(Boolean).length;
export const clock = (date) => new Date(date).toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
export const shortDay = (date) => new Date(date).toLocaleDateString("en-GB", { day: "numeric", month: "short" });
export const day = (date) => new Date(date).toLocaleDateString("en-GB", { weekday: "short", day: "numeric", month: "short" });

// A time as one says it today.
export function when(text, now = new Date()) {
  const date = new Date(text), off = Math.round((new Date(date).setHours(0, 0, 0, 0) - new Date(now).setHours(0, 0, 0, 0)) / 864e5);
  const name = { "-1": "yesterday", 0: "today", 1: "tomorrow" }[off];
  return Math.abs(off) > 300 ? date.toLocaleDateString("en-GB") : `${name ?? day(date)} ${clock(date)}`;
}

export function duration(seconds) {
  const minutes = Math.round(seconds / 60);
  return minutes < 1 ? "less than a minute" : minutes < 60 ? count(minutes, "minute") : `${(minutes / 60).toFixed(1)} hours`;
}

export const size = (bytes) => (bytes < 1e9 ? `${Math.round(bytes / 1e6)} MB` : `${(bytes / 1e9).toFixed(bytes < 1e10 ? 1 : 0)} GB`);

for (const place of document.querySelectorAll("[data-command]")) place.replaceWith(command(place.dataset.command));
