// Say back each request, over TLS: tls_server.mjs CERTIFICATE KEY. It says "listening PORT".

import { readFileSync } from 'node:fs'
import { createSecureServer } from 'node:http2'
import { answer } from './answer.mjs'

const [cert, key] = process.argv.slice(2).map((path) => readFileSync(path))
const server = createSecureServer({ cert, key, allowHTTP1: true }, answer)
server.listen(0, '127.0.0.1', () => console.log('listening', server.address().port))
