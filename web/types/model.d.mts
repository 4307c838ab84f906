/** `adapter` is a name, or "none" for the base; left out it is the only one that the bundle has. */
export class Model {
    /**
     * @param {import('./files.mjs').Files} files  @param {import('./tokens.mjs').Tokens} tokens  @param {'wasm' |
     * 'webgpu'} device
     * @param {{decoder?: import('./graph.mjs').Decoder, encoder?: import('./graph.mjs').Session}} engine one of the two
     */
    constructor(files: import("./files.mjs").Files, tokens: import("./tokens.mjs").Tokens, device: "wasm" | "webgpu", { decoder, encoder }: {
        decoder?: import("./graph.mjs").Decoder;
        encoder?: import("./graph.mjs").Session;
    });
    files: import("./files.mjs").Files;
    manifest: import("./manifest.mjs").Manifest;
    tokens: import("./tokens.mjs").Tokens;
    device: "webgpu" | "wasm";
    decoder: import("./graph.mjs").Decoder | undefined;
    encoder: import("./graph.mjs").Session | undefined;
    tasks: Record<string, import("./manifest.mjs").Task>;
    /** @type {Map<string, Promise<Tensors>>} */
    bank: Map<string, Promise<Tensors>>;
    /** @type {Tensors} */
    ones: Tensors;
    /** @type {{tokens: number[], vectors: Tensors, cache: import('./graph.mjs').Cache}[]} */
    begun: {
        tokens: number[];
        vectors: Tensors;
        cache: import("./graph.mjs").Cache;
    }[];
    get name(): string;
    /** Names; of a merged bundle, the task that is in its weights. @returns {string[]} */
    get adapters(): string[];
    /** The best of the task's choices. @param {string} text  @param {string} [adapter]  @param {Asked} [asked] */
    label(text: string, adapter?: string, asked?: Asked): Promise<string>;
    /**
     * Each choice's probability, given that it is one of them.
     *
     * @param {string} text  @param {string} [adapter]  @param {Asked} [asked]  @returns {Promise<Record<string, number>>}
     */
    scores(text: string, adapter?: string, asked?: Asked): Promise<Record<string, number>>;
    /**
     * Text in pieces, as it comes; leaving the loop ends it.
     *
     * @param {string} text  @param {string} [adapter]  @param {Asked} [asked]  @returns {AsyncGenerator<string>}
     */
    generate(text: string, adapter?: string, asked?: Asked): AsyncGenerator<string>;
    /**
     * The same in token ids, until one that ends a text, the limit, or the end of the context: the likeliest each time, or
     * as `asked` says. With beams they all come at the end.
     *
     * @param {string} text  @param {string} [adapter]  @param {Asked} [asked]  @returns {AsyncGenerator<number>}
     */
    generateTokens(text: string, adapter?: string, { task: asked, maxNewTokens, signal, ...given }?: Asked): AsyncGenerator<number>;
    /**
     * A text's embedding, by the base unless an adapter is named; of an encoder.
     *
     * @param {string} text
     * @returns {Promise<Float32Array>}
     */
    embed(text: string, adapter?: string): Promise<Float32Array>;
    /**
     * Each word with its label, as a task of an encoder labels words: those between spaces, or as they are told apart.
     *
     * @param {string | string[]} text
     * @param {string} [adapter]
     * @returns {Promise<[string, string][]>}
     */
    tags(text: string | string[], adapter?: string): Promise<[string, string][]>;
    /**
     * Runs once what the task's prompts all begin with; later questions start behind it and have the same answers.
     *
     * @param {string} [adapter]  @param {Asked} [asked]
     */
    prepare(adapter?: string, { task: asked }?: Asked): Promise<void>;
    /**
     * Takes in an adapter that is not the bundle's: an .onnx_adapter of its base, and its task, or else the base's own
     * prompt.
     *
     * @param {string} name  @param {ArrayBuffer} buffer  @param {Task} [task]
     */
    add(name: string, buffer: ArrayBuffer, task?: Task): void;
    /**
     * A question's tokens.
     *
     * @param {string} text
     * @param {string} [adapter]
     * @param {Asked} [asked]
     * @returns {Promise<number[]>}
     */
    encode(text: string, adapter?: string, { task: asked }?: Asked): Promise<number[]>;
    /** Gives the memory back. */
    close(): Promise<void>;
    /** An adapter's vectors, and the task whose prompt is used. How answers are ranked is a matter of the vectors. */
    meant(adapter: any, asked: any): Promise<{
        task: {
            ranking: "sum" | "mean";
            kind: "classify" | "generate" | "embed" | "token-classification";
            /**
             * holds {text} once
             */
            prompt: string;
            choices: string[] | null;
            max_new_tokens: number;
            /**
             * the text of the token that ends an answer
             */
            end: string;
        };
        called: string;
        vectors: import("./adapter.mjs").Tensors;
    }>;
    /** Read when first asked for, and kept. @param {string} name  @returns {Promise<Tensors>} */
    vectors(name: string): Promise<Tensors>;
    /** The base's own prompt. @returns {Task} */
    plain(): Task;
    /** @returns {Promise<{choices: string[], scores: number[]}>} */
    rank(text: any, adapter: any, { task: asked, choices: given }?: Asked): Promise<{
        choices: string[];
        scores: number[];
    }>;
    /** From the longest beginning that has been run. @returns {Promise<import('./graph.mjs').Step>} */
    prefill(prompt: any, vectors: any): Promise<import("./graph.mjs").Step>;
    /** A text's logits by the head of an adapter, or by the one in a merged graph. */
    headed(task: any, called: any, text: any, vectors: any, given: any): Promise<{
        choices: any;
        scores: number[];
    }>;
    hasHead(vectors: any): boolean;
    /** An encoder's outputs of one text. @param {number[]} prompt  @returns {Promise<Record<string, any>>} */
    encoded(prompt: number[], vectors: any): Promise<Record<string, any>>;
    writes(): import("./graph.mjs").Decoder;
    /** A question's tokens, where they fit the context with so many behind them. */
    prompt(task: any, text: any, more?: number): any;
    fits(found: any, more?: number): any;
}
/**
 * An opened bundle, asked as `qia3 run` asks it: the task's prompt around a person's words, a label of the task's
 * choices or text until a token that ends it.
 */
export type Task = import("./manifest.mjs").Task;
/**
 * An opened bundle, asked as `qia3 run` asks it: the task's prompt around a person's words, a label of the task's
 * choices or text until a token that ends it.
 */
export type Tensors = import("./adapter.mjs").Tensors;
/**
 * An opened bundle, asked as `qia3 run` asks it: the task's prompt around a person's words, a label of the task's
 * choices or text until a token that ends it.
 */
export type Question = {
    /**
     * asks another task's question
     */
    task?: string | undefined;
    /**
     * instead of the task's
     */
    choices?: string[] | undefined;
    maxNewTokens?: number | undefined;
    /**
     * ends a text
     */
    signal?: AbortSignal | undefined;
};
/**
 * greedy, unless decoding says otherwise
 */
export type Asked = Question & import("./decoding.mjs").Decoding;
