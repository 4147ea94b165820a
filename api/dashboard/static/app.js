// The dashboard. Everything that is shown is put in as text, never as markup: it may be anybody's words.
import { plot } from "/dashboard/plot.js";
import { suggestAsTyped } from "/dashboard/suggest.js";

const KEPT = "pocketllm-token"; // until signed out
const LOOK_MS = 2000, HISTORY_MS = 60000, TEXTS = 50, MOST_JOBS = 200;
const element = (id) => document.getElementById(id);
let token = localStorage.getItem(KEPT);
let jobsShown = 20;
let oldest = null; // the last text of those that are shown
let historyAt = 0;
let round = 0; // of signing in: the watch of an earlier one ends

function made(tag, text, kind) {
  const found = document.createElement(tag);
  if (text !== undefined) found.textContent = text;
  if (kind) found.className = kind;
  return found;
}

// Put children into a list, unless they are there already, and leave the focus where it was.
function fill(parent, children) {
  const before = made("div");
  before.append(...children);
  if (before.innerHTML === parent.innerHTML) return;
  const focused = parent.contains(document.activeElement) && document.activeElement.getAttribute("aria-label");
  parent.replaceChildren(...children);
  if (focused) parent.querySelector(`[aria-label="${CSS.escape(focused)}"]`)?.focus();
}

function button(name, about, act) {
  const found = made("button", name);
  found.type = "button";
  found.setAttribute("aria-label", `${name}: ${about}`);
  found.addEventListener("click", () => during(found, act));
  return found;
}

// A button that was pressed waits until what it does is done, and says what went wrong.
async function during(pressed, act) {
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

function tell(problem) {
  element("problem").hidden = !problem;
  element("problem").textContent = problem ?? "";
}

async function call(method, path, body) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  const document = response.status === 204 ? null : await response.json();
  if (response.status === 401) signOut();
  if (!response.ok) throw new Error(document?.detail ?? `${path}: ${response.status}`);
  return document;
}

const bytes = (count) => (count === null ? "unknown" : `${(count / 1e6).toFixed(0)} MB`);
const loss = (value) => (value === null ? "–" : value.toFixed(4));
const when = (text) => new Date(text).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });

function duration(seconds) {
  const minutes = Math.round(seconds / 60);
  return minutes < 1 ? "less than a minute" : minutes < 60 ? `${minutes} min` : `${(minutes / 60).toFixed(1)} h`;
}

function showStatus(status) {
  const { training, worker, texts, model } = status;
  element("model").textContent = `${model.name}, ${model.adapter ? "personal" : "as it came"}`;
  const waiting = `${texts.new_words} of ${texts.threshold_words} new words`;
  element("now").textContent = worker.running
    ? `Learning: ${worker.job}`
    : training.blockers.length ? "Waiting. These conditions do not hold:" : `Nothing to learn: ${waiting}.`;
  const since = (blocker) => `${blocker.message} (since ${when(blocker.since)})`;
  const blockers = worker.running ? [] : training.blockers;
  fill(element("blockers"), blockers.map((blocker) => made("li", since(blocker))));
  element("texts-count").textContent = `${texts.count} texts; ${waiting} for the next job.`;
}

async function showJobs() {
  const { data, has_more } = await call("GET", `/jobs?limit=${jobsShown}`);
  element("more-jobs").hidden = !has_more || jobsShown >= MOST_JOBS;
  fill(element("jobs"), data.length ? data.map(jobItem) : [made("li", "No jobs yet.")]);
  const running = data.find((job) => job.state === "running");
  element("progress").hidden = !running;
  if (running) element("progress").value = running.step / Math.max(1, running.total_steps);
  if (data.length) showCurve(await call("GET", `/jobs/${(running ?? data[0]).id}`));
}

function jobItem(job) {
  const item = made("li");
  const outcome = job.outcome ? `: ${job.outcome}` : "";
  item.append(made("strong", `${job.state}${outcome}`), ` ${job.id}`);
  const left = job.eta_seconds === null ? "" : `, ${duration(job.eta_seconds)} left`;
  const change = `held-out loss ${loss(job.held_out_loss_before)} to ${loss(job.held_out_loss_now)}`;
  item.append(made("p", `${when(job.created_at)}, step ${job.step} of ${job.total_steps}${left}; ${change}`, "faint"));
  for (const reason of job.reasons) item.append(made("p", `waits: ${reason}`, "faint"));
  if (job.error) item.append(made("p", job.error, "bad"));
  const act = (name) => async () => { await call("POST", `/jobs/${job.id}/${name}`); await look(); };
  if (["queued", "running", "paused"].includes(job.state)) {
    item.append(job.paused_by_owner ? button("Resume", job.id, act("resume")) : button("Pause", job.id, act("pause")));
    item.append(button("Cancel", job.id, act("cancel")));
  }
  return item;
}

function showCurve(job) {
  const training = job.curve.training.map((point) => [point.step, point.loss]);
  const heldOut = job.curve.held_out.map((point) => [point.step, point.held_out_loss]);
  const last = training.at(-1);
  element("curve-text").textContent = last
    ? `${job.id}, in nats per token: ${last[1].toFixed(3)} at step ${last[0]}.`
    : `${job.id}: no steps yet.`;
  const lines = [{ name: "training", points: training }, { name: "held-out", points: heldOut }];
  plot(element("curve"), lines, { writeX: (x) => `step ${Math.round(x)}`, writeY: (y) => y.toFixed(2) });
}

async function showAdapters() {
  const { data } = await call("GET", "/adapters");
  fill(element("adapters"), data.length ? data.map(adapterItem) : [made("li", "Nothing was learned yet.")]);
  element("roll-back").hidden = !data.some((adapter) => adapter.serving);
}

function adapterItem(adapter) {
  const item = made("li");
  item.append(made("strong", adapter.serving ? "served" : "kept"), ` ${adapter.id}`);
  const change = `held-out loss ${loss(adapter.held_out_loss_before)} to ${loss(adapter.held_out_loss_now)}`;
  item.append(made("p", `${when(adapter.created_at)}, ${adapter.outcome}, from ${adapter.parent ?? "the base model"}; ${change}`, "faint"));
  const serve = async () => { await call("POST", `/adapters/${adapter.id}/serve`); await look(); };
  if (!adapter.serving) item.append(button("Serve", adapter.id, serve));
  return item;
}

async function showTexts(after = null) {
  const page = await call("GET", `/texts?limit=${TEXTS}${after ? `&after=${after}` : ""}`);
  if (!after) element("texts").replaceChildren();
  for (const text of page.data) sourceList(text.source).append(textItem(text));
  for (const group of element("texts").children) count(group);
  oldest = page.next;
  element("more-texts").hidden = !page.has_more;
}

function sourceList(source) {
  for (const group of element("texts").children) if (group.dataset.source === source) return group.lastChild;
  const group = made("details");
  group.dataset.source = source;
  group.append(made("summary"), made("ul"));
  element("texts").append(group);
  return group.lastChild;
}

function count(group) {
  const shown = group.lastChild.children.length;
  if (shown) group.firstChild.textContent = `${group.dataset.source} (${shown} shown)`;
  else group.remove();
}

function textItem(text) {
  const item = made("li");
  item.append(made("pre", text.text + (text.completion ?? "") + (text.label ? ` [${text.label}]` : "")));
  item.append(made("p", `${when(text.created_at)}, ${text.words} words`, "faint"));
  item.append(button("Delete", `text of ${when(text.created_at)}`, async () => {
    await call("DELETE", `/texts/${text.id}`);
    const group = item.closest("details");
    item.remove();
    count(group);
    await look();
  }));
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
      : `Learning has made each token of the personal answer ${Math.exp(gained).toFixed(2)} times as likely.`;
    element("answers").replaceChildren(sides, made("p", text, "faint"));
  } catch (error) {
    element("answers").replaceChildren();
    throw error;
  }
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
  showStatus(await call("GET", "/status"));
  await showJobs();
  await showAdapters();
  await showDay();
}

async function watch(mine) {
  if (!token || mine !== round) return;
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
  token = null;
  localStorage.removeItem(KEPT);
  for (const id of ["home", "sign-out"]) element(id).hidden = true;
  element("sign-in").hidden = false;
}

async function signIn(given) {
  token = given;
  try {
    await showTexts(); // which takes the token, as little else does
  } catch (error) {
    tell(error.message);
    return;
  }
  tell(null);
  localStorage.setItem(KEPT, token);
  for (const id of ["home", "sign-out"]) element(id).hidden = false;
  element("sign-in").hidden = true;
  watch(++round);
}

element("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  signIn(element("token").value.trim());
  element("token").value = "";
});
element("sign-out").addEventListener("click", async () => {
  const ended = call("DELETE", "/sessions").catch(() => {}); // the daemon may be gone
  signOut();
  await ended;
  location.reload(); // which forgets all that was shown
});
element("train").addEventListener("click", (event) => during(event.target, async () => { await call("POST", "/jobs", {}); await look(); }));
element("roll-back").addEventListener("click", (event) =>
  during(event.target, async () => { await call("POST", "/adapters/rollback", {}); await look(); }));
element("more-jobs").addEventListener("click", (event) => during(event.target, async () => {
  jobsShown = Math.min(MOST_JOBS, jobsShown + 40);
  await showJobs();
}));
element("more-texts").addEventListener("click", (event) => during(event.target, () => showTexts(oldest)));
element("compare").addEventListener("submit", (event) => {
  event.preventDefault();
  during(event.submitter ?? event.target.querySelector("button"), () => compare(element("prompt").value));
});

suggestAsTyped(element("writing"), element("suggestions"), suggestions);

// `pocketllm dashboard` opens this page with a code that is good once; what is left in the history is worth nothing.
async function enter() {
  const code = new URLSearchParams(location.hash.slice(1)).get("code");
  if (code) {
    history.replaceState(null, "", "/");
    try {
      token = (await call("POST", "/sessions/redeem", { code })).token;
    } catch (error) {
      tell(error.message);
    }
  }
  if (token) await signIn(token);
  else signOut();
}

window.addEventListener("hashchange", enter); // where the page was open already
enter();
