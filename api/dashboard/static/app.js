// The page: signing in, its sections, and watching the daemon.
import { onApps, showApps } from "./apps.js";
import { beginSession, call, forgetSession, isSignedIn, onRefusal } from "./call.js";
import { onChat } from "./chat.js";
import { $, icon, put, tell } from "./dom.js";
import { onLabels, showLabels } from "./labels.js";
import { onLearned, showLearned } from "./learned.js";
import { onNights, showNights } from "./nights.js";
import { onNow, showLost, showNow } from "./now.js";
import { onTexts, showTexts } from "./texts.js";
import { onWriting, showFirst, showWriting } from "./write.js";

const LOOK_MS = 2000, VIEWS = [...document.querySelectorAll(".view")].map((view) => view.id);
let round = 0; // of signing in and out: the watch of an earlier one ends
let isFirst = false; // it is led by the hand until the first night
let shown = null;

function showView() {
  let name = location.hash.slice(2); // "#/nights": no element has that id, so that the browser scrolls to none
  if (!VIEWS.includes(name)) name = "write";
  const view = isFirst && name === "write" ? "first" : name;
  if (view === shown) return;
  for (const id of VIEWS) $(id).classList.toggle("on", id === view);
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#/${name}`) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
  $("now").classList.toggle("small", !["write", "first", "nights"].includes(view));
  if (shown !== null && shown !== "first") {
    scrollTo(0, 0);
    $(view).querySelector("h2").focus({ preventScroll: true });
  }
  shown = view;
}

async function look() {
  const [status, { data: jobs }] = await Promise.all([call("GET", "/status"), call("GET", "/jobs?limit=20")]);
  isFirst = !status.jobs.succeeded && !status.model.adapter && (isFirst || !status.texts.count);
  const choices = await showLearned(status, jobs);
  showNow(status, jobs, choices);
  showView();
  showWriting(status);
  put("about", `PocketLLM ${status.version}, model ${status.model.name}. Nothing leaves this device.`);
  if (isFirst) showFirst(status);
  await showNights(status, jobs);
  if (shown === "texts") await showTexts(status);
  if (shown === "labels") await showLabels();
  if (shown === "apps") await showApps();
}

async function tryToLook() {
  try {
    await look();
  } catch (error) {
    if (error instanceof TypeError) { showLost(); showWriting(null); showView(); } else tell(error.message);
  }
}

async function watch(mine) {
  if (mine !== round) return;
  if (document.visibilityState === "visible") await tryToLook();
  setTimeout(watch, LOOK_MS, mine);
}

function show(isIn) {
  $("home").hidden = !isIn;
  $("sign-in").hidden = isIn;
}

function signOut() {
  forgetSession();
  round++;
  show(false);
}

async function signIn() {
  tell(null);
  await tryToLook();
  if (!isSignedIn()) return;
  show(true);
  watch(++round);
}

for (const link of document.querySelectorAll("nav a")) link.prepend(icon(link.hash.slice(2)));
$("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  const token = $("token").value.trim();
  $("token").value = "";
  beginSession(token).then(signIn, (error) => tell(error.message));
});
for (const one of document.querySelectorAll(".sign-out")) one.addEventListener("click", async () => {
  const ended = call("DELETE", "/sessions").catch(() => {}); // the daemon may be gone
  signOut();
  await ended;
  location.reload(); // which forgets all that was shown
});
onRefusal(signOut);
for (const begin of [onNow, onWriting, onLearned, onNights, onTexts]) begin(look);
for (const begin of [onLabels, onChat, onApps]) begin();

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

window.addEventListener("hashchange", () => {
  if (location.hash.startsWith("#code=")) enter(); // where the page was open already
  else if (location.hash !== "#main" && shown !== null) { showView(); tryToLook(); }
});
enter();
