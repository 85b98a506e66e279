// Serve a Next project for development: next_server.mjs DIRECTORY. It says "listening PORT".

import { symlinkSync } from 'node:fs'
import { createServer } from 'node:http'
import { createRequire } from 'node:module'
import { join } from 'node:path'

process.env.NEXT_TELEMETRY_DISABLED = '1'
const libraries = process.env.NODE_LIBRARIES
const [dir] = process.argv.slice(2)

// A project has its libraries beside it.
symlinkSync(libraries, join(dir, 'node_modules'))
const next = createRequire(`${libraries}/`)('next')
const httpServer = createServer()
await new Promise((listening) => httpServer.listen(0, '127.0.0.1', listening))
const { port } = httpServer.address()
const app = next({ dev: true, dir, hostname: '127.0.0.1', port, httpServer })
await app.prepare()
httpServer.on('request', app.getRequestHandler())
console.log('listening', port)
