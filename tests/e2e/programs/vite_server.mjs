// Serve a Vite project for development: vite_server.mjs DIRECTORY. It says "listening PORT".

import { join } from 'node:path'

const { createServer } = await import(join(process.env.NODE_LIBRARIES, 'vite/dist/node/index.js'))
const [root] = process.argv.slice(2)

const server = await createServer({
  root,
  configFile: false,
  envFile: false,
  cacheDir: join(root, '.vite'),
  clearScreen: false,
  server: { host: '127.0.0.1', port: 0 },
})
await server.listen()
console.log('listening', server.httpServer.address().port)
