// Open WebUI in a headless browser: pick a model, chat, see tokens stream.
// node open_webui.mjs URL MODEL PICTURE.png, in a folder with playwright-core; Chromium at $CHROMIUM.
import { createRequire } from 'node:module';

const require = createRequire(process.cwd() + '/');
const { chromium } = require('playwright-core');
const [url, model, picture] = process.argv.slice(2);

const quiet = ['--no-sandbox', '--disable-gpu', '--disable-background-networking', '--disable-sync', '--no-first-run'];
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: quiet });
try {
  const page = await browser.newPage({ viewport: { width: 1280, height: 800 } });
  await page.goto(`${url}/?models=${encodeURIComponent(model)}`, { waitUntil: 'domcontentloaded' });
  for (const name of [/okay, let's go/i, /get started/i]) {
    const button = page.getByRole('button', { name });
    if (await button.isVisible({ timeout: 5000 }).catch(() => false)) await button.click();
  }
  const input = page.locator('#chat-input');
  await input.waitFor({ timeout: 60000 });
  const close = page.getByRole('button', { name: /let's go/i });
  if (await close.isVisible({ timeout: 3000 }).catch(() => false)) await close.click();
  await input.click();
  await page.keyboard.type('Tell me a story about the sea.');
  await page.keyboard.press('Enter');
  const answer = page.locator('.chat-assistant').last();
  await answer.waitFor({ timeout: 60000 });
  const lengths = new Set();
  const end = Date.now() + 240000; // its twenty tools are thousands of tokens to read
  while (lengths.size < 5 && Date.now() < end) {
    lengths.add((await answer.innerText()).length);
    await page.waitForTimeout(50);
  }
  await page.screenshot({ path: picture });
  if (lengths.size < 5) throw new Error(`the answer did not grow: ${[...lengths]}`);
  console.log(`the answer was seen at ${lengths.size} lengths: ${[...lengths].join(', ')}`);
} finally {
  await browser.close();
}
