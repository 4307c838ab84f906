/**
 * How a token is chosen: greedily, by sampling, or by beam search, as qia3/runtime/decoding.py and beams.py have it; the
 * same seed draws the same numbers as there.
 *
 * Sampling: logits are divided by `temperature`. Then the `topK` likeliest tokens are kept, of those the smallest set
 * whose probabilities sum to `topP`, and of those the ones with at least `minP` times the highest probability.
 *
 * Beams: texts are compared by the sum of their tokens' log-probabilities, divided by length^lengthPenalty, with the token
 * that ends them.
 *
 * @typedef {object} Decoding
 * @property {number} [beams]  1: none
 * @property {number} [lengthPenalty]  1
 * @property {boolean | 'never'} [earlyStopping]  true: stop when there are as many finished texts as beams; false: when
 *     the best running one is behind all of them at its length; "never": when it is at any length
 * @property {number} [temperature]  left out: greedy
 * @property {number} [topK]  0: all
 * @property {number} [topP]  1
 * @property {number} [minP]  0
 * @property {number | bigint} [seed]  left out: another one each time
 * @typedef {{tokens: number[], score: number}} Text  after the prompt
 */

import { isSize, refuse } from './manifest.mjs';
import { argmax, logSumExp } from './ranking.mjs';

const isNumber = (value) => typeof value === 'number' && Number.isFinite(value);
const isSeed = (value) => (typeof value === 'bigint' ? value >= 0n : Number.isSafeInteger(value) && value >= 0);

/** With what is left out, or refused. @param {Decoding} given */
export function checkedDecoding(given) {
  const {
    beams = 1,
    lengthPenalty = 1,
    earlyStopping = false,
    temperature,
    topK = 0,
    topP = 1,
    minP = 0,
    seed,
  } = given;
  const greedy = temperature === undefined;
  const rules = {
    'beams must be 1 or more': isSize(beams),
    'beams cannot be combined with a temperature': beams === 1 || greedy,
    'temperature must be above 0': greedy || (isNumber(temperature) && temperature > 0),
    'topK must be 0 (all) or more': Number.isSafeInteger(topK) && topK >= 0,
    'topP must be above 0 and at most 1': topP > 0 && topP <= 1,
    'minP must be from 0 to 1': minP >= 0 && minP <= 1,
    'a length penalty needs several beams': isNumber(lengthPenalty) && (beams > 1 || lengthPenalty === 1),
    'earlyStopping must be true, false or never': [true, false, 'never'].includes(earlyStopping),
    'seed must be a whole number from 0': seed === undefined || isSeed(seed),
    'topK, topP, minP and a seed need a temperature':
      !greedy || (topK === 0 && topP === 1 && minP === 0 && seed === undefined),
  };
  const broken = Object.keys(rules).filter((rule) => !rules[rule]);
  if (broken.length) refuse(broken.join('; '));
  return { beams, lengthPenalty, earlyStopping, temperature, topK, topP, minP, seed };
}

/** Chooses tokens from logits, with its own random state. @param {ReturnType<typeof checkedDecoding>} decoding */
export function chooser(decoding) {
  if (decoding.temperature === undefined) return argmax;
  const random = stream(decoding.seed ?? unlike());
  return (/** @type {Float32Array} */ logits) => drawn(probabilities(logits, decoding), random());
}

/**
 * The probability of each token when sampling.
 *
 * @param {ArrayLike<number>} logits  @param {{temperature?: number, topK: number, topP: number, minP: number}} decoding
 */
export function probabilities(logits, { temperature = 1, topK, topP, minP }) {
  const kept = Float64Array.from(logits, (logit) => logit / temperature);
  if (topK > 0 && topK < kept.length) {
    const least = Float64Array.from(kept).sort()[kept.length - topK];
    kept.forEach((value, i) => value < least && (kept[i] = -Infinity));
  }
  if (topP < 1) {
    const now = softmax(kept);
    const order = [...now.keys()].filter((i) => kept[i] > -Infinity).sort((a, b) => kept[a] - kept[b] || a - b);
    let behind = 0;
    for (const i of order.slice(0, -1)) {
      behind += now[i];
      if (behind > 1 - topP) break; // the most likely one stays
      kept[i] = -Infinity;
    }
  }
  const shares = softmax(kept);
  const least = minP * shares[argmax(shares)];
  return minP ? ofOne(shares.map((share) => (share < least ? 0 : share))) : shares;
}

function softmax(logits) {
  const peak = logits[argmax(logits)];
  return ofOne(logits.map((logit) => Math.exp(logit - peak)));
}

/** @param {Float64Array} shares */
function ofOne(shares) {
  const whole = shares.reduce((sum, share) => sum + share, 0);
  return shares.map((share) => share / whole);
}

/** The token in whose share of 0 to 1 a number is. */
function drawn(shares, at) {
  const whole = shares.reduce((sum, share) => sum + share, 0);
  let sum = 0;
  const found = shares.findIndex((share) => (sum += share) / whole > at);
  return found < 0 ? argmax(shares) : found;
}

/** A seed that no other has. */
const unlike = () => crypto.getRandomValues(new Uint32Array(4)).reduce((all, word) => (all << 32n) | BigInt(word), 0n);

/**
 * Numbers from 0 to 1, numpy.random.default_rng(seed).random(): PCG64 (O'Neill 2014) behind NumPy's SeedSequence.
 *
 * @param {number | bigint} seed  @returns {() => number}
 */
export function stream(seed) {
  const wide = (value) => BigInt.asUintN(128, value);
  const [first, second, third, fourth] = state64(words(BigInt(seed)));
  const inc = wide((((third << 64n) | fourth) << 1n) | 1n);
  const next = (state) => wide(state * 0x2360ed051fc65da44385df649fccf645n + inc);
  let state = next(wide(next(0n) + ((first << 64n) | second)));
  return () => {
    state = next(state);
    const [folded, turn] = [BigInt.asUintN(64, (state >> 64n) ^ state), state >> 122n];
    const bits = BigInt.asUintN(64, (folded >> turn) | (folded << (64n - turn)));
    return Number(bits >> 11n) / 2 ** 53;
  };
}

/** A whole number in 32-bit words, the least first. */
function words(value) {
  const found = [];
  for (let rest = value; rest || !found.length; rest >>= 32n) found.push(Number(rest & 0xffffffffn));
  return found;
}

const shifted = (value) => (value ^ (value >>> 16)) >>> 0;

/** NumPy's SeedSequence: entropy in words, mixed in a pool of four, then four numbers of 64 bits. */
function state64(entropy) {
  let factor = 0x43b0d7e5;
  const hashed = (word) => {
    const value = word ^ factor;
    factor = Math.imul(factor, 0x931e8875);
    return shifted(Math.imul(value, factor));
  };
  const mixed = (x, y) => shifted(Math.imul(0xca01f9dd, x) - Math.imul(0x4973f715, y));
  const pool = [0, 1, 2, 3].map((i) => hashed(entropy[i] ?? 0));
  for (const from of pool.keys()) {
    for (const to of pool.keys()) if (from !== to) pool[to] = mixed(pool[to], hashed(pool[from]));
  }
  for (const word of entropy.slice(4)) for (const to of pool.keys()) pool[to] = mixed(pool[to], hashed(word));
  let other = 0x8b51f9dd;
  const made = Array.from({ length: 8 }, (_, i) => {
    const value = pool[i % 4] ^ other;
    other = Math.imul(other, 0x58f38ded);
    return BigInt(shifted(Math.imul(value, other)));
  });
  return [0, 2, 4, 6].map((i) => made[i] | (made[i + 1] << 32n));
}

/**
 * The best text's tokens, without the one that ends it.
 *
 * @param {import('./graph.mjs').Decoder} decoder  @param {import('./graph.mjs').Step} start after the prompt
 * @param {import('./adapter.mjs').Tensors} vectors
 * @param {{most: number, context: number, stop: number[], ended: () => Promise<boolean>}} limits tokens at most, positions
 *     that there are, tokens that end a text, and whether the search is to be left
 * @param {ReturnType<typeof checkedDecoding>} decoding
 */
export async function beamSearch(decoder, start, vectors, limits, decoding) {
  const { beams, lengthPenalty } = decoding;
  const { stop, ended } = limits;
  const most = Math.min(limits.most, limits.context - start.cache.length);
  let [{ logits, cache }, running] = [start, [/** @type {Text} */ ({ tokens: [], score: 0 })]];
  let finished = /** @type {Text[]} */ ([]);
  try {
    for (let count = 1; count <= most; count++) {
      const found = continuations(logits, running, Math.max(2, 1 + stop.length) * beams);
      const ends = ({ tokens }) => count === most || stop.includes(tokens[count - 1]);
      const length = count + decoder.forced;
      const done = found.slice(0, beams).filter(ends);
      finished.push(...done.map(({ tokens, score }) => ({ tokens, score: score / length ** lengthPenalty })));
      finished = finished.sort((a, b) => b.score - a.score).slice(0, beams);
      const on = found.filter((text) => !ends(text)).slice(0, beams);
      running = on;
      if (!on.length || over(on[0], finished, length, most + decoder.forced, decoding)) break;
      if (await ended()) return [];
      const rows = await decoder.expand(
        cache,
        on.map(({ row }) => row),
      );
      const next = await decoder.extend(
        on.map(({ tokens }) => tokens.slice(-1)),
        rows,
        vectors,
      );
      decoder.drop(cache);
      ({ logits, cache } = next);
    }
  } finally {
    decoder.drop(cache);
  }
  const best = finished[0]?.tokens ?? [];
  return stop.includes(best[best.length - 1]) ? best.slice(0, -1) : best;
}

/** The `keep` likeliest texts with one more token, best first, each with the row that it continues. */
function continuations(logits, running, keep) {
  const best = /** @type {{score: number, row: number, token: number}[]} */ ([]);
  logits.forEach((values, row) => {
    const before = running[row].score - logSumExp(values);
    for (let token = 0; token < values.length; token++) {
      const score = values[token] + before;
      if (best.length === keep && !(score > best[keep - 1].score)) continue;
      const at = best.findIndex((one) => score > one.score);
      best.splice(at < 0 ? best.length : at, 0, { score, row, token });
      best.length = Math.min(best.length, keep);
    }
  });
  return best.map(({ score, row, token }) => ({ score, row, tokens: [...running[row].tokens, token] }));
}

/** Whether no running text can beat the finished ones, or the search may stop. */
function over(best, finished, length, most, { beams, earlyStopping, lengthPenalty }) {
  if (finished.length < beams) return false;
  if (earlyStopping === true) return true;
  const hoped = earlyStopping === 'never' && lengthPenalty > 0 ? most : length;
  return best.score / hoped ** lengthPenalty <= finished[finished.length - 1].score;
}
