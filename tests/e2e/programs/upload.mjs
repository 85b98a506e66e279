// Upload over HTTP/2 without an end, and say how it is answered, and how the stream ends.
// Arguments: the address, and the certificate authority.

import { readFileSync } from "node:fs";
import { connect } from "node:http2";

const [address, authority] = process.argv.slice(2);
// Not every resolver knows *.localhost.
const lookup = (host, options, found) =>
  options.all ? found(null, [{ address: "127.0.0.1", family: 4 }]) : found(null, "127.0.0.1", 4);
const session = connect(address, { ca: readFileSync(authority), lookup });
const request = session.request({ ":method": "POST", ":path": "/", "content-length": 5000000 });
let status;
request.on("response", (headers) => (status = headers[":status"]));
request.on("data", () => {});
request.on("error", (error) => console.log(error.message));
request.on("close", () => {
  console.log(status, "closed", request.rstCode);
  session.destroy();
});
request.write(Buffer.alloc(65536));
