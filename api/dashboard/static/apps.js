// The apps that have a key of their own.
import { call } from "./call.js";
import { $, button, command, fill, h, later, onSubmit, waiting, when } from "./dom.js";

// A scope in words, as the form has it.
const may = (scope) => document.querySelector(`[name=scope][value=${scope}]`)?.parentNode.textContent ?? "do all that you may";

export async function showApps() {
  const { data } = await call("GET", "/tokens");
  fill($("app-list"), data.length ? data.map(appRow) : h("li", h("small", "No app has access yet.")));
}

function appRow({ name, scopes, created_at }) {
  const old = waiting(`app ${name}`);
  if (old) return old;
  const row = h("li", h("div.what", h("p", h("b", name)), h("small", `May ${scopes.map(may).join("; ")}. Since ${when(created_at)}.`)),
    button("Remove", "plain", async () => later(`app ${name}`, row, `${name} loses its access in`, "The texts it has sent stay.", () => call("DELETE", `/tokens/${name}`), showApps), name));
  return row;
}

async function create() {
  const name = $("app-name").value, scopes = [...document.querySelectorAll("[name=scope]:checked")].map((one) => one.value);
  if (!scopes.length) throw new Error("Choose what the app may do.");
  const { token } = await call("POST", "/tokens", { name, scopes });
  $("app-name").value = "";
  $("app-key").replaceChildren(h("div.shown-key", h("b", `The key of ${name}, shown only this once`), command(token),
    h("small", "In programs made for OpenAI, the address is ", h("code", `${location.origin}/v1`), ".")));
  await showApps();
}

export function onApps() {
  onSubmit("new-app", create);
}
