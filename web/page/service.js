// Keeps the page, so that it opens without a network, and sends the headers that isolate it, which threads ask for,
// where its host does not. The weights are kept by qia3.mjs.
//
// `qia3 page` writes in here what there is, of which `shell` is fetched at once and the rest when it is asked for. A
// page that is published again has another service, which fetches everything anew and takes over once no window shows
// the old one.

const { version, files, shell } = { version: '', files: [], shell: [] };
const BEGINS = `qia3-page ${self.registration.scope} `;
const NAME = BEGINS + version;

self.addEventListener('install', (event) => {
  const fresh = shell.map((path) => new Request(path, { cache: 'reload' }));
  event.waitUntil(caches.open(NAME).then((cache) => cache.addAll(fresh)));
});

self.addEventListener('activate', (event) => event.waitUntil(taken()));

/** Drops earlier versions, and answers for the windows that are open. */
async function taken() {
  const old = (await caches.keys()).filter((name) => name.startsWith(BEGINS) && name !== NAME);
  await Promise.all(old.map((name) => caches.delete(name)));
  await self.clients.claim();
}

self.addEventListener('fetch', (event) => {
  const url = new URL(event.request.url);
  const weights = url.searchParams.has('sha256');
  const inside = event.request.method === 'GET' && url.href.startsWith(self.registration.scope) && !weights;
  const path = url.href.slice(self.registration.scope.length).split(/[?#]/)[0] || 'index.html';
  if (inside && files.includes(path)) event.respondWith(answered(path));
});

async function answered(path) {
  const cache = await caches.open(NAME);
  let found = await cache.match(path);
  if (!found) {
    found = await fetch(path, { cache: 'no-cache' });
    // a full disk costs the next visit, not this one
    if (found.ok) await cache.put(path, found.clone()).catch(() => {});
  }
  const headers = new Headers(found.headers);
  headers.set('Cross-Origin-Opener-Policy', 'same-origin');
  headers.set('Cross-Origin-Embedder-Policy', 'require-corp');
  return new Response(found.body, { status: found.status, statusText: found.statusText, headers });
}
