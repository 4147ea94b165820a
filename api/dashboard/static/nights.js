// The last nights: when it could learn, when it did, and what held it back. Under details, the jobs.
import { call } from "./call.js";
import { $, button, clock, count, day, duration, during, fill, h, later, onClick, put, size, waiting, when } from "./dom.js";
import { noon, snooze } from "./now.js";
import { plot } from "./plot.js";

const MOST_JOBS = 200, MORE_JOBS = 40, OPEN = ["queued", "running", "paused"], REFRESH_MS = 6e5;
const SMOOTH = 0.8; // how much of the training line's last point is kept in the next
const HELD = { power: "not on the charger", idle: "in use", screen: "the screen was on", battery: "the battery was low", heat: "too warm", memory: "too little memory" };
let look = async () => {}, known = "", shown = 20, nights = [], words = new Map(), drawn = null; // the job whose loss is drawn

// ---- The strip: a house for each night, whose window is lit while it learned; hours count from the noon before
const hours = (night, time) => (new Date(time) - new Date(`${night}T12:00`)) / 36e5 + 24;

function nightOf({ night, open, runs, held_back: held, jobs }, expected) {
  const now = new Date().toISOString(), span = (one) => [hours(night, one.began_at), hours(night, one.ended_at ?? one.seen_at ?? now)];
  const could = open.map(span), ran = runs.map(span), job = jobs.findLast((one) => one.outcome === "learned") ?? jobs.at(-1), why = held.filter((one) => one.seconds >= 600).map((one) => HELD[one.name] ?? one.name);
  const long = duration(runs.reduce((sum, one) => sum + (new Date(one.ended_at ?? one.seen_at) - new Date(one.began_at)) / 1000, 0));
  const many = job && words.get(job.id) ? `${count(words.get(job.id), "word")}` : "your words";
  const [kind, said] = job?.outcome === "learned" ? ["learned", `Learned from ${many}, in ${long}.`] : job?.outcome ? ["aside", `Learned from ${many} in ${long}, but ${job.outcome.startsWith("too") ? "it is too little to tell" : "was no better for it"}. Kept aside.`]
    : job ? ["not", `${job.state === "failed" ? "It failed" : "It was cancelled"}.`] : runs.length ? ["going", `Learned for ${long}, and goes on.`]
    : why.length && !could.length ? ["not", `Could not: ${why.slice(0, 2).join(", then ")}.`] : expected ? ["soon", `Probably at ${clock(expected)}.`] : ["rest", could.length ? "Nothing to do." : "Nothing waited to be learned."];
  return { date: new Date(new Date(`${night}T12:00`) - 864e5), could, ran, kind, said, soon: expected ? [hours(night, expected), hours(night, expected) + 1] : null };
}

function strip(place, title) {
  const at = nights.flatMap(({ ran }) => ran).flat(), FROM = Math.floor(Math.min(8, ...at)), TO = Math.ceil(Math.max(21, ...at));
  const share = (hour) => 100 * (Math.max(FROM, Math.min(TO, hour)) - FROM) / (TO - FROM);
  const bar = (kind, [from, to]) => { const made = h("i", { class: kind }); made.style.top = `${share(from)}%`; made.style.height = `${share(to) - share(from)}%`; return made; };
  const columns = nights.map((one) => h("div.column", h("div.house", one.kind === "soon" ? bar("soon", one.soon) : [...one.could.map((time) => bar("could", time)), ...one.ran.map((time) => bar(`ran ${one.kind}`, time))]),
    h("b", one.date.toLocaleDateString("en-GB", { weekday: "narrow" })), h("em", { class: one.kind }, one.kind === "not" ? "!" : "")));
  const mark = (hour, kind, text) => { const made = h(text ? "span" : "div", { class: kind }, text); made.style.top = `${share(hour) * .11}rem`; return made; };
  const scale = [9, 12, 15, 18, 20].filter((hour) => hour < TO), told = h("output"), pick = h("input", { type: "range", min: 0, max: nights.length - 1, "aria-label": "Night" });
  const say = () => {
    const place = Number(pick.value), one = nights[place], time = (hour) => clock(new Date(one.date).setHours(12, Math.round(60 * hour)));
    columns.forEach((column, index) => column.classList.toggle("picked", index === place));
    const could = one.could.filter(([from, to]) => to - from > .2).slice(0, 1).map(([from, to]) => ` It could, from ${time(from)} to ${time(to)}.`);
    told.replaceChildren(h("b", place === nights.length - 1 ? "Tonight" : `Night of ${day(one.date)}`), `${one.said}${could}`);
    pick.setAttribute("aria-valuetext", told.textContent);
  };
  const before = place.querySelector("input"), isHere = before === document.activeElement;
  pick.value = before && before.value !== before.max ? before.value : nights.length - 1;
  pick.addEventListener("input", say);
  const tally = (kind) => nights.filter((one) => one.kind === kind).length;
  place.replaceChildren(h("div.sky-head", h("h3", title), h("span.hint", `${tally("learned")} learned, ${tally("not")} could not`)),
    h("div.strip", h("div.hours", scale.map((hour) => mark(hour, "", `${String((hour + 12) % 24).padStart(2, "0")}:00`))), h("div.columns", scale.map((hour) => mark(hour, "at")), columns, pick)), told,
    h("p.key", [["lit", "learned"], ["ring", "learned, not used"], ["", "could have"]].map(([kind, name]) => h("span", h("span", { class: `swatch ${kind}` }), name)), h("span", h("b", "!"), "could not")));
  say();
  if (isHere) pick.focus();
}

export async function showNights(status, jobs) {
  const key = JSON.stringify([jobs.map((job) => [job.id, job.outcome ?? job.state]), status.training.expected_at, Math.floor(Date.now() / REFRESH_MS)]);
  if (key !== known) {
    const { data } = await call("GET", "/nights?days=14");
    words = new Map(jobs.map((job) => [job.id, job.words]));
    const last = data.findLastIndex((one) => one.open.length || one.runs.length || one.jobs.length || one.held_back.length);
    nights = data.slice(0, Math.max(7, last + 1)).map((one, place) => nightOf(one, place || !status.open_job ? null : status.training.expected_at)).reverse();
    known = key;
    strip($("strip-home"), h("a", { href: "#/nights" }, "Nights"));
    strip($("strip"), "The last nights");
  }
  if ($("job-details").open) await showJobs();
}

// ---- Details: jobs, and the loss of one
const titleOf = (job) => (job.words === null ? "Job" : `${count(job.words, "word")} in ${count(job.texts, "text")}`);
const loss = (value) => (value === null ? "–" : value.toFixed(4));

async function showJobs() {
  const { data, has_more } = await call("GET", `/jobs?limit=${shown}`);
  $("more-jobs").hidden = !has_more || shown >= MOST_JOBS;
  fill($("jobs"), data.length ? data.map(jobRow) : h("li", h("small", "None yet. One starts when there are enough new words.")));
  if (!data.some((job) => job.id === drawn)) drawn = data[0]?.id;
  if (drawn) await showCurve(drawn);
}

function jobRow(job) {
  const old = waiting(job.id);
  if (old) return old;
  const about = `job of ${when(job.created_at)}`, left = job.eta_seconds === null ? "" : `, ${duration(job.eta_seconds)} left`;
  const change = job.held_out_loss_now === null ? "" : `; held-out loss ${loss(job.held_out_loss_before)} to ${loss(job.held_out_loss_now)}`, row = h("li");
  const post = (name) => async () => { await call("POST", `/jobs/${job.id}/${name}`); await look(); };
  row.append(h("div.what", h("p", h("b", `${job.state}${job.outcome ? `: ${job.outcome}` : ""}`), ` ${titleOf(job)}`), h("small", `${when(job.created_at)}, step ${job.step}${job.total_steps ? ` of ${job.total_steps}` : ""}${left}${change}${job.peak_memory_bytes ? `, ${size(job.peak_memory_bytes)} of memory` : ""}`),
    job.reasons.map((reason) => h("small", reason)), job.error && h("p.trouble", job.error)));
  row.append(button("Loss", "quiet", () => { drawn = job.id; return showCurve(drawn); }, about));
  if (OPEN.includes(job.state)) row.append(job.paused_by_owner ? button("Resume", "plain", post("resume"), about) : button("Pause", "plain", post("pause"), about),
    button("Cancel", "plain", async () => later(job.id, row, "Cancelling in", "What it has learned so far is lost.", post("cancel"), look), about));
  return row;
}

async function showCurve(id) {
  const { curve } = await call("GET", `/jobs/${id}`), last = curve.training.at(-1);
  const rough = curve.training.map((point) => [point.step, point.loss]), held = curve.held_out.map((point) => [point.step, point.held_out_loss]);
  put("curve-text", `${id}: ${last ? `${last.loss.toFixed(3)} nats per token at step ${last.step}` : "no steps yet"}.`);
  let mean = rough[0]?.[1];
  const training = rough.map(([step, value]) => [step, (mean = SMOOTH * mean + (1 - SMOOTH) * value)]), labels = [held[0], rough.at(-1)].filter(Boolean).map(([step]) => [step, `step ${step}`]);
  plot($("curve"), { lines: [{ name: "rough", points: rough }, { name: "training", points: training }, { name: "mine", points: held }], dots: held.map(([step, value]) => [step, value, ""]), labels, write: (value) => value.toFixed(2) });
}

// again: shows everything anew.
export function onNights(again) {
  look = again;
  $("job-details").addEventListener("toggle", () => look());
  onClick("more-jobs", () => { shown = Math.min(MOST_JOBS, shown + MORE_JOBS); return look(); });
  for (const one of $("snooze").children) one.addEventListener("click", () => during(one, () => snooze(Number(one.dataset.minutes) ? new Date(Date.now() + 6e4 * one.dataset.minutes) : noon())));
}
