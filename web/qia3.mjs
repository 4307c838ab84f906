/**
 * A QIA3 bundle in a browser or in Node: opened by its folder's address, asked as `qia3 run` asks it.
 *
 *     import { openInWorker } from 'qia3';
 *
 *     const model = await openInWorker('bundles/home-intents/');
 *     await model.label('could you dim the hall a bit', 'home-intents');                        // "lights"
 *     for await (const piece of model.generate('dim the hall', 'home-commands')) show(piece);
 *
 * manifest.json says what a question is: the prompt around a person's words, the answers to choose from, the tokens
 * that end an answer, the hash of every file. What it says is understood or refused, in one line. Labels and texts are
 * those of the Python runtime on a graph whose products are in float32, since WebAssembly and WebGPU do not
 * round activations to 8 bits.
 *
 * `onnxruntime-web` computes and `@huggingface/tokenizers` makes tokens. By default both are imported by name (npm with a
 * bundler, an import map, Node). `runtime` is a folder that has them, as `qia3 page` writes it; without a bundler a
 * worker needs it, since import maps do not reach workers.
 *
 *     files.mjs  manifest.mjs  adapter.mjs  tokens.mjs       what is read, and names.mjs, how messages name it
 *     graph.mjs  ranking.mjs  decoding.mjs  model.mjs  remote.mjs    what is done with it
 *
 * @typedef {object} Options
 * @property {'auto' | 'wasm' | 'webgpu'} [device]  auto: WebGPU where a graphics processor offers it and can, else
 *     WebAssembly
 * @property {string | URL | {wasm?: string, webgpu?: string, tokenizers: string}} [runtime]  a folder with
 *     ort.DEVICE.min.mjs and tokenizers.min.mjs, or the addresses of the modules
 * @property {number} [threads]  of WebAssembly; several need a page that is cross-origin isolated (default there: up to
 * 4)
 * @property {boolean} [cache]  keep files in the browser's Cache API, by their hash (default: where there is one)
 * @property {(progress: import('./files.mjs').Progress) => void} [progress]
 * @typedef {import('./model.mjs').Asked} Asked
 * @typedef {import('./manifest.mjs').Task} Task
 * @typedef {import('./remote.mjs').Remote} Remote
 */

import { address, Files } from './files.mjs';
import { Decoder, firstLine, Pair, Session } from './graph.mjs';
import { refuse } from './manifest.mjs';
import { Model } from './model.mjs';
import { answering, remote } from './remote.mjs';
import { Tokens } from './tokens.mjs';

export { readAdapter } from './adapter.mjs';
export { QIA3Error } from './manifest.mjs';
export { Model } from './model.mjs';
export { Tokens } from './tokens.mjs';

const WORKER = 'qia3'; // the name of a worker that answers for a bundle
const WORDS = ['tokenizer.json', 'tokenizer_config.json'];

/**
 * Opens a bundle here. A page stands still while it computes: `openInWorker` is for those.
 *
 * @param {string | URL} url the bundle's folder  @param {Options} [options]  @returns {Promise<Model>}
 */
export async function open(url, { device: asked = 'auto', runtime, threads, cache, progress } = {}) {
  const files = new Files(address(url), { cache, progress });
  const { graphs, files: listed } = await files.open();
  const chosen = [graphs.encoder, graphs.decoder].filter((graph) => graph);
  const words = WORDS.filter((name) => name in listed);
  files.expect([...words, ...chosen.flatMap(({ file, data }) => [file, data])]);
  const at = placed(runtime);
  for (const device of await devicesOf(asked, at, files.manifest)) {
    const { ort, tokenizers } = await libraries(at, device, threads);
    const [written, config] = await Promise.all(words.map((name) => files.json(name)));
    const tokens = new Tokens(tokenizers, written, config ?? {}, files.manifest.architecture.vocab_size);
    const engine = await engineOf(ort, files, chosen, device).catch((error) => {
      if (asked !== 'auto' || device === 'wasm') throw error;
      return undefined; // a graphics processor that cannot: the next device
    });
    if (engine) return new Model(files, tokens, device, engine);
  }
  return refuse(`${files.place} opens on no device`);
}

/** Sessions over a bundle's graphs. */
async function engineOf(ort, files, graphs, device) {
  const [sessions, held] = [/** @type {Session[]} */ ([]), new Map()];
  for (const graph of graphs) {
    if (!held.has(graph.data)) held.set(graph.data, await files.bytes(graph.data));
    sessions.push(await Session.open(ort, files, graph, held.get(graph.data), device));
  }
  const [first, second] = sessions;
  if (second) return { decoder: new Pair(first, second, files.manifest.architecture) };
  return files.manifest.graphs.decoder ? { decoder: new Decoder(first) } : { encoder: first };
}

/**
 * Opens a bundle in a worker of its own.
 *
 * @param {string | URL} url the bundle's folder  @param {Options} [options]  @returns
 * {Promise<import('./remote.mjs').Remote>}
 */
export async function openInWorker(url, { progress, runtime, ...options } = {}) {
  const worker = new Worker(new URL('./qia3.mjs', import.meta.url), { type: 'module', name: WORKER });
  return remote(worker, address(url), { ...options, runtime: placed(runtime) }, progress).catch((error) => {
    worker.terminate();
    throw error;
  });
}

/** Absolute addresses of the libraries' modules, or of the folder that they are in. */
function placed(runtime) {
  if (!runtime) return undefined;
  if (typeof runtime === 'string' || runtime instanceof URL) return address(runtime);
  return Object.fromEntries(Object.entries(runtime).map(([name, place]) => [name, address(place, false)]));
}

/**
 * "auto" is WebGPU where a graphics processor offers it, and not where the processor only plays one; then WebAssembly.
 * Int8 products run on the processor alone.
 */
async function devicesOf(asked, at, manifest) {
  const known = typeof at === 'object' ? ['wasm', 'webgpu'].filter((device) => device in at) : ['wasm', 'webgpu'];
  if (known.includes(asked)) return [asked];
  if (asked !== 'auto') refuse(`device is auto or ${known.join(' or ')} here, not ${asked}`);
  const { linears } = manifest;
  const rounded = Array.isArray(linears) && linears.some((layer) => layer?.products === 'int8');
  if (rounded && known.includes('wasm')) return ['wasm'];
  const adapter = await /** @type {any} */ (globalThis.navigator)?.gpu?.requestAdapter().catch(() => null);
  const plays = !adapter || adapter.info?.isFallbackAdapter;
  return known.filter((device) => device === 'wasm' || !plays).reverse();
}

/** Names of packages stand here whole, so that a bundler sees them. */
async function libraries(at, device, threads) {
  const from = (url) => import(/* webpackIgnore: true */ /* @vite-ignore */ url);
  const folder = { [device]: `${at}ort.${device}.min.mjs`, tokenizers: `${at}tokenizers.min.mjs` };
  const { [device]: runtime, tokenizers: words } = typeof at === 'string' ? folder : (at ?? {});
  const byName = () => (device === 'webgpu' ? import('onnxruntime-web/webgpu') : import('onnxruntime-web/wasm'));
  const loading = [runtime ? from(runtime) : byName(), words ? from(words) : import('@huggingface/tokenizers')];
  const [ort, tokenizers] = await Promise.all(loading).catch((error) => {
    const way = 'npm install onnxruntime-web @huggingface/tokenizers, or say where they are (runtime)';
    return refuse(`ONNX Runtime and the tokenizer cannot be loaded: ${firstLine(error)}; ${way}`);
  });
  if (runtime) ort.env.wasm.wasmPaths = runtime.replace(/[^/]*$/, '');
  ort.env.wasm.numThreads =
    threads ?? (globalThis.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, 4) : 1);
  return { ort, tokenizers };
}

const scope = /** @type {any} */ (globalThis);
if (scope.name === WORKER && scope.DedicatedWorkerGlobalScope && scope instanceof scope.DedicatedWorkerGlobalScope)
  answering(scope, open);
