// Say back each request, on a Unix socket: socket_server.mjs PATH. It says "listening".

import { createServer } from 'node:http'
import { answer } from './answer.mjs'

createServer(answer).listen(process.argv[2], () => console.log('listening'))
