// The page for people in a headless Chromium: what it shows, what its buttons do, that it streams.
//
//     node page.mjs ENDPOINT ADMIN_KEY USER_KEY PICTURES
//
// CHROMIUM names the browser. With PAGE_FILE, that file is looked at in place of the page that was built in.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const [endpoint, admin, user, pictures] = process.argv.slice(2);
const require = createRequire(join(process.cwd(), "package.json"));
const { chromium } = require("playwright-core");

const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ["--no-sandbox", "--disable-gpu"] });
const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, colorScheme: "light" });
const page = await context.newPage();
const complaints = [], strangers = [];
page.on("pageerror", error => complaints.push(String(error)));
page.on("console", message => { if (message.type() === "error" && !/status of (40[13]|500)/.test(message.text())) complaints.push(message.text()); });
page.on("request", request => { if (!request.url().startsWith(endpoint)) strangers.push(request.url()); });
if (process.env.PAGE_FILE) {
  const headers = (await fetch(endpoint + "/")).headers;
  await page.route(endpoint + "/", route => route.fulfill({ contentType: "text/html; charset=utf-8", body: readFileSync(process.env.PAGE_FILE, "utf8"), headers: { "content-security-policy": headers.get("content-security-policy") } }));
}

let failed = 0;
async function check(name, test) {
  try { await test(); console.log("  ok", name); } catch (error) {
    failed++;
    console.log("  FAILED", name + ":", error?.message ?? error);
    await page.screenshot({ path: join(pictures, "failed.png"), fullPage: true });
  }
}
const row = model => page.locator("#models tr", { has: page.locator("td:first-child", { hasText: model }) });
const shows = (locator, text) => locator.filter({ hasText: text }).first().waitFor({ timeout: 60_000 });

await check("without a key it says what is needed", async () => {
  await page.goto(endpoint + "/");
  await shows(page.locator("#head"), /key/);
});
await check("with a key it shows nodes, devices, models", async () => {
  await page.fill("#key", admin);
  await shows(page.locator("#nodes section"), "workshop");
  await shows(page.locator("#nodes section", { hasText: "gone" }), /down|unknown|suspect/);
  await shows(row("echo"), /loadable/);
  await shows(row("claude-scripted"), "ready");
});
await check("load, pin, unpin, unload, and what was done is listed", async () => {
  await row("echo").getByRole("button", { name: "load", exact: true }).click();
  await shows(row("echo"), "ready");
  await row("tiny-llama").getByRole("button", { name: "load", exact: true }).click();
  await shows(row("tiny-llama"), "ready");
  await page.locator("#nodes .bar i[title^='tiny-llama']").first().waitFor({ state: "attached", timeout: 60_000 });
  await row("echo").getByRole("button", { name: "pin", exact: true }).click();
  await shows(row("echo"), "pinned");
  await row("echo").getByRole("button", { name: "unpin", exact: true }).click();
  await row("echo").getByRole("button", { name: "pin", exact: true }).waitFor();
  await row("tiny-llama").getByRole("button", { name: "unload", exact: true }).click();
  await shows(page.locator("#changes tr"), /unload tiny-llama/);
  await shows(row("tiny-llama"), /loadable/);
});
await check("the chat box streams", async () => {
  await page.selectOption("#model", "claude-scripted");
  await page.evaluate(() => {
    window.seen = [];
    new MutationObserver(() => window.seen.push(document.getElementById("talk").textContent.length)).observe(document.getElementById("talk"), { childList: true, characterData: true, subtree: true });
  });
  await page.fill("#text", "think about it");
  await page.press("#text", "Enter");
  await shows(page.locator("#talk"), "this was scripted.");
  const seen = await page.evaluate(() => window.seen);
  assert.ok(new Set(seen).size > 3, "it did not come in pieces: " + seen);
  await page.fill("#text", "fail 500");
  await page.press("#text", "Enter");
  await shows(page.locator("#talk .bad"), "scripted failure");
  assert.ok(await page.locator("#stop").isHidden());
});
await check("requests draw the sparklines", async () => {
  for (let n = 0; n < 8; n++) {
    const asked = { model: n % 2 ? "echo" : "claude-scripted", messages: [{ role: "user", content: "hi " + n }], max_tokens: 64 };
    await fetch(endpoint + "/v1/chat/completions", { method: "POST", headers: { authorization: "Bearer " + admin, "content-type": "application/json" }, body: JSON.stringify(asked) });
    await new Promise(done => setTimeout(done, 300));
  }
  await page.waitForFunction(() => (document.querySelector("#rates polyline")?.getAttribute("points") || "").split(" ").length > 3);
});
await check("it looks right in light, dark and on a telephone", async () => {
  await page.screenshot({ path: join(pictures, "light.png"), fullPage: true });
  await page.emulateMedia({ colorScheme: "dark" });
  await page.screenshot({ path: join(pictures, "dark.png"), fullPage: true });
  await page.setViewportSize({ width: 400, height: 800 });
  const wide = await page.evaluate(() => document.documentElement.scrollWidth);
  await page.screenshot({ path: join(pictures, "narrow.png"), fullPage: true });
  assert.ok(wide <= 400, `it is ${wide} wide on a screen of 400`);
  await page.setViewportSize({ width: 1280, height: 900 });
});
await check("who is no administrator is told so", async () => {
  await page.fill("#key", user);
  await row("echo").getByRole("button", { name: "unload", exact: true }).click();
  await shows(page.locator("#notice"), /admin key/);
  await shows(row("echo"), "ready");
});
await check("nothing else was asked and nothing complained", async () => {
  assert.deepEqual(strangers, []);
  assert.deepEqual(complaints, []);
});
await browser.close();
console.log(failed ? `  ${failed} failed` : "  all passed");
process.exit(failed ? 1 : 0);
