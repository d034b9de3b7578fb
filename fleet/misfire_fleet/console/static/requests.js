// Sends JSON to the console's API, and says what it answered.

export async function send(method, path, body, headers = {}) {
  const options = { method, cache: "no-store", headers };
  if (body !== undefined) {
    options.headers = { ...headers, "Content-Type": "application/json" };
    options.body = JSON.stringify(body);
  }
  try {
    const answer = await fetch(path, options);
    const found = answer.status === 204 ? {} : await answer.json().catch(() => ({}));
    return { ok: answer.ok, status: answer.status, found, problem: answer.ok ? "" : (found.detail ?? `status ${answer.status}`) };
  } catch {
    return { ok: false, status: 0, found: {}, problem: "the console cannot be reached" };
  }
}

// Only a path of this console: an address that somebody sent must not lead elsewhere after signing in.
export function localPath(text) {
  try {
    const wanted = new URL(text, location.origin);
    return wanted.origin === location.origin ? wanted.pathname + wanted.search + wanted.hash : "/";
  } catch {
    return "/";
  }
}
