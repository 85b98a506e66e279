// Serve a webpack project for development: webpack_server.mjs DIRECTORY. It says "listening PORT".

import { createRequire } from 'node:module'

const require = createRequire(`${process.env.NODE_LIBRARIES}/`)
const webpack = require('webpack')
const DevServer = require('webpack-dev-server')
const [root] = process.argv.slice(2)

const compiler = webpack({
  mode: 'development',
  context: root,
  entry: './main.js',
  output: { path: `${root}/dist`, filename: 'main.js' },
  infrastructureLogging: { level: 'warn' },
  stats: 'errors-only',
  resolveLoader: { modules: [process.env.NODE_LIBRARIES] },
  resolve: { modules: [process.env.NODE_LIBRARIES] },
})
const server = new DevServer(
  {
    host: '127.0.0.1',
    port: 0,
    static: root,
    hot: false,
    // As its manual says for every proxy: the page would dial the port of this server otherwise.
    client: { webSocketURL: 'auto://0.0.0.0:0/ws' },
  },
  compiler,
)
await server.start()
console.log('listening', server.server.address().port)
