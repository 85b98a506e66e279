// Serve a Next project for development: next_server.mjs DIRECTORY. It says "listening PORT".

import { spawn } from 'node:child_process'
import { symlinkSync } from 'node:fs'
import { join } from 'node:path'

const libraries = process.env.NODE_LIBRARIES
const [root] = process.argv.slice(2)

// A project has its libraries beside it.
symlinkSync(libraries, join(root, 'node_modules'))
const server = spawn(process.execPath, [join(libraries, 'next/dist/bin/next'), 'dev', root, '-H', '127.0.0.1', '-p', '0'], {
  env: { ...process.env, NEXT_TELEMETRY_DISABLED: '1' },
  stdio: ['ignore', 'pipe', 'inherit'],
})
// It says its address, and later whatever it compiles.
server.stdout.on('data', (text) => {
  const port = /127\.0\.0\.1:(\d+)/.exec(text)?.[1]
  console.log(port ? `listening ${port}` : String(text).trim())
})
for (const signal of ['SIGTERM', 'SIGINT', 'exit']) process.on(signal, () => server.kill())
server.on('exit', (code) => process.exit(code ?? 1))
