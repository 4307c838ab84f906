/**
 * A bundle in a worker, asked as a Model is, and what that worker does.
 *
 *     there   {id, call, args}   {id, stop}
 *     back    {id, value}   {id, error}   {id, piece}, ..., {id, done}   {progress}
 *
 * @typedef {import('./model.mjs').Model} Model
 */

import { QIA3Error } from './manifest.mjs';

const CALLS = /** @type {const} */ (['label', 'scores', 'tags', 'embed', 'prepare', 'encode']);
const STREAMS = /** @type {const} */ (['generate', 'generateTokens']);

/**
 * @typedef {object} Changing
 * @property {(name: string, buffer: ArrayBuffer, task?: import('./manifest.mjs').Task) => Promise<void>} add
 * @property {() => Promise<void>} close
 * @typedef {'name' | 'device' | 'adapters' | 'tasks' | 'manifest'} Facts
 * @typedef {Pick<Model, (typeof CALLS)[number] | (typeof STREAMS)[number] | Facts> & Changing} Remote
 */

/**
 * A Remote over a worker that runs `answering`.
 *
 * @param {Worker} worker  @param {string} url  @param {any} options  @param {(progress: any) => void} [progress]
 * @returns {Promise<Remote>}
 */
export async function remote(worker, url, options, progress) {
  let next = 0;
  /** @type {Map<number, (message: any) => void>} */
  const waiting = new Map();
  const tellAll = (error) => [...waiting.values()].forEach((told) => told({ error }));
  worker.onmessage = ({ data }) => (data.progress ? progress?.(data.progress) : waiting.get(data.id)?.(data));
  worker.onerror = (event) => {
    event.preventDefault();
    tellAll(`the worker cannot run: ${event.message ?? 'its script cannot be loaded'}`);
  };

  const call = (name, ...args) =>
    new Promise((resolve, reject) => {
      const id = next++;
      waiting.set(id, ({ value, error }) => {
        waiting.delete(id);
        if (error === undefined) resolve(value);
        else reject(new QIA3Error(error));
      });
      worker.postMessage({ id, call: name, args });
    });

  async function* stream(name, text, adapter, { signal, ...asked } = /** @type {any} */ ({})) {
    const id = next++;
    const come = [];
    let wake = () => {};
    waiting.set(id, (message) => {
      come.push(message);
      wake();
    });
    const stop = () => worker.postMessage({ id, stop: true });
    signal?.addEventListener('abort', stop);
    worker.postMessage({ id, call: name, args: [text, adapter, asked] });
    if (signal?.aborted) stop();
    try {
      for (;;) {
        while (!come.length) await new Promise((resolve) => (wake = () => resolve(undefined)));
        const message = come.shift();
        if (message.error !== undefined) throw new QIA3Error(message.error);
        if (message.done || signal?.aborted) return; // pieces may be on their way
        yield message.piece;
      }
    } finally {
      stop();
      signal?.removeEventListener('abort', stop);
      waiting.delete(id);
    }
  }

  const made = Object.fromEntries([
    ...CALLS.map((name) => [name, (...args) => call(name, ...args)]),
    ...STREAMS.map((name) => [name, (text, adapter, asked) => stream(name, text, adapter, asked)]),
  ]);
  made.add = async (...args) => Object.assign(made, await call('add', ...args));
  made.close = async () => {
    worker.terminate();
    tellAll('the model was closed');
  };
  return Object.assign(/** @type {any} */ (made), await call('open', url, options));
}

/**
 * Answers a Remote's messages in a worker.
 *
 * @param {any} self the worker's scope  @param {(url: string, options: any) => Promise<Model>} open
 */
export function answering(self, open) {
  /** @type {Model} */
  let model;
  const running = new Set(); // texts that are being written
  const facts = () => {
    const { name, device, adapters, tasks, manifest } = model;
    return { name, device, adapters, tasks, manifest };
  };
  const written = async (id, pieces) => {
    running.add(id);
    try {
      for await (const piece of pieces) {
        if (!running.has(id)) return;
        self.postMessage({ id, piece });
      }
    } finally {
      running.delete(id);
    }
  };
  const answer = async (id, call, args) => {
    if (STREAMS.includes(call)) return written(id, model[call](...args));
    if (call !== 'open' && call !== 'add') return model[call](...args);
    if (call === 'add') model.add(args[0], args[1], args[2]);
    else model = await open(args[0], { ...args[1], progress: (progress) => self.postMessage({ progress }) });
    return facts();
  };
  self.onmessage = async ({ data: { id, call, args, stop } }) => {
    if (stop) return running.delete(id);
    const told = (error) => (error instanceof QIA3Error ? error.message : String(error));
    const done = await answer(id, call, args).then(
      (value) => ({ value, done: true }),
      (error) => ({ error: told(error) }),
    );
    self.postMessage({ id, ...done });
  };
}
