// The apps that have a token.
import { call } from "/dashboard/call.js";
import { button, element, fill, made, onSubmit, when } from "/dashboard/dom.js";

export async function showApps() {
  const { data } = await call("GET", "/tokens");
  fill(element("apps"), data.length ? data.map(appItem) : [made("li", "No app has access yet.")]);
}

function appItem({ name, scopes, created_at }) {
  const item = made("li");
  item.append(made("strong", name), ` ${scopes.join(", ")}, since ${when(created_at)} `);
  const revoke = async () => {
    if (!confirm(`Revoke the access token of ${name}?`)) return;
    await call("DELETE", `/tokens/${name}`);
    await showApps();
  };
  item.append(button("Revoke", name, revoke));
  return item;
}

async function create() {
  const name = element("app-name").value;
  const { token } = await call("POST", "/tokens", { name, scopes: [element("app-scope").value] });
  element("app-name").value = "";
  const shown = made("code");
  shown.textContent = token;
  element("app-token").replaceChildren(`The access token of ${name}, shown only once: `, shown);
  await showApps();
}

export function onApps() {
  onSubmit("new-app", create);
}
