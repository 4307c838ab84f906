/**
 * A bundle's folder behind an address: each file checked against the manifest's hash, and kept between visits by that
 * hash.
 *
 * The hash is in the address that is fetched and in the key that it is kept by, so a bundle that is published again at
 * the same place meets no file of the one before. A file that a page has in pieces (`pieces` in its manifest) is put
 * together here.
 *
 * @typedef {{file: string, sha256: string, bytes: number}} Piece
 * @typedef {{loaded: number, total: number, file: string}} Progress  in bytes, of all files that are needed
 */

import { AGAIN, checked, refuse } from './manifest.mjs';

/** A folder's files. @param {string} base ends in "/" */
export class Files {
  constructor(base, { cache = true, progress = (/** @type {Progress} */ _) => {} } = {}) {
    this.base = base;
    this.place = base.replace(/\/$/, ''); // as messages say it
    this.kept = cache && globalThis.caches ? caches.open('qia3').catch(() => undefined) : undefined;
    this.progress = progress;
    /** @type {Set<string>} */
    this.expected = new Set();
    /** @type {Map<string, number>} */
    this.loaded = new Map();
    /** @type {import('./manifest.mjs').Manifest} */
    this.manifest = {};
  }

  /** Reads the manifest, without a network the kept one, and drops what is kept of its files' earlier contents. */
  async open() {
    const [where, cache] = [`${this.base}manifest.json`, await this.kept];
    const answer = await fetched(where, 'no-cache').catch(async (error) => {
      const held = await cache?.match(where);
      if (!held) throw error;
      return held;
    });
    const written = await answer.text();
    this.manifest = checked(parsed(written, where), this.place);
    await cache?.put(where, new Response(written)).catch(() => {});
    const names = Object.keys(this.manifest.files).flatMap((name) => this.pieces(name));
    const now = new Map(names.map((piece) => [this.base + piece.file, piece.sha256]));
    for (const { url } of (await cache?.keys()) ?? []) {
      const [place, hash] = url.split('?sha256=');
      if (now.has(place) && now.get(place) !== hash) await cache?.delete(url);
    }
    return this.manifest;
  }

  /** What a file lies in, which is mostly one piece: the file itself. @returns {Piece[]} */
  pieces(name) {
    const entry = this.manifest.files[name];
    if (!entry) this.differs(`${name} is not in the manifest`);
    return this.manifest.pieces?.[name] ?? [{ file: name, ...entry }];
  }

  /** @param {string} what is not as it was @returns {never} */
  differs(what) {
    return refuse(`${this.place} differs from what was built: ${what}; copy it again or rebuild it`);
  }

  /** Adds files to those that progress counts. @param {string[]} names */
  expect(names) {
    names.forEach((name) => this.expected.add(name));
  }

  /** Into one array from the start, for weights are most of the memory. @param {string} name */
  async bytes(name) {
    this.expect([name]);
    const whole = new Uint8Array(this.manifest.files[name].bytes);
    let at = 0;
    for (const piece of this.pieces(name)) {
      await this.read(piece, whole.subarray(at, at + piece.bytes));
      at += piece.bytes;
    }
    return whole;
  }

  async json(name) {
    return parsed(new TextDecoder().decode(await this.bytes(name)), this.base + name);
  }

  /** A piece into its place. @param {Piece} piece  @param {Uint8Array<ArrayBuffer>} place */
  async read({ file, sha256 }, place) {
    const [key, cache] = [`${this.base}${file}?sha256=${sha256}`, await this.kept];
    const held = await cache?.match(key);
    const count = await filled(held ?? (await fetched(key)), place, (there) => this.tell(file, there));
    if (count !== place.length) this.differs(`${file} has ${count} bytes instead of ${place.length}`);
    if (held) return; // it was checked when it came
    // a page without https has nothing to hash with, and anybody on the way can change the page itself
    const digest = globalThis.crypto?.subtle && hex(await crypto.subtle.digest('SHA-256', place));
    if (digest && digest !== sha256) this.differs(`${file} has changed`);
    await cache?.put(key, new Response(place)).catch(() => {}); // a full disk costs the next visit, not this one
  }

  /** How much of a piece is there. */
  tell(file, count) {
    this.loaded.set(file, count);
    const all = [...this.expected].flatMap((name) => this.pieces(name));
    const loaded = [...this.loaded.values()].reduce((sum, bytes) => sum + bytes, 0);
    this.progress({ file, loaded, total: all.reduce((sum, piece) => sum + piece.bytes, 0) });
  }
}

/** What is behind an address. Node's fetch opens no files, so those are read. @returns {Promise<Response>} */
async function fetched(url, cache = /** @type {RequestCache} */ ('default')) {
  if (url.startsWith('file:')) {
    const { readFile } = await import(/* webpackIgnore: true */ /* @vite-ignore */ 'node:fs/promises');
    return new Response(await readFile(new URL(url.split('?')[0])).catch((error) => refuse(error.message)));
  }
  const answer = await fetch(url, { cache }).catch((error) => refuse(`${url} cannot be fetched: ${error.message}`));
  if (!answer.ok) refuse(`${url} cannot be fetched: ${answer.status} ${answer.statusText}`);
  return answer;
}

/** Writes an answer into its place, `told` how much is there. How many bytes it has, which may be more. */
async function filled(answer, place, told) {
  let count = 0;
  const reader = answer.body?.getReader();
  for (let part; reader && !(part = await reader.read()).done; told(count)) {
    if (count + part.value.length <= place.length) place.set(part.value, count);
    count += part.value.length;
  }
  return count;
}

/** JSON, or a refusal that names the file. */
function parsed(written, where) {
  try {
    return JSON.parse(written);
  } catch (error) {
    return refuse(`${where} is damaged: ${/** @type {Error} */ (error).message}; ${AGAIN}`);
  }
}

export const hex = (bytes) => Array.from(new Uint8Array(bytes), (byte) => byte.toString(16).padStart(2, '0')).join('');

/** An absolute address; of a folder it ends in "/". */
export function address(place, folder = true) {
  const here = globalThis.location?.href ?? `file://${/** @type {any} */ (globalThis).process?.cwd() ?? ''}/`;
  const { href } = new URL(String(place), here);
  return folder && !href.endsWith('/') ? `${href}/` : href;
}
