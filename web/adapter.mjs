/**
 * An .onnx_adapter: ONNX Runtime's flatbuffer, identifier "TORT", of named float32 tensors.
 *
 *     table Adapter     format_version, adapter_version, model_version, parameters
 *     table Parameter   name, dims (int64), data_type (1 is float32), raw_data
 *
 * Here they are IA3 vectors [1, 1, d] by the name of a graph's input, and of an encoder's task its head. The model
 * version is the first 28 bits of the base's fingerprint, so a file says which base it was trained on.
 *
 * @typedef {Record<string, {dims: number[], data: Float32Array}>} Tensors  by the name of a graph's input
 */

import { refuse, vectorsOf } from './manifest.mjs';

export const HEAD = ['head.weight', 'head.bias'];
const FLOAT32 = 1;

/**
 * Reads the file, whatever it is for.
 *
 * @param {ArrayBuffer} buffer  @returns {{modelVersion: number, tensors: Tensors}}
 */
export function readAdapter(buffer, where = 'this file') {
  try {
    if (String.fromCharCode(...new Uint8Array(buffer, 4, 4)) !== 'TORT') throw new Error('it does not begin as one');
    return read(buffer);
  } catch (error) {
    return refuse(`${where} cannot be read as an .onnx_adapter: ${/** @type {Error} */ (error).message}`);
  }
}

function read(buffer) {
  const view = new DataView(buffer);
  const u32 = (at) => view.getUint32(at, true);
  const follow = (at) => at + u32(at);
  const vector = (at) => [follow(at) + 4, u32(follow(at))]; // start and count
  /** Where field `slot` of the table at `at` is, or 0. */
  const field = (at, slot) => {
    const table = at - view.getInt32(at, true);
    const known = 4 + 2 * slot < view.getUint16(table, true);
    const offset = known ? view.getUint16(table + 4 + 2 * slot, true) : 0;
    return offset && at + offset;
  };
  const tensor = (table) => {
    const [name, length] = vector(field(table, 0));
    const [dims, rank] = vector(field(table, 1));
    const [raw, bytes] = vector(field(table, 3));
    const called = new TextDecoder().decode(new Uint8Array(buffer, name, length));
    if (view.getInt32(field(table, 2), true) !== FLOAT32) throw new Error(`${called} is not float32`);
    const sizes = Array.from({ length: rank }, (_, d) => Number(view.getBigInt64(dims + 8 * d, true)));
    const held = buffer.slice(raw, raw + bytes); // a copy: it need not be aligned
    if (held.byteLength !== bytes || 4 * sizes.reduce((a, b) => a * b, 1) !== bytes) {
      throw new Error(`${called} has other bytes than its shape`);
    }
    return [called, { dims: sizes, data: new Float32Array(held) }];
  };
  const root = follow(0);
  const [parameters, count] = vector(field(root, 3));
  const tensors = Array.from({ length: count }, (_, i) => tensor(follow(parameters + 4 * i)));
  const version = field(root, 2);
  return { modelVersion: version ? view.getInt32(version, true) : 0, tensors: Object.fromEntries(tensors) };
}

/**
 * An adapter's tensors, where it is one of this bundle's base, with a vector for each place and nothing else.
 *
 * @param {import('./manifest.mjs').Manifest} manifest  @param {ArrayBuffer} buffer  @param {string} where  @returns
 * {Tensors}
 */
export function fitting(manifest, buffer, where) {
  const { modelVersion, tensors } = readAdapter(buffer, where);
  const [ours, theirs] = [manifest.base.fingerprint.slice(0, 7), modelVersion.toString(16).padStart(7, '0')];
  if (theirs !== ours)
    refuse(`${where} was trained on another base (its fingerprint is ${theirs}…, this base's is ${ours}…)`);
  const sizes = new Map(vectorsOf(manifest).map(({ name, size }) => [name, size]));
  const bad = [...sizes.keys()].filter((name) => !(name in tensors)).map((name) => `${name} is missing`);
  for (const [name, { dims, data }] of Object.entries(tensors)) {
    const size = sizes.get(name);
    if (HEAD.includes(name)) {
      if (!data.every(Number.isFinite))
        refuse(`${where} has a head that is not float32, or that holds NaN or infinity`);
    } else if (size === undefined) bad.push(`${name} is not an input of this base`);
    else if (String(dims) !== `1,1,${size}`)
      bad.push(`${name} has shape [${dims.join(', ')}] instead of [1, 1, ${size}]`);
    else if (!data.every(Number.isFinite)) bad.push(`${name} holds NaN or infinity`);
  }
  const count = `${bad.length} bad tensor${bad.length > 1 ? 's' : ''}`;
  if (bad.length) refuse(`${where} does not fit this base; ${count}: ${bad.join('; ')}`);
  return tensors;
}
