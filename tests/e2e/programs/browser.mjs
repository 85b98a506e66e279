// Watch a page of a Vite project in a real browser: browser.mjs URL PROFILE CHROMIUM.
// It says what the page says on its console (such as "[vite] connected."), and "reloaded" should the
// page ever be loaded again.

import { createRequire } from 'node:module'

const { chromium } = createRequire(`${process.env.NODE_LIBRARIES}/`)('playwright-core')
const [url, profile, executablePath] = process.argv.slice(2)

const browser = await chromium.launchPersistentContext(profile, {
  executablePath,
  headless: true,
  // The edge's certificate is from a CA that is made for the test.
  ignoreHTTPSErrors: true,
  args: [
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    '--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE *.localhost',
  ],
})
const page = await browser.newPage()
let loads = 0
page.on('load', () => {
  if (++loads > 1) console.log('reloaded')
})
page.on('pageerror', (error) => console.log('error in the page:', error.message))
page.on('requestfailed', (request) => console.log('failed:', request.url(), request.failure()?.errorText))
page.on('console', (message) => console.log(message.text()))
await page.goto(url)
// Until SIGTERM, which closes the browser too.
await new Promise(() => {})
