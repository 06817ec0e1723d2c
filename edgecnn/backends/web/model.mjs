// One model in ONNX Runtime Web: a message in, a message out. Node and the page share it.

import { known, pack, unpack } from './wire.mjs';

// Returns the function that answers messages; `importOrt` imports onnxruntime-web, `folder` is its dist folder's URL.
export function answering(importOrt, folder) {
  const kept = {};
  return async (message) => {
    try {
      const request = unpack(message);
      if (request.do === 'run') return await run(kept, request);
      kept.ort = await importOrt();
      return await load(kept, request, folder);
    } catch (error) {
      return pack({ error: String(error?.message ?? error) }, []);
    }
  };
}

async function load(kept, { threads, tensors }, folder) {
  const { env, InferenceSession } = kept.ort;
  env.logLevel = 'error';
  env.wasm.wasmPaths = folder; // never a content delivery network
  env.wasm.numThreads = threads;
  kept.session = await InferenceSession.create(tensors[0].data, {
    executionProviders: ['wasm'],
    graphOptimizationLevel: 'all',
  });
  if (env.wasm.numThreads !== threads) {
    throw new Error(`${threads} threads were asked for and ${env.wasm.numThreads} obtained`);
  }
  const { inputMetadata, outputMetadata } = kept.session;
  if (!inputMetadata || !outputMetadata) {
    throw new Error(`onnxruntime-web ${env.versions?.web} does not tell dtypes and shapes; 1.21 or newer does`);
  }
  return pack({ inputs: inputMetadata.map(spec), outputs: outputMetadata.map(spec) }, []);
}

function spec({ name, isTensor, type, shape }) {
  if (!isTensor) throw new Error(`'${name}' is no tensor`);
  known(type);
  // A dimension that may vary is its name, or -1 where it has none.
  return { name, dtype: type, shape: shape.map((size) => (Number.isInteger(size) && size >= 0 ? size : null)) };
}

async function run({ ort, session }, { tensors }) {
  const feeds = {};
  for (const { name, dtype, shape, data } of tensors) feeds[name] = new ort.Tensor(dtype, data, shape);
  const outputs = await session.run(feeds);
  return pack({}, session.outputNames.map((name) => {
    const { type, dims, data } = outputs[name];
    return { name, dtype: type, shape: dims, data };
  }));
}
