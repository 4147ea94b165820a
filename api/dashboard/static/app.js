// The dashboard: signing in, watching, and what its forms and buttons do.
import { beginSession, call, forgetSession, isSignedIn, onRefusal } from "/dashboard/call.js";
import { button, count, during, element, fill, loss, made, tell, when } from "/dashboard/dom.js";
import { onChange, showJobs, showMoreJobs } from "/dashboard/jobs.js";
import { plot } from "/dashboard/plot.js";
import { suggestAsTyped } from "/dashboard/suggest.js";
import { addText, showOlderTexts, showTexts } from "/dashboard/texts.js";

const LOOK_MS = 2000, HISTORY_MS = 60000;
let historyAt = 0;
let round = 0; // of signing in and out: the watch of an earlier one ends

const bytes = (value) => (value === null ? "unknown" : `${(value / 1e6).toFixed(0)} MB`);

function showStatus(status) {
  const { texts, model } = status;
  element("model").textContent = `${model.name}, ${model.adapter ? "personal" : "as it came"}${model.message ? `. ${model.message}` : ""}`;
  element("texts-count").textContent = `${count(texts.count, "text")}, ${count(texts.new_words, "new word")}.`;
  element("empty").hidden = texts.count > 0;
}

async function showAdapters() {
  const { data } = await call("GET", "/adapters");
  fill(element("adapters"), data.length ? data.map(adapterItem) : [made("li", "Nothing was learned yet.")]);
  element("roll-back").hidden = !data.some((adapter) => adapter.serving);
}

function adapterItem(adapter) {
  const item = made("li");
  const name = `adapter of ${when(adapter.created_at)}`;
  item.append(made("strong", adapter.serving ? "served" : "kept"), ` ${name}`);
  const change = `held-out loss ${loss(adapter.held_out_loss_before)} to ${loss(adapter.held_out_loss_now)}`;
  item.append(made("p", `${adapter.id}: ${adapter.outcome}, from ${adapter.parent ?? "the base model"}; ${change}`, "faint"));
  const serve = async (allowed) => { await call("POST", `/adapters/${adapter.id}/serve?deleted_text=${allowed}`); await look(); };
  const asked = (error) => {
    if (error.code !== "has_deleted_text" || !confirm(`${error.message}\n\nServe it?`)) throw error;
    return serve(true);
  };
  if (!adapter.serving) item.append(button("Serve", name, () => serve(false).catch(asked)));
  return item;
}

async function compare(prompt) {
  element("answers").replaceChildren(made("p", "Both models answer…", "faint"));
  try {
    const found = await call("POST", "/compare", { prompt, max_tokens: 60 });
    const sides = made("div", undefined, "answers");
    for (const [name, answer] of [["Base", found.base], ["Personal", found.personal]]) {
      const side = made("div");
      side.append(made("h3", name), made("pre", prompt + answer.text));
      sides.append(side);
    }
    const gained = found.gained_nats_per_token;
    const text = gained === null ? "The personal answer is empty."
      : `Learning has made each token of the personal answer ${Math.exp(gained).toFixed(2)} times as likely. Most of all:`;
    element("answers").replaceChildren(sides, made("p", text, "faint"), risen(found.tokens));
  } catch (error) {
    element("answers").replaceChildren();
    throw error;
  }
}

// The tokens of the personal answer that learning has made likelier, the first the one that has risen most.
function risen(tokens) {
  const list = made("ul", undefined, "words");
  const best = new Map();
  for (const { token, personal, base } of tokens) {
    const word = token.trim();
    if (word && personal > base) best.set(word, Math.max(best.get(word) ?? 0, personal - base));
  }
  const most = [...best].sort((one, other) => other[1] - one[1]).slice(0, 6);
  list.append(...most.map(([word, nats]) => made("li", `${word} ×${Math.exp(nats).toPrecision(2)}`)));
  return list;
}

async function suggestions(context) {
  const { suggestions, adapter } = await call("POST", "/suggest", { context });
  element("suggested-by").textContent = adapter ? "From your personal model." : "From the base model: nothing learned is served yet.";
  return suggestions;
}

async function showDay() {
  if (Date.now() - historyAt < HISTORY_MS) return;
  historyAt = Date.now();
  const { data } = await call("GET", "/history?hours=24");
  const clock = (ms) => new Date(ms).toLocaleTimeString([], { timeStyle: "short" });
  const kinds = [["memory", "Free memory", bytes], ["battery", "Battery", (y) => `${y.toFixed(0)} %`],
    ["temperature", "Battery temperature", (y) => `${y.toFixed(0)} °C`], ["heat", "Hottest part", (y) => `${y.toFixed(0)} °C`]];
  const plots = [];
  for (const [name, title, writeY] of kinds) {
    const points = data.filter((one) => one[name] !== null).map((one) => [Date.parse(one.at), one[name]]);
    if (!points.length) continue;
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.setAttribute("viewBox", "0 0 640 220");
    svg.setAttribute("class", "plot");
    svg.setAttribute("role", "img");
    svg.setAttribute("aria-label", `${title}: now ${writeY(points.at(-1)[1])}`);
    plot(svg, [{ name: "held-out", points }], { writeX: clock, writeY });
    plots.push(made("h3", `${title}: ${writeY(points.at(-1)[1])}`), svg);
  }
  element("day").replaceChildren(...(plots.length ? plots : [made("p", "Nothing was noted yet.", "faint")]));
}

async function look() {
  showStatus(await showJobs());
  await showAdapters();
  await showDay();
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
    await showTexts();
  } catch (error) {
    tell(error.message);
    return;
  }
  tell(null);
  for (const id of ["home", "sign-out"]) element(id).hidden = false;
  element("sign-in").hidden = true;
  watch(++round);
}

function onClick(id, act) {
  element(id).addEventListener("click", (event) => during(event.target, act));
}

function onSubmit(id, act) {
  element(id).addEventListener("submit", (event) => {
    event.preventDefault();
    during(event.submitter ?? event.target.querySelector("button"), act);
  });
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
onClick("train", async () => { await call("POST", "/jobs", {}); await look(); });
onClick("roll-back", async () => { await call("POST", "/adapters/rollback", {}); await look(); });
onClick("more-jobs", showMoreJobs);
onClick("more-texts", showOlderTexts);
onSubmit("compare", () => compare(element("prompt").value));
onSubmit("search", () => showTexts());
onSubmit("add", async () => { await addText(element("new-text")); await look(); });
onRefusal(signOut);
onChange(look);
suggestAsTyped(element("writing"), element("suggestions"), suggestions);

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
