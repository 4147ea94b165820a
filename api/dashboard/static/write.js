// Writing with suggestions, and the first steps.
import { call } from "./call.js";
import { $, count, number, onClick, onSubmit, put } from "./dom.js";
import { suggests } from "./suggest.js";
import { addFiles, keep } from "./texts.js";

const SUGGEST_MS = 20000, SLOW_MS = 1500; // the first question loads the model
let model = null, lost = false, trouble = null;

function say() {
  const from = model?.adapter ? "From your model. Nothing typed is kept." : `${model?.withdrawn ? "Your model is withdrawn: this is" : "From"} the model as it came, with words that you use. Nothing typed is kept.`;
  put("from-say", lost ? "No suggestions until it answers again." : trouble ?? from);
}

async function suggestions(context) {
  const slow = setTimeout(() => { trouble = "Loading the model…"; say(); }, SLOW_MS);
  try {
    return await call("POST", "/suggest", { context, timeout_ms: SUGGEST_MS });
  } finally {
    clearTimeout(slow);
  }
}

export function showWriting(status) {
  model = status?.model ?? model;
  lost = !status;
  say();
}

// ---- First steps
export function showFirst({ texts, model: { ready } }) {
  $("step-add").classList.toggle("done", texts.count > 0);
  const enough = texts.new_words >= texts.threshold_words;
  put("first-say", !texts.count ? `Notes, letters, a diary, sent mail: ${number(texts.threshold_words)} words are enough to begin, more are better.`
    : `${count(texts.count, "text")} with ${count(texts.new_words, "word")} stored. ${enough ? "Enough for a first night." : `By itself it learns from ${number(texts.threshold_words)} on; add more whenever you like.`}`);
  $("first-now").disabled = !ready || !texts.new_words;
}

// look: shows everything anew.
export function onWriting(look) {
  const draft = $("draft");
  const told = (error) => { trouble = error && !(error instanceof TypeError) ? error.message : null; say(); };
  suggests(draft, suggestions, told, (text) => { put("heard", text); });
  suggests($("first-draft"), suggestions);
  onClick("keep", async () => {
    if (!draft.value.trim()) return draft.focus();
    await keep(draft.value);
  });
  const see = () => { $("first-draft").focus({ preventScroll: true }); $("step-see").scrollIntoView({ block: "center" }); };
  onSubmit("first-paste", async () => { await keep($("first-text").value); $("first-text").value = ""; see(); });
  $("first-files").addEventListener("change", async (event) => { if (await addFiles(event.target.files)) see(); event.target.value = ""; });
  onClick("first-now", async () => { await call("POST", "/jobs", {}); await look(); });
}
