/**
 * A bundle's graphs in ONNX Runtime: a decoder alone, or an encoder and its decoder; their keys and values kept between
 * steps.
 *
 * What goes in and out has the names of qia3/bundle/ports.py. A cache is a value: stepping it twice gives two futures.
 *
 * @typedef {import('./adapter.mjs').Tensors} Tensors
 * @typedef {object} Cache
 * @property {number} length  positions of each row
 * @property {Record<string, any>} tensors  their keys and values, by the name of the graph's input
 * @property {Record<string, any>} fixed  what the steps read besides and none changes
 * @typedef {{logits: Float32Array[], cache: Cache}} Step  logits [V] after the last token of each row
 */

import { HEAD } from './adapter.mjs';
import { refuse, VECTOR } from './manifest.mjs';

const PAST = 'past_key_values.';
const STATES = 'encoder_hidden_states';

/** One graph. Runs are one after the other: a session takes no two at once. */
export class Session {
  /**
   * @param {any} ort  @param {any} session  @param {import('./manifest.mjs').Graph} graph  @param {string} where
   * @param {import('./manifest.mjs').Manifest} manifest
   */
  constructor(ort, session, graph, where, manifest) {
    this.ort = ort;
    this.shape = manifest.architecture;
    this.session = session;
    /** @type {Map<string, {type: string, shape: (number | string)[]}>} */
    this.ports = new Map(session.inputMetadata.map((port) => [port.name, port]));
    this.own = graph.vectors.map(({ name }) => name);
    this.where = where;
    /** @type {WeakMap<Tensors, Record<string, any>>} */
    this.made = new WeakMap();
    /** @type {Promise<unknown>} */
    this.last = Promise.resolve();
  }

  /**
   * @param {any} ort  @param {import('./files.mjs').Files} files  @param {import('./manifest.mjs').Graph} graph
   * @param {Uint8Array} data its weights, which another graph may share  @param {'wasm' | 'webgpu'} device
   */
  static async open(ort, files, graph, data, device) {
    const where = `${files.base}${graph.file}`;
    const model = await files.bytes(graph.file);
    const { layers } = files.manifest.architecture;
    const kept = Array.from({ length: layers }, (_, i) => [`present.${i}.key`, `present.${i}.value`]).flat();
    const alone = graph === files.manifest.graphs.decoder && !files.manifest.graphs.encoder;
    const settings = {
      executionProviders: [device],
      externalData: [{ path: graph.data.replace(/^.*\//, ''), data }],
      // keys and values stay on the graphics processor; an encoder-decoder's go to and fro
      preferredOutputLocation: device === 'webgpu' && alone ? ofAll(kept, 'gpu-buffer') : undefined,
      logSeverityLevel: 3, // otherwise a warning for each vector with a default, and for nodes on the processor
    };
    const session = await ort.InferenceSession.create(model, settings).catch((error) => {
      const way = /GatherBlockQuantized/.test(error.message)
        ? 'export it with --target browser'
        : 'build the bundle again';
      return refuse(`ONNX Runtime cannot load ${where} on ${device}: ${firstLine(error)}; ${way}`);
    });
    return new Session(ort, session, graph, where, files.manifest);
  }

  /** @param {number[][]} rows of one length */
  int64(rows) {
    return new this.ort.Tensor('int64', BigInt64Array.from(rows.flat(), BigInt), [rows.length, rows[0].length]);
  }

  /** Caches of no positions. @param {string[]} names */
  nothing(names) {
    const empty = (name) => {
      const { shape } = /** @type {{shape: any[]}} */ (this.ports.get(name));
      const [heads, size] = [shape[1], shape[3]].map(Number); // which a graph may leave open
      const dims = [1, heads || this.shape.kv_heads, 0, size || this.shape.head_size];
      return new this.ort.Tensor('float32', new Float32Array(0), dims);
    };
    return Object.fromEntries(names.map((name) => [name, empty(name)]));
  }

  /**
   * This graph's share of vectors, and of a head; ones, and a head that says nothing, where the graph has to be fed and
   * none is there.
   *
   * @param {Tensors} vectors
   */
  fed(vectors) {
    const known = this.made.get(vectors);
    if (known) return known;
    if (this.own.some((name) => name in vectors && !this.ports.has(name))) {
      const way = 'export the bundle with --target browser';
      refuse(
        `${this.where} takes no adapters here: JavaScript's ONNX Runtime feeds no input that has a default; ${way}`,
      );
    }
    const tensor = ([name, { shape }]) => {
      const size = Number(shape[2] ?? 1);
      const none = {
        dims: name === HEAD[1] ? [1, 1] : [1, 1, size],
        data: new Float32Array(size).fill(HEAD.includes(name) ? 0 : 1),
      };
      const { data, dims } = vectors[name] ?? none;
      return [name, new this.ort.Tensor('float32', data, dims)];
    };
    const fed = [...this.ports].filter(([name]) => name.endsWith(VECTOR) || HEAD.includes(name)).map(tensor);
    this.made.set(vectors, Object.fromEntries(fed));
    return /** @type {Record<string, any>} */ (this.made.get(vectors));
  }

  /** @param {Record<string, any>} feeds  @returns {Promise<Record<string, any>>} */
  run(feeds) {
    const strange = [...this.ports.keys()].filter((name) => !(name in feeds));
    if (strange.length)
      refuse(`${this.where} wants ${strange.slice(0, 3).join(', ')}, which is not known here; upgrade qia3.mjs`);
    const found = this.last.then(() => this.session.run(feeds));
    this.last = found.catch(() => {});
    return found.catch((error) =>
      refuse(`ONNX Runtime cannot run ${this.where}: ${firstLine(error)}; build the bundle again`),
    );
  }
}

/** A decoder: a prompt, then one token a row at a time. */
export class Decoder {
  /** @param {Session} session */
  constructor(session) {
    this.session = session;
    this.forced = 0; // tokens that every text begins with
    this.past = [...session.ports.keys()].filter((name) => name.startsWith(PAST));
  }

  /** @param {number[]} prompt  @param {Tensors} vectors  @returns {Promise<Step>} */
  async prefill(prompt, vectors) {
    return this.extend([prompt], { length: 0, tensors: this.session.nothing(this.past), fixed: {} }, vectors);
  }

  /**
   * So many more tokens of each row.
   *
   * @param {number[][]} rows
   * @param {Cache} cache
   * @param {Tensors} vectors
   * @returns {Promise<Step>}
   */
  async extend(rows, cache, vectors) {
    const length = cache.length + rows[0].length;
    const fed = { ...this.ids(rows, length), ...cache.tensors, ...cache.fixed, ...this.session.fed(vectors) };
    const outputs = await this.session.run(fed);
    const tensors = Object.fromEntries(this.past.map((name) => [name, outputs[present(name)]]));
    const { data, dims } = outputs.logits; // [rows, 1 or all positions, V]
    const ends = rows.map((_, row) => (row + 1) * dims[1] * dims[2]);
    const logits = ends.map((end) => data.slice(end - dims[2], end));
    return { logits, cache: { length, tensors, fixed: this.read(outputs, cache) } };
  }

  ids(rows, length) {
    return {
      input_ids: this.session.int64(rows),
      attention_mask: this.session.int64(rows.map(() => new Array(length).fill(1))),
    };
  }

  /** What later steps read. @returns {Record<string, any>} */
  read(outputs, cache) {
    return cache.fixed;
  }

  /**
   * Rows picked or repeated; the same tensors where that changes nothing.
   *
   * @param {Cache} cache
   * @param {number[]} index
   */
  async expand(cache, index) {
    return { ...cache, tensors: await this.picked(cache.tensors, index) };
  }

  async picked(tensors, index) {
    const rows = async ([name, tensor]) => {
      const { type, dims } = tensor;
      if (index.length === dims[0] && index.every((row, i) => row === i)) return [name, tensor];
      const data = await tensor.getData();
      const size = data.length / dims[0];
      const made = new data.constructor(size * index.length);
      index.forEach((row, i) => made.set(data.subarray(row * size, (row + 1) * size), i * size));
      return [name, new this.session.ort.Tensor(type, made, [index.length, ...dims.slice(1)])];
    };
    return Object.fromEntries(await Promise.all(Object.entries(tensors).map(rows)));
  }

  /** Gives the graphics processor's memory back; elsewhere nothing is to be done. @param {Cache} cache */
  drop(cache) {
    Object.values(cache.tensors).forEach((tensor) => tensor.location === 'gpu-buffer' && tensor.dispose());
  }

  async close() {
    await this.session.session.release();
  }
}

/**
 * An encoder and its decoder: the prompt is encoded once, and its keys and values are read from then on
 * (runtime/seq2seq.py).
 */
export class Pair extends Decoder {
  /**
   * @param {Session} encoder
   * @param {Session} decoder
   * @param {{decoder_start: number[], hidden_size: number}} shape
   */
  constructor(encoder, decoder, shape) {
    super(decoder);
    this.encoder = encoder;
    this.start = shape.decoder_start;
    this.forced = shape.decoder_start.length - 1;
    this.hidden = shape.hidden_size;
    this.cross = this.past.filter((name) => name.split('.').at(-2) === 'encoder');
    this.past = this.past.filter((name) => !this.cross.includes(name));
    // rows of tokens may share one row of the states' keys and values where the graph calls their number otherwise
    const rows = (name) => decoder.ports.get(name)?.shape[0];
    this.shared = ![...this.cross, 'encoder_attention_mask'].map(rows).includes(rows('input_ids'));
  }

  /** @param {number[]} prompt  @param {Tensors} vectors */
  async prefill(prompt, vectors) {
    const mask = this.session.int64([prompt.map(() => 1)]);
    const fed = { input_ids: this.session.int64([prompt]), attention_mask: mask, ...this.encoder.fed(vectors) };
    const { last_hidden_state: states } = await this.encoder.run(fed);
    const fixed = { encoder_attention_mask: mask, [STATES]: states, ...this.session.nothing(this.cross) };
    return this.extend([this.start], { length: 0, tensors: this.session.nothing(this.past), fixed }, vectors);
  }

  ids(rows) {
    return /** @type {any} */ ({ input_ids: this.session.int64(rows) });
  }

  /** The states' keys and values, which the first run gives, and states of no positions in their stead. */
  read(outputs, cache) {
    if (cache.length) return cache.fixed;
    const made = Object.fromEntries(this.cross.map((name) => [name, outputs[present(name)]]));
    return { ...cache.fixed, ...made, [STATES]: this.noStates(1) };
  }

  noStates(rows) {
    return new this.session.ort.Tensor('float32', new Float32Array(0), [rows, 0, this.hidden]);
  }

  async expand(cache, index) {
    const found = await super.expand(cache, index);
    if (this.shared) return found;
    const { [STATES]: none, ...rest } = cache.fixed;
    return { ...found, fixed: { ...(await this.picked(rest, index)), [STATES]: this.noStates(index.length) } };
  }

  async close() {
    await this.encoder.session.release();
    await super.close();
  }
}

const ofAll = (names, value) => Object.fromEntries(names.map((name) => [name, value]));

const present = (name) => name.replace(PAST, 'present.');

export const firstLine = (error) => String(error?.message ?? error).split('\n')[0];
