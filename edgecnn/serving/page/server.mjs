// What the page asks its server for, and what it says where no answer comes.

const TOKEN = 'edgecnn-token';
const PATIENCE_MS = 60_000;
const PATIENCE_FOR_MODELS_MS = 600_000; // megabytes over a slow line

// Something to tell the user, in one line.
export class Problem extends Error {}

// The server wants a token, or another one.
export class TokenWanted extends Problem {}

export function keepToken(token) {
  sessionStorage.setItem(TOKEN, token);
}

// Posts an encoded image and gives its answer, with the round trip's time beside the server's own times.
export async function predict(blob, top, threshold) {
  const start = performance.now();
  const response = await ask(`predict?${new URLSearchParams({ top, threshold })}`, { method: 'POST', body: blob });
  const answer = await response.json();
  return { ...answer, ms: { ...answer.ms, 'round trip': performance.now() - start } };
}

export async function getJson(path) {
  return (await ask(path)).json();
}

export async function getBytes(path) {
  return new Uint8Array(await (await ask(path, {}, PATIENCE_FOR_MODELS_MS)).arrayBuffer());
}

async function ask(path, options = {}, patience = PATIENCE_MS) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const response = await sent(path, { ...options, headers, signal: AbortSignal.timeout(patience) });
  if (response.ok) return response;
  if (response.status === 401) {
    throw new TokenWanted(token ? 'The server does not know this token.' : 'The server asks for its token.');
  }
  throw new Problem(await reason(response));
}

async function sent(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === 'TimeoutError') throw new Problem(`No answer from ${location.host} in time.`);
    throw new Problem(`No answer from ${location.host}: the server has stopped, cannot be reached, or refused so large a body.`);
  }
}

async function reason(response) {
  const text = await response.text();
  try {
    return String(JSON.parse(text).error).slice(0, 500);
  } catch {
    return `The server answers ${response.status} ${response.statusText}.`;
  }
}
