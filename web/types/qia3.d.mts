/**
 * Opens a bundle here. A page stands still while it computes: `openInWorker` is for those.
 *
 * @param {string | URL} url the bundle's folder  @param {Options} [options]  @returns {Promise<Model>}
 */
export function open(url: string | URL, { device: asked, runtime, threads, cache, progress }?: Options): Promise<Model>;
/**
 * Opens a bundle in a worker of its own.
 *
 * @param {string | URL} url the bundle's folder  @param {Options} [options]  @returns
 * {Promise<import('./remote.mjs').Remote>}
 */
export function openInWorker(url: string | URL, { progress, runtime, ...options }?: Options): Promise<import("./remote.mjs").Remote>;
export { readAdapter } from "./adapter.mjs";
export { QIA3Error } from "./manifest.mjs";
export { Model } from "./model.mjs";
export { Tokens } from "./tokens.mjs";
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
 */
export type Options = {
    /**
     * auto: WebGPU where a graphics processor offers it and can, else
     * WebAssembly
     */
    device?: "auto" | "webgpu" | "wasm" | undefined;
    /**
     * a folder with
     * ort.DEVICE.min.mjs and tokenizers.min.mjs, or the addresses of the modules
     */
    runtime?: string | URL | {
        wasm?: string;
        webgpu?: string;
        tokenizers: string;
    } | undefined;
    /**
     * of WebAssembly; several need a page that is cross-origin isolated (default there: up to
     * 4)
     */
    threads?: number | undefined;
    /**
     * keep files in the browser's Cache API, by their hash (default: where there is one)
     */
    cache?: boolean | undefined;
    progress?: ((progress: import("./files.mjs").Progress) => void) | undefined;
};
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
 */
export type Asked = import("./model.mjs").Asked;
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
 */
export type Task = import("./manifest.mjs").Task;
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
 */
export type Remote = import("./remote.mjs").Remote;
import { Model } from './model.mjs';
