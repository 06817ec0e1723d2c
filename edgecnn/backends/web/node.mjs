// Node's side of the backend: answers messages on standard input on standard output, until the input ends.
// Its argument is onnxruntime-web's dist folder.

import { pathToFileURL } from 'node:url';

import { answering } from './model.mjs';
import { PREFIX, lengthOf } from './wire.mjs';

console.log = console.info = console.debug = console.warn = console.error; // standard output is for answers

const folder = pathToFileURL(`${process.argv[2]}/`).href;
const answer = answering(() => import(`${folder}ort.node.min.mjs`), folder);

let chunks = [];
let have = 0;
let need = PREFIX;
for await (const chunk of process.stdin) {
  chunks.push(chunk);
  have += chunk.length;
  if (have < need) continue;
  const bytes = Buffer.concat(chunks);
  need = lengthOf(bytes);
  chunks = [bytes];
  if (have < need) continue;
  process.stdout.write(await answer(bytes));
  [chunks, have, need] = [[], 0, PREFIX];
}
process.exit(0); // threads of WebAssembly would keep it alive
