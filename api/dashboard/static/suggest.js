// A text field with the likeliest word in grey at the cursor, and three to choose from. Nothing typed is stored.
import { h } from "./dom.js";

const HEARD_MS = 900;

// field: in a box with a mirror and chips. ask: gives the suggestions behind a text, or throws. say: told what went wrong, or null.
// hear: told the suggestions once the writer rests.
export function suggests(field, ask, say = () => {}, hear = () => {}) {
  const box = field.closest(".paper"), mirror = box.querySelector(".mirror"), chips = box.querySelector(".chips");
  let found = [], replaces = 0, about = null, hidden = false, asking = false, again = false, heard = 0;
  const slots = [0, 1, 2].map((place) => {
    const slot = h("button", { type: "button", class: "chip", onclick: () => take(place) }, h("span"), h("kbd", place ? `Alt ${place + 1}` : "Tab"));
    slot.addEventListener("pointerdown", (event) => event.preventDefault()); // keeps a phone's keyboard
    return slot;
  });
  chips.append(...slots);
  const before = () => field.value.slice(0, field.selectionStart);
  const atEnd = () => field.selectionStart === field.selectionEnd && /^(\n|$)/.test(field.value.slice(field.selectionStart));
  const isFresh = () => about === before(); // else they are for another text
  const isShown = () => found.length > 0 && !hidden && isFresh() && atEnd() && document.activeElement === field;

  function paint() {
    const caret = field.selectionStart, old = !isFresh();
    const rest = isShown() ? [...found[0].text].slice(replaces).join("") : "";
    mirror.replaceChildren(`${field.value.slice(0, caret)}\u200b`, h("span.ghost", rest), `${field.value.slice(caret)}\u200b`);
    chips.classList.toggle("old", old && found.length > 0 && !hidden);
    slots.forEach((slot, place) => {
      const one = hidden ? null : found[place];
      slot.disabled = !one || old;
      slot.classList.toggle("none", !one);
      slot.firstChild.textContent = one?.text.trim() ?? "";
      slot.lastChild.hidden = !one;
    });
  }

  async function look() {
    again = asking;
    if (asking) return; // one question at a time; the last state of the field is asked about in the end
    asking = true;
    const asked = before();
    try {
      ({ suggestions: found, replaces } = asked.trim() ? await ask(asked) : { suggestions: [], replaces: 0 });
      about = asked;
      say(null);
    } catch (error) {
      [found, about] = [[], null];
      say(error);
    } finally {
      asking = false;
      paint();
      clearTimeout(heard);
      heard = setTimeout(() => { if (isShown()) hear(`Suggestions: ${found.map((one) => one.text).join(", ")}`); }, HEARD_MS);
      if (again) look();
    }
  }

  function take(place) {
    if (!found[place] || !isFresh()) return;
    const at = field.selectionStart, start = at - (replaces && [...before()].slice(-replaces).join("").length);
    field.setRangeText(`${found[place].text} `, start, at, "end");
    field.focus();
    field.dispatchEvent(new Event("input"));
  }

  field.addEventListener("input", () => {
    hidden = false;
    paint();
    look();
  });
  for (const event of ["focus", "blur"]) field.addEventListener(event, paint);
  document.addEventListener("selectionchange", () => {
    if (document.activeElement !== field) return;
    paint();
    if (!isFresh()) look();
  });
  field.addEventListener("keydown", (event) => {
    const digit = event.altKey && /^Digit[123]$/.test(event.code) ? Number(event.code[5]) : 0;
    const isTab = event.key === "Tab" && !event.shiftKey && !event.altKey && !event.ctrlKey;
    if (isTab && isShown()) { event.preventDefault(); take(0); }
    else if (isTab && found.length && !hidden && !isFresh() && asking) event.preventDefault();
    else if (event.key === "Escape" && found.length) { hidden = true; paint(); }
    else if (digit && found[digit - 1]) { event.preventDefault(); take(digit - 1); }
  });
  paint();
}
