// Visits a bundle's page in headless Chromium, asks every text, and visits it again without a network; then, where AGAIN in
// the environment is a command that publishes another page in its place, twice more.
//
//   node visit.mjs CHROMIUM NODE_MODULES URL PICTURES QUERY TEXT...
//
// Prints JSON: {"first": visit, "offline": visit, "again": visit}; of a visit {"answers": [[[card, side, said, shares], ...], ...], "facts",
// "isolated", "console", "elsewhere": requests to other places, "fetched": paths that the network was asked for, "wider":
// pixels beyond the window, "axe", "loaded_ms", "asked_ms"}. Pictures go to PICTURES, page-WIDTH-SCHEME.png.

import { spawnSync } from "node:child_process";
import { createRequire } from "node:module";
import path from "node:path";

const [chromium, modules, url, pictures, query, ...texts] = process.argv.slice(2);
const require = createRequire(path.join(modules, "x.js"));
const axe = require("axe-core").source;
const browser = await require("playwright-core").chromium.launch({ executablePath: chromium, args: ["--no-sandbox"] });
const context = await browser.newContext({ viewport: { width: 1100, height: 800 } });

const shown = () => [...document.querySelectorAll("article")].flatMap((card) => [...card.querySelectorAll(".side")].map((side) => [
  card.querySelector("h2").textContent, side.querySelector("h3").textContent, side.querySelector(".said").textContent,
  Object.fromEntries([...side.querySelectorAll("tr")].map((row) => [row.cells[0].textContent, row.querySelector("meter").value])),
]));

async function pictured(page, found) {
  for (const [width, height, colorScheme] of [[360, 740, "light"], [360, 740, "dark"], [1280, 800, "light"], [1280, 800, "dark"]]) {
    await page.setViewportSize({ width, height });
    await page.emulateMedia({ colorScheme });
    found.wider.push(await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth));
    await page.screenshot({ path: path.join(pictures, `page-${width}-${colorScheme}.png`), fullPage: true });
    const { violations } = await page.evaluate(`(() => { const module = undefined; ${axe}; return window.axe.run(); })()`);
    found.axe.push(...violations.map((v) => `${width} ${colorScheme}: ${v.id}: ${v.nodes.map((n) => n.target.join(" ")).slice(0, 3).join("; ")}`));
  }
}

async function visit(looks) {
  const found = { answers: [], console: [], elsewhere: [], fetched: [], wider: [], axe: [] };
  const page = await context.newPage();
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && found.console.push(message.text()));
  page.on("pageerror", (error) => found.console.push(String(error)));
  const asked = (request) => request.url().startsWith(url) || /^(data|blob):/.test(request.url()) || found.elsewhere.push(request.url());
  const answered = (answer) => answer.fromServiceWorker() || found.fetched.push(answer.url().slice(url.length));
  context.on("request", asked).on("response", answered);
  const start = performance.now();
  await page.goto(url + query);
  await page.waitForSelector("#ask:enabled, .fault", { timeout: 300000 });
  found.loaded_ms = Math.round(performance.now() - start);
  found.facts = await page.textContent("#facts");
  found.fault = await page.evaluate(() => document.querySelector("#doing.fault")?.textContent ?? null);
  found.isolated = await page.evaluate("crossOriginIsolated");
  if (looks && (await page.isVisible("#base"))) await page.check("#base");
  found.asked_ms = [];
  for (const [i, text] of found.fault ? [] : texts.entries()) {
    await page.fill("#text", text);
    const begun = performance.now();
    await page.click("#ask");
    await page.waitForFunction((count) => document.body.dataset.asked === count, String(i + 1), { timeout: 300000 });
    found.asked_ms.push(Math.round(performance.now() - begun));
    found.answers.push(await page.evaluate(shown));
  }
  if (looks) await pictured(page, found);
  await page.close();
  context.off("request", asked).off("response", answered);
  return found;
}

try {
  const first = await visit(true);
  await context.setOffline(true);
  const offline = await visit(false);
  let again = null;
  if (process.env.AGAIN) {
    await context.setOffline(false);
    if (spawnSync("sh", ["-c", process.env.AGAIN], { stdio: "inherit" }).status) throw new Error("not published again");
    const page = await context.newPage();
    await page.goto(url + query); // the page that was kept; the new service is fetched behind it
    await page.evaluate(`navigator.serviceWorker.ready.then((kept) => kept.update().then(() => new Promise((done) => {
      const look = () => (kept.waiting ? done() : setTimeout(look, 50));
      look();
    })))`);
    await page.close();
    again = await visit(false);
  }
  console.log(JSON.stringify({ first, offline, again }));
} finally {
  await browser.close();
}
