// One sentence of what it does now, and the one thing to do about it.
import { call } from "/dashboard/call.js";
import { count, duration, element, fill, made, number, onClick, when } from "/dashboard/dom.js";

const SNOOZE_MINUTES = 480, MOST_SOURCES = 3;
let running = null, snoozed = false;

// sources: as GET /sources has them.
export function showState({ training, worker, texts, model, open_job: open }, job, sources) {
  const named = sources.filter((one) => one.new_words).map((one) => one.source);
  const from = named.length ? ` from ${named.slice(0, MOST_SOURCES).join(", ")}${named.length > MOST_SOURCES ? " and others" : ""}` : "";
  const fresh = `${count(texts.new_words, "new word")}${from}`;
  const blockers = worker.running ? [] : training.blockers;
  running = job ?? null;
  snoozed = training.snoozed_until !== null;
  element("now").textContent = sentence();
  element("night").textContent = `Last night: ${training.last_night}.`;
  element("progress").hidden = !job;
  element("progress").value = job?.total_steps ? job.step / job.total_steps : 0;
  fill(element("blockers"), blockers.map((blocker) => made("li", `${blocker.message} (since ${when(blocker.since)})`)));
  element("why").hidden = !blockers.length;
  element("pause").hidden = !job;
  element("train").hidden = Boolean(job) || !texts.new_words || !model.ready;
  element("bring").hidden = texts.count > 0;
  element("snooze").hidden = !job && !texts.new_words && !snoozed;
  element("snooze").textContent = snoozed ? "End the snooze" : "Snooze for 8 hours";

  function sentence() {
    if (job) return `Learning ${job.words === null ? "your words" : count(job.words, "word")}: ${stage(job)}.`;
    if (worker.running) return "Writing the report of the last job.";
    if (!model.ready) return model.message ?? "The model is missing.";
    if (!texts.count) return "There are no texts yet.";
    if (!texts.new_words) return "All your texts are learned. Nothing to do.";
    if (texts.new_words < texts.threshold_words) return `${fresh}. Learning starts by itself once there are ${number(texts.threshold_words)}, or after a week with ${number(texts.waited_threshold_words)}.`;
    if (snoozed) return `Snoozed until ${when(training.snoozed_until)}; then it learns ${fresh}.`;
    if (!blockers.length) return `About to learn ${fresh}.`;
    const expected = training.expected_at ? `probably at ${when(training.expected_at)}` : "when the device charges and is idle";
    const left = open?.step ? ` Step ${open.step}${open.total_steps ? ` of ${open.total_steps}` : ""}${open.eta_nights ? `, about ${count(open.eta_nights, "night")} left` : ""}.` : "";
    return `It will learn ${fresh}, ${expected}.${left}`;
  }
}

function stage(job) {
  const left = job.eta_seconds === null ? "" : `, ${duration(job.eta_seconds)} left`;
  return job.step ? `step ${job.step}${job.total_steps ? ` of ${job.total_steps}` : ""}${left}` : job.preparing ?? "preparing";
}

// look: shows everything anew.
export function onState(look) {
  onClick("train", async () => { await call("POST", "/jobs", {}); await look(); });
  onClick("pause", async () => { if (running) await call("POST", `/jobs/${running.id}/pause`); await look(); });
  onClick("snooze", async () => { await call("POST", "/status/snooze", snoozed ? {} : { minutes: SNOOZE_MINUTES }); await look(); });
}
