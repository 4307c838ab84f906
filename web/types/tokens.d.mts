export class Tokens {
    /**
     * @param {any} library
     * @param {any} file tokenizer.json
     * @param {any} config tokenizer_config.json
     * @param {number} rows of the embedding
     */
    constructor(library: any, file: any, config: any, rows: number);
    make: (state: any) => any;
    file: any;
    rows: number;
    tokenizer: any;
    /** @type {Map<number, string>} */
    control: Map<number, string>;
    unknown: any;
    /** @type {{tokenizer: any, names: Map<string, string>} | undefined} */
    secret: {
        tokenizer: any;
        names: Map<string, string>;
    } | undefined;
    /** A template around a person's words. @param {string} template  @param {string} text  @returns {number[]} */
    prompt(template: string, text: string): number[];
    /**
     * A prompt around words with a space between, and the place of each one's first token, or of the space before it:
     * what is before a word is encoded alone, and has to be what the prompt begins with.
     *
     * @param {string} template
     * @param {string[]} words
     * @returns {{ids: number[], places: number[]}}
     */
    words(template: string, words: string[]): {
        ids: number[];
        places: number[];
    };
    /** A prompt's tokens, and what encodes its beginning: the template's, less a last space, and so much of the words. */
    around(template: any, text: any): {
        ids: any;
        begin: (some: any, cut?: boolean) => any;
    };
    /** The tokenizer with its control tokens renamed, and merges that would spell one left out. */
    apart(): {
        tokenizer: any;
        names: Map<string, string>;
    };
    /** Text of tokens; those that the tokenizer does not know (an embedding may have more rows) say nothing. */
    decode(ids: any): any;
}
/** The text of tokens that come one by one, in pieces as soon as they are sure (qia3/runtime/generate.py). */
export class Pieces {
    /** @param {Tokens} tokens */
    constructor(tokens: Tokens);
    tokens: Tokens;
    /** @type {number[]} */
    window: number[];
    shown: number;
    /** What is sure by now and was not given yet. @param {number} token */
    add(token: number): any;
    /** What the tokens that were not given add to the text, finished or not. */
    rest(): any;
}
