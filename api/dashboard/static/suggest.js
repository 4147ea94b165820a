// A text field that suggests the next words as one types: a click or Alt+1 to Alt+3 takes one. Nothing typed is stored.

const LETTERS = /[\p{L}\p{N}\p{M}'’]*$/u; // of the word that is being typed

// list: takes a button for each suggestion. ask: gives the suggestions behind a text, or throws.
export function suggestAsTyped(field, list, ask) {
  let asking = false, again = false;

  async function suggest() {
    again = asking;
    if (asking) return; // one question at a time; the last state of the field is asked about in the end
    asking = true;
    const before = field.value.slice(0, field.selectionStart);
    try {
      const found = before.trim() ? await ask(before) : [];
      list.replaceChildren(...found.map(({ text, probability }, place) => {
        const one = document.createElement("button");
        one.type = "button";
        one.textContent = text;
        one.title = `${(100 * probability).toFixed(1)} %, Alt+${place + 1}`;
        one.addEventListener("click", () => take(text));
        return one;
      }));
    } catch (error) {
      list.replaceChildren(error.message);
    } finally {
      asking = false;
      if (again) suggest();
    }
  }

  function take(text) {
    const at = field.selectionStart;
    const begun = field.value.slice(0, at).match(LETTERS)[0];
    field.setRangeText(`${text} `, at - begun.length, at, "end");
    field.focus();
    suggest();
  }

  field.addEventListener("input", suggest);
  field.addEventListener("keydown", (event) => {
    const one = event.altKey && list.querySelectorAll("button")[Number(event.key) - 1];
    if (!one) return;
    event.preventDefault();
    one.click();
  });
}
