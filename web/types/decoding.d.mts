/** With what is left out, or refused. @param {Decoding} given */
export function checkedDecoding(given: Decoding): {
    beams: number;
    lengthPenalty: number;
    earlyStopping: boolean | "never";
    temperature: number | undefined;
    topK: number;
    topP: number;
    minP: number;
    seed: number | bigint | undefined;
};
/** Chooses tokens from logits, with its own random state. @param {ReturnType<typeof checkedDecoding>} decoding */
export function chooser(decoding: ReturnType<typeof checkedDecoding>): (logits: Float32Array) => any;
/**
 * The probability of each token when sampling.
 *
 * @param {ArrayLike<number>} logits  @param {{temperature?: number, topK: number, topP: number, minP: number}} decoding
 */
export function probabilities(logits: ArrayLike<number>, { temperature, topK, topP, minP }: {
    temperature?: number;
    topK: number;
    topP: number;
    minP: number;
}): Float64Array<ArrayBuffer>;
/**
 * Numbers from 0 to 1, numpy.random.default_rng(seed).random(): PCG64 (O'Neill 2014) behind NumPy's SeedSequence.
 *
 * @param {number | bigint} seed  @returns {() => number}
 */
export function stream(seed: number | bigint): () => number;
/**
 * The best text's tokens, without the one that ends it.
 *
 * @param {import('./graph.mjs').Decoder} decoder  @param {import('./graph.mjs').Step} start after the prompt
 * @param {import('./adapter.mjs').Tensors} vectors
 * @param {{most: number, context: number, stop: number[], ended: () => Promise<boolean>}} limits tokens at most, positions
 *     that there are, tokens that end a text, and whether the search is to be left
 * @param {ReturnType<typeof checkedDecoding>} decoding
 */
export function beamSearch(decoder: import("./graph.mjs").Decoder, start: import("./graph.mjs").Step, vectors: import("./adapter.mjs").Tensors, limits: {
    most: number;
    context: number;
    stop: number[];
    ended: () => Promise<boolean>;
}, decoding: ReturnType<typeof checkedDecoding>): Promise<number[]>;
/**
 * How a token is chosen: greedily, by sampling, or by beam search, as qia3/runtime/decoding.py and beams.py have it; the
 * same seed draws the same numbers as there.
 *
 * Sampling: logits are divided by `temperature`. Then the `topK` likeliest tokens are kept, of those the smallest set
 * whose probabilities sum to `topP`, and of those the ones with at least `minP` times the highest probability.
 *
 * Beams: texts are compared by the sum of their tokens' log-probabilities, divided by length^lengthPenalty, with the token
 * that ends them.
 */
export type Decoding = {
    /**
     * 1: none
     */
    beams?: number | undefined;
    /**
     * 1
     */
    lengthPenalty?: number | undefined;
    /**
     * true: stop when there are as many finished texts as beams; false: when
     * the best running one is behind all of them at its length; "never": when it is at any length
     */
    earlyStopping?: boolean | "never" | undefined;
    /**
     * left out: greedy
     */
    temperature?: number | undefined;
    /**
     * 0: all
     */
    topK?: number | undefined;
    /**
     * 1
     */
    topP?: number | undefined;
    /**
     * 0
     */
    minP?: number | undefined;
    /**
     * left out: another one each time
     */
    seed?: number | bigint | undefined;
};
/**
 * after the prompt
 */
export type Text = {
    tokens: number[];
    score: number;
};
