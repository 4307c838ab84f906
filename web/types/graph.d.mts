/** One graph. Runs are one after the other: a session takes no two at once. */
export class Session {
    /**
     * @param {any} ort  @param {import('./files.mjs').Files} files  @param {import('./manifest.mjs').Graph} graph
     * @param {Uint8Array} data its weights, which another graph may share  @param {'wasm' | 'webgpu'} device
     */
    static open(ort: any, files: import("./files.mjs").Files, graph: import("./manifest.mjs").Graph, data: Uint8Array, device: "wasm" | "webgpu"): Promise<Session>;
    /**
     * @param {any} ort  @param {any} session  @param {import('./manifest.mjs').Graph} graph  @param {string} where
     * @param {import('./manifest.mjs').Manifest} manifest
     */
    constructor(ort: any, session: any, graph: import("./manifest.mjs").Graph, where: string, manifest: import("./manifest.mjs").Manifest);
    ort: any;
    shape: any;
    session: any;
    /** @type {Map<string, {type: string, shape: (number | string)[]}>} */
    ports: Map<string, {
        type: string;
        shape: (number | string)[];
    }>;
    own: string[];
    where: string;
    /** @type {WeakMap<Tensors, Record<string, any>>} */
    made: WeakMap<Tensors, Record<string, any>>;
    /** @type {Promise<unknown>} */
    last: Promise<unknown>;
    /** @param {number[][]} rows of one length */
    int64(rows: number[][]): any;
    /** Caches of no positions. @param {string[]} names */
    nothing(names: string[]): {
        [k: string]: any;
    };
    /**
     * This graph's share of vectors, and of a head; ones, and a head that says nothing, where the graph has to be fed and
     * none is there.
     *
     * @param {Tensors} vectors
     */
    fed(vectors: Tensors): Record<string, any>;
    /** @param {Record<string, any>} feeds  @returns {Promise<Record<string, any>>} */
    run(feeds: Record<string, any>): Promise<Record<string, any>>;
}
/** A decoder: a prompt, then one token a row at a time. */
export class Decoder {
    /** @param {Session} session */
    constructor(session: Session);
    session: Session;
    forced: number;
    past: string[];
    /** @param {number[]} prompt  @param {Tensors} vectors  @returns {Promise<Step>} */
    prefill(prompt: number[], vectors: Tensors): Promise<Step>;
    /**
     * So many more tokens of each row.
     *
     * @param {number[][]} rows
     * @param {Cache} cache
     * @param {Tensors} vectors
     * @returns {Promise<Step>}
     */
    extend(rows: number[][], cache: Cache, vectors: Tensors): Promise<Step>;
    ids(rows: any, length: any): {
        input_ids: any;
        attention_mask: any;
    };
    /** What later steps read. @returns {Record<string, any>} */
    read(outputs: any, cache: any): Record<string, any>;
    /**
     * Rows picked or repeated; the same tensors where that changes nothing.
     *
     * @param {Cache} cache
     * @param {number[]} index
     */
    expand(cache: Cache, index: number[]): Promise<{
        tensors: any;
        /**
         * positions of each row
         */
        length: number;
        /**
         * what the steps read besides and none changes
         */
        fixed: Record<string, any>;
    }>;
    picked(tensors: any, index: any): Promise<any>;
    /** Gives the graphics processor's memory back; elsewhere nothing is to be done. @param {Cache} cache */
    drop(cache: Cache): void;
    close(): Promise<void>;
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
    constructor(encoder: Session, decoder: Session, shape: {
        decoder_start: number[];
        hidden_size: number;
    });
    encoder: Session;
    start: number[];
    hidden: number;
    cross: string[];
    shared: boolean;
    ids(rows: any): any;
    /** The states' keys and values, which the first run gives, and states of no positions in their stead. */
    read(outputs: any, cache: any): any;
    noStates(rows: any): any;
    expand(cache: any, index: any): Promise<{
        fixed: any;
        tensors: any;
        /**
         * positions of each row
         */
        length: number;
    }>;
}
export function firstLine(error: any): string;
/**
 * A bundle's graphs in ONNX Runtime: a decoder alone, or an encoder and its decoder; their keys and values kept between
 * steps.
 *
 * What goes in and out has the names of qia3/bundle/ports.py. A cache is a value: stepping it twice gives two futures.
 */
export type Tensors = import("./adapter.mjs").Tensors;
/**
 * A bundle's graphs in ONNX Runtime: a decoder alone, or an encoder and its decoder; their keys and values kept between
 * steps.
 *
 * What goes in and out has the names of qia3/bundle/ports.py. A cache is a value: stepping it twice gives two futures.
 */
export type Cache = {
    /**
     * positions of each row
     */
    length: number;
    /**
     * their keys and values, by the name of the graph's input
     */
    tensors: Record<string, any>;
    /**
     * what the steps read besides and none changes
     */
    fixed: Record<string, any>;
};
/**
 * logits [V] after the last token of each row
 */
export type Step = {
    logits: Float32Array[];
    cache: Cache;
};
