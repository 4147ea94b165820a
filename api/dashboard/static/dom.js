// Small helpers around the document. Everything that is shown is put in as text, never as markup.
const UNDO_MS = 10000;

export const element = (id) => document.getElementById(id);

export function made(tag, text, kind) {
  const found = document.createElement(tag);
  if (text !== undefined) found.textContent = text;
  if (kind) found.className = kind;
  return found;
}

// Put children into a list, unless they are there already, and leave the focus where it was.
export function fill(parent, children) {
  const before = made("div");
  before.append(...children);
  if (before.innerHTML === parent.innerHTML) return;
  const focused = parent.contains(document.activeElement) && document.activeElement.getAttribute("aria-label");
  parent.replaceChildren(...children);
  if (focused) parent.querySelector(`[aria-label="${CSS.escape(focused)}"]`)?.focus();
}

export function button(name, about, act) {
  const found = made("button", name);
  found.type = "button";
  found.setAttribute("aria-label", `${name}: ${about}`);
  found.addEventListener("click", () => during(found, act));
  return found;
}

// A button that was pressed waits until what it does is done, and says what went wrong.
export async function during(pressed, act) {
  pressed.disabled = true;
  try {
    await act();
    tell(null);
  } catch (error) {
    tell(error.message);
  } finally {
    pressed.disabled = false;
  }
}

export function tell(problem) {
  element("problem").hidden = !problem;
  element("problem").textContent = problem ?? "";
}

// What is to happen in ten seconds unless it is taken back, by a key; leaving the page does it at once.
const pending = new Map();

export const isPending = (key) => pending.has(key);

export function later(key, act) {
  const run = () => {
    clearTimeout(pending.get(key)?.timer);
    if (pending.delete(key)) return act();
  };
  pending.set(key, { run, timer: setTimeout(() => run().catch((error) => tell(error.message)), UNDO_MS) });
}

export function takeBack(key) {
  clearTimeout(pending.get(key)?.timer);
  pending.delete(key);
}

window.addEventListener("pagehide", () => [...pending.values()].forEach(({ run }) => run().catch(() => {})));

export const loss = (value) => (value === null ? "–" : value.toFixed(4));
export const number = (value) => value.toLocaleString("en");
export const count = (value, one) => `${number(value)} ${one}${value === 1 ? "" : "s"}`;
export const when = (text) => new Date(text).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });

export function duration(seconds) {
  const minutes = Math.round(seconds / 60);
  return minutes < 1 ? "less than a minute" : minutes < 60 ? `${minutes} min` : `${(minutes / 60).toFixed(1)} h`;
}
