// Counts requests by path, and the ticks of a timer.
const counts = new Map();
let ticks = 0;
setInterval(() => ticks++, 10);
const server = require("http").createServer((request, response) => {
  const n = (counts.get(request.url) || 0) + 1;
  counts.set(request.url, n);
  response.end(`${n} ${ticks}`);
});
server.keepAliveTimeout = 0;
server.requestTimeout = 0;
server.listen(8080);
