// The bundle's model in this browser: ONNX Runtime Web on WebAssembly, from this server's own files.

import { decode } from './decode.mjs';
import { encodePpm, fit } from './pixels.mjs';
import { Problem, getBytes } from './server.mjs';

const folder = new URL('../ort/', import.meta.url).href;

export class BrowserModel {
  constructor(manifest, about) {
    this.manifest = manifest;
    this.about = about;
    this.sessions = new Map(); // of artifacts' names, each loaded once
  }

  // Decodes and resizes as the server does; gives `pixels` (uint8 height x width x channels), the image, and the times.
  async prepare(blob, name) {
    const { preprocess } = this.manifest;
    const start = performance.now();
    const image = await decode(blob, name);
    const decoded = performance.now();
    const pixels = fit(image.rgba, image.width, image.height, preprocess, this.about.columns_first);
    return { image, pixels, ms: { decode: decoded - start, preprocess: performance.now() - decoded } };
  }

  // Gives the probabilities, a Float32Array, and the milliseconds of the run.
  async run(artifact, pixels) {
    const { ort, session } = await this.session(artifact);
    const { height, width, channels } = this.manifest.preprocess;
    const feeds = { [session.inputNames[0]]: new ort.Tensor('uint8', pixels, [1, height, width, channels]) };
    const start = performance.now();
    try {
      const { probabilities } = await session.run(feeds, ['probabilities']);
      return { probabilities: probabilities.data, ms: performance.now() - start };
    } catch (error) {
      throw new Problem(`ONNX Runtime Web could not run ${artifact}: ${line(error)}`);
    }
  }

  session(artifact) {
    if (!this.sessions.has(artifact)) {
      const loading = this.load(artifact);
      this.sessions.set(artifact, loading);
      loading.catch(() => this.sessions.delete(artifact)); // it may go well another time
    }
    return this.sessions.get(artifact);
  }

  async load(name) {
    const bytes = await getBytes(`bundle/${this.about.artifacts.find((artifact) => artifact.name === name).path}`);
    try {
      const ort = await import(`${folder}ort.wasm.min.mjs`);
      ort.env.logLevel = 'error';
      ort.env.wasm.wasmPaths = folder; // never a content delivery network
      ort.env.wasm.numThreads = 1; // more would need workers of scripts that this page's policy does not let run
      const session = await ort.InferenceSession.create(bytes, { executionProviders: ['wasm'], graphOptimizationLevel: 'all' });
      const { height, width, channels } = this.manifest.preprocess;
      const blank = new ort.Tensor('uint8', new Uint8Array(height * width * channels), [1, height, width, channels]);
      await session.run({ [session.inputNames[0]]: blank }); // a first run compiles, which no later one does
      return { ort, session };
    } catch (error) {
      throw new Problem(`ONNX Runtime Web could not load ${name}: ${line(error)}`);
    }
  }

  // The pixels as a file that the server reads without decoding or resizing anything.
  file(pixels) {
    return encodePpm(pixels, this.manifest.preprocess);
  }
}

// Labels with their probabilities, likeliest first; equal ones stay in the labels' order, as on the server.
export function ranked(labels, probabilities) {
  const guesses = labels.map((label, index) => ({ label, probability: probabilities[index] }));
  return guesses.sort((one, other) => other.probability - one.probability);
}

function line(error) {
  return String(error?.message ?? error).replace(/\s+/g, ' ').slice(0, 300);
}
