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

export async function call(method, path, body, credential) {
  const headers = credential ? { Authorization: `Bearer ${credential}` } : { "X-Page-Key": localStorage.getItem(KEPT) };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  // A deletion or a cancellation that waited ends even if the page is left meanwhile.
  const keepalive = method !== "GET" && body === undefined;
  const response = await fetch(path, { method, headers, keepalive, body: body === undefined ? undefined : JSON.stringify(body) });
  const document = response.status === 204 ? null : await response.json();
  if (response.status === 401 && !credential) refused();
  if (!response.ok) throw Object.assign(new Error(document?.detail ?? `${path}: ${response.status}`), { code: document?.error?.code });
  return document;
}
