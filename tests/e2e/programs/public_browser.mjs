// Visit a page under a public name in a real browser: public_browser.mjs URL PROFILE CHROMIUM SCENARIO EDGE.
// All names and ports of the public domain lead to the edge. It says "shows TEXT" whenever the text of the page is
// another one, "heard on PATH" when a WebSocket has brought something, what the page says on its console, and
// "reloaded" when the page is loaded again. What it does besides watching, the scenario says.

import { createRequire } from 'node:module'

const { chromium } = createRequire(`${process.env.NODE_LIBRARIES}/`)('playwright-core')
const [url, profile, executablePath, scenario, edge] = process.argv.slice(2)

const scenarios = {
  watch: async () => {},
  login: async (page) => {
    await page.fill('input[name=username]', 'ada')
    await page.fill('input[name=password]', 'correct horse')
    await page.click('button')
  },
  act: async (page) => {
    // Once the page has come to life: before, the browser sends the form by itself, which counts as well.
    await page.fill('input[name=word]', 'sesame')
    await page.click('button')
  },
  kernel: async (page) => {
    const result = await page.evaluate(runKernel)
    console.log('result', result)
  },
}

// What a notebook's page does: start a kernel, and talk to it on a WebSocket.
async function runKernel() {
  const xsrf = document.cookie.match(/_xsrf=([^;]*)/)?.[1] ?? ''
  const headers = { 'content-type': 'application/json', 'x-xsrftoken': decodeURIComponent(xsrf) }
  const started = await fetch('/api/kernels', { method: 'POST', headers, body: '{}' })
  if (!started.ok) return `no kernel: ${started.status} ${await started.text()}`
  const { id } = await started.json()
  const socket = new WebSocket(`${location.origin.replace('http', 'ws')}/api/kernels/${id}/channels`)
  const header = { msg_id: 'one', msg_type: 'execute_request', session: 's', username: '', version: '5.3' }
  const content = { code: '6 * 7', silent: false, store_history: true, allow_stdin: false }
  return new Promise((resolve) => {
    socket.onerror = () => resolve('no websocket')
    socket.onopen = () =>
      socket.send(JSON.stringify({ header, parent_header: {}, metadata: {}, content, channel: 'shell', buffers: [] }))
    socket.onmessage = ({ data }) => {
      const message = JSON.parse(data)
      if (message.msg_type === 'execute_result') resolve(message.content.data['text/plain'])
    }
  })
}

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
    `--host-resolver-rules=MAP *.tunnel.test ${edge}, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1`,
  ],
})
const page = await browser.newPage()
let loads = 0
page.on('load', () => {
  if (++loads > 1) console.log('reloaded')
})
page.on('pageerror', (error) => console.log('error in the page:', error.message))
page.on('requestfailed', (request) => console.log('failed:', request.url(), request.failure()?.errorText))
page.on('websocket', (socket) =>
  socket.once('framereceived', () => console.log('heard on', new URL(socket.url()).pathname)),
)
page.on('console', (message) => console.log(message.text()))
// Some compile the page when it is asked for.
page.setDefaultTimeout(100_000)
await page.goto(url, { waitUntil: 'domcontentloaded' })
let shown
const show = async () => {
  // It fails while the page is being loaded again.
  const text = await page.evaluate(() => document.body?.innerText).catch(() => shown)
  if (text !== shown) console.log('shows', (shown = text)?.replace(/\s+/g, ' '))
}
await show()
await scenarios[scenario](page)
// Until SIGTERM, which closes the browser too.
while (!page.isClosed()) {
  await show()
  await new Promise((resolve) => setTimeout(resolve, 100))
}
