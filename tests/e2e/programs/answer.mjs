// Answer a request with what it was.

export function answer(request, response) {
  let body = ''
  request.setEncoding('utf8')
  request.on('data', (text) => (body += text))
  request.on('end', () => {
    response.setHeader('x-version', request.httpVersion)
    response.end(`${request.method} ${request.url}: ${body}`)
  })
}
