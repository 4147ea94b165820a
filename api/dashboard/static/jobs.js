// What it is doing, what the last job won, the jobs, and the curve of one of them.
import { call } from "/dashboard/call.js";
import { button, count, duration, element, fill, isPending, later, loss, made, number, takeBack, when } from "/dashboard/dom.js";
import { plot } from "/dashboard/plot.js";

const MOST_JOBS = 200, MORE_JOBS = 40, OPEN = ["queued", "running", "paused"];
const SMOOTH = 0.8; // how much of the training line's last point is kept in the next
let shown = 20;
let reported = null; // the job whose words are shown
let changed = async () => {}; // called after something was done to a job

export const onChange = (act) => { changed = act; };

const title = (job) => (job.words === null ? "Job" : `${count(job.words, "word")} in ${count(job.texts, "text")}`);

export async function showJobs() {
  const status = await call("GET", "/status");
  const { data, has_more } = await call("GET", `/jobs?limit=${shown}`);
  element("more-jobs").hidden = !has_more || shown >= MOST_JOBS;
  fill(element("jobs"), data.length ? data.map(jobItem) : [made("li", "No jobs yet: one starts when there are enough new words.")]);
  const running = data.find((job) => job.state === "running");
  showNow(status, running);
  await showWon(data.find((job) => job.state === "succeeded" && job.id !== status.worker.job)); // else it is being written
  await showCurve(data, running);
  return status;
}

export async function showMoreJobs() {
  shown = Math.min(MOST_JOBS, shown + MORE_JOBS);
  await showJobs();
}

function showNow({ training, worker, texts }, job) {
  const blockers = worker.running ? [] : training.blockers;
  fill(element("blockers"), blockers.map((blocker) => made("li", `${blocker.message} (since ${when(blocker.since)})`)));
  element("progress").hidden = !job;
  element("progress").value = job ? job.step / Math.max(1, job.total_steps) : 0;
  element("now").textContent = job ? `Learning ${title(job)}: ${stage(job)}.`
    : worker.running ? "Writing down what was learned."
    : blockers.length ? "It cannot learn now:" : `Nothing to learn: ${count(texts.new_words, "new word")}; ${number(texts.threshold_words)} start a job.`;
}

function stage(job) {
  const left = job.eta_seconds === null ? "" : `, ${duration(job.eta_seconds)} left`;
  return job.step ? `step ${job.step} of ${job.total_steps}${left}` : job.reasons[0] ?? "preparing";
}

async function showWon(job) {
  if (!job || job.id === reported) return;
  if (!(await call("GET", `/jobs/${job.id}`)).report) return;
  const report = await call("GET", `/jobs/${job.id}/report`);
  reported = job.id;
  const { before, now } = report.verdict.overall;
  const likelier = Math.exp(before - now);
  element("won").textContent = job.outcome === "learned"
    ? `The last job: each word piece of text it had not seen is ${likelier.toFixed(2)} times as likely.`
    : `The last job's outcome: ${job.outcome}.`;
  const words = (report.words ?? []).slice(0, 8).map(({ word, base, personal }) => {
    const found = made("li", word);
    found.title = `${(100 * base).toFixed(2)} % to the base model, ${(100 * personal).toFixed(2)} % to yours`;
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
  item.append(made("p", `${when(job.created_at)}, step ${job.step} of ${job.total_steps}${left}${change}`, "faint"));
  for (const reason of job.reasons) item.append(made("p", `waits: ${reason}`, "faint"));
  if (job.error) item.append(made("p", job.error, "bad"));
  if (OPEN.includes(job.state)) item.append(...jobButtons(job));
  return item;
}

function jobButtons(job) {
  const post = (name) => async () => { await call("POST", `/jobs/${job.id}/${name}`); await changed(); };
  const about = `job of ${when(job.created_at)}`;
  if (isPending(job.id))
    return [made("span", "Is cancelled in ten seconds. "), button("Undo", about, async () => { takeBack(job.id); await showJobs(); })];
  const cancel = async () => { later(job.id, post("cancel")); await showJobs(); };
  return [job.paused_by_owner ? button("Resume", about, post("resume")) : button("Pause", about, post("pause")), button("Cancel", about, cancel)];
}

// Of the job that was picked, else of the one that runs, else of the last one.
async function showCurve(jobs, running) {
  const choice = element("curve-job");
  const options = jobs.map((job) => {
    const option = made("option", `${when(job.created_at)}: ${title(job)}`);
    option.value = job.id;
    return option;
  });
  const picked = choice.dataset.picked;
  fill(choice, options);
  choice.hidden = !jobs.length;
  if (!jobs.length) return;
  choice.value = jobs.some((job) => job.id === picked) ? picked : (running ?? jobs[0]).id;
  const { curve } = await call("GET", `/jobs/${choice.value}`);
  const training = curve.training.map((point) => [point.step, point.loss]);
  const heldOut = curve.held_out.map((point) => [point.step, point.held_out_loss]);
  const last = training.at(-1);
  element("curve-text").textContent = last ? `In nats per token: ${last[1].toFixed(3)} at step ${last[0]}.` : "No steps yet.";
  let mean = training[0]?.[1];
  const smoothed = training.map(([step, value]) => [step, (mean = SMOOTH * mean + (1 - SMOOTH) * value)]);
  const lines = [{ name: "single", points: training }, { name: "training", points: smoothed }, { name: "held-out", points: heldOut, dots: true }];
  plot(element("curve"), lines, { writeX: (x) => `step ${Math.round(x)}`, writeY: (y) => y.toFixed(2) });
}

element("curve-job").addEventListener("change", (event) => {
  event.target.dataset.picked = event.target.value;
  showJobs();
});
