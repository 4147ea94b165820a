// Small helpers around the document. Everything that is shown is put in as text, never as markup.
const UNDO_MS = 10000;

export const element = (id) => document.getElementById(id);

export function made(tag, text, kind) {
  const found = document.createElement(tag);
  if (text !== undefined) found.append(...said(text));
  if (kind) found.className = kind;
  return found;
}

// A sentence, with what stands between backticks as code.
export function said(text) {
  return String(text).split("`").map((part, place) => {
    if (place % 2 === 0) return part;
    const code = document.createElement("code");
    code.textContent = part;
    return code;
  });
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

// A button that was pressed waits until what it does is done, and says what went wrong, or what the act returns to say.
export async function during(pressed, act) {
  pressed.disabled = true;
  try {
    const told = await act();
    tell(typeof told === "string" ? told : null);
  } catch (error) {
    tell(error.message);
  } finally {
    pressed.disabled = false;
  }
}

export function onClick(id, act) {
  element(id).addEventListener("click", (event) => during(event.target, act));
}

// act: called with the button that was pressed.
export function onSubmit(id, act) {
  element(id).addEventListener("submit", (event) => {
    event.preventDefault();
    const pressed = event.submitter ?? event.target.querySelector("button");
    during(pressed, () => act(pressed));
  });
}

// At the bottom of the window, wherever one has scrolled to.
export function tell(problem) {
  const place = element("problem");
  place.hidden = !problem;
  place.replaceChildren(...said(problem ?? ""));
}

// What is to happen in ten seconds unless it is taken back, by a key; leaving the page does it at once.
const pending = new Map();

export const isPending = (key) => pending.has(key);

// failed: called when it could not be done.
export function later(key, act, failed = () => {}) {
  const run = () => {
    clearTimeout(pending.get(key)?.timer);
    if (pending.delete(key)) return act();
  };
  const late = (error) => { tell(error.message); failed(); };
  pending.set(key, { run, timer: setTimeout(() => run().catch(late), UNDO_MS) });
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
