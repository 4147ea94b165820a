// The page: signing in, and watching.
import { onApps, showApps } from "/dashboard/apps.js";
import { beginSession, call, forgetSession, isSignedIn, onRefusal } from "/dashboard/call.js";
import { element, said, tell } from "/dashboard/dom.js";
import { onLabels } from "/dashboard/labels.js";
import { onLearned, showLearned } from "/dashboard/learned.js";
import { onState, showState } from "/dashboard/state.js";
import { onWords, showWords } from "/dashboard/words.js";
import { onWriting } from "/dashboard/write.js";

const LOOK_MS = 2000;
let round = 0; // of signing in and out: the watch of an earlier one ends

async function look() {
  const status = await call("GET", "/status");
  const { model } = status;
  element("model").replaceChildren(...said(`${model.name}, ${model.adapter ? "personal" : "base model"}${model.ready && model.message ? `. ${model.message}` : ""}`));
  const sources = await showWords(status);
  showState(status, await showLearned(status), sources);
  await showApps();
}

async function watch(mine) {
  if (mine !== round) return;
  if (document.visibilityState === "visible") {
    try {
      await look();
      if (element("problem").dataset.lost) { tell(null); delete element("problem").dataset.lost; }
    } catch (error) {
      tell(error instanceof TypeError ? "The daemon does not answer. Is it running?" : error.message);
      element("problem").dataset.lost = "yes";
    }
  }
  setTimeout(watch, LOOK_MS, mine);
}

function signOut() {
  forgetSession();
  round++;
  for (const id of ["home", "sign-out"]) element(id).hidden = true;
  element("sign-in").hidden = false;
}

async function signIn() {
  try {
    await look();
  } catch (error) {
    tell(error.message);
    return;
  }
  tell(null);
  for (const id of ["home", "sign-out"]) element(id).hidden = false;
  element("sign-in").hidden = true;
  watch(++round);
}

element("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  const token = element("token").value.trim();
  element("token").value = "";
  beginSession(token).then(signIn, (error) => tell(error.message));
});
element("sign-out").addEventListener("click", async () => {
  const ended = call("DELETE", "/sessions").catch(() => {}); // the daemon may be gone
  signOut();
  await ended;
  location.reload(); // which forgets all that was shown
});
onRefusal(signOut);
for (const begin of [onState, onLearned, onWords]) begin(look);
for (const begin of [onWriting, onLabels, onApps]) begin();

// `pocketllm dashboard` opens this page with a code that is good once; what is left in the history is worth nothing.
async function enter() {
  const code = new URLSearchParams(location.hash.slice(1)).get("code");
  if (code) {
    history.replaceState(null, "", "/");
    await beginSession(code).catch((error) => tell(error.message));
  }
  if (isSignedIn()) await signIn();
  else signOut();
}

window.addEventListener("hashchange", enter); // where the page was open already
enter();
