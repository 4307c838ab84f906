// Opens HTML files in headless Chromium, as a person would: at three widths, light and dark, and on paper.
//
//   node look.mjs CHROMIUM NODE_MODULES PICTURES FILE...
//
// Prints one JSON object a file: what the console said, what was asked of the network, how far the page is wider than the
// window, labels of charts that stick out, and what axe-core finds. Pictures go to PICTURES (NAME-WIDTH-SCHEME.png); if that
// is empty, none are made.

import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [chromium, modules, pictures, ...files] = process.argv.slice(2);
const require = createRequire(path.join(modules, "x.js"));
const playwright = require("playwright-core");
const axe = require("axe-core").source;
const WIDTHS = [360, 800, 1400];

// how many pixels a chart's words stick out of their section
const outside = () => [...document.querySelectorAll("figure svg text")]
  .filter((text) => text.getClientRects().length)
  .map((text) => [text.textContent, text.getBoundingClientRect(), text.closest("section").getBoundingClientRect()])
  .filter(([, box, room]) => box.left < room.left - 1 || box.right > room.right + 1)
  .map(([words]) => words);

async function look(browser, file, width, scheme, found) {
  const context = await browser.newContext({ viewport: { width, height: 900 }, colorScheme: scheme, deviceScaleFactor: width < 500 ? 2 : 1 });
  const page = await context.newPage();
  const at = `${width} ${scheme}`;
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && found.console.push(`${at}: ${message.text()}`));
  page.on("pageerror", (error) => found.console.push(`${at}: ${error}`));
  page.on("request", (request) => /^(file|data):/.test(request.url()) || found.network.push(request.url()));
  await page.goto(pathToFileURL(file).href);
  const wider = await page.evaluate(() => document.documentElement.scrollWidth - window.innerWidth);
  if (wider > 0) found.wider.push(`${at}: ${wider} pixels`);
  found.outside.push(...(await page.evaluate(outside)).map((words) => `${at}: ${words}`));
  const name = path.join(pictures, `${path.basename(file, ".html")}-${width}-${scheme}.png`);
  if (pictures) await page.screenshot({ path: name, fullPage: true });
  if (width !== 800) {
    const { violations } = await page.evaluate(`(() => { const module = undefined; ${axe}; return window.axe.run(); })()`);
    found.axe.push(...violations.map((v) => `${at}: ${v.id}: ${v.nodes.map((n) => n.target.join(" ")).slice(0, 3).join("; ")}`));
  }
  if (pictures && width === 800 && scheme === "light") await page.pdf({ path: name.replace(/\.png$/, ".pdf"), format: "A4" });
  await context.close();
}

const browser = await playwright.chromium.launch({ executablePath: chromium, args: ["--no-sandbox"] });
for (const file of files) {
  const found = { file: path.basename(file), console: [], network: [], wider: [], outside: [], axe: [] };
  for (const width of WIDTHS) for (const scheme of ["light", "dark"]) await look(browser, path.resolve(file), width, scheme, found);
  console.log(JSON.stringify(found));
}
await browser.close();
