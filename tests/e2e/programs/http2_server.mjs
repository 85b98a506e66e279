// Say back each request over HTTP/2, slowly: http2_server.mjs STREAMS [CERTIFICATE KEY]. So many streams are allowed on
// one connection. It says "listening PORT", and answers /connections with how many there have been.

import { readFileSync } from 'node:fs'
import { createSecureServer, createServer } from 'node:http2'

const [streams, certificate, key] = process.argv.slice(2)
const settings = { maxConcurrentStreams: Number(streams) }
let connections = 0
function answer(request, response) {
  if (request.url === '/connections') {
    response.end(String(connections))
    return
  }
  request.resume()
  setTimeout(() => response.end(`${request.scheme} ${request.url}`), 50)
}
const server = certificate
  ? createSecureServer({ settings, cert: readFileSync(certificate), key: readFileSync(key) }, answer)
  : createServer({ settings }, answer)
server.on('session', () => (connections += 1))
server.listen(0, '127.0.0.1', () => console.log('listening', server.address().port))
