// Posts the answer to the last message to the server this page came from and gets the next, until the server is gone.

import { answering } from './model.mjs';

const folder = new URL('ort/', location.href).href;
const answer = answering(() => import(`${folder}ort.wasm.min.mjs`), folder);

let body = null;
try {
  for (;;) {
    const next = await fetch('next', { method: 'POST', body });
    body = null;
    if (next.status === 204) continue; // nothing yet
    if (!next.ok) break;
    body = await answer(new Uint8Array(await next.arrayBuffer()));
  }
} finally {
  window.close(); // and with its last window the browser ends, also where Python was killed
}
