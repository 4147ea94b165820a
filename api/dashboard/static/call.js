// Asks the daemon. A session is half a cookie, which no script can read, and half a key that only pages from this port can.
const KEPT = "pocketllm-page-key";
let refused = () => {};

export const isSignedIn = () => localStorage.getItem(KEPT) !== null;
export const onRefusal = (act) => { refused = act; };
export const forgetSession = () => localStorage.removeItem(KEPT);

// credential: a token, or a code that is good once.
export async function beginSession(credential) {
  localStorage.setItem(KEPT, (await call("POST", "/sessions/redeem", undefined, credential)).page_key);
}

async function answer(method, path, body, credential) {
  const headers = credential ? { Authorization: `Bearer ${credential}` } : { "X-Page-Key": localStorage.getItem(KEPT) };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  // A deletion or a cancellation that waited ends even if the page is left meanwhile.
  const keepalive = method !== "GET" && body === undefined;
  const response = await fetch(path, { method, headers, keepalive, body: body === undefined ? undefined : JSON.stringify(body) });
  if (response.status === 401 && !credential) refused();
  if (response.ok) return response;
  const document = await response.json().catch(() => null);
  throw Object.assign(new Error(document?.detail ?? `${path}: ${response.status}`), { code: document?.error?.code, status: response.status });
}

export async function call(method, path, body, credential) {
  const response = await answer(method, path, body, credential);
  return response.status === 204 ? null : response.json();
}

// Generate text, and tell each piece of it as it comes. Returns the whole answer.
export async function streamed(body, tell) {
  const reader = (await answer("POST", "/generate", { ...body, stream: true })).body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = "", done = null; ;) {
    const read = await reader.read();
    text += read.value ?? "";
    const events = text.split(/\r?\n\r?\n/);
    text = events.pop();
    for (const event of events) {
      const kind = event.match(/^event: ?(.*)$/m)?.[1], data = JSON.parse(event.match(/^data: ?(.*)$/m)?.[1] ?? "{}");
      if (kind === "token") tell(data.text);
      else if (kind === "error") throw new Error(data.detail);
      else if (kind === "done") done = data;
    }
    if (done) return done;
    if (read.done) throw new Error("The answer broke off. Is the daemon running?");
  }
}
