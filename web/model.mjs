/**
 * An opened bundle, asked as `qia3 run` asks it: the task's prompt around a person's words, a label of the task's
 * choices or text until a token that ends it.
 *
 * @typedef {import('./manifest.mjs').Task} Task
 * @typedef {import('./adapter.mjs').Tensors} Tensors
 * @typedef {object} Question
 * @property {string} [task]  asks another task's question
 * @property {string[]} [choices]  instead of the task's
 * @property {number} [maxNewTokens]
 * @property {AbortSignal} [signal]  ends a text
 * @typedef {Question & import('./decoding.mjs').Decoding} Asked  greedy, unless decoding says otherwise
 */

import { fitting, HEAD } from './adapter.mjs';
import { beamSearch, checkedDecoding, chooser } from './decoding.mjs';
import { Pair } from './graph.mjs';
import { isSize, refuse, wrongInTask } from './manifest.mjs';
import { instead, nearest, quoted } from './names.mjs';
import { argmax, ranked, shares } from './ranking.mjs';
import { Pieces } from './tokens.mjs';

const NONE = 'none';
const TAGS = 'token-classification'; // a label for each word
const NOTHING = 'there is nothing to rank: a prompt has no choices, or a choice has no tokens';
const BASE_TOKENS = 128; // what the base alone may say
const OPENINGS = ['a', 'the', 'I', 'What', '7', '?', 'é']; // unlike each other, and most melt into a space before them

/** `adapter` is a name, or "none" for the base; left out it is the only one that the bundle has. */
export class Model {
  /**
   * @param {import('./files.mjs').Files} files  @param {import('./tokens.mjs').Tokens} tokens  @param {'wasm' |
   * 'webgpu'} device
   * @param {{decoder?: import('./graph.mjs').Decoder, encoder?: import('./graph.mjs').Session}} engine one of the two
   */
  constructor(files, tokens, device, { decoder, encoder }) {
    this.files = files;
    this.manifest = files.manifest;
    this.tokens = tokens;
    this.device = device;
    this.decoder = decoder;
    this.encoder = encoder; // that stands alone
    this.tasks = /** @type {Record<string, Task>} */ ({ ...this.manifest.tasks });
    /** @type {Map<string, Promise<Tensors>>} */
    this.bank = new Map();
    /** @type {Tensors} */
    this.ones = {};
    /** @type {{tokens: number[], vectors: Tensors, cache: import('./graph.mjs').Cache}[]} */
    this.begun = [];
  }

  get name() {
    return /** @type {string} */ (this.manifest.name);
  }

  /** Names; of a merged bundle, the task that is in its weights. @returns {string[]} */
  get adapters() {
    if (this.manifest.mode === 'merged') return [this.manifest.merged_task];
    const files = Object.keys(this.manifest.files).flatMap(
      (file) => /^adapters\/([^/]+)\.onnx_adapter$/.exec(file)?.[1] ?? [],
    );
    return [...new Set([...files, ...this.bank.keys()])].sort();
  }

  /** The best of the task's choices. @param {string} text  @param {string} [adapter]  @param {Asked} [asked] */
  async label(text, adapter, asked) {
    const { choices, scores } = await this.rank(text, adapter, asked);
    return choices[argmax(scores)];
  }

  /**
   * Each choice's probability, given that it is one of them.
   *
   * @param {string} text  @param {string} [adapter]  @param {Asked} [asked]  @returns {Promise<Record<string, number>>}
   */
  async scores(text, adapter, asked) {
    const { choices, scores } = await this.rank(text, adapter, asked);
    return shares(choices, scores);
  }

  /**
   * Text in pieces, as it comes; leaving the loop ends it.
   *
   * @param {string} text  @param {string} [adapter]  @param {Asked} [asked]  @returns {AsyncGenerator<string>}
   */
  async *generate(text, adapter, asked) {
    const pieces = new Pieces(this.tokens);
    for await (const token of this.generateTokens(text, adapter, asked)) {
      const piece = pieces.add(token);
      if (piece) yield piece;
    }
    const rest = pieces.rest();
    if (rest) yield rest;
  }

  /**
   * The same in token ids, until one that ends a text, the limit, or the end of the context: the likeliest each time, or
   * as `asked` says. With beams they all come at the end.
   *
   * @param {string} text  @param {string} [adapter]  @param {Asked} [asked]  @returns {AsyncGenerator<number>}
   */
  async *generateTokens(text, adapter, { task: asked, maxNewTokens, signal, ...given } = {}) {
    const decoding = checkedDecoding(given);
    const { task, vectors } = await this.meant(adapter, asked);
    const decoder = this.writes();
    const most = maxNewTokens ?? task.max_new_tokens;
    if (!isSize(most)) refuse(`maxNewTokens must be a whole number from 1, not ${most}`);
    const start = await this.prefill(this.prompt(task, text), vectors);
    const [stop, context] = [this.manifest.stop_tokens, this.manifest.architecture.context_length];
    if (decoding.beams > 1) {
      const ended = () => pause().then(() => Boolean(signal?.aborted));
      yield* await beamSearch(decoder, start, vectors, { most, context, stop, ended }, decoding);
      return;
    }
    let [{ logits, cache }, choose] = [start, chooser(decoding)];
    try {
      for (let count = 1; ; count++) {
        const token = choose(logits[0]);
        if (signal?.aborted || stop.includes(token)) return;
        yield token;
        if (count >= most || cache.length + 1 >= context) return;
        await pause();
        if (signal?.aborted) return;
        const before = cache;
        ({ logits, cache } = await decoder.extend([[token]], cache, vectors));
        decoder.drop(before);
      }
    } finally {
      decoder.drop(cache); // also where the loop that takes the tokens was left
    }
  }

  /**
   * A text's embedding, by the base unless an adapter is named; of an encoder.
   *
   * @param {string} text
   * @returns {Promise<Float32Array>}
   */
  async embed(text, adapter = NONE) {
    if (!this.encoder) return refuse(`${this.files.place} is not an encoder: only encoders give embeddings`);
    const { task, vectors } = await this.meant(adapter);
    return (await this.encoded(this.prompt(task, text), vectors)).sentence_embedding.data;
  }

  /**
   * Each word with its label, as a task of an encoder labels words: those between spaces, or as they are told apart.
   *
   * @param {string | string[]} text
   * @param {string} [adapter]
   * @returns {Promise<[string, string][]>}
   */
  async tags(text, adapter) {
    const { task, called, vectors } = await this.meant(adapter);
    if (!this.encoder)
      return refuse(`task ${called} labels words, which needs an encoder, and ${this.files.place} is not one`);
    if (task.kind !== TAGS) return refuse(`${called} does not label words: its kind is not '${TAGS}'`);
    const why = 'labelling words needs an adapter that was trained for it';
    if (!task.choices || !this.hasHead(vectors)) return refuse(`${called} has no labels: ${why}`);
    const words = typeof text === 'string' ? text.split(/\s+/).filter((word) => word) : text;
    if (!words.length) refuse('the text has no words');
    const { ids, places } = this.tokens.words(task.prompt, words);
    const outputs = await this.encoded(this.fits(ids), vectors);
    const { data, dims } = outputs.token_logits ?? outputs.logits; // [1, positions, labels]
    const choices = task.choices;
    const best = (at) => choices[argmax(data.subarray(at * dims[2], at * dims[2] + choices.length))];
    return words.map((word, i) => [word, best(places[i])]);
  }

  /**
   * Runs once what the task's prompts all begin with; later questions start behind it and have the same answers.
   *
   * @param {string} [adapter]  @param {Asked} [asked]
   */
  async prepare(adapter, { task: asked } = {}) {
    const { task, vectors } = await this.meant(adapter, asked);
    if (!this.decoder || this.decoder instanceof Pair) return; // every state of an encoder depends on the last word
    const [first, ...others] = OPENINGS.map((text) => this.tokens.prompt(task.prompt, text));
    const end = first.findIndex((token, i) => others.some((other) => other[i] !== token));
    const tokens = first.slice(0, Math.max(end, 0));
    if (!tokens.length || this.begun.some((b) => b.vectors === vectors && b.tokens.join() === tokens.join())) return;
    this.begun.push({ tokens, vectors, cache: (await this.decoder.prefill(tokens, vectors)).cache });
  }

  /**
   * Takes in an adapter that is not the bundle's: an .onnx_adapter of its base, and its task, or else the base's own
   * prompt.
   *
   * @param {string} name  @param {ArrayBuffer} buffer  @param {Task} [task]
   */
  add(name, buffer, task = this.plain()) {
    const wrong = wrongInTask(task);
    if (wrong.length) refuse(`the task of ${quoted(name)} is wrong in: ${wrong.join(', ')}`);
    if (this.manifest.mode === 'merged')
      refuse(`${this.files.place} is merged with ${quoted(this.manifest.merged_task)} and takes no adapters`);
    this.bank.set(name, Promise.resolve(fitting(this.manifest, buffer, name)));
    this.tasks[name] = task;
  }

  /**
   * A question's tokens.
   *
   * @param {string} text
   * @param {string} [adapter]
   * @param {Asked} [asked]
   * @returns {Promise<number[]>}
   */
  async encode(text, adapter, { task: asked } = {}) {
    return this.tokens.prompt((await this.meant(adapter, asked)).task.prompt, text);
  }

  /** Gives the memory back. */
  async close() {
    await this.decoder?.close();
    await this.encoder?.session.release();
  }

  /** An adapter's vectors, and the task whose prompt is used. How answers are ranked is a matter of the vectors. */
  async meant(adapter, asked) {
    const [known, where] = [this.adapters, this.files.place];
    if (adapter === undefined && known.length > 1)
      refuse(`${where} has several adapters; name one: ${known.join(', ')} or none`);
    const name = adapter ?? known[0] ?? NONE;
    const [vectors, called] = [await this.vectors(name), asked ?? name];
    const task = called === NONE ? this.plain() : this.tasks[called];
    if (!task) {
      const near = nearest(called, Object.keys(this.tasks));
      return refuse(`${where} has no task ${quoted(called)}; it has: ${near.join(', ') || 'none'}`);
    }
    const ranking = this.tasks[this.manifest.merged_task ?? name]?.ranking ?? 'sum';
    return { task: { ...task, ranking }, called: quoted(called), vectors };
  }

  /** Read when first asked for, and kept. @param {string} name  @returns {Promise<Tensors>} */
  async vectors(name) {
    const [merged, where] = [this.manifest.merged_task, this.files.place];
    if (merged !== null && name === NONE)
      refuse(`${where} is merged with ${quoted(merged)} and does not contain the plain base`);
    if (name === NONE || name === merged) return this.ones;
    if (!this.adapters.includes(name))
      refuse(`${where} has no adapter ${quoted(name)}; ${instead(name, this.adapters)}`);
    const file = `adapters/${name}.onnx_adapter`;
    const read = async () =>
      fitting(this.manifest, (await this.files.bytes(file)).slice().buffer, this.files.base + file);
    if (!this.bank.has(name)) this.bank.set(name, read());
    const found = /** @type {Promise<Tensors>} */ (this.bank.get(name));
    found.catch(() => this.bank.delete(name)); // it may be there the next time
    return found;
  }

  /** The base's own prompt. @returns {Task} */
  plain() {
    const { prefix, suffix } = this.manifest.prompt;
    const [stop] = this.manifest.stop_tokens;
    const end = stop === undefined ? '' : (this.tokens.tokenizer.id_to_token(stop) ?? '');
    const kind = this.encoder ? 'embed' : 'generate';
    return { kind, prompt: `${prefix}{text}${suffix}`, choices: null, max_new_tokens: BASE_TOKENS, end };
  }

  /** @returns {Promise<{choices: string[], scores: number[]}>} */
  async rank(text, adapter, { task: asked, choices: given } = /** @type {Asked} */ ({})) {
    const { task, called, vectors } = await this.meant(adapter, asked);
    if (this.encoder) return this.headed(task, called, text, vectors, given);
    const choices = given ?? task.choices;
    const why = task.kind === 'generate' ? 'it generates text' : 'give them with each text (choices)';
    if (!choices?.length) return refuse(`task ${called} has no choices to rank; ${why}`);
    const answers = choices.map((choice) => this.tokens.prompt(`{text}${task.end}`, choice));
    if (answers.some((answer) => !answer.length)) refuse(NOTHING);
    const longest = Math.max(...answers.map((answer) => answer.length));
    const start = await this.prefill(this.prompt(task, text, longest - 1), vectors);
    const scores = await ranked(this.writes(), answers, start, vectors, task.ranking);
    this.writes().drop(start.cache);
    return { choices, scores };
  }

  /** From the longest beginning that has been run. @returns {Promise<import('./graph.mjs').Step>} */
  async prefill(prompt, vectors) {
    const begins = (b) => b.tokens.length < prompt.length && b.tokens.every((token, i) => token === prompt[i]);
    const fitting = this.begun.filter((b) => b.vectors === vectors && begins(b));
    const longest = fitting.sort((a, b) => b.tokens.length - a.tokens.length)[0];
    if (!longest) return this.writes().prefill(prompt, vectors);
    return this.writes().extend([prompt.slice(longest.tokens.length)], longest.cache, vectors);
  }

  /** A text's logits by the head of an adapter, or by the one in a merged graph. */
  async headed(task, called, text, vectors, given) {
    if (given) refuse(`task ${called} has fixed labels, those of its head; leave out choices`);
    if (task.kind === TAGS) refuse(`${called} labels words, not texts (tags)`);
    const why = 'an encoder needs an adapter that was trained for labels; without one it gives embeddings (embed)';
    if (!task.choices || !this.hasHead(vectors)) return refuse(`${called} has no labels: ${why}`);
    const { data } = (await this.encoded(this.prompt(task, text), vectors)).logits;
    return { choices: task.choices, scores: /** @type {number[]} */ (Array.from(data.slice(0, task.choices.length))) };
  }

  hasHead(vectors) {
    return this.manifest.mode === 'merged' || HEAD[0] in vectors;
  }

  /** An encoder's outputs of one text. @param {number[]} prompt  @returns {Promise<Record<string, any>>} */
  async encoded(prompt, vectors) {
    const session = /** @type {import('./graph.mjs').Session} */ (this.encoder);
    const mask = session.int64([prompt.map(() => 1)]);
    const types = session.ports.has('token_type_ids') ? { token_type_ids: session.int64([prompt.map(() => 0)]) } : {};
    return session.run({ input_ids: session.int64([prompt]), attention_mask: mask, ...types, ...session.fed(vectors) });
  }

  writes() {
    return (
      this.decoder ?? refuse(`${this.files.place} is an encoder, which cannot generate text; it labels or embeds one`)
    );
  }

  /** A question's tokens, where they fit the context with so many behind them. */
  prompt(task, text, more = 0) {
    return this.fits(this.tokens.prompt(task.prompt, text), more);
  }

  fits(found, more = 0) {
    const most = this.manifest.architecture.context_length;
    const count = found.length + (this.decoder instanceof Pair ? 0 : more);
    const first = found.length > most ? found.length : most + 1; // what is run when they do not fit
    if (count > most) refuse(`${first} tokens do not fit the bundle's context of ${most}; shorten the text`);
    if (!found.length) refuse('an empty prompt cannot be run: give it some text');
    return found;
  }
}

/** Until whatever else waits has had its turn: a page is painted, and a worker hears that it is to stop. */
const pause = () =>
  new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => resolve(port1.close());
    port2.postMessage(0);
  });
