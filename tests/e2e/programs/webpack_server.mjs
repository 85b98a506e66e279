// Serve a webpack project for development: webpack_server.mjs DIRECTORY. It says "listening PORT".

import { createServer } from 'node:net'
import { createRequire } from 'node:module'

const libraries = process.env.NODE_LIBRARIES
const require = createRequire(`${libraries}/`)
const webpack = require('webpack')
const DevServer = require('webpack-dev-server')
const [root] = process.argv.slice(2)

// Its first choice of a port, which is 8080 otherwise: tests run beside each other.
process.env.WEBPACK_DEV_SERVER_BASE_PORT = await new Promise((free) => {
  const server = createServer().listen(0, () => {
    const { port } = server.address()
    server.close(() => free(String(port)))
  })
})
const compiler = webpack({
  mode: 'development',
  context: root,
  entry: './main.js',
  output: { path: `${root}/dist`, filename: 'main.js' },
  infrastructureLogging: { level: 'warn' },
  stats: 'errors-only',
  resolve: { modules: [libraries] },
})
// Neither host nor port: that is the default, and the page then dials where it came from.
const server = new DevServer({ static: root }, compiler)
await server.start()
console.log('listening', server.server.address().port)
