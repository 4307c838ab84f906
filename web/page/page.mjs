/**
 * The page over a bundle: every task answers the same text, side by side; with a tick, the base alone, too.
 *
 * In the address: ?device=wasm or webgpu, ?threads=2.
 */

import { openInWorker } from './qia3/qia3.mjs';

const BEST = 3; // answers that are shown of a classification
const PATIENCE = 4000; // milliseconds for the service to take over; without it the page works, and only with a network

const at = (id) => /** @type {any} */ (document.getElementById(id));
const asked = new URLSearchParams(location.search);
const isolated = globalThis.crossOriginIsolated;
const threads = asked.has('threads')
  ? Number(asked.get('threads'))
  : isolated
    ? Math.min(navigator.hardwareConcurrency, 4)
    : 1;
const MB = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;

/** @type {import('../remote.mjs').Remote} */
let model;
/** @type {AbortController | undefined} */
let running;

/** The service that keeps the page, so that what is loaded from here on can be kept as well. */
async function serviced() {
  if (!navigator.serviceWorker) return false;
  try {
    await navigator.serviceWorker.register('./service.js');
    const taken = new Promise((resolve) =>
      navigator.serviceWorker.addEventListener('controllerchange', () => resolve(true)),
    );
    const late = new Promise((resolve) => setTimeout(() => resolve(false), PATIENCE));
    return Boolean(navigator.serviceWorker.controller) || (await Promise.race([taken, late]));
  } catch {
    return false; // a private window, or an address that is not secure
  }
}

async function load() {
  const offline = await serviced();
  const start = performance.now();
  let bytes = 0;
  const progress = ({ loaded, total }) => {
    at('bar').value = loaded / total;
    at('doing').textContent = `Loading ${MB(loaded)} of ${MB(total)}`;
    bytes = total;
  };
  const device = asked.get('device') ?? 'auto';
  model = await openInWorker('./bundle/', {
    runtime: './runtime/',
    progress,
    device: /** @type {any} */ (device),
    threads,
  });
  at('name').textContent = document.title = model.name;
  const cards = cardsOf(model);
  for (const card of cards) at('answers').append(drawn(card));
  at('doing').textContent = 'Getting ready';
  at('bar').removeAttribute('value');
  for (const { name } of cards) await model.prepare(name);
  at('loading').hidden = true;
  at('ask').disabled = false;
  at('compare').hidden =
    !model.adapters.length || model.manifest.mode === 'merged' || Boolean(model.manifest.architecture.pooling);
  const place = model.device === 'webgpu' ? 'WebGPU' : `WebAssembly, ${threads} thread${threads > 1 ? 's' : ''}`;
  const seconds = ((performance.now() - start) / 1000).toFixed(1);
  const kept = offline
    ? 'Kept in this browser: it opens without a network from now on.'
    : 'Not kept in this browser: it needs the network again.';
  at('facts').textContent =
    `${model.manifest.base.reference}, ${MB(bytes)}, ready in ${seconds} s on ${place}. ${kept}`;
}

/** What answers: each adapter that can, and where there is none, the base. */
function cardsOf({ adapters, tasks }) {
  const known = adapters.filter(
    (name) =>
      ['classify', 'generate', 'embed', 'token-classification'].includes(tasks[name]?.kind) &&
      (tasks[name].kind !== 'classify' || tasks[name].choices),
  );
  return known.length
    ? known.map((name) => ({ name, task: tasks[name] }))
    : [{ name: 'none', task: { kind: 'generate', prompt: '{text}' } }];
}

function drawn({ name, task }) {
  const card = at('card').content.cloneNode(true).firstElementChild;
  card.dataset.name = name;
  card.querySelector('h2').textContent = name === 'none' ? 'The base' : name;
  const gives = {
    classify: `one of ${task.choices?.length} answers`,
    'token-classification': `each word one of ${task.choices?.length} labels`,
    embed: 'an embedding',
    generate: 'a text',
  };
  card.querySelector('.question').textContent = `Gives ${gives[task.kind]}.`;
  return card;
}

/** A place for an answer in a card. */
function side(card, title) {
  const made = at('side').content.cloneNode(true).firstElementChild;
  made.querySelector('h3').textContent = title;
  card.querySelector('.sides').append(made);
  return made;
}

async function ask(card, place, text, adapter) {
  const { name } = card.dataset;
  const kind = model.tasks[name]?.kind ?? 'generate';
  const [said, times] = [place.querySelector('.said'), place.querySelector('.times')];
  const start = performance.now();
  const since = () => Math.round(performance.now() - start);
  times.textContent = 'working';
  try {
    const more = name === 'none' ? {} : { task: name };
    if (kind === 'classify') {
      const scores = await model.scores(text, adapter, more);
      ranked(place, scores);
      times.textContent = `${since()} ms`;
    } else if (kind === 'token-classification') {
      const found = await model.tags(text, adapter);
      said.textContent = found.map(([word, label]) => (label === 'O' ? word : `${word} [${label}]`)).join(' ');
      times.textContent = `${since()} ms`;
    } else if (kind === 'embed') {
      const vector = await model.embed(text, adapter);
      const first = [...vector.slice(0, 4)].map((x) => x.toFixed(3)).join(', ');
      said.textContent = `${vector.length} numbers: ${first}, ...`;
      times.textContent = `${since()} ms`;
    } else {
      let [first, pieces] = [0, 0];
      for await (const piece of model.generate(text, adapter, { ...more, signal: running?.signal })) {
        first ||= since();
        said.textContent += piece;
        pieces += 1;
        const each = pieces > 1 ? `, then ${Math.round((since() - first) / (pieces - 1))} ms a piece` : '';
        times.textContent = `first word after ${first} ms${each}`;
      }
      if (!pieces) said.textContent = '(nothing)';
    }
  } catch (error) {
    said.textContent = error.message;
    said.classList.add('fault');
    times.textContent = '';
  }
}

/** A classification's likeliest answers. */
function ranked(place, scores) {
  const best = Object.entries(scores).sort(([, a], [, b]) => b - a);
  place.querySelector('.said').textContent = best[0][0];
  const table = place.querySelector('table');
  table.hidden = false;
  table.tBodies[0].replaceChildren(
    ...best.slice(0, BEST).map(([choice, share]) => {
      const row = document.createElement('tr');
      const [head, cell, number] = [
        document.createElement('th'),
        document.createElement('td'),
        document.createElement('td'),
      ];
      const meter = Object.assign(document.createElement('meter'), { value: share, ariaLabel: choice });
      head.scope = 'row';
      head.textContent = choice;
      cell.append(meter);
      number.textContent = `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
      row.append(head, cell, number);
      return row;
    }),
  );
}

at('form').addEventListener('submit', async (event) => {
  event.preventDefault();
  running = new AbortController();
  at('ask').disabled = true;
  at('stop').disabled = false;
  const text = at('text').value;
  const cards = [...document.querySelectorAll('article')];
  for (const card of cards) card.querySelector('.sides').replaceChildren();
  for (const card of cards) {
    if (running.signal.aborted) break;
    const { name } = card.dataset;
    await ask(card, side(card, name === 'none' ? 'says' : 'taught'), text, name);
    if (at('base').checked && name !== 'none' && !running.signal.aborted)
      await ask(card, side(card, 'the base'), text, 'none');
  }
  at('ask').disabled = false;
  at('stop').disabled = true;
  document.body.dataset.asked = String(Number(document.body.dataset.asked ?? 0) + 1);
});
at('stop').addEventListener('click', () => running?.abort());

load().catch((error) => {
  at('doing').textContent = error.message;
  at('doing').classList.add('fault');
  at('bar').hidden = true;
});
