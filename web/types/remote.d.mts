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
export function remote(worker: Worker, url: string, options: any, progress?: (progress: any) => void): Promise<Remote>;
/**
 * Answers a Remote's messages in a worker.
 *
 * @param {any} self the worker's scope  @param {(url: string, options: any) => Promise<Model>} open
 */
export function answering(self: any, open: (url: string, options: any) => Promise<Model>): void;
export type Changing = {
    add: (name: string, buffer: ArrayBuffer, task?: import("./manifest.mjs").Task) => Promise<void>;
    close: () => Promise<void>;
};
export type Facts = "name" | "device" | "adapters" | "tasks" | "manifest";
export type Remote = Pick<Model, (typeof CALLS)[number] | (typeof STREAMS)[number] | Facts> & Changing;
/**
 * A bundle in a worker, asked as a Model is, and what that worker does.
 *
 *     there   {id, call, args}   {id, stop}
 *     back    {id, value}   {id, error}   {id, piece}, ..., {id, done}   {progress}
 */
export type Model = import("./model.mjs").Model;
declare const CALLS: readonly ["label", "scores", "tags", "embed", "prepare", "encode"];
declare const STREAMS: readonly ["generate", "generateTokens"];
export {};
