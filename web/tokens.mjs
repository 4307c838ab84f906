/**
 * Text to token ids and back, by @huggingface/tokenizers, with the runtime's rule that a person's words stay words.
 *
 * A template holds {text} once. Control tokens in the template are control tokens; the same characters in a person's
 * words are characters. The whole prompt is encoded at once, since merges cross the border of the words. Where their
 * text brings a control token more than the template has, it is encoded by a second tokenizer whose control tokens have
 * secret names, which stand in the template and which no words can hold. qia3/tokens.py has the reasons, and the same
 * rules in Python.
 */

import { hex } from './files.mjs';
import { refuse, wellFormed } from './manifest.mjs';
import { quoted } from './names.mjs';

const SLOT = '{text}';
const NOWHERE = '\u{10ffff}'; // a code point that is no character: in no vocabulary
const UNFINISHED = '\ufffd'; // stands for bytes that are no character yet
// what a tokenizer of transformers does to a text besides is nothing that training knew of
const PLAIN = {
  clean_up_tokenization_spaces: false,
  remove_space: false,
  do_lowercase_and_remove_accent: false,
  additional_special_tokens: [],
};

export class Tokens {
  /**
   * @param {any} library
   * @param {any} file tokenizer.json
   * @param {any} config tokenizer_config.json
   * @param {number} rows of the embedding
   */
  constructor(library, file, config, rows) {
    this.make = (state) => {
      const own = { truncation: null, padding: null, pre_tokenizer: numbersApart(state.pre_tokenizer) };
      return new library.Tokenizer({ ...state, ...own }, { ...config, ...PLAIN });
    };
    this.file = file;
    this.rows = rows;
    this.tokenizer = this.make(file);
    const control = (file.added_tokens ?? []).filter(isControl);
    /** @type {Map<number, string>} */
    this.control = new Map(control.map(({ id, content }) => [id, content]));
    const unknown = encoded(this.tokenizer, NOWHERE).filter((id) => this.control.has(id));
    this.unknown = unknown.length === 1 ? unknown[0] : undefined;
    /** @type {{tokenizer: any, names: Map<string, string>} | undefined} */
    this.secret = undefined;
  }

  /** A template around a person's words. @param {string} template  @param {string} text  @returns {number[]} */
  prompt(template, text) {
    return this.around(template, text).ids;
  }

  /**
   * A prompt around words with a space between, and the place of each one's first token, or of the space before it:
   * what is before a word is encoded alone, and has to be what the prompt begins with.
   *
   * @param {string} template
   * @param {string[]} words
   * @returns {{ids: number[], places: number[]}}
   */
  words(template, words) {
    const { ids, begin } = this.around(template, words.join(' '));
    const places = words.map((word, i) => {
      const before = begin(words.slice(0, i).join(' '), i === 0);
      if (before.every((id, at) => id === ids[at])) return before.length;
      return refuse(`the tokenizer gives the word ${quoted(word.slice(0, 40))} no token of its own; leave it out`);
    });
    const lost = words.find((_, i) => places[i] >= (places[i + 1] ?? begin(words.join(' ')).length));
    if (lost !== undefined)
      refuse(`the tokenizer gives the word ${quoted(lost.slice(0, 40))} no token of its own; leave it out`);
    return { ids, places };
  }

  /** A prompt's tokens, and what encodes its beginning: the template's, less a last space, and so much of the words. */
  around(template, text) {
    if (!wellFormed(text)) refuse('the text is not UTF-8: it has half of a surrogate pair, which is not a character');
    const [before, after] = template.split(SLOT);
    // the token for what is not known is one that words may give, unless they spell it
    const spelt = this.unknown !== undefined && text.includes(this.control.get(this.unknown) ?? '');
    const steering = (ids) => ids.filter((id) => this.control.has(id) && (spelt || id !== this.unknown)).join();
    const own = steering([...encoded(this.tokenizer, before), ...encoded(this.tokenizer, after)]);
    let [tokenizer, renamed] = [this.tokenizer, (part) => part];
    let ids = encoded(tokenizer, before + text + after);
    if (steering(ids) !== own) {
      const secret = (this.secret ??= this.apart());
      tokenizer = secret.tokenizer;
      renamed = (part) => part.replace(anyOf(secret.names.keys()), (name) => secret.names.get(name));
      ids = encoded(tokenizer, renamed(before) + text + renamed(after));
      if (steering(ids) !== own)
        refuse('control tokens in this text cannot be told from those of the prompt; write them differently');
    }
    const begin = (some, cut = false) => encoded(tokenizer, (renamed(before) + some).replace(cut ? / $/ : /(?!)/, ''));
    const beyond = ids.find((id) => !(id < this.rows));
    if (beyond === undefined) return { ids, begin };
    const token = this.tokenizer.id_to_token(beyond);
    return refuse(
      `the base has no embedding for the token ${quoted(token)} (id ${beyond}; it has ${this.rows}); write it differently`,
    );
  }

  /** The tokenizer with its control tokens renamed, and merges that would spell one left out. */
  apart() {
    const nonce = hex(crypto.getRandomValues(new Uint8Array(8)));
    // a name keeps its first and its last character: whether a neighbour is a single word depends on them
    const name = (content, i) => content[0] + nonce + i.toString(16).padStart(7, '0') + content.at(-1);
    const names = new Map([...this.control.values()].map((content, i) => [content, name(content, i)]));
    const named = (content) => names.get(content) ?? content;
    const model = { ...this.file.model, vocab: renamedVocabulary(this.file.model.vocab, named) };
    if (model.unk_token) model.unk_token = named(model.unk_token);
    const prefix = model.continuing_subword_prefix ?? '';
    const without = (piece) => (prefix && piece.startsWith(prefix) ? piece.slice(prefix.length) : piece);
    model.merges = model.merges?.filter((merge) => {
      const [left, right] = typeof merge === 'string' ? merge.split(' ') : merge;
      return ![left, right, left + without(right)].some((piece) => names.has(piece));
    });
    const added = this.file.added_tokens.map((token) => ({ ...token, content: named(token.content) }));
    const tokenizer = this.make({ ...this.file, model, added_tokens: added, post_processor: null });
    const moved = [...this.control].some(([id, content]) => tokenizer.token_to_id(named(content)) !== id);
    if (moved) refuse('the tokenizer cannot be rebuilt with renamed control tokens: their ids change');
    return { tokenizer, names };
  }

  /** Text of tokens; those that the tokenizer does not know (an embedding may have more rows) say nothing. */
  decode(ids) {
    const known = ids.filter((id) => this.tokenizer.id_to_token(id) !== undefined);
    return known.length ? this.tokenizer.decode(known, { skip_special_tokens: true }) : '';
  }
}

const encoded = (tokenizer, text) => (text ? tokenizer.encode(text, { add_special_tokens: false }).ids : []);

/** Whether an added token steers the model; the others are words, and the bytes of byte fallback. */
const isControl = ({ content, special }) =>
  !/^<0x[0-9A-Fa-f]{2}>$/.test(content) && (special || /^(<.+>|\[.+\])$/s.test(content.trim()));

/**
 * The same pre-tokenizer, whose digits are all of Unicode's numbers, as they are in the library that trained it:
 * @huggingface/tokenizers 0.2.0 tells 0 to 9 apart alone, and "½" gets another token.
 */
function numbersApart(step) {
  if (step?.type === 'Sequence') return { ...step, pretokenizers: step.pretokenizers.map(numbersApart) };
  if (step?.type !== 'Digits') return step;
  const Regex = step.individual_digits ? '\\p{N}' : '\\p{N}+';
  return { type: 'Split', pattern: { Regex }, behavior: 'Isolated', invert: false };
}

/** Words with their ids, or, of Unigram, pieces with their scores. */
function renamedVocabulary(vocabulary, named) {
  if (Array.isArray(vocabulary)) return vocabulary.map(([word, score]) => [named(word), score]);
  return Object.fromEntries(Object.entries(vocabulary).map(([word, id]) => [named(word), id]));
}

/** The longest of these texts, wherever one of them stands. */
function anyOf(texts) {
  const longest = [...texts].sort((a, b) => b.length - a.length);
  return new RegExp(longest.map((text) => text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')).join('|') || '(?!)', 'g');
}

/** The text of tokens that come one by one, in pieces as soon as they are sure (qia3/runtime/generate.py). */
export class Pieces {
  /** @param {Tokens} tokens */
  constructor(tokens) {
    this.tokens = tokens;
    /** @type {number[]} */
    this.window = [];
    this.shown = 0; // how many tokens of the window are in pieces that were given
  }

  /** What is sure by now and was not given yet. @param {number} token */
  add(token) {
    this.window.push(token);
    const piece = this.rest();
    if (!piece || piece.endsWith(UNFINISHED)) return '';
    [this.window, this.shown] = [this.window.slice(this.shown), this.window.length - this.shown];
    return piece;
  }

  /** What the tokens that were not given add to the text, finished or not. */
  rest() {
    const before = this.tokens.decode(this.window.slice(0, this.shown));
    return this.tokens.decode(this.window).slice(before.length);
  }
}
