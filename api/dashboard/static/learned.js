// What it has learned: one number, the line of all nights, sentences before and after, words, and versions.
import { call } from "./call.js";
import { $, button, day, fill, h, number, onClick, onSubmit, put, shortDay, toast, when } from "./dom.js";
import { plot } from "./plot.js";

const MOST = 20, COMPARED_TOKENS = 40, WORDS = 8;
// Why there is no personal model any more.
export const GONE = {
  deletion: "Your personal model had learned a text that you deleted, so it is withdrawn until it has learned the rest anew. Until then the model as it came answers.",
  rollback: "You went back to the model as it came.",
  damage: "Your personal model was damaged, so the model as it came answers.",
};
let look = async () => {}, known = "", versions = [], model = {}, sentences = [], sentence = 0, unit = "word";
const reports = new Map(); // of jobs that have ended

// A loss as the number of equally likely words that it is as unsure as among.
function choices(one, loss) {
  const found = Math.exp(loss * (one.tokens ?? 1));
  return number(found < 10 ? Math.round(found * 10) / 10 : Math.round(found));
}
const inUse = () => versions.find((one) => one.serving);

// Reads the versions anew if something has changed. Returns a sentence about the one in use, or nothing.
export async function showLearned(status, jobs) {
  const now = JSON.stringify([status.model, status.worker.job, jobs.map((job) => job.outcome)]);
  if (now !== known) {
    model = status.model;
    versions = await read(status.worker.job);
    known = now;
    show();
  }
  const one = inUse();
  return one && `${choices(one, one.now)} choices for your next ${unit} now, ${choices(one, one.before)} before.`;
}

async function read(busy) {
  const adapters = (await call("GET", "/adapters")).data.filter((one) => one.model === model.name).slice(0, MOST), found = [];
  for (const adapter of adapters.reverse()) {
    const report = adapter.job !== busy && await reportOf(adapter.job); // else it is being written
    if (!report) continue;
    const { before, now } = report.verdict.overall, base = report.verdict.base?.before ?? before;
    found.push({ ...adapter, report, before, now, base, tokens: report.tokens_per_word });
  }
  const tokens = found.findLast((one) => one.tokens)?.tokens ?? null; // an older report does not say
  unit = tokens ? "word" : "piece of a word";
  return found.map((one) => ({ ...one, tokens: one.tokens ?? tokens }));
}

async function reportOf(job) {
  if (!reports.has(job)) reports.set(job, await call("GET", `/jobs/${job}/report`).catch((error) => { if (error.status) return null; throw error; }));
  return reports.get(job);
}

function show() {
  const one = inUse(), last = one ?? versions.at(-1), words = one?.report.words ?? [];
  $("learned-empty").hidden = Boolean(last);
  $("learned-all").hidden = !last;
  put("g-now", one ? choices(one, one.now) : "");
  put("g-say", one ? `choices for your next ${unit}` : GONE[model.withdrawn] ?? "Nothing yet: tonight, while the device charges.");
  put("g-was", one ? `${choices(one, one.base)} before it knew you. Fewer is better.` : "");
  $("spark").hidden = !one;
  fill($("g-words"), words.slice(0, 4).map(({ word }) => h("span.tag.mine", word)));
  if (!last) return;
  fill($("learned-lead"), one ? [`When you write, it wavers between about `, h("b", `${choices(one, one.now)} choices`), ` for your next ${unit}. Before it knew you: ${choices(one, one.base)}. Fewer is better.`] : GONE[model.withdrawn] ?? "No version is in use: none was better by more than chance yet.");
  $("chart-pick").max = versions.length - 1;
  $("chart-pick").value = versions.length - 1;
  draw();
  sentences = last.report.completions ?? [];
  $("sentence-on").hidden = sentences.length < 2;
  if (sentences.length) showSentence(sentences[0]); else $("sentence").replaceChildren(h("p.hint", "Begin a sentence below to see both."));
  fill($("risen"), words.length ? words.slice(0, WORDS).map(({ word, base, personal }) => h("li", h("b", word), h("span", `${oneIn(personal)}, before ${oneIn(base)}`))) : h("li", "None to show."));
  showVersions();
}

// ---- The line of all nights, each against the model as it came, on the same texts
export function draw() {
  if (!versions.length) return;
  const count = (one, loss) => Math.exp(loss * (one.tokens ?? 1)), picked = versions[$("chart-pick").value], start = [-1, count(versions[0], versions[0].base)]; // the nights in order, after the model as it came
  const used = versions.filter((one) => one.outcome === "learned" || one.serving), dot = (one) => [versions.indexOf(one), count(one, one.now), one === picked ? "picked" : used.includes(one) ? "" : "aside"];
  const lines = [{ name: "base", points: [start, ...versions.map((one, place) => [place, count(one, one.base)])] }, { name: "mine", points: [start, ...used.map(dot)] }];
  const last = versions.length - 1, labels = [...new Set([0, last >> 1, last])].map((place) => [place, shortDay(versions[place].created_at)]);
  plot($("chart").firstElementChild, { lines, dots: versions.map(dot), labels, area: true });
  plot($("spark"), { lines, dots: used.slice(-1).map(dot), area: true });
  const not = picked.outcome.startsWith("too") ? " Too little text to tell, so it is not used yet." : " No better than the one before, so it is not used.";
  $("chart-say").replaceChildren(h("b", `${day(picked.created_at)}: `), `${choices(picked, picked.now)} choices after it, ${choices(picked, picked.base)} for the model as it came, on the same texts of yours.${used.includes(picked) ? "" : not}`);
  const { verdict: { overall, ordinary, blocks }, verbatim_recall: recall } = picked.report;
  put("chart-details", `${picked.id}: tested on ${number(overall.texts ?? blocks)} held-out texts; held-out loss ${picked.before.toFixed(4)} to ${picked.now.toFixed(4)} nats per token, base model ${picked.base.toFixed(4)}${picked.tokens ? `, ${picked.tokens} tokens per word` : ""}${ordinary ? `; ordinary text ${(ordinary.before - ordinary.now).toFixed(4)} nats better` : ""}.${recall ? ` It repeats you word for word at ${Math.round(recall.personal * recall.places)} of ${recall.places} places that were tested; as it came, at ${Math.round(recall.base * recall.places)}.` : ""}`);
  $("chart-pick").setAttribute("aria-valuetext", $("chart-say").textContent);
}

// ---- Sentences, and words
function showSentence({ prompt, base, personal }) {
  const line = (name, kind, rest) => h("div", { class: kind }, h("small", name), h("p", prompt, h("mark", rest)));
  $("sentence").replaceChildren(line("As it came", "was", base), line("Your model", "is", personal));
}

// Both models go on with a text, by the same chance.
async function compare() {
  const prompt = $("prompt").value, seed = Math.floor(Math.random() * 2 ** 31), ask = (adapter) => call("POST", "/generate", { prompt, max_tokens: COMPARED_TOKENS, seed, adapter });
  if (!model.adapter) throw new Error(GONE[model.withdrawn] ?? "There is nothing to compare yet: no version is in use.");
  $("sentence").replaceChildren(h("p.hint", "Both are writing…"));
  try {
    showSentence({ prompt, base: (await ask("base")).text, personal: (await ask("serving")).text });
  } catch (error) {
    $("sentence").replaceChildren();
    throw error;
  }
}

function oneIn(value) {
  const found = 1 / value, digits = 10 ** Math.max(0, Math.floor(Math.log10(found)) - 1);
  return `1 in ${number(Math.round(found / digits) * digits)}`;
}

// ---- Versions
function versionRow(one) {
  const at = when(one.created_at), learned = one.outcome === "learned", tag = one.serving ? "in use" : learned ? null : one.outcome.startsWith("too") ? "cannot tell yet" : "not better";
  const serve = async (allowed) => { await call("POST", `/adapters/${one.id}/serve?deleted_text=${allowed}`); toast(`The version of ${at} is in use.`); await look(); };
  const asked = (error) => {
    if (error.code !== "has_deleted_text") throw error;
    return confirm("It has learned a text that you deleted since, and may repeat it. Use it anyway?") && serve(true);
  };
  const back = async () => { await call("POST", "/adapters/rollback", {}); toast("The version before it is in use."); await look(); };
  return h("li", h("div.what", h("p", h("b", at), " ", tag && h("span", { class: one.serving ? "tag mine" : "tag" }, tag)), h("small", `${choices(one, one.before)} → ${choices(one, one.now)} choices`)),
    one.serving ? button("Go back one", "plain", back, at) : button(learned ? "Use" : "Use anyway", "plain", () => serve(false).catch(asked), at));
}

function showVersions() {
  fill($("versions"), versions.toReversed().map(versionRow), h("li", h("p", h("b", "As it came"), " ", !model.adapter && h("span.tag.mine", "in use"))));
}

// again: shows everything anew.
export function onLearned(again) {
  look = again;
  $("chart-pick").addEventListener("input", draw);
  for (const id of ["chart", "spark"]) new ResizeObserver(draw).observe($(id));
  onClick("sentence-on", () => showSentence(sentences[sentence = (sentence + 1) % sentences.length]));
  onSubmit("compare", compare);
}
