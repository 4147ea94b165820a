// What it does now, in one sentence, with the button that helps; what it waits for, or how far it is.
import { call } from "./call.js";
import { $, clock, command, count, day, duration, during, fill, h, icon, number, put, said, size, when } from "./dom.js";
import { GONE } from "./learned.js";

const RECENT_MS = 18 * 36e5;
const WITHDRAWN = "Your personal model is withdrawn until it has learned anew.", SINCE = "You deleted a text that it had learned; until then the model as it came answers.";
let look = async () => {};

const go = (hash) => async () => { location.hash = hash; };
const post = (path, body) => async () => { await call("POST", path, body); await look(); };
const learn = ["Learn now", post("/jobs", {})];

// until: a Date or null
export const snooze = (until) => post("/status/snooze", until ? { until: until.toISOString() } : {})();

// The next noon: a night ends there.
export function noon() {
  const found = new Date();
  if (found.getHours() >= 12) found.setDate(found.getDate() + 1);
  found.setHours(12, 0, 0, 0);
  return found;
}

// The state: its kind, a line, what comes next, and up to two buttons as [name, act]. choices: a sentence about the served version.
function stateOf({ model, training, worker, texts, open_job: open }, jobs, choices) {
  const fresh = count(texts.new_words, "new word"), running = jobs.find((job) => job.state === "running"), [last] = jobs;
  const gone = GONE[model.withdrawn] ?? "", isWithdrawn = model.withdrawn === "deletion", until = training.snoozed_until;
  const state = (kind, line, next, ...acts) => ({ kind, line, next: `${(model.ready && model.message) || ""} ${next} ${model.candidate ?? ""}`.trim(), acts });
  const soon = texts.new_words >= texts.threshold_words ? "" : `It learns by itself from ${number(texts.threshold_words)} new words on, or after a week with ${number(texts.waited_threshold_words)}.`;
  if (!model.ready) return state("error", "There is no model to work with yet.", model.message);
  if (running) {
    const words = running.words === null ? "your words" : count(running.words, "word"), since = running.started_at ? `Started ${when(running.started_at)}${running.requested_by === "owner" ? ", because you asked" : ""}. ` : "";
    return state("learning", `${running.step ? "Learning from" : "Getting ready to learn from"} ${words}.`, `${since}You can go on writing.`, ["Pause", post(`/jobs/${running.id}/pause`)]);
  }
  if (worker.running) return state("learning", "Looking at what it has learned.", "You can go on writing.");
  if (until) return state("snoozed", `Snoozed until ${when(until)}.`, `${texts.new_words ? `Then it learns ${fresh}, once the device rests and charges. ` : ""}${gone}`, ["End the snooze", () => snooze(null)]);
  if (!texts.count) return state("first", "Ready, but it knows none of your words yet.", gone || "Three steps. Nothing leaves this device.", ["Add your texts", async () => { location.hash = "#/write"; $("first-text").focus(); }]);
  if (open?.paused_by_owner) return state("snoozed", "Paused, because you asked.", `${done(open)}${gone}`, ["Go on", post(`/jobs/${open.id}/resume`)]);
  if (!open && last?.state === "failed") return state("error", "The last try to learn failed.", last.error, ["Try again", learn[1]], ["Details", go("#/nights")]);
  if (open || !soon) return waits();
  if (isWithdrawn) return state("waiting", WITHDRAWN, `${SINCE} ${soon}`, texts.new_words ? learn : null);
  if (last?.outcome === "learned" && model.adapter === last.adapter && Date.now() - new Date(last.finished_at) < RECENT_MS)
    return state("learned", `It learned from ${count(last.words ?? 0, "word")} ${when(last.finished_at)}.`, `${choices ?? ""} ${soon}`, ["See what changed", go("#/learned")], texts.new_words ? learn : null);
  if (!texts.new_words) return state("rest", "It has learned all your texts.", gone || "What you add next, it learns next.", ["Add a text", go("#/texts")]);
  return state("waiting", `Has ${fresh}.`, `${soon} ${gone}`, learn);

  function waits() {
    const things = [...new Set(training.blockers.map(told))], expected = training.expected_at;
    const at = !things.length ? "in a moment" : expected ? `${new Date(expected) < noon() ? "" : `${day(expected)}, `}probably at ${clock(expected)}` : "when the device charges and rests";
    const now = things.length ? `It waits for ${[things.slice(0, -1).join(", "), things.at(-1)].filter(Boolean).join(" and ")}. ` : "";
    const line = `${open?.step ? "Goes on learning" : "Learns"} ${fresh}, ${at}.`;
    return state("waiting", isWithdrawn ? WITHDRAWN : line, isWithdrawn ? `${SINCE} ${line}` : `${now}${done(open)}${gone}`, open && !open.reasons.length ? null : learn, ["Not tonight", () => snooze(noon())]);
  }
}

function done(job) {
  if (!job?.step) return "";
  return `${job.total_steps ? `${Math.round(100 * job.step / job.total_steps)} % is done` : `Step ${job.step} is done`}${job.eta_nights ? `, about ${count(job.eta_nights, "night")} left` : ""}. `;
}

// A blocker as the thing that is waited for.
function told({ name, message, threshold }) {
  const things = { power: "the charger", idle: `${threshold} minutes without you`, screen: "the screen to be off", battery: `the battery at ${threshold} %`, temperature: "a cooler battery",
    heat: "a cooler device", memory: "free memory", "memory pressure": "free memory" };
  return message.includes(" is unknown (") ? `a sign of ${name}, which cannot be read` : things[name] ?? message;
}

// ---- What it waits for: a sign, a name, and the readings behind it
const LIGHTS = { Charger: ["power", "plug", "charger"], Battery: ["battery", "health"], "Not in use": ["idle", "screen"], Cool: ["heat", "temperature"], Memory: ["memory", "memory pressure"] };

function lightsOf({ training: { blockers }, readings, texts }) {
  const enough = texts.new_words >= texts.threshold_words, isShown = (one) => Object.values(LIGHTS).flat().includes(one.name), other = blockers.find((one) => !isShown(one));
  const found = [{ label: "New words", value: enough ? number(texts.new_words) : `${number(texts.new_words)} of ${number(texts.threshold_words)}`, kind: enough ? "ok" : "later" }];
  for (const [label, names] of Object.entries(LIGHTS)) {
    const blocker = blockers.find((one) => names.includes(one.name)), reading = readings.find((one) => names.includes(one.name) && one.value !== null);
    if (blocker || reading) found.push({ label, value: valueOf(label, reading, blocker), kind: !blocker ? "ok" : enough ? "hold" : "later", about: blocker?.message });
  }
  return other ? [...found, { label: "Time", value: "not now", kind: "hold", about: other.message }] : found;
}

function valueOf(label, reading, blocker) {
  if (label === "Not in use" && blocker?.threshold) return `${Math.floor(blocker.value)} of ${blocker.threshold} min`;
  if (!reading) return "not known";
  if (label === "Charger") return reading.value === true ? (blocker ? "too weak" : "plugged in") : "unplugged";
  if (label === "Not in use") return blocker ? "screen on" : "at rest";
  return reading.unit === "bytes" ? size(reading.value) : typeof reading.value === "number" ? `${Math.round(reading.value)} ${reading.unit}` : reading.value;
}

const TOLD = { ok: ": all right, ", hold: ": holds it back, ", later: ": not yet, " };
const lights = (status) => h("ul.lights", { "aria-label": "What it waits for" }, lightsOf(status).map(({ label, value, kind, about }) =>
  h("li", { class: kind, title: about }, icon(kind), h("b", label, h("i.unseen", TOLD[kind])), h("span", value))));

function progress(job) {
  const facts = [["Time left", job.eta_seconds === null ? "not known yet" : duration(job.eta_seconds)], ["Step", job.total_steps ? `${number(job.step)} of ${number(job.total_steps)}` : number(job.step)],
    ["Memory", job.predicted_bytes ? `up to ${size(job.predicted_bytes)}` : "–"]];
  return h("dl.facts", facts.map(([label, value]) => h("div", h("dt", label), h("dd", value))));
}

// ---- Showing it
let acts = [];
function show(state, row) {
  $("now").dataset.state = state.kind;
  put("now-line", state.line);
  fill($("now-next"), said(state.next));
  acts = state.acts;
  ["act", "act-too"].forEach((id, place) => {
    $(id).hidden = !acts[place];
    put(id, acts[place]?.[0] ?? "");
  });
  fill($("now-row"), row);
}

export function showNow(status, jobs, choices) {
  const state = stateOf(status, jobs, choices), job = jobs.find((one) => one.state === "running"), bar = $("bar"), part = job?.step && job.total_steps ? job.step / job.total_steps : null;
  show(state, job ? progress(job) : lights(status));
  bar.hidden = state.kind !== "learning";
  if (part === null) bar.removeAttribute("value"); else bar.value = part;
  document.title = part === null ? "PocketLLM" : `${Math.round(100 * part)} % learned · PocketLLM`;
  delete document.body.dataset.lost;
  heard = new Date();
}

let heard = null;
export function showLost() {
  document.body.dataset.lost = "";
  $("bar").hidden = true;
  show({ kind: "unreachable", line: "PocketLLM does not answer.", next: heard ? `Last heard of at ${clock(heard)}; what you see is from then. Your draft is safe.` : "", acts: [["Try again", () => look()]] },
    h("div.restart", command("pocketllm serve"), h("p.hint", "Start it in a terminal. This page tries again by itself.")));
}

// again: shows everything anew.
export function onNow(again) {
  look = again;
  ["act", "act-too"].forEach((id, place) => $(id).addEventListener("click", (event) => during(event.currentTarget, () => acts[place][1]())));
}
