// Asks the daemon, as the one whose token is kept until signed out.
const KEPT = "pocketllm-token";
let token = localStorage.getItem(KEPT);
let refused = () => {};

export const isSignedIn = () => token !== null;
export const onRefusal = (act) => { refused = act; };

export function useToken(given) {
  token = given;
}

export function keepToken() {
  localStorage.setItem(KEPT, token);
}

export function forgetToken() {
  token = null;
  localStorage.removeItem(KEPT);
}

export async function call(method, path, body) {
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  // A deletion or a cancellation that waited ends even if the page is left meanwhile.
  const keepalive = method !== "GET" && body === undefined;
  const response = await fetch(path, { method, headers, keepalive, body: body === undefined ? undefined : JSON.stringify(body) });
  const document = response.status === 204 ? null : await response.json();
  if (response.status === 401) refused();
  if (!response.ok) throw new Error(document?.detail ?? `${path}: ${response.status}`);
  return document;
}
