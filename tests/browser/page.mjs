// Opens the server's page in Chromium, asks one thing of every model, and prints what was shown, as JSON.
//   node page.mjs CHROMIUM NODE_MODULES URL SCREENSHOT
import { createRequire } from "node:module";
const [executablePath, place, url, shot] = process.argv.slice(2);
const { chromium } = createRequire(place + "/")("playwright-core");
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"] });
const page = await browser.newPage({ viewport: { width: 900, height: 700 } });
const complaints = [], elsewhere = [];
page.on("console", message => message.type() === "error" && complaints.push(message.text()));
page.on("pageerror", error => complaints.push(String(error)));
page.on("request", request => request.url().startsWith(url) || elsewhere.push(request.url()));
await page.goto(url);
await page.waitForSelector("fieldset input");
await page.fill("#text", "hello there");
await page.click("button");
await page.waitForFunction(() => { const all = [...document.querySelectorAll("article footer")]; return all.length > 1 && all.every(f => f.textContent.includes("tokens in")); });
const shown = await page.$$eval("article", all => all.map(a => [a.querySelector("h2").textContent, a.querySelector("p").textContent]));
await page.screenshot({ path: shot });
console.log(JSON.stringify({ shown, complaints, elsewhere }));
await browser.close();
