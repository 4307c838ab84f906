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
 * that end an answer, the hash of every file. What it says is understood or refused, in one line. Labels and greedy
 * answers are those of the Python runtime on a graph whose products are in float32, since WebAssembly and WebGPU do not
 * round activations to 8 bits.
 *
 * onnxruntime-web computes and @huggingface/tokenizers makes tokens. By default both are imported by name (npm with a
 * bundler, an import map, Node). `runtime` is a folder that has them, as `qia3 page` writes it; without a bundler a
 * worker needs it, since import maps do not reach workers.
 *
 *     files.mjs  manifest.mjs  adapter.mjs  tokens.mjs       what is read
 *     graph.mjs  ranking.mjs  model.mjs  remote.mjs          what is done with it
 *
 * @typedef {object} Options
 * @property {'auto' | 'wasm' | 'webgpu'} [device]  auto: WebGPU where a graphics processor offers it
 * @property {string | URL | {ort: string, tokenizers: string}} [runtime]  a folder with ort.DEVICE.min.mjs and
 * tokenizers.min.mjs,
 *     or the addresses of both modules
 * @property {number} [threads]  of WebAssembly; several need a page that is cross-origin isolated (default there: up to
 * 4)
 * @property {boolean} [cache]  keep files in the browser's Cache API, by their hash (default: where there is one)
 * @property {(progress: import('./files.mjs').Progress) => void} [progress]
 */

import { address, Files } from './files.mjs';
import { Decoder, firstLine, Pair, Session } from './graph.mjs';
import { refuse } from './manifest.mjs';
import { Model } from './model.mjs';
import { answering, remote } from './remote.mjs';
import { Tokens } from './tokens.mjs';

export { readAdapter } from './adapter.mjs';
export { QIA3Error } from './manifest.mjs';
export { Tokens } from './tokens.mjs';

const WORKER = 'qia3'; // the name of a worker that answers for a bundle

/**
 * Opens a bundle here. A page stands still while it computes: `openInWorker` is for those.
 *
 * @param {string | URL} url the bundle's folder  @param {Options} [options]  @returns {Promise<Model>}
 */
export async function open(url, { device: asked = 'auto', runtime, threads, cache, progress } = {}) {
  const files = new Files(address(url), { cache, progress });
  const { graphs, files: listed, architecture } = await files.open();
  const chosen = [graphs.encoder, graphs.decoder].filter((graph) => graph);
  const config = 'tokenizer_config.json';
  files.expect([
    ...new Set([
      'tokenizer.json',
      ...(config in listed ? [config] : []),
      ...chosen.flatMap(({ file, data }) => [file, data]),
    ]),
  ]);
  const device = await deviceOf(asked);
  const { ort, tokenizers } = await libraries(placed(runtime), device, threads);
  const words = [await files.json('tokenizer.json'), config in listed ? await files.json(config) : {}];
  const tokens = new Tokens(tokenizers, words[0], words[1], architecture.vocab_size);
  const [sessions, held] = [/** @type {Session[]} */ ([]), new Map()];
  for (const graph of chosen) {
    if (!held.has(graph.data)) held.set(graph.data, await files.bytes(graph.data));
    sessions.push(await Session.open(ort, files, graph, held.get(graph.data), device));
  }
  const [first, second] = sessions;
  if (second) return new Model(files, tokens, device, { decoder: new Pair(first, second, architecture) });
  return new Model(files, tokens, device, graphs.decoder ? { decoder: new Decoder(first) } : { encoder: first });
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
  return { ort: address(runtime.ort, false), tokenizers: address(runtime.tokenizers, false) };
}

/** "auto" is WebGPU where a graphics processor offers it, and not where the processor only plays one. */
async function deviceOf(asked) {
  if (asked !== 'auto')
    return ['wasm', 'webgpu'].includes(asked) ? asked : refuse(`device is auto, wasm or webgpu, not ${asked}`);
  const adapter = await /** @type {any} */ (globalThis.navigator)?.gpu?.requestAdapter().catch(() => null);
  return adapter && !adapter.info?.isFallbackAdapter ? 'webgpu' : 'wasm';
}

/** Names of packages stand here whole, so that a bundler sees them. */
async function libraries(at, device, threads) {
  const from = (url) => import(/* webpackIgnore: true */ /* @vite-ignore */ url);
  const [runtime, words] =
    typeof at === 'string' ? [`${at}ort.${device}.min.mjs`, `${at}tokenizers.min.mjs`] : [at?.ort, at?.tokenizers];
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
