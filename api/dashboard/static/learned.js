// What the last job won, the loss of a job, the jobs, the adapters, and both models side by side.
import { call } from "/dashboard/call.js";
import { button, count, duration, element, fill, isPending, later, loss, made, onClick, onSubmit, takeBack, when } from "/dashboard/dom.js";
import { plot } from "/dashboard/plot.js";

const MOST_JOBS = 200, MORE_JOBS = 40, OPEN = ["queued", "running", "paused"];
const SMOOTH = 0.8; // how much of the training line's last point is kept in the next
let shown = 20;
let reported = null; // the job whose words are shown
let look = async () => {};

const title = (job) => (job.words === null ? "Job" : `${count(job.words, "word")} in ${count(job.texts, "text")}`);

// Returns the running job.
export async function showLearned(status) {
  const { data, has_more } = await call("GET", `/jobs?limit=${shown}`);
  element("more-jobs").hidden = !has_more || shown >= MOST_JOBS;
  fill(element("jobs"), data.length ? data.map(jobItem) : [made("li", "None yet. One starts when there are enough new words.")]);
  const running = data.find((job) => job.state === "running");
  if (running && !running.step) { // what it does before the first step, which can take minutes
    const { events } = await call("GET", `/jobs/${running.id}`);
    running.preparing = events.findLast((event) => event.kind === "preparing")?.message;
  }
  const ended = data.filter((job) => job.state === "succeeded" && job.id !== status.worker.job); // else it is being written
  await showWon(ended[0]);
  if (element("loss").open) await showCurve(data, running ?? ended[0] ?? data[0]);
  if (element("adapter-list").open) await showAdapters();
  return running;
}

async function showWon(job) {
  if (!job || job.id === reported) return;
  if (!(await call("GET", `/jobs/${job.id}`)).report) return;
  const report = await call("GET", `/jobs/${job.id}/report`);
  reported = job.id;
  const { before, now } = report.verdict.overall;
  element("won").textContent = job.outcome === "learned"
    ? `The last job made each token of your held-out text ${Math.exp(before - now).toFixed(2)} times as likely.`
    : `The last job's adapter is not served: ${job.outcome}.`;
  const words = (report.words ?? []).slice(0, 8).map(({ word, base, personal }) => {
    const found = made("li", word);
    found.title = `base model ${(100 * base).toFixed(2)} %, personal model ${(100 * personal).toFixed(2)} %`;
    return found;
  });
  element("won-words").replaceChildren(...words);
  element("won-words-title").hidden = !words.length;
}

function jobItem(job) {
  const item = made("li");
  const outcome = job.outcome ? `: ${job.outcome}` : "";
  item.append(made("strong", `${job.state}${outcome}`), ` ${title(job)}`);
  const left = job.eta_seconds === null ? "" : `, ${duration(job.eta_seconds)} left`;
  const change = job.held_out_loss_now === null ? "" : `; held-out loss ${loss(job.held_out_loss_before)} to ${loss(job.held_out_loss_now)}`;
  item.append(made("p", `${when(job.created_at)}, step ${job.step}${job.total_steps ? ` of ${job.total_steps}` : ""}${left}${change}`, "faint"));
  for (const reason of job.reasons) item.append(made("p", reason, "faint"));
  if (job.error) item.append(made("p", job.error, "bad"));
  if (OPEN.includes(job.state)) item.append(...jobButtons(job));
  return item;
}

function jobButtons(job) {
  const post = (name) => async () => { await call("POST", `/jobs/${job.id}/${name}`); await look(); };
  const about = `job of ${when(job.created_at)}`;
  if (isPending(job.id))
    return [made("span", "Cancelling in ten seconds. "), button("Undo", about, async () => { takeBack(job.id); await look(); })];
  const cancel = async () => { later(job.id, post("cancel"), look); await look(); };
  return [job.paused_by_owner ? button("Resume", about, post("resume")) : button("Pause", about, post("pause")), button("Cancel", about, cancel)];
}

// usual: of which the curve is shown unless another one was picked.
async function showCurve(jobs, usual) {
  const choice = element("curve-job");
  const options = jobs.map((job) => {
    const option = made("option", `${when(job.created_at)}: ${title(job)}, ${job.state}`);
    option.value = job.id;
    return option;
  });
  const picked = choice.dataset.picked;
  fill(choice, options);
  for (const part of [choice, element("curve"), element("loss").querySelector(".key")]) part.toggleAttribute("hidden", !usual);
  if (!usual) { element("curve-text").textContent = "No job yet."; return; }
  choice.value = jobs.some((job) => job.id === picked) ? picked : usual.id;
  const { curve } = await call("GET", `/jobs/${choice.value}`);
  const training = curve.training.map((point) => [point.step, point.loss]);
  const heldOut = curve.held_out.map((point) => [point.step, point.held_out_loss]);
  const last = training.at(-1);
  element("curve-text").textContent = last ? `${last[1].toFixed(3)} nats per token at step ${last[0]}.` : "No steps yet.";
  let mean = training[0]?.[1];
  const smoothed = training.map(([step, value]) => [step, (mean = SMOOTH * mean + (1 - SMOOTH) * value)]);
  const lines = [{ name: "single", points: training }, { name: "training", points: smoothed }, { name: "held-out", points: heldOut, dots: true }];
  plot(element("curve"), lines, { writeX: (x) => `step ${Math.round(x)}`, writeY: (y) => y.toFixed(2) });
}

async function showAdapters() {
  const { data } = await call("GET", "/adapters");
  fill(element("adapters"), data.length ? data.map(adapterItem) : [made("li", "None yet.")]);
  element("roll-back").hidden = !data.some((adapter) => adapter.serving);
}

function adapterItem(adapter) {
  const item = made("li");
  const name = `adapter of ${when(adapter.created_at)}`;
  item.append(made("strong", adapter.serving ? "serving" : "not served"), ` ${name}`);
  const change = `held-out loss ${loss(adapter.held_out_loss_before)} to ${loss(adapter.held_out_loss_now)}`;
  item.append(made("p", `${adapter.id}: ${adapter.outcome}, from ${adapter.parent ?? "the base model"}; ${change}`, "faint"));
  const serve = async (allowed) => { await call("POST", `/adapters/${adapter.id}/serve?deleted_text=${allowed}`); await look(); };
  const asked = (error) => {
    if (error.code !== "has_deleted_text" || !confirm(`${error.message}\n\nServe it anyway?`)) throw error;
    return serve(true);
  };
  if (!adapter.serving) item.append(button("Serve", name, () => serve(false).catch(asked)));
  return item;
}

async function compare() {
  const prompt = element("prompt").value;
  element("answers").replaceChildren(made("p", "Both models are answering…", "faint"));
  try {
    const sides = made("div", undefined, "answers"), seed = Math.floor(Math.random() * 2 ** 31);
    for (const [name, adapter] of [["Base", "base"], ["Personal", "serving"]]) {
      const answer = await call("POST", "/generate", { prompt, max_tokens: 60, seed, adapter });
      const side = made("div"), words = made("pre");
      words.textContent = prompt + answer.text;
      side.append(made("h3", answer.adapter || adapter === "base" ? name : "Base: nothing is learned yet"), words);
      sides.append(side);
    }
    element("answers").replaceChildren(sides);
  } catch (error) {
    element("answers").replaceChildren();
    throw error;
  }
}

// again: shows everything anew.
export function onLearned(again) {
  look = again;
  for (const id of ["loss", "job-list", "adapter-list"]) element(id).addEventListener("toggle", look);
  element("curve-job").addEventListener("change", (event) => {
    event.target.dataset.picked = event.target.value;
    look();
  });
  onClick("more-jobs", async () => { shown = Math.min(MOST_JOBS, shown + MORE_JOBS); await look(); });
  onClick("roll-back", async () => { await call("POST", "/adapters/rollback", {}); await look(); });
  onSubmit("compare", compare);
}
